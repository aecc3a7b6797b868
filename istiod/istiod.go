// Package istiod is the control plane: it reads what users and the cluster say,
// works out what each proxy has to know, and sends it; it signs the proxies'
// certificates; it writes back what became of each object.
//
// New wires the stages, Run boots them in the order in which they appear in
// Run. Everything between the source and the xDS store is a graph of derived
// collections (graph.go for L4, graph_l7.go for waypoints, statements.go for
// statuses) of pure functions from model, translate, gateway and deploy: one
// batch of changes becomes one update of the store. What has to be written
// is noted there and written elsewhere, by one istiod of several (generator.go,
// status.Writer), so that no disk, no API server and no proxy slows the graph.
// What differs between a directory and a cluster is in platform.go.
//
// DESIGN.md §4 says what is decided, spec/control-plane.md what to obey.
package istiod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/ca"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
	"github.com/ambit-mesh/ambit/istiod/status"
	"github.com/ambit-mesh/ambit/istiod/xds"
)

// Config is all that an Istiod needs.
type Config struct {
	// ConfigDir holds the user's manifests and is only read. StateDir is where
	// the objects that a cluster would generate, and statuses, are written.
	// Without them a cluster is read and written.
	ConfigDir, StateDir string
	// Kubeconfig says how to reach the cluster; "" is the one that istiod is a
	// pod of. PodName is that pod's.
	Kubeconfig, PodName string
	// ListenAddress is the host to listen on; "" is 127.0.0.1 with a ConfigDir,
	// and all addresses in a cluster.
	ListenAddress string
	// Port and MonitoringPort are 15012 and 15014 in production; 0 lets the
	// kernel choose, see Addresses.
	Port, MonitoringPort int

	// JWKSFile holds the keys that sign service-account tokens, JWTIssuer and
	// JWTAudience what tokens must say.
	JWKSFile, JWTIssuer, JWTAudience string
	// TrustedNodeAccounts are the "namespace/name" of the service accounts of
	// ztunnels.
	TrustedNodeAccounts []string

	ClusterDomain, ClusterID string
	// Network is that of workloads that name none, as ztunnels have it; "" is
	// what the label topology.istio.io/network of the system namespace says.
	Network string
	// WaypointImage is the image of generated waypoint Deployments.
	WaypointImage string
	// Version is shown by the monitoring server.
	Version string
	Log     *slog.Logger
}

// validate says what is missing, or does not fit together, in terms of the flags.
func (c Config) validate() error {
	if c.ConfigDir == "" {
		return c.validateCluster()
	}
	switch {
	case c.Kubeconfig != "":
		return errors.New("--kubeconfig and --config-dir are two sources: give one")
	case c.StateDir == "":
		return errors.New("--config-dir needs --state-dir: without a cluster, generated objects and statuses are written there")
	case c.JWKSFile == "":
		return errors.New("--config-dir needs --jwks-file: without a cluster, nothing else can tell who is calling")
	case c.JWTIssuer == "" || c.JWTAudience == "":
		return errors.New("--jwks-file needs --jwt-issuer and --jwt-audience: a key alone does not say whom a token is for")
	}
	return nil
}

func (c Config) validateCluster() error {
	switch {
	case c.StateDir != "":
		return errors.New("--state-dir needs --config-dir: in a cluster, generated objects and statuses are written to the API server")
	case c.JWKSFile != "" || c.JWTIssuer != "":
		return errors.New("--jwks-file and --jwt-issuer need --config-dir: in a cluster, the API server alone says who is calling")
	}
	return nil
}

// Istiod is a control plane.
type Istiod struct {
	cfg     Config
	log     *slog.Logger
	metrics *prometheus.Registry

	platform    platform // where objects come from, and where istiod writes
	objects     *source.Objects
	views       *views
	l7          *l7Views
	deployments *collection.Derived[deployment]
	store       *xds.Store
	statuses    *status.Writer
	generated   *generator

	// Of the source's goroutine:
	unreadKinds map[string]bool // logged once
	untaken     map[string]bool // files and Gateways whose present version is refused

	tidied    atomic.Bool   // everything that exists has been taken once
	loaded    chan struct{} // closed after the first load
	serving   atomic.Bool
	listening chan struct{} // closed when addresses are known
	addresses Addresses
}

// New wires an Istiod; nothing runs and nothing is read but the key file.
func New(cfg Config) (*Istiod, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.ConfigDir != "" {
		cfg.ListenAddress = cmp.Or(cfg.ListenAddress, "127.0.0.1")
	}
	cfg.ClusterDomain = cmp.Or(cfg.ClusterDomain, mesh.DefaultClusterDomain)
	cfg.ClusterID = cmp.Or(cfg.ClusterID, mesh.DefaultClusterID)
	cfg.WaypointImage = cmp.Or(cfg.WaypointImage, DefaultWaypointImage)
	i := &Istiod{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)), metrics: prometheus.NewRegistry(),
		loaded: make(chan struct{}), listening: make(chan struct{}),
		unreadKinds: map[string]bool{}, untaken: map[string]bool{},
	}
	i.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	i.objects = source.NewObjects(collection.NewGraph())
	platform, err := i.platformOf(cfg)
	if err != nil {
		return nil, err
	}
	i.platform = platform
	i.wire()
	return i, nil
}

// wire makes the graph between objects and what is sent and written.
func (i *Istiod) wire() {
	g := i.objects.Graph

	// Reads objects, produces the views: services, workloads, waypoints, policies.
	i.views = newViews(i.objects, i.cfg)
	i.views.cluster = i.platform.cluster
	i.l7 = newL7Views(i.objects, i.views)

	// Reads the views, produces messages; each batch is one update of the store.
	i.store = xds.NewStore()
	all := slices.Concat(i.views.workloadResources(g), i.l7.resources(g))
	all.publish(g, i.store)

	// Reads Gateways, produces the objects that run waypoints.
	i.deployments = i.views.deployments(i.objects, i.cfg.WaypointImage)
	i.generated = &generator{store: i.platform.objects, log: i.log, state: i.state(), cluster: i.platform.cluster}
	i.generate()

	// Reads namespaces, produces the root certificate in each.
	i.distribute()

	// Reads objects and views, produces statuses.
	i.statuses = status.NewWriter(status.Config{Store: i.platform.statuses, Log: i.log})
	for _, from := range i.l7.statements(i.objects, i.deployments) {
		collection.Sink(from, func(events []collection.Event[statement]) {
			for _, event := range events {
				if event.New != nil {
					i.statuses.Set(event.New.writer, event.New.object, event.New.status)
				} else {
					i.statuses.Set(event.Old.writer, event.Old.object, status.Status{})
				}
			}
		})
	}
}

// Run boots everything and blocks until ctx is done or a part fails.
func (i *Istiod) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)

	// Reads the state of all parts, produces metrics, readiness and dumps.
	server := xds.NewServer(xds.Config{
		Store: i.store, Authenticate: i.authenticate, Authorize: i.authorize, Ready: i.serving.Load, Log: i.log, Metrics: i.metrics,
	})
	monitor, err := net.Listen("tcp", net.JoinHostPort(i.cfg.ListenAddress, strconv.Itoa(i.cfg.MonitoringPort)))
	if err != nil {
		return fmt.Errorf("monitoring: %w", err)
	}
	group.Go(func() error { return i.monitor(ctx, monitor, server) })

	// Reads the statuses of before, produces the waypoints that have been ready.
	if err := i.remember(); err != nil {
		return stopped(group, monitor, err)
	}

	// Reads manifests, produces objects, and with them everything derived.
	group.Go(func() error { return i.platform.source.Run(ctx) })
	select {
	case <-i.loaded:
	case <-ctx.Done():
		return group.Wait()
	}
	i.log.Info("first load done", slog.Int("pods", i.objects.Pods.Len()), slog.Int("services", i.objects.Services.Len()))

	// Reads the authority's Secret, or makes it; produces the signer.
	authority, err := i.authority(ctx)
	if err != nil {
		return stopped(group, monitor, err)
	}

	// Reads what has been noted of objects, namespaces and waypoints, produces
	// statuses and objects; one istiod of several does.
	i.generated.setRoot(authority.RootPEM())
	group.Go(func() error { return i.platform.lead(ctx, i.write) })

	// Reads the store and the authority, produces xDS and certificates.
	service := ca.NewService(ca.ServiceConfig{
		Authority: authority, Verify: i.platform.verify, Pods: podDirectory{i.views}, TrustDomain: func() string { return i.mesh().TrustDomain },
		TrustedNodeAccounts: i.cfg.TrustedNodeAccounts, Log: i.log, Metrics: i.metrics,
	})
	listener, err := net.Listen("tcp", net.JoinHostPort(i.cfg.ListenAddress, strconv.Itoa(i.cfg.Port)))
	if err != nil {
		return stopped(group, monitor, fmt.Errorf("xds: %w", err))
	}
	i.addresses = Addresses{XDS: listener.Addr().String(), Monitoring: monitor.Addr().String()}
	i.serving.Store(true)
	close(i.listening)
	i.log.Info("serving", slog.String("address", i.addresses.XDS))
	group.Go(func() error { return i.serve(ctx, listener, authority, server, service) })
	return group.Wait()
}

// write does all the writing until ctx is done.
func (i *Istiod) write(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return i.statuses.Run(ctx) })
	group.Go(func() error { return i.generated.Run(ctx) })
	return group.Wait()
}

// stopped ends what runs already and returns why the boot failed.
func stopped(group *errgroup.Group, monitor net.Listener, err error) error {
	group.Go(func() error { return err }) // cancels the context of the group
	return errors.Join(group.Wait(), closeQuietly(monitor))
}

func closeQuietly(l net.Listener) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Addresses are what an Istiod listens on, as host:port.
type Addresses struct{ XDS, Monitoring string }

// Addresses waits until everything is served and returns where.
func (i *Istiod) Addresses(ctx context.Context) (Addresses, error) {
	select {
	case <-i.listening:
		return i.addresses, nil
	case <-ctx.Done():
		return Addresses{}, ctx.Err()
	}
}

// mesh returns the mesh's present configuration.
func (i *Istiod) mesh() model.Mesh {
	m, _ := i.views.meshes.Get(meshKey)
	return m
}
