package serve_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

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
	// Over all starts of the sequence, of which one is drawn, 500 points give v2
	// 48 to 52 of them.
	if got["v1"] < 448 || got["v1"] > 452 || got["v1"]+got["v2"] != 500 {
		t.Fatalf("split of 500 is %v, want 90/10 within two requests", got)
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

// TestPerTryTimeoutEndsWithTheHead: once the response has begun it may take as
// long as the route allows.
func TestPerTryTimeoutEndsWithTheHead(t *testing.T) {
	r := newRig(t, options{})
	route := retryOn(to("r", stable), "5xx", 1)
	const perTry = 50 * time.Millisecond
	route.GetRoute().RetryPolicy.PerTryTimeout = durationpb.New(perTry)
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "begun ")
		_ = http.NewResponseController(w).Flush()
		<-time.After(2 * perTry)
		_, _ = io.WriteString(w, "and ended")
	}))}, route)
	c := r.client()
	for range 2 {
		if code, body := get(t, c, "/"); code != 200 || body != "begun and ended" {
			t.Fatalf("got %d %q", code, body)
		}
	}
}

// TestClientThatLeavesAfterALargeBodyEndsTheRequest: it is noticed while the
// response is awaited.
func TestClientThatLeavesAfterALargeBodyEndsTheRequest(t *testing.T) {
	r := newRig(t, options{})
	arrived, left := make(chan struct{}), make(chan struct{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		close(arrived)
		<-req.Context().Done()
		close(left)
	}))})
	s := r.stream(vip)
	_, _ = io.WriteString(s, "POST / HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
	<-arrived
	s.Reset()
	select {
	case <-left:
	case <-time.After(5 * time.Second):
		t.Fatal("the endpoint still works for a client that is gone")
	}
	r.wantLine(" 0 DC downstream_remote_disconnect ")
}
