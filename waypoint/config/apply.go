package config

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// Apply takes one xDS response. It returns the resources that were refused,
// with the reason; the others are in use when it returns, or as soon as what
// they need is here.
func (b *Builder) Apply(typeURL string, set []*discoveryv3.Resource, removed []string) map[string]error {
	switch typeURL {
	case TypeListener:
		return apply(b, typeURL, set, removed, compileListener, b.setListener, b.removeListener)
	case TypeRoute:
		return apply(b, typeURL, set, removed, compileRoutes, b.setRoutes, b.removeRoutes)
	case TypeCluster:
		return apply(b, typeURL, set, removed, compileCluster, b.setCluster, b.removeCluster)
	case TypeEndpoint:
		return apply(b, typeURL, set, removed, compileEndpoints, b.setEndpoints, b.removeEndpoints)
	}
	return map[string]error{"*": fmt.Errorf("type %s is not known", typeURL)}
}

// apply decodes and compiles without the lock, then changes everything at once.
func apply[T, C any, M interface {
	*T
	proto.Message
}](b *Builder, typeURL string, set []*discoveryv3.Resource, removed []string,
	compile func(M) (C, error), use func(name string, m M, c C, now time.Time), drop func(name string, now time.Time),
) map[string]error {
	refused := map[string]error{}
	type ready struct {
		name     string
		message  M
		compiled C
	}
	var accepted []ready
	for _, r := range set {
		m := M(new(T))
		err := r.GetResource().UnmarshalTo(m)
		var c C
		if err == nil {
			c, err = compile(m)
		}
		if err == nil && nameOf(m) != r.GetName() {
			err = fmt.Errorf("resource is named %q inside", nameOf(m))
		}
		if err != nil {
			refused[r.GetName()] = err
			continue
		}
		accepted = append(accepted, ready{r.GetName(), m, c})
	}
	b.change(typeURL, func(now time.Time) {
		for _, a := range accepted {
			use(a.name, a.message, a.compiled, now)
		}
		for _, name := range removed {
			drop(name, now)
		}
		for name := range refused {
			b.refused(typeURL, name)
		}
	})
	return refused
}

func nameOf(m proto.Message) string {
	if load, ok := m.(*endpointv3.ClusterLoadAssignment); ok {
		return load.GetClusterName()
	}
	if named, ok := m.(interface{ GetName() string }); ok {
		return named.GetName()
	}
	return ""
}

func (b *Builder) change(typeURL string, f func(now time.Time)) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen[typeURL] = true
	f(now)
	b.rebuild(now)
}

// wanted is what the resources that we have name of other types.
type wanted struct{ routes, endpoints map[string]bool }

func (b *Builder) wants() wanted {
	w := wanted{routes: map[string]bool{}, endpoints: map[string]bool{}}
	for _, l := range b.listeners {
		if l.rds != "" {
			w.routes[l.rds] = true
		}
	}
	for _, c := range b.clusters {
		w.endpoints[c.eds] = true
	}
	return w
}

// follow subscribes to what is newly named, and ends and forgets the rest: the
// xDS client would not ask again for a name that it has never let go. b.mu is
// held, so that the client hears of changes in their order.
func (b *Builder) follow() {
	before, after := b.followed, b.wants()
	b.followed = after
	for name := range after.routes {
		if b.routes[name] == nil {
			b.routes[name] = &routes{}
		}
	}
	for name := range b.routes {
		if !after.routes[name] {
			delete(b.routes, name)
		}
	}
	change := func(typeURL string, before, after map[string]bool) {
		if more := minus(after, before); len(more) > 0 && b.cfg.Subscribe != nil {
			b.cfg.Subscribe(typeURL, more...)
		}
		if less := minus(before, after); len(less) > 0 && b.cfg.Unsubscribe != nil {
			b.cfg.Unsubscribe(typeURL, less...)
		}
	}
	change(TypeEndpoint, before.endpoints, after.endpoints)
	change(TypeRoute, before.routes, after.routes)
}

func minus(a, b map[string]bool) []string {
	var names []string
	for _, name := range sortedKeys(a) {
		if !b[name] {
			names = append(names, name)
		}
	}
	return names
}

func (b *Builder) setListener(name string, m *listenerv3.Listener, l *listener, _ time.Time) {
	l.proto = m
	b.listeners[name] = l
}

func (b *Builder) removeListener(name string, now time.Time) {
	if l := b.listeners[name]; l != nil {
		l.removed = now
	}
}

func (b *Builder) setRoutes(name string, m *routev3.RouteConfiguration, t *route.Table, now time.Time) {
	r := b.routes[name]
	if r == nil {
		return // not asked for any more
	}
	r.next, r.missing = m, false
	if r.pending == nil {
		r.since = now
	}
	r.pending = t
}

// removeRoutes keeps the last routes: a listener that names them goes with them
// or gets others.
func (b *Builder) removeRoutes(name string, _ time.Time) {
	if r := b.routes[name]; r != nil && r.active == nil {
		r.missing = true
	}
}

// refused notes that what somebody waits for was here and is no good.
func (b *Builder) refused(typeURL, name string) {
	switch typeURL {
	case TypeRoute:
		b.removeRoutes(name, time.Time{})
	case TypeEndpoint:
		b.removeEndpoints(name, time.Time{})
	}
}

func (b *Builder) setCluster(name string, m *clusterv3.Cluster, spec clusterSpec, _ time.Time) {
	c := b.clusters[name]
	if c == nil {
		c = &cluster{value: b.cfg.Pool.NewCluster(name, spec.service, spec.subset)}
		b.clusters[name] = c
	}
	c.proto, c.eds, c.removed = m, spec.eds, time.Time{}
	c.value.Configure(spec.random, spec.connectTimeout)
}

func (b *Builder) removeCluster(name string, now time.Time) {
	if c := b.clusters[name]; c != nil {
		c.removed = now
	}
}

func (b *Builder) setEndpoints(name string, m *endpointv3.ClusterLoadAssignment, specs []backend.Spec, _ time.Time) {
	for _, c := range b.clusters {
		if c.eds == name {
			c.load, c.warm = m, true
			b.setSpecs(c, specs)
		}
	}
}

func (b *Builder) setSpecs(c *cluster, specs []backend.Spec) {
	c.value.Update(specs)
	if b.cfg.Endpoints != nil {
		b.cfg.Endpoints(c.value.Name, c.value.Endpoints())
	}
}

// removeEndpoints keeps the last endpoints, as they go with their cluster. A
// cluster that never had any has none.
func (b *Builder) removeEndpoints(name string, _ time.Time) {
	for _, c := range b.clusters {
		if c.eds == name {
			c.warm = true
		}
	}
}
