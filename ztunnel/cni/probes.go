package cni

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// probes is whose probes by the node pass, as a whole: the host has one set of
// addresses. Operations on pods run beside one another, so it has a lock.
type probes struct {
	exempt func([]netip.Addr) error // nil: nothing to do

	mu   sync.Mutex
	pods map[string][]netip.Addr // by UID
}

// set makes the pod's addresses the exempt ones of it. An address that another pod
// has, too, stays.
func (p *probes) set(uid string, addrs []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(addrs) == 0 {
		delete(p.pods, uid)
	} else {
		p.pods[uid] = addrs
	}
	return p.apply()
}

// apply is called with the lock held.
func (p *probes) apply() error {
	if p.exempt == nil {
		return nil
	}
	return p.exempt(slices.Concat(slices.Collect(maps.Values(p.pods))...))
}

// exempt does not know which addresses are exempt until it has succeeded: if the
// namespace changes meanwhile, they are to be set, or dropped, once more.
func (a *Agent) exempt(e *entry, addrs []netip.Addr) {
	uid := e.uid
	e.exempted = []netip.Addr{}
	a.do(e, "exempt probes of", func(context.Context) error {
		return a.probes.set(uid, addrs)
	}, func() { e.exempted = addrs })
}

// adoptExemptions takes over, once the pods are known, what an earlier agent left on
// the host: the probes of pods that are enrolled pass all the time, and addresses of
// pods that have gone are dropped.
func (a *Agent) adoptExemptions() {
	if a.cfg.Exempt == nil {
		return
	}
	for _, e := range a.entries {
		if e.stage == stageProgrammed && !e.gone() {
			a.probes.pods[e.uid] = e.addresses()
			e.exempted = []netip.Addr{} // to be confirmed by an operation of its own
		}
	}
	a.work.Go(func() {
		a.probes.mu.Lock()
		defer a.probes.mu.Unlock()
		if err := a.probes.apply(); err != nil {
			a.cfg.Log.Warn("host rules for probes not programmed", "error", err)
		}
	})
}
