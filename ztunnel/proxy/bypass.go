package proxy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// settleTime is how long after Start the node agent may take to put the
// redirection in place, which it does once we have acknowledged the pod.
const settleTime = 5 * time.Second

// bypass knows the connections of the pod that do not pass the proxy, because
// they are older than the redirection. They are looked for at the start and,
// as long as connections may still come that are not captured, again at each
// look and once at the end.
type bypass struct {
	mu       sync.Mutex
	settling bool
	known    map[netns.TCPConn]bool
	// Connections of our own, made while settling, which look the same.
	dialled  map[netns.TCPConn]bool
	dialling map[netip.AddrPort]int // targets of those that are not made yet
}

// dials notes that we are about to connect to a target. The caller calls what
// it returns with the connection, or with the zero one if there is none.
func (b *bypass) dials(to netip.AddrPort) (done func(netns.TCPConn)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.settling {
		return func(netns.TCPConn) {}
	}
	b.dialling[to]++
	return func(c netns.TCPConn) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.dialling[to]--; b.dialling[to] <= 0 {
			delete(b.dialling, to)
		}
		if b.settling {
			b.dialled[c] = true
		}
	}
}

// settle begins the time in which connections may pass us, and returns when it
// is over or the proxy ends.
func (p *Proxy) settle() {
	timer := time.NewTimer(cmp.Or(p.cfg.Settle, settleTime))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.draining.Done():
		return
	}
	p.notYetMeshed()
	b := &p.bypass
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settling, b.dialled = false, nil
}

// notYetMeshed returns the connections that do not pass the proxy and are open.
func (p *Proxy) notYetMeshed() []netns.TCPConn {
	b := &p.bypass
	b.mu.Lock()
	dialling := maps.Clone(b.dialling)
	look := b.settling || len(b.known) > 0
	b.mu.Unlock()
	if !look {
		return nil
	}
	established, err := p.cfg.NetNS.Established()
	if err != nil {
		p.log.Warn("established connections are not known", telemetry.KeyError, err)
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	open := slices.DeleteFunc(unmeshed(established), func(c netns.TCPConn) bool {
		return b.dialled[c] || (!b.known[c] && (!b.settling || dialling[c.Remote] > 0 || b.dialling[c.Remote] > 0))
	})
	found := 0
	now := make(map[netns.TCPConn]bool, len(open))
	for _, c := range open {
		now[c] = true
		if !b.known[c] {
			found++
		}
	}
	b.known = now
	if found > 0 {
		p.log.Info("connections not yet meshed", telemetry.KeyCount, found)
	}
	return open
}

// unmeshed leaves out what a proxy, this or a predecessor, has to do with: what
// ends at a port of ztunnel, what was captured by it, pairs with both ends in
// the pod, and what is never captured.
func unmeshed(established []netns.TCPConn) []netns.TCPConn {
	captured := map[netip.AddrPort]bool{}
	here := map[netns.TCPConn]bool{}
	for _, c := range established {
		here[c] = true
		if c.Local.Port() == mesh.PortOutbound {
			captured[c.Remote] = true
		}
	}
	return slices.DeleteFunc(established, func(c netns.TCPConn) bool {
		return c.Remote.Addr().IsLoopback() || ownPort(c.Local.Port()) || ownPort(c.Remote.Port()) ||
			isProbe(c.Remote.Addr()) || captured[c.Local] || here[netns.TCPConn{Local: c.Remote, Remote: c.Local}]
	})
}

func isProbe(a netip.Addr) bool {
	return a == netip.MustParseAddr(mesh.ProbeSourceIPv4) || a == netip.MustParseAddr(mesh.ProbeSourceIPv6)
}

func ownPort(port uint16) bool {
	return port == mesh.PortOutbound || port == mesh.PortInboundPlain || port == mesh.PortHBONE
}
