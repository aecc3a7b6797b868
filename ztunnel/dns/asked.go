package dns

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// asked finds out which resolver the pod asked before the redirection, so that a pod with
// a resolver of its own (dnsPolicy: None) gets that one's answers. A datagram shows where
// it arrived only; the namespace's connection tracking knows more, whoever made the
// rules. Where it does not, ztunnel's resolvers are asked, as upstream always does.
type asked struct {
	resolvers []netip.AddrPort
	log       *slog.Logger
	tracking  *netns.Conntrack
	problem   error // why there is no tracking
	once      sync.Once
}

var errNotRedirected = errors.New("the question was not redirected")

func (a *asked) open(ns *netns.NS) { a.tracking, a.problem = ns.Conntrack() }

func (a *asked) close() {
	if a.tracking != nil {
		_ = a.tracking.Close()
	}
}

// datagram returns whom to ask what came in a datagram, best first.
func (a *asked) datagram(client, server netip.AddrPort) []netip.AddrPort {
	if a.problem != nil {
		return a.fallback(a.problem)
	}
	to, err := a.tracking.OriginalUDP(client, server)
	if err != nil {
		return a.fallback(err)
	}
	return a.redirected(to, server)
}

// connection returns whom to ask what came in a connection.
func (a *asked) connection(c *net.TCPConn) []netip.AddrPort {
	return a.redirected(netns.OriginalDst(c), canonical(c.LocalAddr()))
}

// redirected returns the original destination, unless it is this server.
func (a *asked) redirected(to, server netip.AddrPort) []netip.AddrPort {
	switch {
	case to == server:
		return a.fallback(errNotRedirected)
	case to.Addr().IsLinkLocalUnicast() && to.Addr().Is6():
		return a.fallback(errors.New("its address " + to.String() + " is valid on one link only"))
	}
	return []netip.AddrPort{to}
}

// fallback returns ztunnel's resolvers, and says so once.
func (a *asked) fallback(why error) []netip.AddrPort {
	a.once.Do(func() {
		a.log.Warn("not known which resolver the pod asked, ztunnel's are asked from now on", telemetry.KeyError, why, "resolvers", a.resolvers)
	})
	return a.resolvers
}

func canonical(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
