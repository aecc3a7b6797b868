package config_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
)

// The any types inside JSON are found by these imports.
var _ = []proto.Message{&hcmv3.HttpConnectionManager{}, &routerv3.Router{}, &tcpv3.TcpProxy{}}

const (
	name     = "a.shop.svc:80"
	listener = `{"name":"a.shop.svc:80","address":{"socketAddress":{"address":"10.0.0.1","portValue":80}},
		"additionalAddresses":[{"address":{"socketAddress":{"address":"fd00::1","portValue":80}}}],
		"metadata":{"filterMetadata":{"ambit.service":{"name":"a","namespace":"shop","hostname":"a.shop.svc"}}},
		"apiListener":{"apiListener":{"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"statPrefix":"a","rds":{"routeConfigName":"a.shop.svc:80","configSource":{"ads":{},"resourceApiVersion":"V3"}},
			"httpFilters":[{"name":"envoy.filters.http.router","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}}`
	routes  = `{"name":"a.shop.svc:80","virtualHosts":[{"name":"x","domains":["*"],"routes":[{"name":"r","match":{"prefix":"/"},"route":{"cluster":"outbound|80||a.shop.svc"}}]}]}`
	cluster = `{"name":"outbound|80||a.shop.svc","type":"EDS","edsClusterConfig":{"edsConfig":{"ads":{}}},"connectTimeout":"10s"}`
	load    = `{"clusterName":"outbound|80||a.shop.svc","endpoints":[{"lbEndpoints":[{"endpoint":{"address":{"socketAddress":{"address":"10.1.0.1","portValue":8080}}},
		"metadata":{"filterMetadata":{"ambit.endpoint":{"protocol":"HBONE","spiffe_ids":["spiffe://td/ns/shop/sa/a"],"workload":"uid"}}}}]}]}`
)

type fixture struct {
	*config.Builder
	t          *testing.T
	subscribed map[string]bool
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, subscribed: map[string]bool{}}
	f.Builder = config.New(config.Config{
		Pool: backend.NewPool(backend.Config{}),
		Subscribe: func(_ string, names ...string) {
			for _, n := range names {
				f.subscribed[n] = true
			}
		},
		Unsubscribe: func(_ string, names ...string) {
			for _, n := range names {
				delete(f.subscribed, n)
			}
		},
	})
	return f
}

func messageOf(t *testing.T, typeURL, text string) (string, proto.Message) {
	t.Helper()
	var m proto.Message
	switch typeURL {
	case config.TypeListener:
		m = &listenerv3.Listener{}
	case config.TypeRoute:
		m = &routev3.RouteConfiguration{}
	case config.TypeCluster:
		m = &clusterv3.Cluster{}
	case config.TypeEndpoint:
		m = &endpointv3.ClusterLoadAssignment{}
	}
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if load, ok := m.(*endpointv3.ClusterLoadAssignment); ok {
		return load.GetClusterName(), m
	}
	return m.(interface{ GetName() string }).GetName(), m
}

func (f *fixture) send(typeURL, text string) map[string]error {
	f.t.Helper()
	n, m := messageOf(f.t, typeURL, text)
	a, err := anypb.New(m)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.Apply(typeURL, []*discoveryv3.Resource{{Name: n, Resource: a}}, nil)
}

func (f *fixture) ok(typeURL, text string) {
	f.t.Helper()
	if refused := f.send(typeURL, text); len(refused) > 0 {
		f.t.Fatalf("refused: %v", refused)
	}
}

func (f *fixture) all() {
	f.t.Helper()
	f.ok(config.TypeCluster, cluster)
	f.ok(config.TypeEndpoint, load)
	f.ok(config.TypeListener, listener)
	f.ok(config.TypeRoute, routes)
}

func (f *fixture) routesTo(path string) string {
	l := f.Snapshot().Listener("10.0.0.1:80")
	if l == nil {
		return "no listener"
	}
	rule := l.Routes.Find(&codec.Request{Path: path})
	if rule == nil {
		return "no route"
	}
	return rule.Targets.All()[0].Cluster
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestListenerIsFound(t *testing.T) {
	f := newFixture(t)
	f.all()
	for authority, want := range map[string]bool{
		"10.0.0.1:80": true, "[fd00::1]:80": true, "[::ffff:10.0.0.1]:80": true, name: true, "10.0.0.1:81": false, "a.shop.svc": false,
	} {
		if got := f.Snapshot().Listener(authority) != nil; got != want {
			t.Errorf("%s: found %v, want %v", authority, got, want)
		}
	}
	if l := f.Snapshot().Listener(name); l.Service != (config.Service{Name: "a", Namespace: "shop", Hostname: "a.shop.svc"}) {
		t.Errorf("service %+v", l.Service)
	}
	if d := f.Dump(); len(d.Listeners) != 1 || len(d.Routes) != 1 || len(d.Clusters) != 1 || len(d.Endpoints) != 1 {
		t.Errorf("dump has %d, %d, %d, %d resources, want one each", len(d.Listeners), len(d.Routes), len(d.Clusters), len(d.Endpoints))
	}
}

// TestOrder: in whichever order resources come, nothing is served half, and
// Warm means whole.
func TestOrder(t *testing.T) {
	texts := map[string]string{
		config.TypeListener: listener, config.TypeCluster: cluster, config.TypeEndpoint: load, config.TypeRoute: routes,
	}
	for _, order := range [][]string{
		{config.TypeCluster, config.TypeEndpoint, config.TypeListener, config.TypeRoute},
		{config.TypeListener, config.TypeRoute, config.TypeCluster, config.TypeEndpoint},
		{config.TypeCluster, config.TypeListener, config.TypeRoute, config.TypeEndpoint},
	} {
		f := newFixture(t)
		for i, typeURL := range order {
			if f.Snapshot().Listener(name) != nil || isClosed(f.Warm()) {
				t.Errorf("%v: served after %d steps", order, i)
			}
			f.ok(typeURL, texts[typeURL])
		}
		if f.Snapshot().Listener(name) == nil || !isClosed(f.Warm()) {
			t.Errorf("%v: not served at the end", order)
		}
		want := []string{name, "outbound|80||a.shop.svc"}
		if got := slices.Sorted(maps.Keys(f.subscribed)); !slices.Equal(got, want) {
			t.Errorf("%v: subscribed to %v, want %v", order, got, want)
		}
	}
}

// TestNewRouteWaitsForItsCluster, and is used in the end when that never comes.
func TestNewRouteWaitsForItsCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = f.Run(ctx)
		}()
		defer func() {
			stop()
			<-done
		}()
		f.all()
		f.ok(config.TypeRoute, strings.ReplaceAll(routes, "|80||", "|80|v2|"))
		if got := f.routesTo("/"); got != "outbound|80||a.shop.svc" {
			t.Errorf("before its cluster is here: %s", got)
		}
		f.ok(config.TypeCluster, strings.ReplaceAll(cluster, "|80||", "|80|v2|"))
		if got := f.routesTo("/"); got != "outbound|80||a.shop.svc" {
			t.Errorf("before the endpoints are here: %s", got)
		}
		f.ok(config.TypeEndpoint, strings.ReplaceAll(load, "|80||", "|80|v2|"))
		if got := f.routesTo("/"); got != "outbound|80|v2|a.shop.svc" {
			t.Errorf("once all is here: %s", got)
		}
		f.ok(config.TypeRoute, strings.ReplaceAll(routes, "|80||", "|80|never|"))
		time.Sleep(4 * time.Second)
		if got := f.routesTo("/"); got != "outbound|80|v2|a.shop.svc" {
			t.Errorf("after 4 s: %s", got)
		}
		time.Sleep(3 * time.Second)
		if got := f.routesTo("/"); got != "outbound|80|never|a.shop.svc" {
			t.Errorf("after 7 s: %s", got)
		}
	})
}

// TestRemovalWaitsForUsers: what is removed serves until nothing needs it.
func TestRemovalWaitsForUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = f.Run(ctx)
		}()
		defer func() {
			stop()
			<-done
		}()
		f.all()
		f.Apply(config.TypeCluster, nil, []string{"outbound|80||a.shop.svc"})
		f.Apply(config.TypeEndpoint, nil, []string{"outbound|80||a.shop.svc"})
		if c := f.Snapshot().Cluster("outbound|80||a.shop.svc"); c == nil || len(c.Endpoints()) != 1 {
			t.Error("a cluster that a route names went at once")
		}
		f.Apply(config.TypeListener, nil, []string{name})
		if f.Snapshot().Listener(name) == nil {
			t.Error("a listener went at once")
		}
		if d := f.Dump(); len(d.Listeners) != 0 {
			t.Error("a removed listener is still in the dump")
		}
		time.Sleep(7 * time.Second)
		if f.Snapshot().Listener(name) != nil || f.Snapshot().Cluster("outbound|80||a.shop.svc") != nil {
			t.Error("what was removed is still here after 7 s")
		}
	})
}

// TestRefused: what we do not honour is refused by name, and the last good
// version stays.
func TestRefused(t *testing.T) {
	for _, c := range []struct{ typeURL, from, replace, by, want string }{
		{config.TypeListener, listener, `"apiListener":{"apiListener"`, `"perConnectionBufferLimitBytes":1,"apiListener":{"apiListener"`, "per_connection_buffer_limit_bytes is not supported"},
		{config.TypeListener, listener, `"statPrefix":"a"`, `"statPrefix":"a","mergeSlashes":true`, "api_listener.merge_slashes is not supported"},
		{config.TypeListener, listener, `"10.0.0.1"`, `"nowhere"`, "address.socket_address.address"},
		{config.TypeListener, listener, `"hostname":"a.shop.svc"`, `"x":"y"`, "metadata ambit.service.hostname is missing"},
		{config.TypeListener, listener, `{"ads":{},"resourceApiVersion":"V3"}`, `{"path":"/etc/passwd"}`, "config_source.path is not supported"},
		{config.TypeRoute, routes, `["*"]`, `["a.example"]`, "domains"},
		{config.TypeRoute, routes, `{"prefix":"/"}`, `{"prefix":"/","grpc":{}}`, "virtual_hosts[0].routes[0].match.grpc is not supported"},
		{config.TypeRoute, routes, `{"prefix":"/"}`, `{"safeRegex":{"regex":"("}}`, "match.safe_regex: error parsing regexp"},
		{config.TypeRoute, routes, `{"prefix":"/"}`, `{"prefix":"/","headers":[{"name":"x","rangeMatch":{"start":1,"end":2}}]}`, "headers[0].range_match is not supported"},
		{config.TypeRoute, routes, `{"cluster":`, `{"hashPolicy":[{"header":{"headerName":"x"}}],"cluster":`, "route.hash_policy is not supported"},
		{config.TypeRoute, routes, `{"cluster":`, `{"retryPolicy":{"retryOn":"5xx,sometimes"},"cluster":`, `retry_on "sometimes" is not supported`},
		{config.TypeRoute, routes, `{"cluster":`, `{"requestMirrorPolicies":[{"cluster":"x"}],"cluster":`, "request_mirror_policies is not supported"},
		{config.TypeRoute, routes, `"name":"r"`, `"name":"r","typedPerFilterConfig":{"x":{"@type":"type.googleapis.com/google.protobuf.Empty"}}`, "typed_per_filter_config is not supported"},
		{config.TypeRoute, routes, `"name":"r"`, `"name":"r","requestHeadersToAdd":[{"header":{"key":"x","value":"%START_TIME%"}}]`, "request_headers_to_add[0].header.value"},
		{config.TypeRoute, routes, `"name":"r"`, `"name":"r","requestHeadersToAdd":[{"header":{"key":"Transfer-Encoding","value":"x"}}]`, "transfer-encoding"},
		{config.TypeRoute, routes, `"name":"r"`, `"name":"r","requestHeadersToAdd":[{"header":{"key":"x","value":"a\r\nInjected: b"}}]`, "control character"},
		{config.TypeRoute, routes, `"name":"r"`, `"name":"r","responseHeadersToAdd":[{"header":{"key":"x(","value":"a"}}]`, `"x("`},
		{config.TypeRoute, routes, `"name":"r"`, `"name":"r","requestHeadersToRemove":["Keep-Alive"]`, "keep-alive"},
		{config.TypeRoute, routes, `{"cluster":`, `{"hostRewriteLiteral":"a\r\nInjected: b","cluster":`, "route.host_rewrite_literal"},
		{config.TypeRoute, routes, `{"cluster":`, `{"prefixRewrite":"/a b","cluster":`, "route.prefix_rewrite"},
		{config.TypeRoute, routes, `{"cluster":`, `{"regexRewrite":{"pattern":{"regex":"a"},"substitution":" HTTP/1.1\r\n"},"cluster":`, "route.regex_rewrite.substitution"},
		{config.TypeRoute, routes, `"route":{"cluster":"outbound|80||a.shop.svc"}`, `"redirect":{"pathRedirect":"/\r\nSet-Cookie: a"}`, "redirect.path_redirect"},
		{config.TypeRoute, routes, `"route":{"cluster":"outbound|80||a.shop.svc"}`, `"redirect":{"hostRedirect":"a/\r\nb"}`, "redirect.host_redirect"},
		{config.TypeCluster, cluster, `"type":"EDS"`, `"type":"STRICT_DNS"`, "type STRICT_DNS is not supported"},
		{config.TypeCluster, cluster, `"type":"EDS"`, `"type":"EDS","outlierDetection":{}`, "outlier_detection is not supported"},
		{config.TypeCluster, cluster, `"type":"EDS"`, `"type":"EDS","lbPolicy":"MAGLEV"`, "lb_policy MAGLEV is not supported"},
		{config.TypeEndpoint, load, `"protocol":"HBONE"`, `"protocol":"QUIC"`, "protocol: QUIC is not supported"},
		{config.TypeEndpoint, load, `"protocol":"HBONE",`, ``, "protocol is missing"},
		{config.TypeEndpoint, load, `spiffe://td/ns/shop/sa/a`, `spiffe://td/shop`, "spiffe_ids"},
		{config.TypeEndpoint, load, `{"lbEndpoints"`, `{"priority":1,"lbEndpoints"`, "endpoints[0].priority is not supported"},
	} {
		f := newFixture(t)
		f.all()
		before := f.Dump()
		changed := strings.Replace(c.from, c.replace, c.by, 1)
		if changed == c.from {
			t.Fatalf("%q is not in %s", c.replace, c.from)
		}
		refused := f.send(c.typeURL, changed)
		if len(refused) != 1 {
			t.Errorf("%s: accepted", c.by)
			continue
		}
		for _, err := range refused {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: refused with %q, want %q", c.by, err, c.want)
			}
		}
		after := f.Dump()
		for _, pair := range [][2][]proto.Message{{before.Listeners, after.Listeners}, {before.Routes, after.Routes}, {before.Clusters, after.Clusters}, {before.Endpoints, after.Endpoints}} {
			if len(pair[0]) != len(pair[1]) || !proto.Equal(pair[0][0], pair[1][0]) {
				t.Errorf("%s: the last good version is gone", c.by)
			}
		}
		if got := f.routesTo("/"); got != "outbound|80||a.shop.svc" {
			t.Errorf("%s: routes to %s", c.by, got)
		}
	}
}

// TestGoodBesideBad: a bad resource does not affect its neighbour.
func TestGoodBesideBad(t *testing.T) {
	f := newFixture(t)
	_, good := messageOf(t, config.TypeCluster, cluster)
	a, err := anypb.New(good)
	if err != nil {
		t.Fatal(err)
	}
	refused := f.Apply(config.TypeCluster, []*discoveryv3.Resource{
		{Name: "broken", Resource: &anypb.Any{TypeUrl: a.TypeUrl, Value: []byte{0xff}}},
		{Name: "outbound|80||a.shop.svc", Resource: a},
		{Name: "other name", Resource: a},
	}, nil)
	if len(refused) != 2 || refused["broken"] == nil || refused["other name"] == nil {
		t.Errorf("refused %v", refused)
	}
	if f.Snapshot().Cluster("outbound|80||a.shop.svc") == nil {
		t.Error("the good cluster is not here")
	}
}

// TestBadRouteDoesNotKeepTheRestFromStarting: the listener without routes is
// not served, everything else is.
func TestBadRouteDoesNotKeepTheRestFromStarting(t *testing.T) {
	f := newFixture(t)
	f.ok(config.TypeCluster, cluster)
	f.ok(config.TypeEndpoint, load)
	f.ok(config.TypeListener, listener)
	if isClosed(f.Warm()) {
		t.Error("warm before the routes are here")
	}
	if refused := f.send(config.TypeRoute, strings.Replace(routes, `["*"]`, `["x"]`, 1)); len(refused) != 1 {
		t.Error("bad routes were accepted")
	}
	if !isClosed(f.Warm()) {
		t.Error("not warm after the routes were refused")
	}
	f.ok(config.TypeRoute, routes)
	if got := f.routesTo("/"); got != "outbound|80||a.shop.svc" {
		t.Errorf("once the routes are good: %s", got)
	}
}

func TestEndpointWithoutIdentityIsLeftOut(t *testing.T) {
	f := newFixture(t)
	f.ok(config.TypeCluster, cluster)
	f.ok(config.TypeEndpoint, strings.Replace(load, `"spiffe_ids":["spiffe://td/ns/shop/sa/a"],`, "", 1))
	if n := len(f.Snapshot().Cluster("outbound|80||a.shop.svc").Endpoints()); n != 0 {
		t.Errorf("%d endpoints without an identity, want none", n)
	}
}

func FuzzApply(f *testing.F) {
	urls := []string{config.TypeListener, config.TypeRoute, config.TypeCluster, config.TypeEndpoint}
	f.Add(uint8(1), []byte("\n\ra.shop.svc:80"))
	f.Fuzz(func(_ *testing.T, which uint8, data []byte) {
		url := urls[int(which)%len(urls)]
		b := config.New(config.Config{Pool: backend.NewPool(backend.Config{})})
		b.Apply(url, []*discoveryv3.Resource{{Name: "x", Resource: &anypb.Any{TypeUrl: url, Value: data}}}, nil)
	})
}

// TestWhatIsGoneIsNotAskedForAnyMore: a name that stays subscribed is not sent
// again when its listener or cluster comes back.
func TestWhatIsGoneIsNotAskedForAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = f.Run(ctx)
		}()
		f.all()
		f.Apply(config.TypeListener, nil, []string{name})
		f.Apply(config.TypeCluster, nil, []string{"outbound|80||a.shop.svc"})
		time.Sleep(12 * time.Second)
		stop()
		<-done
		if len(f.subscribed) != 0 {
			t.Errorf("still subscribed: %v", slices.Sorted(maps.Keys(f.subscribed)))
		}
		f.ok(config.TypeCluster, cluster)
		f.ok(config.TypeListener, listener)
		if len(f.subscribed) != 2 {
			t.Errorf("subscribed again: %v, want routes and endpoints", slices.Sorted(maps.Keys(f.subscribed)))
		}
		f.Apply(config.TypeCluster, nil, []string{"outbound|80||a.shop.svc"}) // which nothing names: gone at once
		if f.subscribed["outbound|80||a.shop.svc"] {
			t.Error("endpoints of a cluster that went at once are still subscribed")
		}
	})
}
