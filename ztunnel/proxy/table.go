package proxy

import (
	"cmp"
	"crypto/x509"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/ztunnel/rbac"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// table holds the proxy's connections: for the config dump, for policy changes
// and for the end. The zero table is empty.
type table struct {
	mu     sync.Mutex
	conns  map[*connection]struct{}
	closed func(*connection) // set once the proxy has stopped
}

// connection is one entry. Its facts do not change; only whether it was closed
// by us, and why, does.
type connection struct {
	direction   telemetry.Direction
	src         netip.AddrPort
	originalDst netip.AddrPort
	actualDst   netip.AddrPort
	protocol    string // TCP, HBONE
	hidden      bool   // a tunnel itself, not in the dump
	judged      bool   // rbac was asked; to be asked again when policies change
	rbac        rbac.Conn
	end         func() // closes both ends at once

	// Of a tunnel: what its peer has shown, if that may be revoked. Of a connection
	// inside one: the tunnel's src.
	chain  []*x509.Certificate
	tunnel netip.AddrPort

	why atomic.Pointer[telemetry.Refusal] // the first one stays
}

// add registers a connection; the proxy's end closes it at once if that has
// come already. The caller must call drop.
func (t *table) add(c *connection) {
	t.mu.Lock()
	if t.conns == nil {
		t.conns = map[*connection]struct{}{}
	}
	t.conns[c] = struct{}{}
	closed := t.closed
	t.mu.Unlock()
	if closed != nil {
		closed(c)
	}
}

func (t *table) drop(c *connection) {
	t.mu.Lock()
	delete(t.conns, c)
	t.mu.Unlock()
}

// each calls f for every connection, without a lock held.
func (t *table) each(f func(*connection)) {
	t.mu.Lock()
	all := make([]*connection, 0, len(t.conns))
	for c := range t.conns {
		all = append(all, c)
	}
	t.mu.Unlock()
	for _, c := range all {
		f(c)
	}
}

// closeAll closes every connection, those that are still to come included.
func (t *table) closeAll(why *telemetry.Refusal) {
	t.mu.Lock()
	t.closed = func(c *connection) { c.close(why) }
	t.mu.Unlock()
	// All get the reason before any is closed: one may be inside another.
	var first []*connection
	t.each(func(c *connection) {
		if c.note(why) {
			first = append(first, c)
		}
	})
	for _, c := range first {
		c.end()
	}
}

// close ends the connection for a reason, unless it has been already.
func (c *connection) close(why *telemetry.Refusal) bool {
	first := c.note(why)
	if first {
		c.end()
	}
	return first
}

// note says beforehand why the connection will end.
func (c *connection) note(why *telemetry.Refusal) bool { return c.why.CompareAndSwap(nil, why) }

// Connections is the proxy's connection table in the config dump.
type Connections struct {
	Inbound  []Connection `json:"inbound"`
	Outbound []Connection `json:"outbound"`
	// NotYetMeshed lists connections that are older than the pod's enrolment and
	// still open: they bypass the mesh until they end.
	NotYetMeshed []Pair `json:"notYetMeshed"`
}

// Connection is one connection in the config dump.
type Connection struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

// Pair is a connection that does not pass the proxy.
type Pair struct {
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
}

// Connections returns what is open now.
func (p *Proxy) Connections() Connections {
	d := Connections{Inbound: []Connection{}, Outbound: []Connection{}, NotYetMeshed: []Pair{}}
	p.table.each(func(c *connection) {
		if c.hidden {
			return
		}
		one := Connection{c.src.String(), c.originalDst.String(), c.actualDst.String(), c.protocol}
		if c.direction == telemetry.Outbound {
			d.Outbound = append(d.Outbound, one)
		} else {
			d.Inbound = append(d.Inbound, one)
		}
	})
	bySource := func(a, b Connection) int { return cmp.Compare(a.Src, b.Src) }
	slices.SortFunc(d.Inbound, bySource)
	slices.SortFunc(d.Outbound, bySource)
	for _, c := range p.notYetMeshed() {
		d.NotYetMeshed = append(d.NotYetMeshed, Pair(c))
	}
	return d
}
