package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/plan"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// poolKey is what two streams must have in common to share a tunnel.
type poolKey struct {
	source   spiffe.ID
	peers    string // SPIFFE ids separated by spaces, in order
	sourceIP netip.Addr
	nextHop  netip.AddrPort
}

func newPoolKey(source spiffe.ID, sourceIP netip.Addr, to *plan.Plan) poolKey {
	peers := make([]string, len(to.Peers))
	for i, id := range to.Peers {
		peers[i] = id.String()
	}
	return poolKey{source: source, peers: strings.Join(peers, " "), sourceIP: sourceIP, nextHop: to.NextHop}
}

func (k *poolKey) peerIDs() ([]spiffe.ID, error) {
	var ids []spiffe.ID
	for text := range strings.FieldsSeq(k.peers) {
		id, err := spiffe.Parse(text)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// dialTunnel makes an mTLS connection to a next hop with the certificate of
// now, for the pool.
func (p *Proxy) dialTunnel(ctx context.Context, k poolKey) (net.Conn, error) {
	ids, err := k.peerIDs()
	if err != nil {
		return nil, err
	}
	cert, err := p.cfg.Certificate(ctx, k.source)
	if err != nil {
		return nil, &telemetry.Refusal{Reason: telemetry.IdentityUnavailable, Err: err}
	}
	raw, err := p.dialTCP(ctx, k.nextHop, netip.Addr{})
	if err != nil {
		return nil, err
	}
	conn, err := p.secure(ctx, raw, cert, ids)
	if err != nil {
		return nil, p.handshakeError(telemetry.Outbound, fmt.Errorf("%s: %w", k.nextHop, err))
	}
	return conn, nil
}

// secure proves who the workload of cert is to one of peers. It takes over raw.
func (p *Proxy) secure(ctx context.Context, raw net.Conn, cert *mtls.Certificate, peers []spiffe.ID) (*tls.Conn, error) {
	var watched *guarded
	if p.cfg.Revoked != nil {
		watched = &guarded{raw, func() {}}
		raw = watched
	}
	conn := tls.Client(hbone.Batched(raw), p.cfg.TLS.ClientConfig(cert, peers))
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Handshake)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error says it all
		return nil, err
	}
	if watched != nil {
		p.guard(watched, conn)
	}
	return conn, nil
}

// tlsReason tells a peer that is not who it should be from a broken connection
// and from one that does not answer.
func tlsReason(err error) telemetry.Reason {
	var network net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return telemetry.HandshakeTimeout
	case errors.As(err, &network) && !isAlert(err):
		return telemetry.ConnectFailed
	}
	return telemetry.TLSFailure
}

func isAlert(err error) bool {
	var alert tls.AlertError
	return errors.As(err, &alert)
}

// dialTCP connects inside the pod's namespace. source is the address to connect
// from, when valid and when the kernel lets us.
func (p *Proxy) dialTCP(ctx context.Context, to netip.AddrPort, source netip.Addr) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var made netns.TCPConn
	done := p.bypass.dials(to)
	defer func() { done(made) }()
	o := netns.DialOptions{Mark: p.cfg.Mark, Source: source, UserTimeout: p.cfg.UserTimeout}
	conn, err := p.cfg.NetNS.Dial(ctx, to, o)
	if err != nil && source.IsValid() && bindRefused(err) {
		p.log.Warn("source address not preserved", telemetry.KeyAddress, source.String(), telemetry.KeyError, err)
		o.Source = netip.Addr{}
		conn, err = p.cfg.NetNS.Dial(ctx, to, o)
	}
	if err != nil && p.life.Err() != nil {
		return nil, &telemetry.Refusal{Reason: telemetry.Shutdown, Err: err}
	}
	if err != nil {
		return nil, dialError(err, to)
	}
	made = netns.TCPConn{Local: localAddr(conn), Remote: remoteAddr(conn)}
	_ = conn.SetKeepAliveConfig(p.cfg.KeepAlive) // without it the connection works, too
	return conn, nil
}

// bindRefused reports whether the kernel did not let us have a source address. An
// error of the connect itself may be of the same kind: no port is free, say.
func bindRefused(err error) bool {
	if call, ok := errors.AsType[*os.SyscallError](err); ok && call.Syscall == "connect" {
		return false
	}
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES)
}

// dialApp connects to the application, from the client's address if that can be.
func (p *Proxy) dialApp(ctx context.Context, to netip.AddrPort, client netip.Addr) (*net.TCPConn, error) {
	if !p.transparent || client == to.Addr() || client.Is4() != to.Addr().Is4() {
		client = netip.Addr{}
	}
	return p.dialTCP(ctx, to, client)
}

// lookUp completes a plan by one of the addresses of its hostname, preferably of
// the family of the address that was dialled.
func (p *Proxy) lookUp(ctx context.Context, source *workload.Workload, to plan.Plan, dialled netip.Addr) (plan.Plan, error) {
	l := peer(source)
	p.cfg.Metrics.OnDemandDNS.WithLabelValues(l.Workload, l.CanonicalService, l.CanonicalRev, l.Namespace,
		source.Identity.String(), l.App, l.Version, l.Cluster, to.Resolve).Inc()
	ips, err := p.cfg.Resolve(ctx, to.Resolve)
	if err != nil {
		return to, &telemetry.Refusal{Reason: telemetry.UnknownDestination, Err: fmt.Errorf("hostname %s: %w", to.Resolve, err)}
	}
	var same, other []netip.Addr
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.Is4() == dialled.Is4() {
			same = append(same, ip)
		} else {
			other = append(other, ip)
		}
	}
	if len(same) == 0 {
		same = other
	}
	if len(same) == 0 {
		return to, &telemetry.Refusal{Reason: telemetry.UnknownDestination, Err: fmt.Errorf("hostname %s has no address", to.Resolve)}
	}
	return to.At(same[rand.IntN(len(same))]), nil
}
