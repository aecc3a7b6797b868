package config

import (
	// Named in routes, and needed by whoever prints them.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/proto"
)

// Dump is the resources in use, by name. What waits for something else is not
// among them.
type Dump struct{ Listeners, Routes, Clusters, Endpoints []proto.Message }

// Dump returns what was accepted. The messages must not be changed.
func (b *Builder) Dump() Dump {
	b.mu.Lock()
	defer b.mu.Unlock()
	var d Dump
	for _, name := range sortedKeys(b.listeners) {
		if l := b.listeners[name]; l.removed.IsZero() && b.Snapshot().Named(name) != nil {
			d.Listeners = append(d.Listeners, l.proto)
		}
	}
	for _, name := range sortedKeys(b.routes) {
		if r := b.routes[name]; r.proto != nil {
			d.Routes = append(d.Routes, r.proto)
		}
	}
	for _, name := range sortedKeys(b.clusters) {
		c := b.clusters[name]
		if c.removed.IsZero() {
			d.Clusters = append(d.Clusters, c.proto)
		}
		if c.load != nil {
			d.Endpoints = append(d.Endpoints, c.load)
		}
	}
	return d
}
