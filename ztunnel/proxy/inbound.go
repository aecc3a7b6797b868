package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/plan"
	"github.com/ambit-mesh/ambit/ztunnel/rbac"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// acceptTunnel serves one mTLS connection to port 15008 and the streams on it.
func (p *Proxy) acceptTunnel(conn *net.TCPConn) {
	defer release(conn)
	open := p.cfg.Metrics.SocketsOpen[telemetry.Inbound]
	open.Inc()
	defer open.Dec()
	_ = conn.SetKeepAlive(false) // HTTP/2 pings do that

	tunnel := &connection{direction: telemetry.Inbound, src: remoteAddr(conn), hidden: true, end: func() { abort(conn) }}
	p.table.add(tunnel)
	defer func() { p.table.drop(tunnel) }()
	secured, id, err := p.handshake(p.life, conn)
	if err != nil {
		if why := tunnel.why.Load(); why != nil {
			err = why
		}
		p.begin(telemetry.Inbound, tunnel.src, localAddr(conn)).end(err)
		return
	}
	if p.cfg.Revoked != nil {
		unverified := tunnel
		tunnel = &connection{
			direction: telemetry.Inbound, src: tunnel.src, hidden: true, chain: secured.ConnectionState().PeerCertificates, end: tunnel.end,
		}
		p.table.add(tunnel)
		p.table.drop(unverified)
		p.checkRevoked(tunnel) // the list may have changed since the handshake
	}
	a := arrival{peer: id, client: tunnel.src, connected: localAddr(conn)}
	if err := hbone.Serve(p.draining, secured, p.cfg.HBONE, func(in *hbone.Incoming) { p.inbound(in, a) }); err != nil {
		p.log.Debug("tunnel ended", telemetry.KeyAddress, tunnel.src.String(), telemetry.KeyError, err)
	}
}

// arrival is what the streams of one tunnel have in common.
type arrival struct {
	peer      spiffe.ID
	client    netip.AddrPort // the tunnel's TCP peer
	connected netip.AddrPort // the address of the pod that it connected to
}

// handshake waits for what the pod needs to prove itself, then verifies the
// peer.
func (p *Proxy) handshake(ctx context.Context, conn *net.TCPConn) (*tls.Conn, spiffe.ID, error) {
	from := client{conn, func(bool) bool { return true }} // TLS needs both directions
	local, err := p.awaitWorkload(ctx, from)
	if err != nil {
		return nil, spiffe.ID{}, err
	}
	if err := p.awaitCertificate(ctx, from, local); err != nil {
		return nil, spiffe.ID{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Handshake)
	defer cancel()
	secured := tls.Server(hbone.Batched(conn), p.cfg.TLS.ServerConfig(ctx, func(ctx context.Context) (*mtls.Certificate, error) {
		return p.cfg.Certificate(ctx, local.Identity)
	}))
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, spiffe.ID{}, p.handshakeError(telemetry.Inbound, err)
	}
	id, err := mtls.PeerID(secured.ConnectionState())
	if err != nil {
		return nil, spiffe.ID{}, &telemetry.Refusal{Reason: telemetry.TLSFailure, Err: err}
	}
	return secured, id, nil
}

// inbound answers one CONNECT in the order of spec/ztunnel.md §3.2: method,
// authority, workload, destination, policy, application; then it joins the ends.
func (p *Proxy) inbound(in *hbone.Incoming, a arrival) {
	r := p.begin(telemetry.Inbound, a.client, a.connected)
	r.line.DstHBONEAddr = in.Request.Authority
	var err error
	defer func() { r.end(err) }()
	var local *workload.Workload
	var d plan.Delivery
	if local, d, err = p.admit(in, a); err != nil {
		p.reject(in, err)
		return
	}
	p.describe(r, in, a, local, d)
	c := &connection{
		direction: telemetry.Inbound, src: a.client, originalDst: a.connected, actualDst: d.Target, protocol: workload.HBONE.String(),
		tunnel: a.client, judged: true, rbac: rbac.Conn{Source: a.client.Addr(), Destination: d.Target, Identity: a.peer},
	}
	var judged ruling
	if judged, err = p.authorize(in.Context(), client{}, c.rbac); err != nil {
		p.reject(in, err)
		return
	}
	var app *net.TCPConn
	if app, err = p.deliver(in.Context(), d, a); err != nil {
		p.reject(in, err)
		return
	}
	defer release(app)
	var stream *hbone.Stream
	if stream, err = in.Accept(p.responseHeader(local)...); err != nil {
		err = tunnelError(err)
		return
	}
	defer release(stream)
	c.end = both(stream, app)
	defer p.enter(c, judged)()
	err = p.join(c, stream, app, r)
}

// admit checks that a CONNECT is one and is meant for the pod.
func (p *Proxy) admit(in *hbone.Incoming, a arrival) (*workload.Workload, plan.Delivery, error) {
	if in.Method != http.MethodConnect {
		return nil, plan.Delivery{}, &telemetry.Refusal{Reason: telemetry.BadRequest, Err: fmt.Errorf("method %q is not CONNECT", in.Method)}
	}
	local, err := p.awaitWorkload(in.Context(), client{})
	if err != nil {
		return nil, plan.Delivery{}, err
	}
	d, err := plan.Inbound(p.cfg.Store.Snapshot(), plan.Arrival{
		Local: local, Connected: a.connected, Authority: in.Request.Authority, Network: p.cfg.Network, Reserved: p.reserved(),
	})
	return local, d, refusal(err)
}

// reject answers with the status that a refusal has on the wire.
func (p *Proxy) reject(in *hbone.Incoming, err error) {
	status := http.StatusServiceUnavailable
	switch r := reasonOf(err); {
	case r == telemetry.BadRequest || r == telemetry.IPMismatch:
		status = http.StatusBadRequest
	case r.Flag() == telemetry.PolicyDenied.Flag():
		status = http.StatusUnauthorized
	}
	if err := in.Reject(status); err != nil {
		p.log.Debug("refusal not sent", telemetry.KeyError, err)
	}
}

func (p *Proxy) responseHeader(local *workload.Workload) []hbone.Field {
	if !p.cfg.ResponseBaggage {
		return nil
	}
	return []hbone.Field{{Name: mesh.HeaderBaggage, Value: baggage(local)}}
}

// describe fills in both ends and counts the connection. What istiod says of
// the client beats what the client says of itself (spec/ztunnel.md §3.7).
func (p *Proxy) describe(r *record, in *hbone.Incoming, a arrival, local *workload.Workload, d plan.Delivery) {
	s := p.cfg.Store.Snapshot()
	fields := in.Request.Header
	var client *workload.Workload
	if network := header(fields, headerNetwork); network == "" || strings.EqualFold(network, p.cfg.Network) {
		client = s.ByIP(p.cfg.Network, a.client.Addr())
	}
	l := telemetry.Labels{Source: peer(client), Destination: peer(local), MutualTLS: true}
	r.source(client)
	r.destination(local)
	if client == nil && p.cfg.ResponseBaggage {
		l.Source = parseBaggage(header(fields, mesh.HeaderBaggage))
		r.line.SrcWorkload, r.line.SrcNamespace, r.line.SrcCluster = l.Source.CanonicalService, l.Source.Namespace, l.Source.Cluster
	}
	l.Source.Principal, l.Destination.Principal = a.peer.String(), local.Identity.String()
	withService(&l, plan.ServiceOf(s, local, d.Target.Port(), forwardedHost(header(fields, mesh.HeaderForwarded)), d.Service))
	r.line.SrcIdentity, r.line.DstIdentity, r.line.DstService = l.Source.Principal, l.Destination.Principal, l.Service
	r.open(l)
}
