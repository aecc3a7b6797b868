package ztunnel

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/xds"
)

const (
	demandTimeout = 5 * time.Second
	// maxAbsent is how many addresses stay subscribed to that istiod does not know,
	// and how many about which it has said nothing in time. A pod that scans the Internet must not make us subscribe to all of it.
	maxAbsent = 4096
)

// demand asks istiod for addresses when a connection needs them (XDS_ON_DEMAND,
// spec/ztunnel.md §4.5). Whether one has arrived is seen in the store and not
// by the name that was asked for, since istiod may answer with another.
type demand struct {
	client  subscriber
	store   *workload.Store
	timeout time.Duration

	mu         sync.Mutex
	absent     []string // that istiod says it does not know, the latest last
	unanswered []string // that nothing was said about in time, the latest last
}

// subscriber is what demand needs of an xds.Client.
type subscriber interface {
	Subscribe(url string, names ...string)
	Unsubscribe(url string, names ...string)
}

// Address returns when the store knows a workload or service at an address, and
// the waypoints and gateways that it names; when istiod does not know it; or
// when ctx ends or time is up. It is an error if nothing has been said of the
// address then: what is there may be of the mesh, which is not to be sent
// plaintext. The plan sees itself what waypoint or gateway is not known.
func (d *demand) Address(ctx context.Context, network string, ip netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	name := workload.NetworkAddress{Network: network, IP: ip}.String()
	known := func(s *workload.Snapshot) bool {
		return s.ByIP(network, ip) != nil || len(s.ServicesAt(network, ip)) > 0
	}
	if err := d.await(ctx, name, known); err != nil {
		return fmt.Errorf("istiod has not said what is at %s: %w", name, err)
	}
	s := d.store.Snapshot()
	for _, g := range gateways(s, network, ip) {
		_ = d.await(ctx, g.String(), func(s *workload.Snapshot) bool {
			if g.ByAddress() {
				return s.ByIP(g.Address.Network, g.Address.IP) != nil || len(s.ServicesAt(g.Address.Network, g.Address.IP)) > 0
			}
			return s.Service(g.Host) != nil || s.WorkloadByHostname(g.Host) != nil
		})
	}
	return nil
}

// await asks for a name unless it is known. Without an error it is known now, or
// known to be absent.
func (d *demand) await(ctx context.Context, name string, known func(*workload.Snapshot) bool) error {
	if known(d.store.Snapshot()) {
		return nil
	}
	d.client.Subscribe(mesh.TypeAddress, name)
	err := d.store.Await(ctx, func(s *workload.Snapshot) bool { return known(s) || d.isAbsent(name) })
	if err != nil {
		d.leave(name)
	}
	return err
}

// leave notes that nothing was said of a name in time. It stays subscribed, so
// that a late answer serves later connections.
func (d *demand) leave(name string) {
	var forget []string
	d.mu.Lock()
	if !slices.Contains(d.unanswered, name) {
		d.unanswered, forget = limit(append(d.unanswered, name))
	}
	d.mu.Unlock()
	d.forget(forget)
}

// limit leaves maxAbsent names, the latest, and returns the others.
func limit(names []string) (kept, others []string) {
	n := max(0, len(names)-maxAbsent)
	others = slices.Clone(names[:n])
	return slices.Delete(names, 0, n), others
}

func (d *demand) forget(names []string) {
	if len(names) > 0 {
		d.client.Unsubscribe(mesh.TypeAddress, names...)
	}
}

// gateways lists what must be known, too, before a connection to an address can
// be planned.
func gateways(s *workload.Snapshot, network string, ip netip.Addr) []*workload.Gateway {
	var out []*workload.Gateway
	if w := s.ByIP(network, ip); w != nil {
		out = append(out, w.Waypoint, w.NetworkGateway)
	}
	for _, svc := range s.ServicesAt(network, ip) {
		out = append(out, svc.Waypoint)
		for i := range svc.Weighted {
			out = append(out, &svc.Weighted[i].Gateway)
		}
		for _, e := range s.Endpoints(svc.Key) {
			out = append(out, e.Workload.NetworkGateway)
		}
	}
	return slices.DeleteFunc(out, func(g *workload.Gateway) bool { return g == nil })
}

func (d *demand) isAbsent(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.absent, name)
}

// apply puts an update into the store. What istiod does not know is noted
// before, so that whoever waits for it sees that when the store changes.
func (d *demand) apply(u xds.Update) map[string]error {
	d.note(u)
	return d.store.ApplyAddresses(u.Resources, u.Removed)
}

func (d *demand) note(u xds.Update) {
	told := map[string]bool{}
	for _, r := range u.Resources {
		told[r.GetName()] = true
		for _, alias := range r.GetAliases() {
			told[alias] = true
		}
	}
	for _, name := range u.Removed {
		told[name] = true
	}
	var forget []string
	d.mu.Lock()
	isTold := func(name string) bool { return told[name] }
	d.absent = slices.DeleteFunc(d.absent, isTold)
	d.unanswered = slices.DeleteFunc(d.unanswered, isTold)
	d.absent, forget = limit(append(d.absent, u.Removed...))
	d.mu.Unlock()
	d.forget(forget)
}
