package xds_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/xds"
	"github.com/ambit-mesh/ambit/istiod/xds/xdstest"
)

const (
	cluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	route    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// rig is a server, its store, and who may see what.
type rig struct {
	t        testing.TB
	store    *xds.Store
	server   *xds.Server
	conn     *grpc.ClientConn
	registry *prometheus.Registry
}

func newRig(tb testing.TB, change ...func(*xds.Config)) *rig {
	tb.Helper()
	r := &rig{t: tb, store: xds.NewStore(), registry: prometheus.NewRegistry()}
	cfg := xds.Config{
		Store: r.store, Metrics: r.registry,
		// A node "waypoint~…~<pod>.<ns>~…" has the scope <pod>; others have none.
		Authorize: func(_ context.Context, node *corev3.Node) ([]string, error) {
			parts := strings.Split(node.GetId(), "~")
			if parts[0] != "waypoint" {
				return nil, nil
			}
			pod, _, _ := strings.Cut(parts[2], ".")
			return []string{pod}, nil
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	r.server = xds.NewServer(cfg)
	r.conn = xdstest.Serve(tb, func(g grpc.ServiceRegistrar) { r.server.Register(g) }, xds.Options()...)
	tb.Cleanup(r.server.Close)
	return r
}

func (r *rig) ztunnel() *xdstest.Delta {
	r.t.Helper()
	return xdstest.Connect(r.t, r.conn, xdstest.Node("ztunnel", "istio-system", "ztunnel-1"))
}

func (r *rig) waypoint(scope string) *xdstest.Delta {
	r.t.Helper()
	return xdstest.Connect(r.t, r.conn, xdstest.Node("waypoint", "shop", scope))
}

func resource(typeURL, name, body string, scopes ...string) xds.Resource {
	return xds.Resource{TypeURL: typeURL, Name: name, Scopes: scopes, Body: &anypb.Any{TypeUrl: typeURL, Value: []byte(body)}}
}

func address(name, body string, aliases ...string) xds.Resource {
	r := resource(mesh.TypeAddress, name, body)
	r.Aliases = aliases
	return r
}

// want compares a response with the names that it should bring and remove.
func want(tb testing.TB, what string, got *discoveryv3.DeltaDiscoveryResponse, typeURL string, names, removed []string) {
	tb.Helper()
	gotRemoved := slices.Clone(got.GetRemovedResources())
	slices.Sort(gotRemoved)
	if got.GetTypeUrl() != typeURL || !slices.Equal(xdstest.Names(got), names) || !slices.Equal(gotRemoved, removed) {
		tb.Errorf("%s: got %s %v removed %v; want %s %v removed %v",
			what, got.GetTypeUrl(), xdstest.Names(got), gotRemoved, typeURL, names, removed)
	}
}

// quiet proves that nothing is under way: the answer to a new question is the
// next thing that arrives.
func quiet(tb testing.TB, what string, d *xdstest.Delta) {
	tb.Helper()
	marker := fmt.Sprintf("marker-%d", rand.Uint64())
	d.Subscribe("type.googleapis.com/test.Marker", marker)
	got := d.Next()
	if got.GetTypeUrl() != "type.googleapis.com/test.Marker" {
		tb.Errorf("%s: got %s %v removed %v; want nothing", what, got.GetTypeUrl(), xdstest.Names(got), got.GetRemovedResources())
	}
}

// metric sums a metric's samples.
func (r *rig) metric(name string) float64 {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

func eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(10 * time.Second)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			tb.Fatalf("%s: not so after 10 s", what)
		}
	}
}

func TestWildcard(t *testing.T) {
	r := newRig(t)
	r.store.Update([]xds.Resource{address("a", "1", "/10.0.0.1"), address("b", "1")}, nil)
	z := r.ztunnel()
	z.Subscribe(mesh.TypeAddress)
	first := z.Next()
	want(t, "first response holds all", first, mesh.TypeAddress, []string{"a", "b"}, nil)
	if got := first.GetResources()[0].GetAliases(); got != nil {
		t.Errorf("a wildcard response carries aliases %v", got)
	}
	z.Subscribe(mesh.TypeAuthorization)
	want(t, "an empty type is answered too", z.Next(), mesh.TypeAuthorization, nil, nil)

	r.store.Update([]xds.Resource{address("b", "1"), address("c", "1")}, nil)
	want(t, "only what is new", z.Next(), mesh.TypeAddress, []string{"c"}, nil)
	r.store.Update([]xds.Resource{address("c", "1")}, []xds.Ref{{mesh.TypeAddress, "nobody"}})
	quiet(t, "equal resources and unknown removals", z)
	r.store.Update([]xds.Resource{address("a", "2")}, []xds.Ref{{mesh.TypeAddress, "b"}, {mesh.TypeAddress, "a"}})
	want(t, "changed and removed in one", z.Next(), mesh.TypeAddress, []string{"a"}, []string{"b"})
	r.store.Update([]xds.Resource{address("a", "2", "/10.0.0.2")}, nil)
	quiet(t, "aliases alone concern no wildcard", z)
	if got := r.metric("pilot_xds_pushes"); got < 4 {
		t.Errorf("pilot_xds_pushes = %v", got)
	}
	if got := r.metric("pilot_proxy_convergence_time"); got < 2 {
		t.Errorf("pilot_proxy_convergence_time has %v samples", got)
	}
}

func TestStarIsWildcard(t *testing.T) {
	r := newRig(t)
	r.store.Update([]xds.Resource{address("a", "1")}, nil)
	z := r.ztunnel()
	z.Subscribe(mesh.TypeAddress, "*")
	want(t, "subscribe *", z.Next(), mesh.TypeAddress, []string{"a"}, nil)
	z.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: mesh.TypeAddress, ResourceNamesUnsubscribe: []string{"*"}})
	quiet(t, "unsubscribe *", z)
	r.store.Update([]xds.Resource{address("b", "1")}, nil)
	quiet(t, "nothing is wanted", z)
	z.Subscribe(mesh.TypeAddress, "*")
	want(t, "subscribed again: all again", z.Next(), mesh.TypeAddress, []string{"a", "b"}, nil)
}

func TestVersionsAreResumed(t *testing.T) {
	r := newRig(t)
	r.store.Update([]xds.Resource{address("same", "1"), address("changed", "1"), address("gone", "1")}, nil)
	z := r.ztunnel()
	z.Subscribe(mesh.TypeAddress)
	held := map[string]string{}
	for _, got := range z.Next().GetResources() {
		held[got.GetName()] = got.GetVersion()
	}
	z.Close()
	r.store.Update([]xds.Resource{address("changed", "2"), address("new", "1")}, []xds.Ref{{mesh.TypeAddress, "gone"}})
	z = r.ztunnel()
	z.Resume(mesh.TypeAddress, held)
	want(t, "the difference", z.Next(), mesh.TypeAddress, []string{"changed", "new"}, []string{"gone"})

	delete(held, "gone")
	for _, now := range r.store.Resources(mesh.TypeAddress) {
		held[now.Name] = now.Version
	}
	z = r.ztunnel()
	z.Resume(mesh.TypeAddress, held)
	want(t, "no difference is answered too", z.Next(), mesh.TypeAddress, nil, nil)
}

func TestOnDemand(t *testing.T) {
	r := newRig(t)
	r.store.Update([]xds.Resource{
		address("pod-a", "1", "/10.0.0.1", "/fd00::1"), address("pod-b", "1", "/10.0.0.9"), address("pod-c", "1", "/10.0.0.9"),
		address("shop/cart.shop.svc", "1", "/10.96.0.1"),
	}, nil)
	z := r.ztunnel()
	z.Send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: mesh.TypeAddress, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"},
	})
	want(t, "subscribed to nothing", z.Next(), mesh.TypeAddress, nil, nil)
	z.Subscribe(mesh.TypeAddress, "/10.0.0.1")
	got := z.Next()
	want(t, "by alias", got, mesh.TypeAddress, []string{"pod-a"}, nil)
	if aliases := got.GetResources()[0].GetAliases(); !slices.Equal(aliases, []string{"/10.0.0.1", "/fd00::1"}) {
		t.Errorf("aliases %v", aliases)
	}
	z.Subscribe(mesh.TypeAddress, "/10.0.0.9")
	want(t, "an alias of two", z.Next(), mesh.TypeAddress, []string{"pod-b", "pod-c"}, nil)
	z.Subscribe(mesh.TypeAddress, "shop/cart.shop.svc", "/10.1.1.1", "nobody")
	want(t, "by name, and unknown ones", z.Next(), mesh.TypeAddress, []string{"shop/cart.shop.svc"}, []string{"/10.1.1.1", "nobody"})
	z.Subscribe(mesh.TypeAddress, "pod-a")
	want(t, "asked again: sent again", z.Next(), mesh.TypeAddress, []string{"pod-a"}, nil)

	r.store.Update([]xds.Resource{address("pod-z", "1", "/10.2.2.2"), address("pod-a", "2", "/10.0.0.1")}, nil)
	want(t, "only what was asked for", z.Next(), mesh.TypeAddress, []string{"pod-a"}, nil)
	r.store.Update([]xds.Resource{address("late", "1", "/10.1.1.1")}, nil)
	want(t, "what was unknown appears", z.Next(), mesh.TypeAddress, []string{"late"}, nil)
	r.store.Update([]xds.Resource{address("later", "1", "/10.1.1.1")}, []xds.Ref{{mesh.TypeAddress, "late"}})
	want(t, "an address changes hands", z.Next(), mesh.TypeAddress, []string{"later"}, []string{"late"})
	r.store.Update([]xds.Resource{address("later", "2")}, nil)
	want(t, "a resource loses its address", z.Next(), mesh.TypeAddress, nil, []string{"/10.1.1.1", "later"})
	z.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: mesh.TypeAddress, ResourceNamesUnsubscribe: []string{"pod-a", "/10.0.0.1"}})
	quiet(t, "unsubscribing is not answered", z)
	r.store.Update([]xds.Resource{address("pod-b", "2", "/10.0.0.9")}, nil)
	want(t, "others go on", z.Next(), mesh.TypeAddress, []string{"pod-b"}, nil)
	r.store.Update(nil, []xds.Ref{{mesh.TypeAddress, "pod-a"}})
	quiet(t, "what was unsubscribed", z)
}

func TestOnDemandResume(t *testing.T) {
	r := newRig(t)
	r.store.Update([]xds.Resource{address("a", "1", "/10.0.0.1"), address("b", "1"), address("c", "1")}, nil)
	version := r.store.Resources(mesh.TypeAddress)[0].Version
	z := r.ztunnel()
	z.Send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: mesh.TypeAddress, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"},
		InitialResourceVersions: map[string]string{"a": version, "b": "old", "gone": "1", "/10.9.9.9": ""},
	})
	want(t, "what is held is still wanted", z.Next(), mesh.TypeAddress, []string{"b"}, []string{"/10.9.9.9", "gone"})
	r.store.Update([]xds.Resource{address("a", "2", "/10.0.0.1"), address("c", "2")}, nil)
	want(t, "and followed", z.Next(), mesh.TypeAddress, []string{"a"}, nil)

	z = r.ztunnel()
	z.Send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: mesh.TypeAddress, ResourceNamesSubscribe: []string{"/10.0.0.1"},
		InitialResourceVersions: map[string]string{"a": r.store.Resources(mesh.TypeAddress)[0].Version},
	})
	want(t, "an alias is answered even when its resource is held", z.Next(), mesh.TypeAddress, []string{"a"}, nil)
}

func TestScopes(t *testing.T) {
	r := newRig(t)
	r.store.Update([]xds.Resource{
		resource(cluster, "one", "1", "wp1"), resource(cluster, "both", "1", "wp1", "wp2"), resource(cluster, "all", "1"),
		{TypeURL: cluster, Name: "nobody", Scopes: []string{}},
	}, nil)
	one, two, z := r.waypoint("wp1"), r.waypoint("wp2"), r.ztunnel()
	for _, d := range []*xdstest.Delta{one, two, z} {
		d.Subscribe(cluster)
	}
	want(t, "wp1", one.Next(), cluster, []string{"all", "both", "one"}, nil)
	want(t, "wp2", two.Next(), cluster, []string{"all", "both"}, nil)
	want(t, "no scopes", z.Next(), cluster, []string{"all"}, nil)
	two.Subscribe(cluster, "one")
	want(t, "asking by name does not help", two.Next(), cluster, nil, []string{"one"})

	r.store.Update([]xds.Resource{resource(cluster, "both", "1", "wp2")}, nil)
	want(t, "leaves the scope of wp1", one.Next(), cluster, nil, []string{"both"})
	quiet(t, "nothing changed for wp2", two)
	quiet(t, "nothing to do with ztunnel", z)
	r.store.Update([]xds.Resource{resource(cluster, "both", "1", "wp1", "wp2")}, nil)
	want(t, "comes back", one.Next(), cluster, []string{"both"}, nil)

	again := r.waypoint("wp2")
	again.Resume(cluster, map[string]string{"one": "x", "both": "x"})
	want(t, "held and visible", again.Next(), cluster, []string{"all", "both"}, nil)
	want(t, "held but out of scope", again.Next(), cluster, nil, []string{"one"})
}

func TestOrder(t *testing.T) {
	r := newRig(t)
	all := []string{cluster, endpoint, listener, route, mesh.TypeAddress, mesh.TypeAuthorization}
	w := r.waypoint("wp")
	for _, typeURL := range slices.Backward(all) {
		w.Subscribe(typeURL)
		w.Next()
	}
	var set []xds.Resource
	var refs []xds.Ref
	for _, typeURL := range slices.Backward(all) {
		set = append(set, resource(typeURL, "old", "1"))
		refs = append(refs, xds.Ref{TypeURL: typeURL, Name: "old"})
	}
	r.store.Update(set, nil)
	for _, typeURL := range all {
		want(t, "additions", w.Next(), typeURL, []string{"old"}, nil)
	}
	for i := range set {
		set[i].Name = "new"
	}
	r.store.Update(set, refs)
	for _, typeURL := range all {
		if typeURL == cluster || typeURL == endpoint {
			want(t, "clusters and endpoints are added first", w.Next(), typeURL, []string{"new"}, nil)
		} else {
			want(t, "what names them lets go", w.Next(), typeURL, []string{"new"}, []string{"old"})
		}
	}
	want(t, "then they go", w.Next(), cluster, nil, []string{"old"})
	want(t, "then they go", w.Next(), endpoint, nil, []string{"old"})
}

func TestAnswers(t *testing.T) {
	r := newRig(t)
	r.store.Update([]xds.Resource{address("a", "1")}, nil)
	z := r.ztunnel()
	z.Subscribe(mesh.TypeAddress)
	first := z.Peek()
	state := func() xds.TypeStatus {
		for _, s := range r.server.Debug().([]xds.StreamStatus)[0].Types {
			if s.Type == mesh.TypeAddress {
				return s
			}
		}
		return xds.TypeStatus{}
	}
	if s := state(); s.Synced || s.Sent != 1 || s.Answered != 0 {
		t.Errorf("before the answer: %+v", s)
	}
	z.Ack(first)
	quiet(t, "ACK", z)
	if s := state(); !s.Synced || s.Answered != 1 || s.LastReject != nil {
		t.Errorf("accepted: %+v", s)
	}
	z.Nack(first, "late")
	z.Nack(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: mesh.TypeAddress, Nonce: "of another stream"}, "foreign")
	quiet(t, "stale nonces", z)
	if s := state(); s.Rejected != 0 || r.metric("pilot_xds_expired_nonce") != 2 {
		t.Errorf("stale nonces: %+v, counted %v", s, r.metric("pilot_xds_expired_nonce"))
	}
	// Two responses under way: a rejection of the earlier is not stale.
	r.store.Update([]xds.Resource{address("a", "2")}, nil)
	second := z.Peek()
	r.store.Update([]xds.Resource{address("b", "1")}, nil)
	third := z.Peek()
	z.Nack(second, "a: no such thing")
	z.Ack(third)
	quiet(t, "NACK is not answered", z)
	s := state()
	if s.Rejected != 1 || s.LastReject == nil || s.LastReject.Message != "a: no such thing" || !s.Synced {
		t.Errorf("rejected: %+v", s)
	}
	if got := r.metric("pilot_total_xds_rejects"); got != 1 {
		t.Errorf("pilot_total_xds_rejects = %v", got)
	}
	// What a stale request asks for is heard nevertheless.
	z.Send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: mesh.TypeAddress, ResponseNonce: first.GetNonce(), ResourceNamesSubscribe: []string{"a"},
	})
	want(t, "subscription beside a stale nonce", z.Next(), mesh.TypeAddress, []string{"a"}, nil)
}

func TestStreamIsRefused(t *testing.T) {
	notReady := newRig(t, func(c *xds.Config) { c.Ready = func() bool { return false } })
	z := notReady.ztunnel()
	z.Subscribe(mesh.TypeAddress)
	if got := z.End().Code(); got != codes.Unavailable {
		t.Errorf("not ready: %v", got)
	}
	cases := map[string]struct {
		err  error
		want *status.Status
	}{
		"its own status":   {status.Error(codes.Unauthenticated, "who are you"), status.New(codes.Unauthenticated, "who are you")},
		"status, wrapped":  {fmt.Errorf("secret: %w", status.Error(codes.Unauthenticated, "x")), status.New(codes.Unauthenticated, "x")},
		"without a status": {errors.New("a detail of ours"), status.New(codes.PermissionDenied, "node is not permitted")},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(cfg *xds.Config) {
				cfg.Authorize = func(context.Context, *corev3.Node) ([]string, error) { return nil, c.err }
			})
			z := r.ztunnel()
			z.Subscribe(mesh.TypeAddress)
			if got := z.End(); got.Code() != c.want.Code() || got.Message() != c.want.Message() {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	r := newRig(t)
	for name, node := range map[string]*corev3.Node{"no node": nil, "no id": {}} {
		d := xdstest.Connect(t, r.conn, node)
		d.Subscribe(mesh.TypeAddress)
		if got := d.End().Code(); got != codes.InvalidArgument {
			t.Errorf("%s: %v", name, got)
		}
	}
	z = r.ztunnel()
	z.Subscribe("")
	if got := z.End().Code(); got != codes.InvalidArgument {
		t.Errorf("no type: %v", got)
	}
	z = r.ztunnel()
	for i := range 40 {
		z.Subscribe(fmt.Sprintf("type.googleapis.com/test.T%d", i))
	}
	if got := z.End().Code(); got != codes.ResourceExhausted {
		t.Errorf("many types: %v", got)
	}
	eventually(t, "all streams are gone", func() bool { return len(r.server.Debug().([]xds.StreamStatus)) == 0 })
	if got := r.metric("pilot_xds"); got != 0 {
		t.Errorf("pilot_xds = %v", got)
	}
}

func TestClose(t *testing.T) {
	r := newRig(t)
	z := r.ztunnel()
	z.Subscribe(mesh.TypeAddress)
	z.Next()
	r.server.Close()
	if got := z.End().Code(); got != codes.Unavailable {
		t.Errorf("open stream: %v", got)
	}
	z = r.ztunnel()
	z.Subscribe(mesh.TypeAddress)
	if got := z.End().Code(); got != codes.Unavailable {
		t.Errorf("new stream: %v", got)
	}
}

// A stranger is refused before anything that it sends is read.
func TestAuthenticatesBeforeTheFirstRequest(t *testing.T) {
	refused := status.Error(codes.Unauthenticated, "not authenticated")
	r := newRig(t, func(cfg *xds.Config) {
		cfg.Authenticate = func(context.Context) (context.Context, error) {
			return nil, fmt.Errorf("%w: token expired", refused)
		}
	})
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(r.conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated || strings.Contains(err.Error(), "expired") {
		t.Errorf("a stream without a request ended with %v, want Unauthenticated and no details", err)
	}
}
