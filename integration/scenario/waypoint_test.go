package scenario

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/integration/bed"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
)

var waypoints = []scenario{
	{"waypoint of a workload", nil, workloadWaypoint},
	{"waypoint of a service", nil, serviceWaypoint},
	{"waypoint by its service's hostname", nil, waypointByHostname},
	{"waypoint that is away", nil, waypointAway},
	{"waypoint behind ztunnel", nil, sandwich},
	{"waypoint behind ztunnel, PROXY protocol", nil, sandwichPROXY},
	{"gateway to another network", nil, doubleHBONE},
}

// gateway ends HBONE itself, as a waypoint does, and answers each line with the
// authority that was asked for.
type gateway struct {
	w      *world
	pod    *bed.Pod
	config *tls.Config

	mu          sync.Mutex
	authorities []string
	peers       []string // identities
}

func (w *world) gateway(node int, name string, port uint16) *gateway {
	w.Helper()
	g := &gateway{w: w, pod: w.plainPod(node, name, func(m *workload.Workload) {
		m.TunnelProtocol, m.NativeTunnel = workload.TunnelProtocol_HBONE, true
	})}
	g.config = w.serverTLS(g.pod)
	l, err := g.pod.Listen(port)
	w.must(err)
	w.accept(l, func(c net.Conn) { g.tunnel(c, g.config, g.answer) })
	return g
}

// serverTLS is what a pod shows to clients of the mesh.
func (w *world) serverTLS(p *bed.Pod) *tls.Config {
	w.Helper()
	certificate, err := w.bed.Certificate(p.Namespace, p.ServiceAccount)
	w.must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.bed.RootPEM())
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{certificate}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

// tunnel serves one connection of HBONE.
func (g *gateway) tunnel(c net.Conn, config *tls.Config, serve func(string, net.Conn)) {
	secure := tls.Server(c, config)
	if secure.HandshakeContext(g.w.ctx) != nil {
		return
	}
	peer := secure.ConnectionState().PeerCertificates[0].URIs[0].String()
	_ = hbone.Serve(g.w.ctx, secure, hbone.Config{}, func(in *hbone.Incoming) {
		g.mu.Lock()
		g.authorities, g.peers = append(g.authorities, in.Request.Authority), append(g.peers, peer)
		g.mu.Unlock()
		stream, err := in.Accept()
		if err == nil {
			defer func() { _ = stream.Close() }()
			serve(in.Request.Authority, stream)
		}
	})
}

func (g *gateway) answer(authority string, c net.Conn) {
	for lines := bufio.NewScanner(c); lines.Scan(); {
		if _, err := fmt.Fprintf(c, "%s/%s %s\n", g.pod.Name, authority, g.pod.Addr); err != nil {
			return
		}
	}
}

// wants checks that a connection to an address arrives at the gateway, asking
// for the authority, with the client's identity.
func (g *gateway) wants(from *bed.Pod, to netip.AddrPort, authority string) {
	g.w.Helper()
	got, err := g.w.ask(from, to)
	if err != nil || got.pod != g.pod.Name+"/"+authority {
		g.w.Errorf("answer %v, %v; want one of %s for %s", got, err, g.pod.Name, authority)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if last := g.peers[len(g.peers)-1]; last != identity(from) {
		g.w.Errorf("the gateway's peer is %s", last)
	}
}

func byAddress(p *bed.Pod, port uint32) *workload.GatewayAddress {
	return &workload.GatewayAddress{
		Destination:   &workload.GatewayAddress_Address{Address: &workload.NetworkAddress{Address: p.Addr.AsSlice()}},
		HboneMtlsPort: port,
	}
}

func workloadWaypoint(w *world) {
	g := w.gateway(0, "waypoint", 15008)
	client := w.pod(0, "client")
	server := w.pod(1, "server", func(m *workload.Workload) { m.Waypoint = byAddress(g.pod, 15008) })
	w.tell()
	g.wants(client, at(server.Addr, 8080), at(server.Addr, 8080).String())
	g.wants(client, at(server.Addr6, 8080), at(server.Addr6, 8080).String())
	w.awaitLine(0, "to the waypoint", func(l line) bool { return l.DstWorkload == "waypoint" && l.DstIdentity == identity(g.pod) })
}

func serviceWaypoint(w *world) {
	g := w.gateway(0, "waypoint", 15008)
	client, server := w.pod(0, "client"), w.pod(1, "server")
	w.service("web", "10.96.0.10", server).Waypoint = byAddress(g.pod, 15008)
	w.serve(server, 8080)
	w.tell()
	vip := netip.MustParseAddrPort("10.96.0.10:80")
	g.wants(client, vip, vip.String())
	// The pod's own address is not the service's: no waypoint.
	if got, err := w.ask(client, at(server.Addr, 8080)); err != nil || got.pod != "server" {
		w.Errorf("by the pod's address: %v, %v", got, err)
	}
}

func waypointByHostname(w *world) {
	g := w.gateway(0, "waypoint", 15008)
	client, server := w.pod(0, "client"), w.pod(1, "server")
	own := w.service("waypoint", "10.96.0.9", g.pod)
	own.Ports = []*workload.Port{{ServicePort: 15008, TargetPort: 15008}}
	w.workload(g.pod).Services["shop/"+own.Hostname] = &workload.PortList{Ports: own.Ports}
	w.service("web", "10.96.0.10", server).Waypoint = &workload.GatewayAddress{
		Destination:   &workload.GatewayAddress_Hostname{Hostname: &workload.NamespacedHostname{Namespace: "shop", Hostname: own.Hostname}},
		HboneMtlsPort: 15008,
	}
	w.tell()
	vip := netip.MustParseAddrPort("10.96.0.10:80")
	g.wants(client, vip, vip.String())
}

// waypointAway: what must pass a waypoint passes nowhere else.
func waypointAway(w *world) {
	gone := w.plainPod(0, "waypoint", func(m *workload.Workload) {
		m.TunnelProtocol, m.NativeTunnel = workload.TunnelProtocol_HBONE, true
	})
	client, server := w.pod(0, "client"), w.pod(1, "server")
	w.service("web", "10.96.0.10", server).Waypoint = byAddress(gone, 15008)
	w.serve(server, 8080)
	w.tell()
	if got, err := w.ask(client, netip.MustParseAddrPort("10.96.0.10:80")); err == nil {
		w.Errorf("answered by %v", got)
	}
}

// sandwich: a waypoint that is in the mesh itself gets plain connections from its
// ztunnel.
func sandwich(w *world) {
	client, waypoint := w.pod(0, "client"), w.pod(1, "waypoint")
	server := w.pod(1, "server", func(m *workload.Workload) { m.Waypoint = byAddress(waypoint, 15008) })
	w.serve(waypoint, 8080)
	w.tell()
	if got, err := w.ask(client, at(server.Addr, 8080)); err != nil || got.pod != "waypoint" {
		w.Errorf("answer %v, %v", got, err)
	}
}

// sandwichPROXY: the waypoint learns from PROXY protocol what was dialled, and by
// whom.
func sandwichPROXY(w *world) {
	client := w.pod(0, "client")
	waypoint := w.pod(1, "waypoint", func(m *workload.Workload) {
		m.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: workload.ApplicationTunnel_PROXY, Port: 15088}
	})
	own := w.service("waypoint", "10.96.0.9", waypoint)
	own.Ports, w.workload(waypoint).Services["shop/"+own.Hostname] = nil, &workload.PortList{}
	server := w.pod(1, "server", func(m *workload.Workload) { m.Waypoint = byAddress(waypoint, 15008) })
	l, err := waypoint.Listen(15088)
	w.must(err)
	w.accept(l, func(c net.Conn) {
		from, to, err := readPROXY(c)
		_, _ = fmt.Fprintf(c, "%s,%v %s\n", to, err, from.Addr())
	})
	w.tell()
	want := answer{at(server.Addr, 8080).String() + ",<nil>", client.Addr}
	if got, err := w.ask(client, at(server.Addr, 8080)); err != nil || got != want {
		w.Errorf("the waypoint has heard %v, %v; want %v", got, err, want)
	}
}

// readPROXY reads a header of PROXY protocol, version 2, over IPv4.
func readPROXY(r io.Reader) (from, to netip.AddrPort, err error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return from, to, err
	}
	if string(head[:12]) != "\r\n\r\n\x00\r\nQUIT\n" || head[12] != 0x21 || head[13] != 0x11 {
		return from, to, fmt.Errorf("header %q", head)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, body); err != nil {
		return from, to, err
	}
	from = at(netip.AddrFrom4([4]byte(body)), binary.BigEndian.Uint16(body[8:]))
	return from, at(netip.AddrFrom4([4]byte(body[4:])), binary.BigEndian.Uint16(body[10:])), nil
}

// doubleHBONE: a service on another network is reached through its gateway, with
// a tunnel of the workload's own inside of the gateway's.
func doubleHBONE(w *world) {
	client := w.pod(0, "client")
	far := w.plainPod(1, "far") // only its identity: the inner tunnel's end
	outer := w.plainPod(1, "gateway", func(m *workload.Workload) {
		m.TunnelProtocol, m.NativeTunnel, m.Network = workload.TunnelProtocol_HBONE, true, "other"
	})
	web := w.service("web", "10.96.0.10", far)
	web.SubjectAltNames = []string{identity(far)}
	remote := w.workload(far)
	remote.Network, remote.Addresses, remote.TunnelProtocol = "other", nil, workload.TunnelProtocol_HBONE
	remote.NetworkGateway = byAddress(outer, 15008)
	remote.NetworkGateway.GetAddress().Network = "other"
	g := &gateway{w: w, pod: outer}
	inner := &gateway{w: w, pod: far}
	outside, inside := w.serverTLS(outer), w.serverTLS(far)
	l, err := outer.Listen(15008)
	w.must(err)
	w.accept(l, func(c net.Conn) {
		g.tunnel(c, outside, func(_ string, c net.Conn) { inner.tunnel(c, inside, inner.answer) })
	})
	w.tell()
	authority := web.Hostname + ":80"
	inner.wants(client, netip.MustParseAddrPort("10.96.0.10:80"), authority)
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.authorities) != 1 || g.authorities[0] != authority || g.peers[0] != identity(client) {
		w.Errorf("the gateway was asked for %v by %v", g.authorities, g.peers)
	}
}

// open asks a server for a stream with a certificate of the mesh.
func (w *world) open(from *bed.Pod, as tls.Certificate, to netip.AddrPort, authority string) (*hbone.Stream, error) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience/2)
	defer cancel()
	c, err := from.Dial(ctx, to)
	w.must(err)
	secure := tls.Client(c, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{as},
		InsecureSkipVerify: true, // the client here is the one who is tried
	})
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	tunnel, err := hbone.NewTunnel(secure, hbone.Config{})
	w.must(err)
	w.Cleanup(func() { _ = tunnel.Close() })
	return tunnel.Open(ctx, hbone.Request{Authority: authority})
}
