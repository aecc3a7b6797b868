package proxy

import (
	"net"
	"net/netip"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/plan"
	"github.com/ambit-mesh/ambit/ztunnel/rbac"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// acceptPlain serves a plaintext connection to the pod that was captured.
func (p *Proxy) acceptPlain(conn *net.TCPConn) {
	p.passthrough(conn, netns.OriginalDst(conn))
}

// passthrough carries a plaintext connection to the application it was opened
// to, if policies allow one without an identity (spec/ztunnel.md §3.8).
func (p *Proxy) passthrough(conn *net.TCPConn, target netip.AddrPort) {
	defer release(conn)
	open := p.cfg.Metrics.SocketsOpen[telemetry.Inbound]
	open.Inc()
	defer open.Dec()
	_ = conn.SetKeepAliveConfig(p.cfg.KeepAlive) // without it the connection works, too

	src := remoteAddr(conn)
	r := p.begin(telemetry.Inbound, src, target)
	var err error
	defer func() { r.end(err) }()
	if err = refusal(plan.Passthrough(target, 0)); err != nil {
		return
	}
	from := client{conn, func(unread bool) bool { return !unread }}
	var local *workload.Workload
	if local, err = p.awaitWorkload(p.life, from); err != nil {
		return
	}
	p.describePlain(r, src, target, local)
	c := &connection{
		direction: telemetry.Inbound, src: src, originalDst: target, actualDst: target, protocol: workload.TCP.String(),
		judged: true, rbac: rbac.Conn{Source: src.Addr(), Destination: target},
	}
	var judged ruling
	if judged, err = p.authorize(p.life, from, c.rbac); err != nil {
		return
	}
	var app *net.TCPConn
	if app, err = p.dialApp(p.life, target, src.Addr()); err != nil {
		return
	}
	defer release(app)
	c.end = both(conn, app)
	defer p.enter(c, judged)()
	err = p.join(c, conn, app, r)
}

func (p *Proxy) describePlain(r *record, src, target netip.AddrPort, local *workload.Workload) {
	s := p.cfg.Store.Snapshot()
	from := s.ByIP(p.cfg.Network, src.Addr())
	l := telemetry.Labels{Source: peer(from), Destination: peer(local)}
	l.Destination.Principal = local.Identity.String()
	withService(&l, plan.ServiceOf(s, local, target.Port(), "", nil))
	r.source(from)
	r.destination(local)
	r.line.DstService = l.Service
	r.open(l)
}
