package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"

	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/plan"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// acceptOutbound serves a connection that the pod opened and that was captured.
func (p *Proxy) acceptOutbound(conn *net.TCPConn) {
	p.outbound(conn, netns.OriginalDst(conn))
}

// outbound carries a connection of the pod to target, as planned:
//
//  1. wait for the pod's own workload;
//  2. plan, connect, and on a failed connect plan and connect elsewhere;
//  3. join the ends.
func (p *Proxy) outbound(conn *net.TCPConn, target netip.AddrPort) {
	defer release(conn)
	open := p.cfg.Metrics.SocketsOpen[telemetry.Outbound]
	open.Inc()
	defer open.Dec()
	_ = conn.SetKeepAliveConfig(p.cfg.KeepAlive) // without it the connection works, too

	src := remoteAddr(conn)
	r := p.begin(telemetry.Outbound, src, target)
	var err error
	defer func() { r.end(err) }()
	var source *workload.Workload
	if target == localAddr(conn) {
		// Not captured: what would be dialled is the listener that has accepted it.
		err = &telemetry.Refusal{Reason: telemetry.SelfCall, Err: fmt.Errorf("%s is a port of ztunnel", target)}
		return
	}
	from := client{conn, func(bool) bool { return !p.owned(src) }}
	if source, err = p.awaitWorkload(p.life, from); err != nil {
		return
	}
	if err = p.demand(target.Addr(), source); err != nil {
		return
	}
	var to plan.Plan
	var far relay.Half
	if to, far, err = p.connect(p.life, caller{source, src, from}, target, r); err != nil {
		return
	}
	defer p.left(&to)
	defer release(far)
	c := &connection{
		direction: telemetry.Outbound, src: src, originalDst: target, actualDst: to.NextHop,
		protocol: to.Protocol.String(), end: both(conn, far),
	}
	if stream, ok := far.(*hbone.Stream); ok && p.cfg.Revoked != nil {
		c.tunnel = canonical(stream.LocalAddr())
	}
	p.table.add(c)
	defer p.table.drop(c)
	err = p.join(c, conn, far, r)
}

// demand asks for what is at an address, where istiod tells only on demand.
// Without an answer the connection is refused: the peer may be one that must not
// be sent plaintext.
func (p *Proxy) demand(ip netip.Addr, source *workload.Workload) error {
	if p.cfg.Demand == nil {
		return nil
	}
	s := p.cfg.Store.Snapshot()
	if s.ByIP(p.cfg.Network, ip) != nil || s.ServiceByVIP(p.cfg.Network, ip, source.Namespace) != nil {
		return nil
	}
	err := p.cfg.Demand(p.life, p.cfg.Network, ip)
	switch {
	case err == nil:
		return nil
	case p.life.Err() != nil:
		return &telemetry.Refusal{Reason: telemetry.Shutdown, Err: err}
	default:
		return &telemetry.Refusal{Reason: telemetry.UnknownDestination, Err: err}
	}
}

// caller is the pod, as the one end of a connection that it opens.
type caller struct {
	workload *workload.Workload
	src      netip.AddrPort
	client   client
}

// owned reports whether the pod still has the connection that it opened from
// an address; it is the case when that is not known.
func (p *Proxy) owned(src netip.AddrPort) bool {
	owned, err := p.cfg.NetNS.Owned(src)
	return owned || err != nil
}

// maxTries is at how many endpoints one connection is tried.
const maxTries = 3

// connect plans and dials; no byte of the application has been sent when it
// returns. A failed connect is tried again at other endpoints. Without an error
// the caller must call left with the plan at the end.
func (p *Proxy) connect(ctx context.Context, from caller, target netip.AddrPort, r *record) (plan.Plan, relay.Half, error) {
	request := plan.Request{
		Source: from.workload, SourceIP: from.src.Addr(), Target: target, Network: p.cfg.Network, Reserved: p.reserved(),
		Load: p.load, Refused: p.refused,
	}
	for try := 1; ; try++ {
		to, err := plan.Outbound(p.cfg.Store.Snapshot(), request)
		if err != nil {
			return to, nil, refusal(err)
		}
		if to.Resolve != "" {
			if to, err = p.lookUp(ctx, from.workload, to, target.Addr()); err != nil {
				return to, nil, err
			}
		}
		p.chosen(&to)
		far, err := p.dial(ctx, from, &to)
		uid, port := to.Endpoint()
		if err == nil {
			p.endpoints.Worked(uid, port)
			r.planned(from.workload, &to, far)
			return to, far, nil
		}
		p.left(&to)
		_, answered := errors.AsType[*hbone.StatusError](err)
		again := elsewhere(err)
		if again && (!answered || !to.Waypoint && to.Inner == nil) {
			p.endpoints.Failed(uid, port) // the endpoint, not one behind it
		}
		if again && to.Retriable && try < maxTries && ctx.Err() == nil {
			request.Tried = to.Tries(request.Tried)
			continue
		}
		r.planned(from.workload, &to, nil)
		return to, nil, err
	}
}

// chosen and left count the connections of endpoints.
func (p *Proxy) chosen(to *plan.Plan) { eachEndpoint(to, p.endpoints.Opened) }

func (p *Proxy) left(to *plan.Plan) { eachEndpoint(to, p.endpoints.Closed) }

func eachEndpoint(to *plan.Plan, count func(uid string)) {
	for _, w := range [...]*workload.Workload{to.Workload, to.Remote} {
		if w != nil {
			count(w.UID)
		}
	}
}

// reserved returns the port of ztunnel's own that not every pod has, or 0.
func (p *Proxy) reserved() uint16 {
	if p.cfg.SOCKS5 {
		return portSOCKS
	}
	return 0
}

// elsewhere reports whether another endpoint may do better: this one could not
// be connected to, is not who it should be, or could not connect to its
// application.
func elsewhere(err error) bool {
	if status, ok := errors.AsType[*hbone.StatusError](err); ok {
		return status.Status == http.StatusServiceUnavailable
	}
	switch reasonOf(err) {
	case telemetry.ConnectFailed, telemetry.ConnectTimeout, telemetry.HandshakeTimeout, telemetry.TLSFailure, telemetry.CertRevoked,
		telemetry.TunnelFailure:
		return true
	default:
		return false
	}
}

// dial connects to the next hop of a plan.
func (p *Proxy) dial(ctx context.Context, from caller, to *plan.Plan) (relay.Half, error) {
	if to.Protocol == workload.TCP {
		conn, err := p.dialTCP(ctx, to.NextHop, netip.Addr{})
		if err != nil {
			return nil, err // not a typed nil in the interface
		}
		return conn, nil
	}
	source := from.workload
	if err := p.awaitCertificate(ctx, from.client, source); err != nil {
		return nil, err
	}
	if to.Inner != nil {
		return p.openInner(ctx, from, to)
	}
	stream, err := p.pool.Open(ctx, newPoolKey(source.Identity, from.src.Addr(), to), hbone.Request{
		Authority: to.Authority, Header: requestHeader(source, from.src, to.Service),
	})
	if err != nil {
		return nil, tunnelError(err)
	}
	return stream, nil
}

func tunnelError(err error) error {
	if _, ok := errors.AsType[*telemetry.Refusal](err); ok {
		return err
	}
	reason := telemetry.TunnelFailure
	switch _, answered := errors.AsType[*hbone.StatusError](err); {
	case answered:
		reason = telemetry.PeerRefused
	case errors.Is(err, os.ErrDeadlineExceeded):
		reason = telemetry.ReplyTimeout
	case errors.Is(err, errStopped):
		reason = telemetry.Shutdown
	}
	return &telemetry.Refusal{Reason: reason, Err: err}
}

// planned fills in what the plan says of the other end, and what that says of
// itself where it is behind a gateway, and counts the connection. far is nil if
// there is none.
func (r *record) planned(source *workload.Workload, to *plan.Plan, far relay.Half) {
	r.source(source)
	r.destination(to.Workload)
	l := telemetry.Labels{Source: peer(source), Destination: peer(to.Workload)}
	if to.Workload != nil {
		l.Destination.Principal = to.Workload.Identity.String()
	}
	if stream, ok := far.(*hbone.Stream); ok && to.Inner != nil && r.p.cfg.ResponseBaggage {
		r.behind(&l, stream)
	}
	withService(&l, to.Service)
	r.line.DstAddr, r.line.DstHBONEAddr, r.line.DstService = to.NextHop, to.Authority, l.Service
	if to.Protocol == workload.HBONE {
		l.MutualTLS = true
		l.Source.Principal = source.Identity.String()
		r.line.SrcIdentity, r.line.DstIdentity = l.Source.Principal, l.Destination.Principal
	}
	r.open(l)
}
