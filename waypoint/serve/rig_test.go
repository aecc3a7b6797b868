package serve_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/serve"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/identity/identitytest"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

const (
	vip      = "10.96.0.7:9080"
	hostname = "reviews.shop.svc.cluster.local"
	name     = hostname + ":9080"
	stable   = "outbound|9080||" + hostname
)

// rig is a waypoint between clients and endpoints, with real TLS on loopback.
type rig struct {
	t          testing.TB
	ca         *identitytest.CA
	pool       *backend.Pool
	routes     *config.Builder
	registry   *prometheus.Registry
	log        *lines
	addr       string
	tunnelPort uint16
	nextIP     byte
	directory  *directory
	server     *serve.Server
	cert       atomic.Pointer[mtls.Certificate]
	stop       func() // ends the waypoint as SIGTERM does
	stopped    chan struct{}
}

type directory struct {
	mu    sync.Mutex
	known map[netip.Addr]serve.Workload
}

func (d *directory) Watch(netip.Addr)         {}
func (d *directory) Forget(netip.Addr)        {}
func (d *directory) Changed() <-chan struct{} { return nil }
func (d *directory) Lookup(ip netip.Addr) (serve.Workload, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w, ok := d.known[ip]
	return w, ok
}

// lines collects what is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

type options struct {
	hold    time.Duration
	grace   time.Duration
	json    bool
	discard bool // lines of the access log are thrown away
}

func newRig(tb testing.TB, o options) *rig {
	tb.Helper()
	r := &rig{t: tb, ca: identitytest.New(tb, "cluster.local"), registry: prometheus.NewRegistry(), log: &lines{}, stopped: make(chan struct{})}
	r.cert.Store(r.ca.Issue(r.ca.ID("shop", "waypoint"), time.Hour))
	source := func(context.Context) (*mtls.Certificate, error) { return r.cert.Load(), nil }
	l := listen(tb, "127.0.1.1:0")
	r.tunnelPort = port(l)
	_ = l.Close()
	r.pool = backend.NewPool(backend.Config{Certificate: source, TunnelPort: r.tunnelPort})
	log := slog.New(slog.NewTextHandler(testWriter{tb}, &slog.HandlerOptions{Level: slog.LevelError}))
	r.routes = config.New(config.Config{Pool: r.pool, Log: log})
	r.directory = &directory{known: map[netip.Addr]serve.Workload{}}
	if o.hold == 0 {
		o.hold = -1
	}
	if o.grace == 0 {
		o.grace = 2 * time.Second
	}
	random := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	cfg := serve.Config{
		Routes: r.routes, Pool: r.pool, Certificate: source, Directory: r.directory, Metrics: serve.NewMetrics(r.registry),
		Log: log, Grace: o.grace, Hold: o.hold,
		Random: func() uint64 {
			mu.Lock()
			defer mu.Unlock()
			return random.Uint64()
		},
	}
	var work sync.WaitGroup
	background, end := context.WithCancel(context.Background())
	cfg.Access = serve.NewAccessLog(r.log, o.json)
	if o.discard {
		cfg.Access = serve.NewAccessLog(io.Discard, o.json)
	}
	work.Go(func() { _ = cfg.Access.Run(background) })
	work.Go(func() { _ = r.pool.Run(background) })
	work.Go(func() { _ = r.routes.Run(background) })
	in := listen(tb, "127.0.0.1:0")
	r.addr = in.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.server = serve.New(cfg)
	go func() {
		defer close(r.stopped)
		if err := r.server.Run(ctx, in); err != nil {
			tb.Errorf("run: %v", err)
		}
	}()
	tb.Cleanup(func() {
		stop()
		<-r.stopped
		end()
		work.Wait()
	})
	return r
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func listen(tb testing.TB, address string) net.Listener {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func port(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

// pod is an endpoint with its ztunnel.
type pod struct {
	addr  netip.AddrPort
	id    spiffe.ID
	uid   string
	plain bool
}

// newPod runs handler behind HBONE on a loopback address of its own.
func (r *rig) newPod(serviceAccount string, handler http.Handler) pod {
	r.t.Helper()
	p, l := r.newBarePod(serviceAccount)
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	r.t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return p
}

// newBarePod is a pod whose application is up to the caller.
func (r *rig) newBarePod(serviceAccount string) (pod, net.Listener) {
	r.t.Helper()
	r.nextIP++
	ip := fmt.Sprintf("127.0.1.%d", r.nextIP)
	app := listen(r.t, ip+":0")
	p := pod{addr: netip.MustParseAddrPort(app.Addr().String()), id: r.ca.ID("shop", serviceAccount), uid: "uid-" + ip}
	r.serveTunnel(ip, p.id)
	return p, app
}

// serveTunnel is the receiving half of a ztunnel.
func (r *rig) serveTunnel(ip string, id spiffe.ID) {
	cert := r.ca.Issue(id, time.Hour)
	in := listen(r.t, fmt.Sprintf("%s:%d", ip, r.tunnelPort))
	ctx, cancel := context.WithCancel(context.Background())
	secure := mtls.ServerConfig(ctx, func(context.Context) (*mtls.Certificate, error) { return cert, nil })
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := in.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer func() { _ = conn.Close() }()
				_ = hbone.Serve(ctx, tls.Server(conn, secure), hbone.Config{Grace: time.Millisecond}, deliver)
			})
		}
	})
	r.t.Cleanup(func() {
		_ = in.Close()
		cancel()
		work.Wait()
	})
}

func deliver(in *hbone.Incoming) {
	conn, err := (&net.Dialer{}).DialContext(in.Context(), "tcp", in.Request.Authority)
	if err != nil {
		_ = in.Reject(503)
		return
	}
	s, err := in.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	_ = relay.Copy(s, conn.(*net.TCPConn), &relay.Counters{})
}

// tunnel returns a client tunnel of a service account.
func (r *rig) tunnel(serviceAccount string) *hbone.Tunnel {
	r.t.Helper()
	t, err := r.dialTunnel(r.ca.Issue(r.ca.ID("shop", serviceAccount), time.Hour))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = t.Close() })
	return t
}

func (r *rig) dialTunnel(cert *mtls.Certificate) (*hbone.Tunnel, error) {
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(conn, mtls.ClientConfig(cert, []spiffe.ID{r.ca.ID("shop", "waypoint")}))
	if err := secure.Handshake(); err != nil {
		return nil, err
	}
	return hbone.NewTunnel(secure, hbone.Config{})
}

// client speaks HTTP to the service of the rig through a tunnel.
func (r *rig) client() *http.Client { return r.clientTo(r.tunnel("client"), vip) }

func (r *rig) clientTo(t *hbone.Tunnel, authority string) *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return t.Open(ctx, hbone.Request{Authority: authority})
		},
		MaxIdleConnsPerHost: 64,
		DisableCompression:  true,
	}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// stream opens a raw stream to the service of the rig.
func (r *rig) stream(authority string) *hbone.Stream {
	r.t.Helper()
	s, err := r.tunnel("client").Open(r.t.Context(), hbone.Request{Authority: authority})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close() })
	_ = s.SetDeadline(time.Now().Add(20 * time.Second))
	return s
}

// configuration

func (r *rig) apply(typeURL string, messages ...proto.Message) {
	r.t.Helper()
	for name, err := range r.try(typeURL, messages...) {
		r.t.Fatalf("resource %s refused: %v", name, err)
	}
}

func (r *rig) try(typeURL string, messages ...proto.Message) map[string]error {
	r.t.Helper()
	var list []*discoveryv3.Resource
	for _, m := range messages {
		list = append(list, &discoveryv3.Resource{Name: resourceName(m), Resource: pack(r.t, m)})
	}
	return r.routes.Apply(typeURL, list, nil)
}

func resourceName(m proto.Message) string {
	if load, ok := m.(*endpointv3.ClusterLoadAssignment); ok {
		return load.GetClusterName()
	}
	return m.(interface{ GetName() string }).GetName()
}

func pack(tb testing.TB, m proto.Message) *anypb.Any {
	tb.Helper()
	a, err := anypb.New(m)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// service configures the service of the rig with routes, none meaning one to
// the stable cluster of pods.
func (r *rig) service(pods []pod, routes ...*routev3.Route) {
	r.t.Helper()
	r.cluster(stable, pods...)
	r.apply(config.TypeListener, r.httpListener())
	if len(routes) == 0 {
		routes = []*routev3.Route{to("default", stable)}
	}
	r.route(routes...)
}

func (r *rig) route(routes ...*routev3.Route) {
	r.t.Helper()
	r.apply(config.TypeRoute, &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{
		Name: "all", Domains: []string{"*"}, Routes: routes,
	}}})
}

func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
}

func socket(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

func (r *rig) httpListener() *listenerv3.Listener {
	metadata, _ := structpb.NewStruct(map[string]any{"name": "reviews", "namespace": "shop", "hostname": hostname})
	return &listenerv3.Listener{
		Name: name, Address: socket(netip.MustParseAddrPort(vip)),
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{mesh.ServiceMetadata: metadata}},
		ApiListener: &listenerv3.ApiListener{ApiListener: pack(r.t, &hcmv3.HttpConnectionManager{
			StatPrefix:     name,
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: name, ConfigSource: ads()}},
			HttpFilters: []*hcmv3.HttpFilter{{
				Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(r.t, &routerv3.Router{})},
			}},
		})},
	}
}

func (r *rig) tcpListener() *listenerv3.Listener {
	l := r.httpListener()
	l.ApiListener = nil
	l.FilterChains = []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
		Name: "envoy.filters.network.tcp_proxy",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(r.t, &tcpv3.TcpProxy{
			StatPrefix: name, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: stable},
		})},
	}}}}
	return l
}

func (r *rig) cluster(cluster string, pods ...pod) {
	r.t.Helper()
	r.apply(config.TypeCluster, &clusterv3.Cluster{
		Name: cluster, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
	})
	r.endpoints(cluster, pods...)
}

func (r *rig) endpoints(cluster string, pods ...pod) {
	r.t.Helper()
	load := &endpointv3.ClusterLoadAssignment{ClusterName: cluster, Endpoints: []*endpointv3.LocalityLbEndpoints{{}}}
	for _, p := range pods {
		fields := map[string]any{"protocol": "HBONE", "spiffe_ids": []any{p.id.String()}, "workload": p.uid}
		if p.plain {
			fields = map[string]any{"protocol": "TCP"}
		}
		metadata, err := structpb.NewStruct(fields)
		if err != nil {
			r.t.Fatal(err)
		}
		load.Endpoints[0].LbEndpoints = append(load.Endpoints[0].LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socket(p.addr)}},
			Metadata:       &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{mesh.EndpointMetadata: metadata}},
		})
	}
	r.apply(config.TypeEndpoint, load)
}

// to is a route to one cluster for everything that matches; matches are added
// by the caller.
func to(routeName, cluster string) *routev3.Route {
	return &routev3.Route{
		Name:  routeName,
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
		}},
	}
}

// answers is an application that says its name.
func answers(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
}

func get(tb testing.TB, c *http.Client, path string, header ...string) (int, string) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, "http://reviews:9080"+path, nil)
	if err != nil {
		tb.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for limit := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(limit) {
			tb.Fatalf("%s: did not happen", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}
