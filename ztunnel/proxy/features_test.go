package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

const (
	shopHost = "shop.shop.svc.cluster.local"
	shopVIP  = "10.96.0.7:80"
)

// shopService is a service of namespace shop with port 80, served at 8080.
func shopService(edit ...func(*api.Service)) *api.Service {
	s := &api.Service{
		Name: "shop", Namespace: "shop", Hostname: shopHost,
		Addresses: []*api.NetworkAddress{workloadtest.VIP("10.96.0.7")}, Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}},
	}
	for _, f := range edit {
		f(s)
	}
	return s
}

func inShop(m *api.Workload) { m.Services = map[string]*api.PortList{"shop/" + shopHost: {}} }

func TestBothFamilies(t *testing.T) {
	w, web, shop := pair(t)
	shop.serve6(8080, echo)
	if !shop.Addr6.IsValid() {
		t.Fatal("this kernel has no IPv6")
	}
	for _, to := range []netip.AddrPort{shop.addr(8080), shop.addr6(8080)} {
		c := web.dial(to)
		ping(t, c)
		_ = c.Close()
		out, in := web.wantReason(telemetry.OK), shop.wantReason(telemetry.OK)
		if out.DstAddr != netip.AddrPortFrom(to.Addr(), 15008) || out.DstHBONEAddr != to.String() || in.DstAddr != out.DstAddr {
			t.Errorf("%s: next hop %s, authority %s, at the server %s", to, out.DstAddr, out.DstHBONEAddr, in.DstAddr)
		}
		plain := web.connect(func(c *net.TCPConn) { shop.proxy.passthrough(c, to) })
		ping(t, plain)
		_ = plain.Close()
		if l := shop.wantReason(telemetry.OK); l.DstAddr != to {
			t.Errorf("%s: plaintext to %s", to, l.DstAddr)
		}
	}
	// A policy on the client's address sees the one of the family in use.
	w.apply(policy("not-v6", security.Action_DENY, security.Scope_NAMESPACE, &security.Match{
		SourceIps: []*security.Address{{Address: web.Addr6.AsSlice(), Length: 128}},
	}))
	wantClosed(t, web.dial(shop.addr6(8080)))
	shop.wantReason(telemetry.PolicyDenied)
	ping(t, web.dial(shop.addr(8080)))
}

// TestHairpin: a pod that reaches itself, by its address and as a service.
func TestHairpin(t *testing.T) {
	w, _, shop := pair(t)
	w.apply(shopService(), shop.message(inShop))
	for _, to := range []netip.AddrPort{shop.addr(8080), netip.MustParseAddrPort(shopVIP)} {
		c := shop.dial(to)
		ping(t, c)
		_ = c.Close()
		for range 2 { // it is both ends
			if l := shop.wantReason(telemetry.OK); l.SrcWorkload != "shop" || l.DstWorkload != "shop" {
				t.Errorf("%s: %+v", to, l)
			}
		}
	}
}

func TestRefusingEndpointIsAvoided(t *testing.T) {
	w, web, shop := pair(t)
	idle := w.pod("other") // its application does not listen
	w.apply(shopService(), shop.message(inShop), idle.message(inShop))
	uid := idle.message().Uid
	for tries := 0; !web.proxy.endpoints.Refused(uid, 8080); tries++ {
		if tries > 100 {
			t.Fatal("the endpoint that refuses was never chosen, or is not avoided")
		}
		c := web.dial(netip.MustParseAddrPort(shopVIP))
		ping(t, c)
		_ = c.Close()
		if l := web.wantReason(telemetry.OK); l.DstWorkload != "shop" {
			t.Errorf("served by %q", l.DstWorkload)
		}
	}
	if n := len(web.lines); n != 0 {
		t.Errorf("%d lines more than connections: an attempt is none", n)
	}
}

func TestLiveConnectionsAreCountedByEndpoint(t *testing.T) {
	w, web, shop := pair(t)
	second := w.pod("other")
	second.serve(8080, echo)
	w.apply(shopService(), shop.message(inShop), second.message(inShop))
	uids := []string{shop.message().Uid, second.message().Uid}
	var open []net.Conn
	for range 20 {
		c := web.dial(netip.MustParseAddrPort(shopVIP))
		ping(t, c)
		open = append(open, c)
	}
	a, b := web.proxy.endpoints.Load(uids[0]), web.proxy.endpoints.Load(uids[1])
	if a+b != 20 || a < 5 || b < 5 {
		t.Errorf("%d and %d connections, want 20 about equally", a, b)
	}
	for _, c := range open {
		_ = c.Close()
	}
	eventually(t, "nothing is open", func() bool {
		return web.proxy.endpoints.Load(uids[0])+web.proxy.endpoints.Load(uids[1]) == 0
	})
}

// gateway makes p the gateway of its network, on port 15009: it ends the outer
// tunnels and passes what is in them on to the pod that the service is.
func (w *world) gateway(p *pod, to netip.AddrPort) (authorities chan string) {
	authorities = make(chan string, 64)
	id := w.ca.ID(p.name, p.name)
	p.serve(15009, func(c *net.TCPConn) {
		defer func() { _ = c.Close() }()
		cfg := mtls.Policy{}.ServerConfig(w.t.Context(), func(ctx context.Context) (*mtls.Certificate, error) { return w.certificate(ctx, id) })
		secured := tls.Server(c, cfg)
		_ = hbone.Serve(w.t.Context(), secured, hbone.Config{}, func(in *hbone.Incoming) {
			authorities <- in.Request.Authority + " " + header(in.Request.Header, headerNetwork)
			onward, err := p.NS.Dial(in.Context(), to, netns.DialOptions{})
			if err != nil {
				_ = in.Reject(503)
				return
			}
			stream, err := in.Accept()
			if err != nil {
				_ = onward.Close()
				return
			}
			_ = relay.Copy(stream, onward, &relay.Counters{})
		})
	})
	return authorities
}

func TestDoubleHBONE(t *testing.T) {
	w := newWorld(t)
	on := func(network string) func(*api.Workload) { return func(m *api.Workload) { m.Network = network } }
	web := w.pod("web", func(c *Config) { c.Network = "west" })
	shop := w.pod("shop", func(c *Config) { c.Network = "east" })
	gw := w.pod("other")
	authorities := w.gateway(gw, shop.addr(15008))
	behind := func(m *api.Workload) {
		m.Network = "east"
		inShop(m)
		m.NetworkGateway = &api.GatewayAddress{HboneMtlsPort: 15009, Destination: &api.GatewayAddress_Address{
			Address: &api.NetworkAddress{Network: "east", Address: gw.Addr.AsSlice()},
		}}
	}
	service := func(accounts ...string) *api.Service {
		return shopService(func(s *api.Service) {
			s.Addresses[0].Network = "west"
			s.SubjectAltNames = accounts
		})
	}
	w.apply(web.message(on("west")), shop.message(behind), gw.message(on("east")), service(w.ca.ID("shop", "shop").String()))
	shop.serve(8080, echo)
	for range 3 {
		c := web.dial(netip.MustParseAddrPort(shopVIP))
		ping(t, c)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("read to the end: %v", err)
		}
		if got := <-authorities; got != shopHost+":80 " {
			t.Errorf("outer authority and network: %q", got)
		}
		out, in := web.wantReason(telemetry.OK), shop.wantReason(telemetry.OK)
		if out.DstAddr != gw.addr(15009) || out.DstHBONEAddr != shopHost+":80" || out.DstWorkload != "shop" || out.DstNamespace != "shop" {
			t.Errorf("client's line %+v", out)
		}
		if in.SrcIdentity != w.ca.ID("web", "web").String() || in.DstHBONEAddr != shopHost+":80" || in.SrcWorkload != "web" {
			t.Errorf("server's line %+v", in)
		}
	}
	// The gateway is not who the service may be served by.
	w.apply(service(w.ca.ID("shop", "imposter").String()))
	wantClosed(t, web.dial(netip.MustParseAddrPort(shopVIP)))
	if l := web.wantReason(telemetry.TLSFailure); !strings.Contains(l.Err.Error(), "through gateway") {
		t.Errorf("%v", l.Err)
	}
}

func TestProxyHeader(t *testing.T) {
	id, err := spiffe.Parse("spiffe://td/ns/a/sa/b")
	if err != nil {
		t.Fatal(err)
	}
	tlv := "\xd0\x00\x15spiffe://td/ns/a/sa/b"
	const head = "\r\n\r\n\x00\r\nQUIT\n\x21"
	for _, tc := range []struct {
		client, target string
		id             spiffe.ID
		want           string
	}{
		{"10.0.0.1:258", "10.0.0.2:80", id, head + "\x11\x00\x24\x0a\x00\x00\x01\x0a\x00\x00\x02\x01\x02\x00\x50" + tlv},
		{"10.0.0.1:258", "10.0.0.2:80", spiffe.ID{}, head + "\x11\x00\x0c\x0a\x00\x00\x01\x0a\x00\x00\x02\x01\x02\x00\x50"},
		{"[::1]:1", "[::2]:2", spiffe.ID{}, head + "\x21\x00\x24" + strings.Repeat("\x00", 15) + "\x01" + strings.Repeat("\x00", 15) + "\x02\x00\x01\x00\x02"},
		{"10.0.0.1:1", "[::2]:2", id, head + "\x00\x00\x18" + tlv},
	} {
		if got := string(proxyHeader(netip.MustParseAddrPort(tc.client), netip.MustParseAddrPort(tc.target), tc.id)); got != tc.want {
			t.Errorf("%s to %s:\n got %q\nwant %q", tc.client, tc.target, got, tc.want)
		}
	}
}

// TestApplicationTunnel: a sandwiched waypoint gets what was asked for, and who
// asks, before the first byte, and at an address where nobody else reaches it.
func TestApplicationTunnel(t *testing.T) {
	w, web, shop := pair(t)
	w.apply(shop.message(func(m *api.Workload) {
		m.ApplicationTunnel = &api.ApplicationTunnel{Protocol: api.ApplicationTunnel_PROXY, Port: 15088}
	}))
	headers := make(chan []byte, 4)
	sandwiched := func(c *net.TCPConn) {
		defer func() { _ = c.Close() }()
		r := bufio.NewReader(c)
		head := make([]byte, 16)
		_, _ = io.ReadFull(r, head)
		body := make([]byte, binary.BigEndian.Uint16(head[14:]))
		_, _ = io.ReadFull(r, body)
		headers <- append(head, body...)
		_, _ = io.Copy(c, r)
	}
	shop.serveAt(netip.MustParseAddrPort("127.0.0.1:15088"), sandwiched)
	tunnel := w.tunnel(web, shop)
	for _, authority := range []string{shop.addr(80).String(), "192.0.2.9:81"} { // the application decides
		s, err := tunnel.Open(t.Context(), hbone.Request{Authority: authority})
		if err != nil {
			t.Fatalf("%s: %v", authority, err)
		}
		ping(t, s)
		_ = s.Close()
		l := shop.wantReason(telemetry.OK)
		want := proxyHeader(l.SrcAddr, netip.MustParseAddrPort(authority), w.ca.ID("web", "web"))
		if got := <-headers; !bytes.Equal(got, want) {
			t.Errorf("%s: header %q, want %q", authority, got, want)
		}
	}
}

func TestHeadersOfThePeer(t *testing.T) {
	w, web, shop := pair(t)
	tunnel := w.tunnel(web, shop)
	const said = "k8s.cluster.name=far,k8s.namespace.name=fns,k8s.pod.name=fpod,service.name=fsvc,service.version=v9"
	for _, tc := range []struct {
		network, workload, namespace string
	}{{"", "web", "web"}, {"elsewhere", "fsvc", "fns"}} {
		fields := []hbone.Field{{Name: "baggage", Value: said}, {Name: "traceparent", Value: strings.Repeat("a", 55)}}
		if tc.network != "" {
			fields = append(fields, hbone.Field{Name: headerNetwork, Value: tc.network})
		}
		s, err := tunnel.Open(t.Context(), hbone.Request{Authority: shop.addr(8080).String(), Header: fields})
		if err != nil {
			t.Fatal(err)
		}
		ping(t, s)
		_ = s.Close()
		if l := shop.wantReason(telemetry.OK); l.SrcWorkload != tc.workload || l.SrcNamespace != tc.namespace || l.SrcIdentity != w.ca.ID("web", "web").String() {
			t.Errorf("from network %q: %+v", tc.network, l)
		}
	}
	if text := shop.scrape(); !strings.Contains(text, `source_app="fpod"`) || !strings.Contains(text, `source_version="v9"`) {
		t.Error("what the peer says of itself is not in the metrics")
	}
}

func TestDemand(t *testing.T) {
	w := newWorld(t)
	asked := make(chan netip.Addr, 4)
	var shop *pod
	web := w.pod("web", func(c *Config) {
		c.Demand = func(_ context.Context, _ string, ip netip.Addr) error {
			if ip != shop.Addr {
				return context.DeadlineExceeded
			}
			asked <- ip
			w.apply(shop.message())
			return nil
		}
	})
	shop = w.pod("shop")
	shop.serve(8080, echo)
	w.apply(web.message())
	for range 2 {
		c := web.dial(shop.addr(8080))
		ping(t, c)
		_ = c.Close()
		if l := web.wantReason(telemetry.OK); l.DstAddr != shop.addr(15008) {
			t.Errorf("%+v", l)
		}
	}
	if len(asked) != 1 || <-asked != shop.Addr {
		t.Errorf("asked %d times more", len(asked))
	}
	other := w.pod("other") // istiod does not say what it is: not a reason for plaintext
	other.serve(8080, echo)
	_ = web.dial(other.addr(8080))
	web.wantReason(telemetry.UnknownDestination)
}

func TestAccessLinesFollowTheLevel(t *testing.T) {
	for level, want := range map[string]int{"info": 1, "info,access=debug": 2, "info,access=off": 0, "access=error": 0, "off": 0} {
		w := newWorld(t)
		levels, err := telemetry.NewLevels(level)
		if err != nil {
			t.Fatal(err)
		}
		web := w.pod("web", func(c *Config) { c.Log = telemetry.NewLogger(io.Discard, telemetry.Text, levels) })
		shop := w.pod("shop")
		shop.serve(8080, echo)
		w.apply(web.message(), shop.message())
		c := web.dial(shop.addr(8080))
		ping(t, c)
		_ = c.Close()
		shop.wantReason(telemetry.OK)
		eventually(t, "the client's side has ended", func() bool { return web.proxy.open() == 0 })
		web.proxy.Stop()
		if n := len(web.lines); n != want {
			t.Errorf("%s: %d lines, want %d", level, n, want)
		}
		if want == 2 {
			if l := web.line(); !l.Opened || l.DstWorkload != "shop" {
				t.Errorf("first line %+v", l)
			}
		}
	}
}

func TestInboundOnly(t *testing.T) {
	w := newWorld(t)
	web, shop := w.pod("web"), w.pod("shop", func(c *Config) { c.InboundOnly = true })
	w.apply(web.message(), shop.message())
	shop.serve(8080, echo)
	ping(t, web.dial(shop.addr(8080)))
	shop.proxy.bypass.mu.Lock()
	if n := len(shop.proxy.bypass.dialled); n > 0 {
		t.Errorf("%d connections are remembered, for ever", n)
	}
	shop.proxy.bypass.mu.Unlock()
	for _, port := range []uint16{15001, 15006} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if c, err := web.NS.Dial(ctx, shop.addr(port), noOptions); err == nil {
			_ = c.Close()
			t.Errorf("port %d is open", port)
		}
		cancel()
	}
}

// TestBindRefused: a connect that fails is no reason to connect from elsewhere.
func TestBindRefused(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("setsockopt IP_TRANSPARENT: %w", syscall.EPERM), true},
		{fmt.Errorf("bind 10.0.0.1: %w", syscall.EADDRNOTAVAIL), true},
		{fmt.Errorf("bind 10.0.0.1: %w", syscall.EINVAL), false},
		{errors.Join(os.NewSyscallError("connect", syscall.EADDRNOTAVAIL), nil), false}, // no port is free
		{os.NewSyscallError("connect", syscall.EPERM), false},                           // a firewall
	} {
		if got := bindRefused(&net.OpError{Op: "dial", Net: "tcp", Err: tc.err}); got != tc.want {
			t.Errorf("%v: %v", tc.err, got)
		}
	}
}

func TestListenBeforeStart(t *testing.T) {
	w := newWorld(t)
	idle := w.pod("web")
	cfg := idle.proxy.cfg
	idle.proxy.Stop()
	p := New(cfg)
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	if err := New(cfg).Listen(); err == nil {
		t.Error("the ports were free")
	}
	p.Stop() // never started
	p = New(cfg)
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Stop()
}

// open counts connections.
func (p *Proxy) open() (n int) {
	p.table.each(func(c *connection) {
		if !c.hidden {
			n++
		}
	})
	return n
}
