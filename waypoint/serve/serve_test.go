package serve_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/serve"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
)

const (
	v1 = "outbound|9080|v1|" + hostname
	v2 = "outbound|9080|v2|" + hostname
)

func headerIs(header, value string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: header, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
		StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}},
	}}
}

func TestHeaderCanary(t *testing.T) {
	r := newRig(t, options{})
	r.cluster(v1, r.newPod("reviews", answers("v1")))
	r.cluster(v2, r.newPod("reviews", answers("v2")))
	canary := to("shop/reviews.canary", v2)
	canary.Match.Headers = []*routev3.HeaderMatcher{headerIs("end-user", "test-user")}
	r.service(nil, canary, to("shop/reviews", v1))
	c := r.client()
	for range 100 {
		if code, body := get(t, c, "/reviews/1", "End-User", "test-user"); code != 200 || body != "v2" {
			t.Fatalf("test-user: got %d %q, want v2", code, body)
		}
		if code, body := get(t, c, "/reviews/1", "End-User", "someone"); code != 200 || body != "v1" {
			t.Fatalf("someone: got %d %q, want v1", code, body)
		}
	}
}

func TestWeights(t *testing.T) {
	r := newRig(t, options{})
	r.cluster(v1, r.newPod("reviews", answers("v1")))
	r.cluster(v2, r.newPod("reviews", answers("v2")))
	weighted := to("split", "")
	weighted.GetRoute().ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{
		Clusters: []*routev3.WeightedCluster_ClusterWeight{
			{Name: v1, Weight: wrapperspb.UInt32(90)}, {Name: v2, Weight: wrapperspb.UInt32(10)},
		},
	}}
	r.service(nil, weighted)
	c := r.client()
	got := map[string]int{}
	for range 500 {
		_, body := get(t, c, "/")
		got[body]++
	}
	if got["v1"] < 425 || got["v1"] > 475 || got["v1"]+got["v2"] != 500 {
		t.Fatalf("split of 500 is %v, want 90/10 within 5 points", got)
	}
}

func TestEndpointsShareLoad(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", answers("a")), r.newPod("reviews", answers("b"))})
	c := r.client()
	got := map[string]int{}
	for range 100 {
		_, body := get(t, c, "/")
		got[body]++
	}
	if got["a"] < 25 || got["b"] < 25 {
		t.Fatalf("100 requests went %v, want about half each", got)
	}
}

func TestTimeout(t *testing.T) {
	r := newRig(t, options{})
	release := make(chan struct{})
	slow := to("slow", stable)
	slow.GetRoute().Timeout = durationpb.New(50 * time.Millisecond)
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		select {
		case <-release:
		case <-req.Context().Done():
		}
	}))}, slow)
	defer close(release)
	code, body := get(t, r.client(), "/")
	if code != 504 {
		t.Fatalf("got %d %q, want 504", code, body)
	}
	r.wantLine(" 504 UT upstream_response_timeout ")
}

func (r *rig) wantLine(part string) {
	r.t.Helper()
	eventually(r.t, "access line with "+part, func() bool { return strings.Contains(r.log.String(), part) })
}

// deadPod is an endpoint on whose port nothing listens.
func (r *rig) deadPod() pod {
	p, l := r.newBarePod("reviews")
	_ = l.Close()
	return p
}

func retryOn(route *routev3.Route, on string, times uint32) *routev3.Route {
	route.GetRoute().RetryPolicy = &routev3.RetryPolicy{RetryOn: on, NumRetries: wrapperspb.UInt32(times)}
	return route
}

func TestRetryOnConnectFailureTakesAnotherEndpoint(t *testing.T) {
	r := newRig(t, options{})
	pods := []pod{r.deadPod(), r.newPod("reviews", answers("alive"))}
	r.service(pods, retryOn(to("r", stable), "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", 2))
	c := r.client()
	for range 20 {
		if code, body := get(t, c, "/"); code != 200 || body != "alive" {
			t.Fatalf("got %d %q, want 200 alive", code, body)
		}
	}
}

// TestRetryBeforeALargeBodyIsTouched: a body that is streamed can still go to
// another endpoint when the first cannot be reached.
func TestRetryBeforeALargeBodyIsTouched(t *testing.T) {
	r := newRig(t, options{})
	alive := r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		n, _ := io.Copy(io.Discard, req.Body)
		_, _ = fmt.Fprint(w, n)
	}))
	r.service([]pod{r.deadPod(), alive}, retryOn(to("r", stable), "connect-failure", 2))
	c := r.client()
	for range 10 {
		res, err := c.Post("http://reviews/", "text/plain", strings.NewReader(strings.Repeat("x", 200<<10)))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != 200 || string(body) != "204800" {
			t.Fatalf("got %d %q, want 200 and all bytes", res.StatusCode, body)
		}
	}
}

func TestRewrite(t *testing.T) {
	r := newRig(t, options{})
	rewritten := to("rewrite", stable)
	rewritten.Match.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/api"}
	rewritten.GetRoute().PrefixRewrite = "/v2"
	rewritten.GetRoute().HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: "internal"}
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.WriteString(w, req.Host+req.RequestURI)
	}))}, rewritten)
	if _, body := get(t, r.client(), "/api/books?x=/api"); body != "internal/v2/books?x=/api" {
		t.Errorf("the endpoint saw %q", body)
	}
	r.wantLine(`"GET /api/books?x=/api HTTP/1.1" 200`)
}

func TestConnectFailureWithoutRetry(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.deadPod()}, to("r", stable))
	if code, _ := get(t, r.client(), "/"); code != 503 {
		t.Fatalf("got %d, want 503", code)
	}
	r.wantLine(" 503 UF upstream_reset_before_response_started{connection_failure} ")
}

func TestRetriesUsedUp(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.deadPod()}, retryOn(to("r", stable), "connect-failure", 1))
	if code, _ := get(t, r.client(), "/"); code != 503 {
		t.Fatalf("got %d, want 503", code)
	}
	r.wantLine(" 503 UF,URX ")
}

func TestRetryOnStatusRepeatsASmallBody(t *testing.T) {
	r := newRig(t, options{})
	var calls atomic.Int32
	p := r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		if calls.Add(1) == 1 {
			w.WriteHeader(503)
			return
		}
		_, _ = w.Write(body)
	}))
	r.service([]pod{p}, retryOn(to("r", stable), "503", 2))
	res, err := r.client().Post("http://reviews/", "text/plain", strings.NewReader("again"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(body) != "again" || calls.Load() != 2 {
		t.Fatalf("got %d %q after %d calls, want 200 again after 2", res.StatusCode, body, calls.Load())
	}
}

func TestNoHealthyEndpoint(t *testing.T) {
	r := newRig(t, options{})
	r.service(nil)
	if code, _ := get(t, r.client(), "/"); code != 503 {
		t.Fatalf("got %d, want 503", code)
	}
	r.wantLine(" 503 UH no_healthy_upstream ")
}

func TestEndpointWithAnotherIdentityIsRefused(t *testing.T) {
	r := newRig(t, options{})
	p := r.newPod("impostor", answers("secret"))
	p.id = r.ca.ID("shop", "reviews")
	r.service([]pod{p})
	if code, body := get(t, r.client(), "/"); code != 503 {
		t.Fatalf("got %d %q, want 503", code, body)
	}
	r.wantLine("peer is spiffe://cluster.local/ns/shop/sa/impostor, want spiffe://cluster.local/ns/shop/sa/reviews")
}

func TestNoRouteIs404(t *testing.T) {
	r := newRig(t, options{})
	only := to("only", stable)
	only.Match.PathSpecifier = &routev3.RouteMatch_Path{Path: "/there"}
	r.service([]pod{r.newPod("reviews", answers("here"))}, only)
	c := r.client()
	if code, _ := get(t, c, "/elsewhere"); code != 404 {
		t.Fatalf("got %d, want 404", code)
	}
	if code, body := get(t, c, "/there?x=1"); code != 200 || body != "here" {
		t.Fatalf("got %d %q, want 200", code, body)
	}
	r.wantLine(" 404 NR route_not_found ")
}

func TestUnknownAddressIsRefused(t *testing.T) {
	r := newRig(t, options{})
	r.service(nil)
	for authority, status := range map[string]int{
		"10.96.9.9:80": 404, "nowhere.svc:80": 404, "10.96.0.7:9081": 404, "no-port": 400, "a:b": 400,
	} {
		_, err := r.tunnel("client").Open(t.Context(), hbone.Request{Authority: authority})
		var refused *hbone.StatusError
		if !errors.As(err, &refused) || refused.Status != status {
			t.Errorf("CONNECT %s: got %v, want %d", authority, err, status)
		}
	}
	if _, err := r.tunnel("client").Open(t.Context(), hbone.Request{Authority: name}); err != nil {
		t.Errorf("CONNECT by hostname: %v", err)
	}
}

func TestServiceThatArrivesLateIsAwaited(t *testing.T) {
	r := newRig(t, options{hold: 10 * time.Second})
	got := make(chan error, 1)
	tunnel := r.tunnel("client")
	go func() {
		_, err := tunnel.Open(context.Background(), hbone.Request{Authority: vip})
		got <- err
	}()
	r.service([]pod{r.newPod("reviews", answers("late"))})
	if err := <-got; err != nil {
		t.Fatalf("CONNECT before the service was known: %v", err)
	}
}

func TestClientOfAnotherAuthorityIsRefused(t *testing.T) {
	r := newRig(t, options{})
	other := newRig(t, options{})
	tunnel, err := r.dialTunnel(other.ca.Issue(other.ca.ID("shop", "client"), time.Hour))
	if err == nil {
		if _, err = tunnel.Open(t.Context(), hbone.Request{Authority: vip}); err == nil {
			t.Fatal("a client of another authority was served")
		}
	}
}

func TestKeepAlive(t *testing.T) {
	r := newRig(t, options{})
	var connections atomic.Int32
	p, l := r.newBarePod("reviews")
	server := &http.Server{
		Handler: answers("ok"), ReadHeaderTimeout: time.Minute,
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				connections.Add(1)
			}
		},
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	r.service([]pod{p})
	s := r.stream(vip)
	in := bufio.NewReader(s)
	for i := range 50 {
		if _, err := fmt.Fprintf(s, "GET /%d HTTP/1.1\r\nHost: reviews\r\n\r\n", i); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(res.Body); string(body) != "ok" || res.Close {
			t.Fatalf("request %d: got %q, close %v", i, body, res.Close)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Fatalf("50 requests used %d connections to the endpoint, want 1", n)
	}
}

func TestStaleConnectionIsReplaced(t *testing.T) {
	r := newRig(t, options{})
	p, l := r.newBarePod("reviews")
	server := &http.Server{Handler: answers("ok"), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(closingListener{l}) }()
	t.Cleanup(func() { _ = server.Close() })
	r.service([]pod{p})
	c := r.client()
	for range 10 {
		if code, _ := get(t, c, "/"); code != 200 {
			t.Fatalf("got %d, want 200", code)
		}
	}
}

// closingListener's connections promise to stay and close after one response.
type closingListener struct{ net.Listener }

func (l closingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &closingConn{Conn: c}, err
}

type closingConn struct {
	net.Conn
	wrote bool
}

func (c *closingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if !c.wrote {
		c.wrote = true
		_ = c.Close()
	}
	return n, err
}

func TestLargeBodiesBothWays(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		h := sha256.New()
		_, _ = io.Copy(io.MultiWriter(w, h), req.Body)
		w.Header().Set("X-Sum", fmt.Sprintf("%x", h.Sum(nil)))
	}))})
	data := make([]byte, 8<<20)
	_, _ = rand.Read(data)
	want := fmt.Sprintf("%x", sha256.Sum256(data))
	for _, length := range []int64{int64(len(data)), -1} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://reviews/", bytes.NewReader(data))
		req.ContentLength = length
		res, err := r.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		n, err := io.Copy(h, res.Body)
		_ = res.Body.Close()
		if got := fmt.Sprintf("%x", h.Sum(nil)); err != nil || n != int64(len(data)) || got != want || res.Trailer.Get("X-Sum") != want {
			t.Fatalf("length %d: echoed %d bytes, sum right %v, trailer right %v, error %v", length, n, got == want,
				res.Trailer.Get("X-Sum") == want, err)
		}
	}
}

// TestStreamingIsNotHeldBack: each side sees a part before the other goes on.
func TestStreamingIsNotHeldBack(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		in := bufio.NewReader(req.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, "echo "+line)
			_ = control.Flush()
		}
	}))})
	body, send := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://reviews/", body)
	type result struct {
		res *http.Response
		err error
	}
	got := make(chan result, 1)
	c := r.client()
	go func() {
		res, err := c.Do(req)
		got <- result{res, err}
	}()
	_, _ = io.WriteString(send, "one\n")
	first := <-got
	if first.err != nil {
		t.Fatal(first.err)
	}
	defer func() { _ = first.res.Body.Close() }()
	in := bufio.NewReader(first.res.Body)
	for i, want := range []string{"one\n", "two\n", "three\n"} {
		if i > 0 {
			_, _ = io.WriteString(send, want)
		}
		if line, err := in.ReadString('\n'); err != nil || line != "echo "+want {
			t.Fatalf("got %q, %v, want echo %q", line, err, want)
		}
	}
	_ = send.Close()
	if rest, err := io.ReadAll(in); err != nil || len(rest) != 0 {
		t.Fatalf("rest %q, %v", rest, err)
	}
}

func TestBodylessResponses(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(304)
		default:
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hello")
		}
	}))})
	s := r.stream(vip)
	in := bufio.NewReader(s)
	for _, c := range []struct {
		method, path string
		status       int
		length       string
	}{{"HEAD", "/", 200, "5"}, {"GET", "/204", 204, ""}, {"GET", "/304", 304, ""}, {"HEAD", "/204", 204, ""}, {"GET", "/", 200, "5"}} {
		_, _ = fmt.Fprintf(s, "%s %s HTTP/1.1\r\nHost: reviews\r\n\r\n", c.method, c.path)
		req, _ := http.NewRequestWithContext(t.Context(), c.method, "http://reviews"+c.path, nil)
		res, err := http.ReadResponse(in, req)
		if err != nil {
			t.Fatalf("%s %s: %v", c.method, c.path, err)
		}
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != c.status || res.Header.Get("Content-Length") != c.length || len(res.TransferEncoding) > 0 ||
			(len(body) > 0) != (c.method == "GET" && c.path == "/") {
			t.Errorf("%s %s: got %d, length %q, coding %v, body %q", c.method, c.path, res.StatusCode,
				res.Header.Get("Content-Length"), res.TransferEncoding, body)
		}
	}
}

func TestExpectContinue(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/refuse" {
			w.WriteHeader(413)
			return
		}
		_, _ = io.Copy(w, req.Body)
	}))})
	s := r.stream(vip)
	in := bufio.NewReader(s)
	_, _ = io.WriteString(s, "POST / HTTP/1.1\r\nHost: reviews\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	if line, err := in.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q, %v, want 100", line, err)
	}
	_, _ = in.ReadString('\n')
	_, _ = io.WriteString(s, "body")
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(res.Body); string(body) != "body" {
		t.Fatalf("got %q, want body", body)
	}
	_, _ = io.WriteString(s, "POST /refuse HTTP/1.1\r\nHost: reviews\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	if res, err = http.ReadResponse(in, nil); err != nil || res.StatusCode != 413 || !res.Close {
		t.Fatalf("got %v, %v, want 413 and close", res, err)
	}
}

func TestWebSocket(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Upgrade") != "websocket" {
			w.WriteHeader(400)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
		_, _ = io.Copy(conn, buffered)
	}))})
	s := r.stream(vip)
	in := bufio.NewReader(s)
	_, _ = io.WriteString(s, "GET /ws HTTP/1.1\r\nHost: reviews\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("got %v, %v, want 101", res, err)
	}
	_, _ = io.WriteString(s, " and late")
	_ = s.CloseWrite()
	if all, err := io.ReadAll(in); err != nil || string(all) != "helloearly and late" {
		t.Fatalf("got %q, %v", all, err)
	}
}

func TestUnreadableRequestsAreAnswered(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", answers("ok"))})
	for text, status := range map[string]int{
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
		"GET / HTTP/1.1\nHost: a\n\n": 400,
		"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 70<<10) + "\r\n\r\n": 431,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                                            505,
	} {
		s := r.stream(vip)
		_, _ = io.WriteString(s, text)
		res, err := http.ReadResponse(bufio.NewReader(s), nil)
		if err != nil || res.StatusCode != status {
			t.Errorf("%.40q: got %v, %v, want %d", text, res, err, status)
		}
	}
	r.wantLine(" 400 DPE http1.codec_error ")
}

func TestBrokenEndpoints(t *testing.T) {
	r := newRig(t, options{})
	for _, c := range []struct {
		says, flags string
		status      int
	}{
		{"", "UC", 503},
		{"HTTP/1.1 200 OK\r\nContent-Le", "UC", 503},
		{"garbage\r\n\r\n", "UPE", 502},
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "UPE", 502},
		{"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "UPE", 502},
	} {
		p, l := r.newBarePod("reviews")
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = http.ReadRequest(bufio.NewReader(conn))
				_, _ = io.WriteString(conn, c.says)
				_ = conn.Close()
			}
		}()
		r.service([]pod{p})
		if code, _ := get(t, r.client(), "/"); code != c.status {
			t.Errorf("%q: got %d, want %d", c.says, code, c.status)
		}
		r.wantLine(fmt.Sprintf(" %d %s ", c.status, c.flags))
		_ = l.Close()
	}
}

// TestTruncatedResponseIsNotTakenForWhole: the client sees an error.
func TestTruncatedResponseIsNotTakenForWhole(t *testing.T) {
	r := newRig(t, options{})
	p, l := r.newBarePod("reviews")
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		_ = conn.Close()
	}()
	t.Cleanup(func() { _ = l.Close() })
	r.service([]pod{p})
	res, err := r.client().Get("http://reviews/")
	if err == nil {
		defer func() { _ = res.Body.Close() }()
		_, err = io.ReadAll(res.Body)
	}
	if err == nil {
		t.Fatal("half a response looked whole")
	}
	r.wantLine(" 200 UC ")
}

func TestClientThatLeavesEndsTheRequest(t *testing.T) {
	r := newRig(t, options{})
	arrived, left := make(chan struct{}), make(chan struct{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		close(arrived)
		<-req.Context().Done()
		close(left)
	}))})
	s := r.stream(vip)
	_, _ = io.WriteString(s, "GET / HTTP/1.1\r\nHost: reviews\r\n\r\n")
	<-arrived
	s.Reset()
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Fatal("the endpoint still works for a client that is gone")
	}
	r.wantLine(" DC ")
}

func TestDirectResponseRedirectAndHeaders(t *testing.T) {
	r := newRig(t, options{})
	direct := &routev3.Route{
		Name: "direct", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/teapot"}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 418, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "short"}},
		}},
	}
	redirect := &routev3.Route{
		Name: "redirect", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/old"}},
		Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{
			PathRewriteSpecifier: &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: "/new"},
			ResponseCode:         routev3.RedirectAction_FOUND,
		}},
	}
	rest := to("rest", stable)
	rest.RequestHeadersToAdd = []*corev3.HeaderValueOption{{
		Header:       &corev3.HeaderValue{Key: "X-Via", Value: "100%% waypoint"},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}
	rest.ResponseHeadersToRemove = []string{"X-Internal"}
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("X-Internal", "1")
		_, _ = fmt.Fprint(w, req.Header.Get("X-Via"), req.Header.Get("Connection"), req.Header.Get("Private"))
	}))}, direct, redirect, rest)
	c := r.client()
	if code, body := get(t, c, "/teapot"); code != 418 || body != "short" {
		t.Errorf("direct: got %d %q", code, body)
	}
	res, err := c.Get("http://reviews:9080/old/page?q=1")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if got := res.Header.Get("Location"); res.StatusCode != 302 || got != "http://reviews:9080/new/page?q=1" {
		t.Errorf("redirect: got %d %q", res.StatusCode, got)
	}
	if _, body := get(t, c, "/", "X-Via", "client", "Connection", "private", "Private", "1"); body != "100% waypoint" {
		t.Errorf("headers at the endpoint: %q", body)
	}
}

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
