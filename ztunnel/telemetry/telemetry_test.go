package telemetry

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func fullLine() AccessLine {
	return AccessLine{
		Time:    time.Date(2026, 9, 3, 10, 11, 12, 345678000, time.UTC),
		SrcAddr: netip.MustParseAddrPort("10.1.0.7:51422"), SrcWorkload: "web-5c9f-abcde", SrcNamespace: "web",
		SrcIdentity: "spiffe://cluster.local/ns/web/sa/frontend", SrcCluster: "Kubernetes",
		DstAddr: netip.MustParseAddrPort("10.1.2.9:15008"), DstHBONEAddr: "10.1.2.9:9080", DstService: "cart.shop.svc.cluster.local",
		DstWorkload: "cart-77b-k2p4q", DstNamespace: "shop", DstIdentity: "spiffe://cluster.local/ns/shop/sa/cart", DstCluster: "Kubernetes",
		Direction: Outbound, Sent: 120, Received: 2048, Duration: 21*time.Millisecond + 900*time.Microsecond,
	}
}

func TestAccessLine(t *testing.T) {
	full := fullLine()
	failed := full
	failed.Err = &Refusal{Reason: PolicyDenied, Err: errors.New(`denied "here"`)}
	early := full
	early.Early, early.Err = true, &Refusal{Reason: WaypointUnavailable}
	opened := full
	opened.Opened = true
	hostname := full
	hostname.DstHBONEAddr = "cart.shop:80"
	sparse := AccessLine{Time: full.Time, SrcAddr: full.SrcAddr, DstAddr: full.DstAddr}
	const head, dst = "2026-09-03T10:11:12.345678Z\t", "dst.addr=10.1.2.9:15008 "
	const src = `src.addr=10.1.0.7:51422 src.workload="web-5c9f-abcde" src.namespace="web" src.identity="spiffe://cluster.local/ns/web/sa/frontend" src.cluster="Kubernetes" `
	const rest = `dst.service="cart.shop.svc.cluster.local" dst.workload="cart-77b-k2p4q" dst.namespace="shop" ` +
		`dst.identity="spiffe://cluster.local/ns/shop/sa/cart" dst.cluster="Kubernetes" direction="outbound" bytes_sent=120 bytes_recv=2048 duration="21ms"`
	for _, tc := range []struct {
		name   string
		line   AccessLine
		format Format
		want   string
	}{
		{"text", full, Text, head + "info\taccess\tconnection complete\t" + src + dst + "dst.hbone_addr=10.1.2.9:9080 " + rest},
		{"failed", failed, Text, head + "error\taccess\tconnection complete\t" + src + dst + "dst.hbone_addr=10.1.2.9:9080 " + rest + ` error="policy-denied: denied \"here\""`},
		{"early", early, Text, head + "warn\taccess\tconnection failed\tsrc.addr=10.1.0.7:51422 " + dst + `direction="outbound" error="waypoint-unavailable"`},
		{"opened", opened, Text, head + "debug\taccess\tconnection opened\t" + src + dst + "dst.hbone_addr=10.1.2.9:9080 " + strings.Split(rest, " bytes_sent")[0]},
		{"authority is a hostname", hostname, Text, head + "info\taccess\tconnection complete\t" + src + dst + `dst.hbone_addr="cart.shop:80" ` + rest},
		{"unknown fields are left out", sparse, Text, head + "info\taccess\tconnection complete\tsrc.addr=10.1.0.7:51422 " + dst + `direction="inbound" bytes_sent=0 bytes_recv=0 duration="0ms"`},
		{"json", full, JSON, `{"level":"info","time":"2026-09-03T10:11:12.345678Z","scope":"access","message":"connection complete","src.addr":"10.1.0.7:51422",` +
			`"src.workload":"web-5c9f-abcde","src.namespace":"web","src.identity":"spiffe://cluster.local/ns/web/sa/frontend","src.cluster":"Kubernetes",` +
			`"dst.addr":"10.1.2.9:15008","dst.hbone_addr":"10.1.2.9:9080","dst.service":"cart.shop.svc.cluster.local","dst.workload":"cart-77b-k2p4q",` +
			`"dst.namespace":"shop","dst.identity":"spiffe://cluster.local/ns/shop/sa/cart","dst.cluster":"Kubernetes","direction":"outbound",` +
			`"bytes_sent":120,"bytes_recv":2048,"duration":"21ms"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := string(tc.line.append(nil, tc.format)); got != tc.want+"\n" {
				t.Errorf("got  %q\nwant %q", got, tc.want+"\n")
			}
		})
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	levels, err := NewLevels("warn,xds=debug,hickory_server::server=off,nonsense")
	if err != nil {
		t.Fatal(err)
	}
	log := NewLogger(&out, Text, levels)
	log.Info("hidden")
	log.Warn("line\tone", KeyError, errors.New(`a "b"`), KeyCount, 3, "group", slog.GroupValue(slog.Bool("x", true)))
	log.With(KeyScope, "xds", KeyType, "t").Debug("shown", "d", 2*time.Second)
	lines := strings.Split(out.String(), "\n")
	for i, want := range []string{"\twarn\tambit\tline one\terror=\"a \\\"b\\\"\" count=3 group.x=true", "\tdebug\txds\tshown\ttype=\"t\" d=\"2s\"", ""} {
		if !strings.HasSuffix(lines[i], want) {
			t.Errorf("line %d: %q, want …%q", i, lines[i], want)
		}
	}
	out.Reset()
	NewLogger(&out, JSON, levels).Error("x", "n", 1.5)
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["n"] != 1.5 || got["level"] != "error" {
		t.Errorf("%s: %v", out.String(), err)
	}
}

func TestLevels(t *testing.T) {
	l, err := NewLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		add  string
		want string
		bad  bool
	}{{"debug", "debug", false}, {"xds=warn,proxy=off", "debug,proxy=off,xds=warn", false}, {"xds", "debug,proxy=off,xds=warn", true}, {"xds=loud", "debug,proxy=off,xds=warn", true}} {
		if err := l.Add(step.add, false); (err != nil) != step.bad || l.String() != step.want {
			t.Errorf("after %s: %s, %v; want %s", step.add, l, err, step.want)
		}
	}
	if l.Reset(); l.String() != "info" {
		t.Errorf("after reset: %s", l)
	}
}

func TestTrafficIsCountedWhileConnectionsAreOpen(t *testing.T) {
	m := NewMetrics("1.2.3")
	received, sent := uint64(10), uint64(20)
	l := Labels{Direction: Inbound, Source: Peer{Known: true, Workload: "web"}, Service: "s.example", MutualTLS: true}
	c := m.Traffic.Open(l, func() (uint64, uint64) { return received, sent })
	unknown := m.Traffic.Open(Labels{Direction: Outbound}, nil)
	want := func(value string, parts ...string) {
		t.Helper()
		for line := range strings.SplitSeq(scrape(m, ""), "\n") {
			found := strings.HasSuffix(line, " "+value)
			for _, p := range parts {
				found = found && strings.Contains(line, p)
			}
			if found {
				return
			}
		}
		t.Errorf("no sample %v with value %s in\n%s", parts, value, scrape(m, ""))
	}
	want("1.0", "istio_tcp_connections_opened_total{", `reporter="destination"`, `source_region="unknown"`, `destination_workload="unknown"`, `response_flags="-"`)
	want("10.0", "istio_tcp_received_bytes_total{", `connection_security_policy="mutual_tls"`)
	received = 15
	want("15.0", "istio_tcp_received_bytes_total{", `destination_service="s.example"`)
	c.Close(PolicyDenied)
	want("20.0", "istio_tcp_sent_bytes_total{", `response_flags="-"`)
	want("1.0", "istio_tcp_connections_closed_total{", `response_flags="DENY"`)
	want("1.0", "istio_tcp_connections_failed_total{", `response_flags="DENY"`)
	unknown.Close(OK)
	want("1.0", "istio_tcp_connections_closed_total{", `reporter="source"`, `response_flags="-"`)
	want("1.0", `istio_build{component="ztunnel",tag="1.2.3"}`)
	for line := range strings.SplitSeq(scrape(m, ""), "\n") {
		if strings.Contains(line, `reporter="source"`) && strings.Contains(line, "source_region") {
			t.Errorf("locality of two unknown ends: %s", line)
		}
	}
}

func scrape(m *Metrics, accept string) string {
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, r)
	return w.Header().Get("Content-Type") + "\n" + w.Body.String()
}

func TestSeriesAreBounded(t *testing.T) {
	traffic := NewTraffic()
	key := func(i int) seriesKey {
		return seriesKey{Labels{Direction: Inbound, Source: Peer{Workload: strconv.Itoa(i)}}, OK.Flag()}
	}
	for i := range maxSeries {
		traffic.series[key(i)] = &series{}
	}
	for i := range 100 {
		traffic.Open(key(maxSeries+i).Labels, nil).Close(OK)
	}
	if n := len(traffic.series); n > maxSeries+1 {
		t.Errorf("%d series, want at most %d and one for the rest", n, maxSeries)
	}
	rest := traffic.get(key(-1))
	if n := rest.opened.Load(); n != 100 {
		t.Errorf("%d connections beyond the limit are counted, want 100", n)
	}
}

func TestExposition(t *testing.T) {
	m := NewMetrics("")
	m.Observe(XDSStats{Terminations: func() map[string]uint64 { return map[string]uint64{"Reconnect": 2} }})
	m.Traffic.Open(Labels{}, nil)
	text := scrape(m, "")
	for _, want := range []string{
		"text/plain; charset=utf-8\n", "# EOF", "# TYPE istio_tcp_connections_opened counter", `istio_xds_connection_terminations_total{reason="Reconnect"} 2.0`,
		"# TYPE workload_manager_active_proxy_count gauge", "workload_manager_proxies_started_total 0.0", `istio_tcp_sockets_open{reporter="source"} 0.0`, "process_open_fds ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("exposition lacks %q", want)
		}
	}
	if got := scrape(m, "application/openmetrics-text; version=1.0.0"); !strings.HasPrefix(got, "application/openmetrics-text;charset=utf-8;version=1.0.0\n") {
		t.Errorf("content type: %.80s", got)
	}
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, "# HELP istio_tcp_connections_failed") && !strings.Contains(line, "unstable") {
			t.Errorf("not marked unstable: %s", line)
		}
	}
}

func TestReasonsAreComplete(t *testing.T) {
	if len(reasonTexts) != int(reasons) {
		t.Fatalf("%d texts for %d reasons", len(reasonTexts), reasons)
	}
	for r := OK + 1; r < reasons; r++ {
		if r.String() == "" || r.Flag() == "" || r.Flag() == "-" {
			t.Errorf("reason %d: %q, flag %q", r, r, r.Flag())
		}
	}
}

func TestFailuresAreCountedByReason(t *testing.T) {
	m := NewMetrics("")
	m.Failed(Inbound, PolicyMissing)
	m.Failed(Outbound, OK)
	text := scrape(m, "")
	for _, want := range []string{
		`ambit_tcp_connections_failed_total{reason="policy-missing",reporter="destination"} 1.0`,
		`ambit_tcp_connections_failed_total{reason="policy-missing",reporter="source"} 0.0`,
		`istio_crl_policy_rejections_total{reporter="source"} 0.0`, "tokio_num_workers ", "tokio_num_alive_tasks ", "tokio_global_queue_depth ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("exposition lacks %q", want)
		}
	}
}

func TestExpositionIsCompressed(t *testing.T) {
	m := NewMetrics("")
	for encoding, open := range map[string]func(io.Reader) (io.Reader, error){
		"gzip":    func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"deflate": func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) },
		"":        func(r io.Reader) (io.Reader, error) { return r, nil },
	} {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("Accept-Encoding", encoding)
		if encoding == "" {
			r.Header.Set("Accept-Encoding", "deflate;q=0, br")
		}
		w := httptest.NewRecorder()
		m.Handler().ServeHTTP(w, r)
		if got := w.Header().Get("Content-Encoding"); got != encoding {
			t.Errorf("encoding %q, want %q", got, encoding)
		}
		body, err := open(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(body)
		if err != nil || !strings.HasSuffix(string(text), "# EOF\n") {
			t.Errorf("%q: %d bytes, %v", encoding, len(text), err)
		}
	}
}

func TestRefusalsAreRemembered(t *testing.T) {
	var r Refusals
	l := fullLine()
	r.Add(&l) // it ended well
	for i := range 40 {
		l.Err = &Refusal{Reason: PolicyDenied, Err: fmt.Errorf("%d", i), Policy: &PolicyRef{Policy: "ns/p", Rule: 2}}
		r.Add(&l)
	}
	got := r.List()
	if len(got) != 32 || got[0].Detail != "8" || got[31].Detail != "39" {
		t.Fatalf("%d remembered: %+v", len(got), got)
	}
	text, err := json.Marshal(got[31])
	want := `{"time":"2026-09-03T10:11:12.345678Z","direction":"outbound","src":"10.1.0.7:51422","srcIdentity":"spiffe://cluster.local/ns/web/sa/frontend",` +
		`"dst":"10.1.2.9:15008","authority":"10.1.2.9:9080","service":"cart.shop.svc.cluster.local","reason":"policy-denied","detail":"39","policy":{"policy":"ns/p","rule":2}}`
	if err != nil || string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

// gate is an output that lets nothing pass until it is opened.
type gate struct {
	open chan struct{}
	mu   sync.Mutex
	bytes.Buffer
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Buffer.Write(b)
}

func TestWriterHoldsCallersBackAndLosesNothing(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	w := NewWriter(g, Text)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	const lines = queuedLines + 500
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := range lines {
			_, _ = fmt.Fprintf(w, "%d\n", i)
		}
	}()
	select {
	case <-written:
		t.Error("more lines were taken than the queue holds")
	default:
	}
	close(g.open)
	<-written
	l := fullLine()
	w.Access(&l)
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	_, _ = w.Write([]byte("late\n"))
	got := strings.Split(g.String(), "\n")
	if len(got) != lines+3 || got[0] != "0" || got[lines-1] != fmt.Sprint(lines-1) || !strings.Contains(got[lines], "\taccess\t") || got[lines+1] != "late" {
		t.Errorf("%d lines, want %d", len(got), lines+3)
	}
}

func BenchmarkConnection(b *testing.B) {
	traffic := NewTraffic()
	l := Labels{Source: Peer{Workload: "a"}, Destination: Peer{Workload: "b"}}
	b.ReportAllocs()
	for b.Loop() {
		traffic.Open(l, nil).Close(OK)
	}
}
