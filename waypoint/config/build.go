package config

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// rebuild makes the next snapshot. b.mu is held.
//
//  1. Routes whose clusters are here, or that waited long enough, become active.
//  2. What was removed and is not used any more, or for too long, goes.
//  3. What is named now is subscribed to, what is not any more is not.
//  4. Listeners that have what they need are put together.
func (b *Builder) rebuild(now time.Time) {
	for name, r := range b.routes {
		b.activate(name, r, now)
	}
	b.purge(now)
	b.follow()
	next := &Snapshot{
		byName:   make(map[string]*Listener, len(b.listeners)),
		byAddr:   make(map[netip.AddrPort]*Listener, len(b.listeners)),
		clusters: make(map[string]*backend.Cluster, len(b.clusters)),
	}
	for name, c := range b.clusters {
		next.clusters[name] = c.value
	}
	known := b.seen[TypeListener] && b.seen[TypeCluster]
	if known && b.warming.IsZero() {
		b.warming = now
	}
	whole := known
	for _, name := range sortedKeys(b.listeners) {
		l := b.listeners[name]
		value, ok := b.assemble(l)
		if !ok {
			whole = false
			continue
		}
		next.byName[name] = value
		for _, addr := range l.addrs {
			if _, taken := next.byAddr[addr]; !taken || l.removed.IsZero() {
				next.byAddr[addr] = value
			}
		}
	}
	b.snap.Store(next)
	close(b.changed)
	b.changed = make(chan struct{})
	if whole || known && now.Sub(b.warming) >= 2*holdLimit {
		select {
		case <-b.warm:
		default:
			close(b.warm)
		}
	}
}

// activate takes a pending route into use once it can be served.
func (b *Builder) activate(name string, r *routes, now time.Time) {
	if r.pending == nil {
		return
	}
	missing := b.notHere(targets(r.pending))
	if len(missing) > 0 && now.Sub(r.since) < holdLimit {
		return
	}
	if len(missing) > 0 && b.cfg.Log != nil {
		b.cfg.Log.Warn("route names clusters that have not come", slog.String("route", name), slog.Any("clusters", missing))
	}
	r.active, r.pending = r.pending, nil
	r.proto, r.next = r.next, nil
}

// assemble puts a listener together; false means that something is not here yet.
func (b *Builder) assemble(l *listener) (*Listener, bool) {
	value := l.value
	if l.rds != "" {
		r := b.routes[l.rds]
		if r == nil || r.active == nil {
			return nil, r != nil && r.missing
		}
		value.Routes = r.active
	}
	return &value, true
}

// purge drops what was removed. A removed cluster stays while a route or
// listener names it.
func (b *Builder) purge(now time.Time) {
	for name, l := range b.listeners {
		if !l.removed.IsZero() && now.Sub(l.removed) >= holdLimit {
			delete(b.listeners, name)
		}
	}
	used := map[string]bool{}
	for _, l := range b.listeners {
		for _, t := range l.value.TCP.All() {
			used[t.Cluster] = true
		}
	}
	for _, r := range b.routes {
		for _, name := range append(targets(r.active), targets(r.pending)...) {
			used[name] = true
		}
	}
	for name, c := range b.clusters {
		if !c.removed.IsZero() && (!used[name] || now.Sub(c.removed) >= holdLimit) {
			b.dying = append(b.dying, dying{c, now})
			delete(b.clusters, name)
		}
	}
	b.dying = slices.DeleteFunc(b.dying, func(d dying) bool {
		if now.Sub(d.since) < holdLimit {
			return false
		}
		if b.clusters[d.cluster.value.Name] == nil {
			b.setSpecs(d.cluster, nil)
		} else {
			d.cluster.value.Update(nil) // a new cluster has its name
		}
		return true
	})
}

// notHere returns which clusters are unknown or have not heard of their
// endpoints yet.
func (b *Builder) notHere(names []string) []string {
	return slices.DeleteFunc(names, func(name string) bool {
		c := b.clusters[name]
		return c != nil && c.warm
	})
}

// targets returns the clusters that a table names.
func targets(t *route.Table) []string {
	if t == nil {
		return nil
	}
	var names []string
	for _, rule := range t.Rules {
		if rule.Targets == nil {
			continue
		}
		for _, target := range rule.Targets.All() {
			if !slices.Contains(names, target.Cluster) {
				names = append(names, target.Cluster)
			}
		}
	}
	return names
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
