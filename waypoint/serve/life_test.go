package serve_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/serve"
)

func TestTCP(t *testing.T) {
	r := newRig(t, options{})
	p, l := r.newBarePod("reviews")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.WriteString(conn, "server first\n")
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	r.cluster(stable, r.deadPod(), p)
	for _, sniffed := range []bool{false, true} {
		listener := r.tcpListener()
		if sniffed {
			listener.ApiListener = r.httpListener().ApiListener
		}
		r.apply(config.TypeListener, listener)
		r.route(to("r", stable))
		s := r.stream(vip)
		if !sniffed {
			_, _ = io.WriteString(s, "bytes")
		}
		in := bufio.NewReader(s)
		if line, err := in.ReadString('\n'); err != nil || line != "server first\n" {
			t.Fatalf("sniffed %v: got %q, %v", sniffed, line, err)
		}
		_, _ = io.WriteString(s, " and more")
		_ = s.CloseWrite()
		want := map[bool]string{false: "bytes and more", true: " and more"}[sniffed]
		if all, err := io.ReadAll(in); err != nil || string(all) != want {
			t.Fatalf("sniffed %v: got %q, %v, want %q", sniffed, all, err, want)
		}
	}
	eventually(t, "TCP metrics", func() bool {
		n, err := testutil.GatherAndCount(r.registry, "istio_tcp_connections_closed_total", "istio_tcp_received_bytes_total")
		return err == nil && n >= 2
	})
}

func TestSniffedHTTP(t *testing.T) {
	r := newRig(t, options{})
	r.cluster(stable, r.newPod("reviews", answers("http")))
	listener := r.tcpListener()
	listener.ApiListener = r.httpListener().ApiListener
	r.apply(config.TypeListener, listener)
	r.route(to("r", stable))
	if code, body := get(t, r.client(), "/"); code != 200 || body != "http" {
		t.Fatalf("got %d %q", code, body)
	}
	r.wantLine(`"GET / HTTP/1.1" 200`)
}

func TestPlainEndpoint(t *testing.T) {
	r := newRig(t, options{})
	p := r.newPod("reviews", answers("plain"))
	p.plain = true
	r.service([]pod{p})
	if code, body := get(t, r.client(), "/"); code != 200 || body != "plain" {
		t.Fatalf("got %d %q", code, body)
	}
}

func TestTelemetry(t *testing.T) {
	r := newRig(t, options{json: true})
	client := netip.MustParseAddr("127.0.0.1")
	r.directory.known[client] = serve.Workload{
		Identity: r.ca.ID("shop", "client"), Name: "curl", Namespace: "shop", Canonical: "curl", Revision: "latest",
		App: "curl", Version: "latest", Cluster: "Kubernetes",
	}
	r.service([]pod{r.newPod("reviews", answers("ok"))})
	get(t, r.client(), "/")
	// An address whose workload is someone else's tells nothing.
	get(t, r.clientTo(r.tunnel("other"), vip), "/")
	var text string
	eventually(t, "both requests counted", func() bool {
		var err error
		text, err = gather(r)
		return err == nil && strings.Count(text, "istio_requests_total{") == 2
	})
	for _, want := range []string{
		`istio_requests_total{connection_security_policy="mutual_tls",destination_app="unknown"`,
		`destination_service="reviews.shop.svc.cluster.local"`, `destination_service_name="reviews"`, `destination_service_namespace="shop"`,
		`destination_principal="spiffe://cluster.local/ns/shop/sa/reviews"`, `reporter="waypoint"`, `response_code="200"`,
		`response_flags="-"`, `source_principal="spiffe://cluster.local/ns/shop/sa/client"`, `source_workload="curl"`,
		`source_principal="spiffe://cluster.local/ns/shop/sa/other"`,
		`istio_request_duration_milliseconds_bucket`, `istio_request_bytes_sum`, `istio_response_bytes_sum`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	for line := range strings.Lines(text) {
		if strings.Contains(line, "sa/other") && strings.Contains(line, `source_workload="curl"`) {
			t.Errorf("another identity is reported as the workload at its address: %s", line)
		}
	}
	eventually(t, "access lines", func() bool { return strings.Count(r.log.String(), "\n") == 2 })
	var line map[string]any
	first, _, _ := strings.Cut(r.log.String(), "\n")
	if err := json.Unmarshal([]byte(first), &line); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"method": "GET", "path": "/", "protocol": "HTTP/1.1", "response_code": 200.0, "response_flags": "-", "bytes_sent": 2.0,
		"authority": "reviews:9080", "upstream_cluster": stable, "route_name": "default", "response_code_details": "via_upstream",
		"downstream_local_address": vip, "source_principal": "spiffe://cluster.local/ns/shop/sa/client",
		"destination_principal": "spiffe://cluster.local/ns/shop/sa/reviews",
	} {
		if line[key] != want {
			t.Errorf("access log %s = %v, want %v", key, line[key], want)
		}
	}
}

func gather(r *rig) (string, error) {
	families, err := r.registry.Gather()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := make([]string, 0, len(m.GetLabel()))
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			suffixes := []string{""}
			if m.GetHistogram() != nil {
				suffixes = []string{"_bucket", "_sum", "_count"}
			}
			for _, suffix := range suffixes {
				fmt.Fprintf(&b, "%s%s{%s}\n", f.GetName(), suffix, strings.Join(labels, ","))
			}
		}
	}
	return b.String(), nil
}

// TestRotationAndUpdatesUnderLoad changes certificates, endpoints and routes
// while clients send requests; none may fail.
func TestRotationAndUpdatesUnderLoad(t *testing.T) {
	r := newRig(t, options{})
	a, b := r.newPod("reviews", answers("v1")), r.newPod("reviews", answers("v2"))
	r.cluster(v1, a)
	r.cluster(v2, b)
	r.service([]pod{a, b}, to("r", v1))
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var served atomic.Int64
	for range 4 {
		c := r.client()
		load.Go(func() {
			for ctx.Err() == nil {
				res, err := c.Get("http://reviews/")
				if err != nil {
					t.Errorf("request: %v", err)
					return
				}
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if err != nil || res.StatusCode != 200 {
					t.Errorf("got %d %q, %v", res.StatusCode, body, err)
					return
				}
				served.Add(1)
			}
		})
	}
	for i := range 30 {
		before := served.Load()
		switch i % 5 {
		case 0:
			r.route(to("r", v2))
		case 1: // a cluster that comes with the route that names it, endpoints last
			next := fmt.Sprintf("outbound|9080|n%d|%s", i, hostname)
			r.route(to("r", next))
			r.cluster(next, a, b)
		case 2:
			r.routes.Apply(config.TypeCluster, nil, []string{fmt.Sprintf("outbound|9080|n%d|%s", i-1, hostname)})
			r.route(to("r", v1))
		case 3:
			r.cert.Store(r.ca.Issue(r.ca.ID("shop", "waypoint"), time.Hour))
			r.endpoints(v1, b)
		case 4:
			r.endpoints(v1, a)
		}
		eventually(t, "load goes on", func() bool { return t.Failed() || served.Load() > before+20 })
	}
	stop()
	load.Wait()
	t.Logf("%d requests", served.Load())
}

func TestDrain(t *testing.T) {
	r := newRig(t, options{grace: 10 * time.Second})
	arrived, release := make(chan struct{}), make(chan struct{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			close(arrived)
			<-release
		}
		_, _ = io.WriteString(w, "done")
	}))})
	idle := r.stream(vip)
	_, _ = io.WriteString(idle, "GET / HTTP/1.1\r\nHost: reviews\r\n\r\n")
	idleIn := bufio.NewReader(idle)
	if res, err := http.ReadResponse(idleIn, nil); err != nil || res.StatusCode != 200 {
		t.Fatalf("got %v, %v", res, err)
	} else if _, err := io.ReadAll(res.Body); err != nil {
		t.Fatal(err)
	}
	busy := r.stream(vip)
	_, _ = io.WriteString(busy, "GET /slow HTTP/1.1\r\nHost: reviews\r\n\r\n")
	<-arrived
	r.stop()
	if _, err := idleIn.ReadByte(); !errors.Is(err, io.EOF) {
		t.Fatalf("idle connection: %v, want its clean end", err)
	}
	close(release)
	res, err := http.ReadResponse(bufio.NewReader(busy), nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("running request: %v, %v", res, err)
	}
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "done" {
		t.Fatalf("running request: %q, %v", body, err)
	}
	select {
	case <-r.stopped:
	case <-time.After(5 * time.Second):
		t.Fatal("still running though nothing is left")
	}
}
