// Package waypoint wires the L7 proxy together: HBONE in, one route decision
// per request, HBONE out to the chosen endpoint. Run is the whole product, top
// to bottom in boot order; the work is done in the packages below.
//
// The spec is DESIGN §3.4 and §6, and spec/control-plane.md §4 for what the
// user objects behind the configuration mean.
package waypoint

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/serve"
	"github.com/ambit-mesh/ambit/ztunnel/identity"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/xds"
)

// Grace is how long requests that run are waited for at the end.
const Grace = 25 * time.Second

// Config says who this waypoint is and where its control plane is.
type Config struct {
	PodName, Namespace, ServiceAccount, Node string
	TrustDomain                              string
	ClusterID, Network                       string
	InstanceIP                               string
	Version                                  string

	XDS xds.DialConfig
	CA  xds.DialConfig
	TTL time.Duration // of certificates; the CA's default when zero

	// Listen addresses; the zero Config has none, Default the usual ones.
	HBONE, Admin, Metrics, Readiness string

	Access     io.Writer // nil: no access log
	AccessJSON bool
	Log        *slog.Logger
}

// Default fills in what is the same for every waypoint.
func (c *Config) Default() {
	c.HBONE = fmt.Sprintf("0.0.0.0:%d", mesh.PortHBONE)
	c.Admin = fmt.Sprintf("127.0.0.1:%d", mesh.PortAdmin)
	c.Metrics = fmt.Sprintf("0.0.0.0:%d", mesh.PortMetrics)
	c.Readiness = fmt.Sprintf("0.0.0.0:%d", mesh.PortReadiness)
}

// Waypoint is one L7 proxy.
type Waypoint struct {
	cfg       Config
	id        spiffe.ID
	xdsConn   *grpc.ClientConn
	caConn    *grpc.ClientConn
	identity  *identity.Cache
	pool      *backend.Pool
	workloads *workload.Store
	directory *directory
	routes    *config.Builder
	client    *xds.Client
	registry  *prometheus.Registry
	access    *serve.AccessLog
	server    *serve.Server
	ready     readiness
}

// New makes a waypoint. It opens no connection and starts nothing.
func New(cfg Config) (*Waypoint, error) {
	id, err := spiffe.New(cfg.TrustDomain, cfg.Namespace, cfg.ServiceAccount)
	if err != nil {
		return nil, fmt.Errorf("own identity: %w", err)
	}
	w := &Waypoint{cfg: cfg, id: id, registry: prometheus.NewRegistry(), workloads: workload.NewStore("", "")}
	w.ready.await("identity", "configuration", "listener")
	if w.xdsConn, err = xds.Dial(cfg.XDS); err != nil {
		return nil, fmt.Errorf("xds: %w", err)
	}
	if w.caConn, err = xds.Dial(cfg.CA); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	ca := identity.NewCA(identity.CAConfig{Conn: w.caConn, TTL: cfg.TTL})
	w.identity = identity.NewCache(identity.CacheConfig{Fetch: ca.Fetch, Log: cfg.Log})
	w.pool = backend.NewPool(backend.Config{Certificate: w.certificate})
	w.directory = newDirectory(w.workloads, cfg.Network)
	w.routes = config.New(config.Config{
		Pool: w.pool, Log: cfg.Log, Endpoints: w.directory.endpoints,
		Subscribe:   func(url string, names ...string) { w.client.Subscribe(url, names...) },
		Unsubscribe: func(url string, names ...string) { w.client.Unsubscribe(url, names...) },
	})
	w.client = xds.New(xds.Config{Conn: w.xdsConn, Node: w.node(), Types: w.types(), Log: cfg.Log})
	w.directory.client = w.client
	w.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), w.build())
	w.newServer()
	return w, nil
}

func (w *Waypoint) newServer() {
	if w.cfg.Access != nil {
		w.access = serve.NewAccessLog(w.cfg.Access, w.cfg.AccessJSON)
		w.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "ambit_access_log_dropped_total", Help: "Access-log lines dropped because their reader was too slow.",
		}, func() float64 { return float64(w.access.Dropped()) }))
	}
	w.server = serve.New(serve.Config{
		Routes: w.routes, Pool: w.pool, Certificate: w.certificate, Directory: w.directory,
		Metrics: serve.NewMetrics(w.registry), Access: w.access, Log: w.cfg.Log, Grace: Grace,
	})
}

func (w *Waypoint) build() prometheus.Collector {
	version := w.cfg.Version
	if version == "" {
		version = "unknown"
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "istio_build", Help: "Version of this component.", ConstLabels: prometheus.Labels{"component": "waypoint", "tag": version},
	})
	g.Set(1)
	return g
}

func (w *Waypoint) certificate(ctx context.Context) (*mtls.Certificate, error) {
	return w.identity.Get(ctx, w.id)
}

// types are asked for in an order in which what is named comes before what
// names it.
func (w *Waypoint) types() []xds.Type {
	take := func(url string, onDemand bool) xds.Type {
		return xds.Type{URL: url, OnDemand: onDemand, Apply: func(u xds.Update) map[string]error {
			return w.routes.Apply(url, u.Resources, u.Removed)
		}}
	}
	return []xds.Type{
		take(config.TypeCluster, false),
		take(config.TypeEndpoint, true),
		take(config.TypeListener, false),
		take(config.TypeRoute, true),
		{URL: mesh.TypeAddress, OnDemand: true, Apply: func(u xds.Update) map[string]error {
			return w.applyAddresses(u.Resources, u.Removed)
		}},
	}
}

func (w *Waypoint) applyAddresses(set []*discoveryv3.Resource, removed []string) map[string]error {
	return w.workloads.ApplyAddresses(set, removed)
}

func (w *Waypoint) node() *corev3.Node {
	metadata := map[string]*structpb.Value{}
	for name, value := range map[string]string{
		"NAME": w.cfg.PodName, "NAMESPACE": w.cfg.Namespace, "SERVICE_ACCOUNT": w.cfg.ServiceAccount,
		"NODE_NAME": w.cfg.Node, "CLUSTER_ID": w.cfg.ClusterID, "INSTANCE_IPS": w.cfg.InstanceIP,
	} {
		metadata[name] = structpb.NewStringValue(value)
	}
	ns := w.cfg.Namespace
	return &corev3.Node{
		Id: fmt.Sprintf("%s~%s~%s.%s~%s.svc.%s", mesh.NodeTypeWaypoint, w.cfg.InstanceIP, w.cfg.PodName, ns, ns,
			mesh.DefaultClusterDomain),
		Metadata: &structpb.Struct{Fields: metadata},
	}
}

// Run serves until ctx ends and what was running has ended, or Grace is over.
//
//  1. Admin, metrics and readiness listen; the latter says what is missing.
//  2. Identity and configuration are fetched.
//  3. HBONE connections are accepted; the waypoint is ready.
//  4. When ctx ends: not ready, no new connections, goodbye on the old ones.
//  5. When they have ended: everything else ends.
func (w *Waypoint) Run(ctx context.Context) error {
	base, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group, base := errgroup.WithContext(base)
	if err := w.serveAdmin(base, group); err != nil {
		end()
		return withFirst(err, group.Wait())
	}
	group.Go(func() error { return w.identity.Run(base) })
	group.Go(func() error { return w.client.Run(base) })
	group.Go(func() error { return w.routes.Run(base) })
	group.Go(func() error { return w.pool.Run(base) })
	if w.access != nil {
		group.Go(func() error { return w.access.Run(base) })
	}
	group.Go(func() error {
		defer end()
		serving, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(base, stop)()
		return w.serve(serving)
	})
	err := group.Wait()
	_ = w.xdsConn.Close()
	_ = w.caConn.Close()
	return err
}

func withFirst(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// serve accepts connections once identity and configuration are here.
func (w *Waypoint) serve(ctx context.Context) error {
	if _, err := w.firstCertificate(ctx); err != nil {
		return nil //nolint:nilerr // ctx has ended
	}
	w.ready.done("identity")
	select {
	case <-w.routes.Warm():
	case <-ctx.Done():
		return nil
	}
	w.ready.done("configuration")
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", w.cfg.HBONE)
	if err != nil {
		return err
	}
	w.ready.done("listener")
	w.cfg.Log.Info("ready", slog.String("address", l.Addr().String()), slog.String("identity", w.id.String()))
	defer context.AfterFunc(ctx, func() {
		w.ready.await("drain")
		w.cfg.Log.Info("draining", slog.Duration("grace", Grace))
	})()
	return w.server.Run(ctx, l)
}

// firstCertificate waits for a certificate, however often asking for it fails.
func (w *Waypoint) firstCertificate(ctx context.Context) (*mtls.Certificate, error) {
	retry := time.NewTicker(200 * time.Millisecond)
	defer retry.Stop()
	for {
		cert, err := w.certificate(ctx)
		if err == nil {
			return cert, nil
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
