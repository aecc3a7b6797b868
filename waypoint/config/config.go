// Package config turns the resources that istiod sends into what serve reads:
// an immutable Snapshot of listeners, compiled routes and clusters, replaced as
// a whole by an atomic pointer. Nothing is parsed or compiled per request.
//
// A resource that cannot be honoured is refused as a whole, naming the field,
// and its last good version stays; nothing in a resource is ignored in silence
// (DESIGN §3.4). A new version of a route is used once the clusters that it
// names and their endpoints are here; a cluster that istiod takes away stays
// while a route still names it, a listener stays for a moment after it was
// removed. So no order in which istiod's messages arrive makes a request fail.
// These periods are bounded (holdLimit): a route to a cluster that never comes
// is used in the end, and answers 503.
//
// It opens no connections. Builder's methods are safe for concurrent use.
package config

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// Type URLs of the resources that a Builder takes.
const (
	TypeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	TypeRoute    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	TypeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	TypeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
)

// holdLimit bounds how long a new route waits for its clusters, and how long
// something removed stays for the sake of what still uses it.
const holdLimit = 5 * time.Second

// Snapshot is one consistent configuration. Immutable, but for the endpoints of
// its clusters.
type Snapshot struct {
	byName   map[string]*Listener
	byAddr   map[netip.AddrPort]*Listener
	clusters map[string]*backend.Cluster
}

// Listener is one port of one service.
type Listener struct {
	Name    string // hostname:port
	Service Service
	// Routes is set for HTTP ports, TCP for ports of bytes; both are set when the
	// protocol was not declared.
	Routes *route.Table
	TCP    *route.Targets
	Turn   *route.Sequence // for TCP; nil when it has only one target
}

// Service is which service a listener stands for.
type Service struct{ Name, Namespace, Hostname string }

// Listener finds the service port that a CONNECT names, as VIP:port or as
// hostname:port.
func (s *Snapshot) Listener(authority string) *Listener {
	if addr, err := netip.ParseAddrPort(authority); err == nil {
		return s.byAddr[netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())]
	}
	return s.byName[authority]
}

// Named returns the listener of a name, hostname:port.
func (s *Snapshot) Named(name string) *Listener { return s.byName[name] }

// Cluster returns a cluster, or nil.
func (s *Snapshot) Cluster(name string) *backend.Cluster { return s.clusters[name] }

// Clusters returns every cluster, by name.
func (s *Snapshot) Clusters() []*backend.Cluster {
	list := make([]*backend.Cluster, 0, len(s.clusters))
	for _, name := range sortedKeys(s.clusters) {
		list = append(list, s.clusters[name])
	}
	return list
}

// Config is what a Builder needs.
type Config struct {
	Pool *backend.Pool
	// Subscribe and Unsubscribe change which RouteConfigurations and
	// ClusterLoadAssignments istiod sends. They must not call back.
	Subscribe, Unsubscribe func(typeURL string, names ...string)
	Log                    *slog.Logger
	// Endpoints, when set, is told the endpoints of a cluster whenever they change,
	// and none when the cluster goes. It must not call back.
	Endpoints func(cluster string, endpoints []*backend.Endpoint)
}

// Builder collects resources and builds snapshots.
type Builder struct {
	cfg  Config
	snap atomic.Pointer[Snapshot]
	warm chan struct{}

	mu        sync.Mutex
	listeners map[string]*listener
	routes    map[string]*routes
	clusters  map[string]*cluster
	dying     []dying         // clusters that no snapshot has any more
	seen      map[string]bool // type URLs that had a response
	warming   time.Time       // since when only details are missing
	followed  wanted          // what is subscribed to
	changed   chan struct{}
}

type listener struct {
	proto   *listenerv3.Listener
	value   Listener // without Routes
	addrs   []netip.AddrPort
	rds     string    // "" when it has no HTTP side
	removed time.Time // zero while it is configured
}

type routes struct {
	proto, next *routev3.RouteConfiguration // of active and pending
	active      *route.Table
	pending     *route.Table
	since       time.Time // of pending
	missing     bool      // istiod says that there is none
}

type cluster struct {
	proto   *clusterv3.Cluster
	load    *endpointv3.ClusterLoadAssignment
	value   *backend.Cluster
	eds     string
	warm    bool // its endpoints are here, be they none
	removed time.Time
}

// dying is a cluster that requests which began before it went may still be
// choosing from.
type dying struct {
	cluster *cluster
	since   time.Time
}

// New returns a Builder with an empty snapshot.
func New(cfg Config) *Builder {
	b := &Builder{
		cfg:       cfg,
		warm:      make(chan struct{}),
		listeners: map[string]*listener{},
		routes:    map[string]*routes{},
		clusters:  map[string]*cluster{},
		seen:      map[string]bool{},
		changed:   make(chan struct{}),
	}
	b.snap.Store(&Snapshot{})
	return b
}

// Snapshot returns the current configuration.
func (b *Builder) Snapshot() *Snapshot { return b.snap.Load() }

// Warm is closed when the first configuration is whole, but for what istiod
// does not have, what was refused, and what does not come in time.
func (b *Builder) Warm() <-chan struct{} { return b.warm }

// Changed returns a channel that is closed when the next snapshot is there. Ask
// for it before reading Snapshot.
func (b *Builder) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// Run lets time pass: what waited too long is used, what was removed goes.
func (b *Builder) Run(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			b.mu.Lock()
			if b.waiting() {
				b.rebuild(now)
			}
			b.mu.Unlock()
		case <-ctx.Done():
			return nil
		}
	}
}

// waiting reports whether time alone may change something.
func (b *Builder) waiting() bool {
	select {
	case <-b.warm:
	default:
		return true
	}
	if len(b.dying) > 0 {
		return true
	}
	for _, l := range b.listeners {
		if !l.removed.IsZero() {
			return true
		}
	}
	for _, c := range b.clusters {
		if !c.removed.IsZero() {
			return true
		}
	}
	for _, r := range b.routes {
		if r.pending != nil {
			return true
		}
	}
	return false
}
