package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// watchRevocations closes tunnels whose peers' certificates have been revoked,
// and with them the connections inside (spec/ztunnel.md §10.4).
func (p *Proxy) watchRevocations() {
	if p.cfg.Revoked == nil || p.cfg.RevocationsChanged == nil {
		return
	}
	for {
		changed := p.cfg.RevocationsChanged()
		p.table.each(p.checkRevoked)
		select {
		case <-changed:
		case <-p.life.Done():
			return
		}
	}
}

// checkRevoked closes a tunnel if a certificate of its peer is revoked by now.
func (p *Proxy) checkRevoked(tunnel *connection) {
	if len(tunnel.chain) == 0 || p.cfg.Revoked == nil {
		return
	}
	err := p.cfg.Revoked(tunnel.chain)
	if err == nil {
		return
	}
	why := &telemetry.Refusal{Reason: telemetry.CertRevoked, Err: err}
	p.table.each(func(c *connection) { // what is inside ends for the same reason
		if c.tunnel == tunnel.src {
			c.note(why)
		}
	})
	if tunnel.close(why) {
		p.cfg.Metrics.CRLRejections[tunnel.direction].Inc()
	}
}

// handshakeError is the refusal of a peer whose handshake has failed.
func (p *Proxy) handshakeError(d telemetry.Direction, err error) error {
	reason := tlsReason(err)
	if errors.Is(err, mtls.ErrRevoked) {
		reason = telemetry.CertRevoked
		p.cfg.Metrics.CRLRejections[d].Inc()
	}
	return &telemetry.Refusal{Reason: reason, Err: fmt.Errorf("handshake: %w", err)}
}

// guarded is the socket of a tunnel that we have opened, where its peer may be
// revoked: the tunnel is registered for as long as the socket is open.
type guarded struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (g *guarded) Close() error {
	g.leave()
	return g.Conn.Close()
}

// Socket returns what is below, nil if that is no socket but a stream.
func (g *guarded) Socket() *net.TCPConn {
	socket, _ := g.Conn.(*net.TCPConn)
	return socket
}

// guard registers a tunnel after its handshake.
func (p *Proxy) guard(g *guarded, conn *tls.Conn) {
	tunnel := &connection{
		direction: telemetry.Outbound, src: localAddr(g), hidden: true, chain: conn.ConnectionState().PeerCertificates,
		end: func() { abort(g.Conn) },
	}
	p.table.add(tunnel)
	g.leave = sync.OnceFunc(func() { p.table.drop(tunnel) })
	p.checkRevoked(tunnel) // the list may have changed since the handshake
}
