package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"

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
//  2. plan, connect, and on a failed connect plan and connect once more;
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
	var to plan.Plan
	var far relay.Half
	if to, far, err = p.connect(p.life, caller{source, src, from}, target, r); err != nil {
		return
	}
	defer release(far)
	c := &connection{
		direction: telemetry.Outbound, src: src, originalDst: target, actualDst: to.NextHop,
		protocol: to.Protocol.String(), end: both(conn, far),
	}
	p.table.add(c)
	defer p.table.drop(c)
	err = p.join(c, conn, far, r)
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

// connect plans and dials; no byte of the application has been sent when it
// returns. A failed connect is tried once more at another endpoint.
func (p *Proxy) connect(ctx context.Context, from caller, target netip.AddrPort, r *record) (plan.Plan, relay.Half, error) {
	request := plan.Request{Source: from.workload, SourceIP: from.src.Addr(), Target: target, Network: p.cfg.Network}
	for {
		to, err := plan.Outbound(p.cfg.Store.Snapshot(), request)
		if err != nil {
			return to, nil, refusal(err)
		}
		if to.Resolve != "" {
			if err := p.lookUp(ctx, from.workload, &to, target.Addr()); err != nil {
				return to, nil, err
			}
		}
		far, err := p.dial(ctx, from, &to)
		if err != nil && to.Retriable && request.Avoid == "" && elsewhere(err) {
			request.Avoid = to.Workload.UID
			continue
		}
		r.planned(from.workload, &to)
		return to, far, err
	}
}

// elsewhere reports whether another endpoint may do better: this one could not
// be connected to, or could not connect to its application.
func elsewhere(err error) bool {
	if status, ok := errors.AsType[*hbone.StatusError](err); ok {
		return status.Status == http.StatusServiceUnavailable
	}
	r := reasonOf(err)
	return r == telemetry.ConnectFailed || r == telemetry.ConnectTimeout
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
	if _, ok := errors.AsType[*hbone.StatusError](err); ok {
		reason = telemetry.PeerRefused
	}
	return &telemetry.Refusal{Reason: reason, Err: err}
}

// planned fills in what the plan says of the other end and counts the
// connection.
func (r *record) planned(source *workload.Workload, to *plan.Plan) {
	r.source(source)
	r.destination(to.Workload)
	l := telemetry.Labels{Source: peer(source), Destination: peer(to.Workload)}
	if to.Workload != nil {
		l.Destination.Principal = to.Workload.Identity.String()
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
