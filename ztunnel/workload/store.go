package workload

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/ztunnel/rbac"
)

// Store holds the newest Snapshot. The zero Store is not usable; call NewStore.
type Store struct {
	snapshot atomic.Pointer[Snapshot]
	changed  atomic.Pointer[chan struct{}]

	mu sync.Mutex // serialises writers
	// aliases maps a resource name to what it stood for, where the two differ: an
	// on-demand resource may be named by the address that was asked for.
	aliases map[string]string

	shared sharing // by the workloads of all versions
}

// NewStore returns an empty store. Workloads of node in cluster are local; with
// an empty node all are, with an empty cluster those of any.
func NewStore(node, cluster string) *Store {
	s := &Store{aliases: map[string]string{}}
	s.snapshot.Store(&Snapshot{node: node, cluster: cluster})
	c := make(chan struct{})
	s.changed.Store(&c)
	return s
}

// Snapshot returns the newest version.
func (s *Store) Snapshot() *Snapshot { return s.snapshot.Load() }

// Changed returns a channel that is closed when the next version is there. To
// miss nothing, take it before the Snapshot that it is to follow.
func (s *Store) Changed() <-chan struct{} { return *s.changed.Load() }

// Await blocks until done accepts a version, and returns ctx's error when that
// ends first.
func (s *Store) Await(ctx context.Context, done func(*Snapshot) bool) error {
	for {
		changed := s.Changed()
		if done(s.Snapshot()) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Store) publish(next *Snapshot) {
	s.snapshot.Store(next)
	c := make(chan struct{})
	close(*s.changed.Swap(&c))
}

// ApplyAddresses applies one response of type istio.workload.Address in message
// order and publishes it as one version. It returns why resources were
// rejected, by name; those keep their previous value, the others are applied.
func (s *Store) ApplyAddresses(resources []*discoveryv3.Resource, removed []string) map[string]error {
	type parsed struct {
		name string
		w    *Workload
		svc  *Service
	}
	var good []parsed
	rejected := map[string]error{}
	s.shared.mu.Lock()
	s.shared.trim(s.Snapshot())
	for _, r := range resources {
		w, svc, err := unmarshal(r.GetResource().GetValue(), &s.shared)
		if err != nil {
			rejected[r.GetName()] = err
			continue
		}
		good = append(good, parsed{r.GetName(), w, svc})
	}
	s.shared.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	u := newUpdate(s.Snapshot())
	for _, name := range removed {
		s.forget(u, name)
	}
	for _, p := range good {
		var key string
		if p.w != nil {
			key = p.w.UID
		} else {
			key = p.svc.Key.String()
		}
		s.rename(u, p.name, key)
		if p.w != nil {
			u.setWorkload(p.w)
		} else {
			u.setService(p.svc)
		}
	}
	s.publish(u.finish())
	return rejected
}

// rename notes what a resource name stands for now, and drops what it stood for
// before when that is something else.
func (s *Store) rename(u *update, name, key string) {
	if old, ok := s.aliases[name]; ok && old != key {
		u.remove(old)
	}
	if name == key || name == "" {
		delete(s.aliases, name)
		return
	}
	s.aliases[name] = key
}

func (s *Store) forget(u *update, name string) {
	key := name
	if old, ok := s.aliases[name]; ok {
		key = old
		delete(s.aliases, name)
	}
	u.remove(key)
}

// ApplyAuthorizations does the same for type istio.security.Authorization. A
// rejected policy without a previous value is not left out, which could let
// through what it was to refuse: until a readable version arrives or it is
// removed, it denies everything in its scope (rbac.Unreadable).
func (s *Store) ApplyAuthorizations(resources []*discoveryv3.Resource, removed []string) map[string]error {
	policies := make([]*rbac.Policy, 0, len(resources))
	rejected := map[string]error{}
	for _, r := range resources {
		p, err := readPolicy(r)
		if err != nil {
			rejected[r.GetName()] = err
			p = rbac.Unreadable(r.GetName(), r.GetResource().GetValue(), err)
		}
		if p != nil {
			policies = append(policies, p)
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if len(policies)+len(removed) == 0 {
		return rejected
	}
	u := newUpdate(s.Snapshot())
	for _, name := range removed {
		u.removePolicy(name)
	}
	for _, p := range policies {
		if old := u.s.policies.at(p.Key()); p.Invalid != "" && old != nil && old.Invalid == "" {
			continue // the last good version stays
		}
		u.setPolicy(p)
	}
	u.s.policyVersion++
	s.publish(u.finish())
	return rejected
}

func readPolicy(r *discoveryv3.Resource) (*rbac.Policy, error) {
	p, err := rbac.Unmarshal(r.GetResource().GetValue())
	if err == nil && r.GetName() != "" && r.GetName() != p.Key() {
		err = fmt.Errorf("contains policy %s", p.Key())
	}
	return p, err
}

// update builds the successor of a snapshot.
type update struct {
	s Snapshot
	b *batch
	// endpoints collects changes, so that each service is rebuilt once; nil is a
	// removal.
	endpoints map[ServiceKey]map[string]*Endpoint
	// policies does the same by scope.
	policies map[policyScope]*policyChange
}

func newUpdate(from *Snapshot) *update {
	return &update{s: *from, b: &batch{}, endpoints: map[ServiceKey]map[string]*Endpoint{}, policies: map[policyScope]*policyChange{}}
}

// remove drops a workload by uid or a service by "namespace/hostname". Unknown
// names are ignored.
func (u *update) remove(name string) {
	if w := u.s.workloads.at(name); w != nil {
		u.removeWorkload(w)
		return
	}
	if key, ok := parseServiceKey(name); ok {
		if svc := u.s.services.at(key); svc != nil {
			u.removeService(svc)
		}
	}
}

func (u *update) setWorkload(w *Workload) {
	if old := u.s.workloads.at(w.UID); old != nil {
		u.removeWorkload(old)
	}
	u.s.workloads.set(u.b, w.UID, w)
	for _, m := range w.Services {
		u.stage(m.Service, w.UID, &Endpoint{Workload: w, Ports: m.Ports})
	}
	if !w.HostNetwork {
		for _, ip := range w.Addresses {
			insert(u.b, &u.s.addresses, NetworkAddress{w.Network, ip}, w)
		}
	}
	if w.Hostname != "" {
		insert(u.b, &u.s.hostnames, ServiceKey{w.Namespace, w.Hostname}, w)
	}
	if u.s.isLocal(w) {
		insert(u.b, &u.s.local, Info{w.Name, w.Namespace, w.Identity.ServiceAccount()}, w)
	}
}

func (u *update) removeWorkload(w *Workload) {
	u.s.workloads.remove(u.b, w.UID)
	for _, m := range w.Services {
		u.stage(m.Service, w.UID, nil)
	}
	if !w.HostNetwork {
		for _, ip := range w.Addresses {
			drop(u.b, &u.s.addresses, NetworkAddress{w.Network, ip}, w)
		}
	}
	if w.Hostname != "" {
		drop(u.b, &u.s.hostnames, ServiceKey{w.Namespace, w.Hostname}, w)
	}
	if u.s.isLocal(w) {
		drop(u.b, &u.s.local, Info{w.Name, w.Namespace, w.Identity.ServiceAccount()}, w)
	}
}

func (s *Snapshot) isLocal(w *Workload) bool {
	return s.node == "" || (w.Node == s.node && (s.cluster == "" || w.ClusterID == s.cluster))
}

// insert adds a workload to a list, best first: pods, then HBONE, then by uid.
func insert[K comparable](b *batch, m *index[K, []*Workload], key K, w *Workload) {
	list := m.at(key)
	i, _ := slices.BinarySearchFunc(list, w, compareWorkloads)
	m.set(b, key, slices.Insert(slices.Clone(list), i, w))
}

func compareWorkloads(a, b *Workload) int {
	return cmp.Or(
		-compareBool(strings.Contains(a.UID, "//Pod/"), strings.Contains(b.UID, "//Pod/")),
		-compareBool(a.Protocol == HBONE, b.Protocol == HBONE),
		cmp.Compare(a.UID, b.UID))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func drop[K comparable, T comparable](b *batch, m *index[K, []T], key K, v T) {
	list := m.at(key)
	i := slices.Index(list, v)
	switch {
	case i < 0:
	case len(list) == 1:
		m.remove(b, key)
	default:
		m.set(b, key, slices.Concat(list[:i], list[i+1:]))
	}
}
