package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// TestSilentClientOfATunnel: who connects to 15008 and says nothing is let go.
func TestSilentClientOfATunnel(t *testing.T) {
	w := newWorld(t)
	web, shop := w.pod("web"), w.pod("shop", func(c *Config) { c.Handshake = 100 * time.Millisecond })
	w.apply(web.message(), shop.message())
	c, err := web.NS.Dial(t.Context(), shop.addr(15008), noOptions)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	shop.wantReason(telemetry.HandshakeTimeout)
	wantClosed(t, c)
}

// silentPeer is a pod that answers at port 15008 with serve and has no proxy.
func silentPeer(t *testing.T, serve func(net.Conn)) (*netnstest.Pod, *api.Workload) {
	t.Helper()
	p := netnstest.NewPod(t)
	l, err := p.NS.Listen(netip.AddrPortFrom(p.Addr, 15008), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { serve(c); _ = c.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return p, &api.Workload{
		Uid: "Kubernetes//Pod/shop/silent", Name: "silent", Namespace: "shop", ServiceAccount: "shop",
		Addresses: [][]byte{p.Addr.AsSlice()}, TunnelProtocol: api.TunnelProtocol_HBONE,
	}
}

func TestSilentPeer(t *testing.T) {
	w := newWorld(t)
	end := make(chan struct{})
	var once sync.Once
	stop := func() { once.Do(func() { close(end) }) }
	peer, message := silentPeer(t, func(net.Conn) { <-end })
	t.Cleanup(stop)
	web := w.pod("web", func(c *Config) { c.Handshake = 100 * time.Millisecond })
	w.apply(web.message(), message)
	wantClosed(t, web.dial(netip.AddrPortFrom(peer.Addr, 8080)))
	web.wantReason(telemetry.HandshakeTimeout)
	stop()
}

func TestConnectWithoutAnAnswer(t *testing.T) {
	w := newWorld(t)
	cfg := mtls.Policy{}.ServerConfig(t.Context(), func(ctx context.Context) (*mtls.Certificate, error) {
		return w.certificate(ctx, w.ca.ID("shop", "shop"))
	})
	peer, message := silentPeer(t, func(c net.Conn) {
		_ = hbone.Serve(t.Context(), tls.Server(c, cfg), hbone.Config{}, func(in *hbone.Incoming) { <-in.Context().Done() })
	})
	web := w.pod("web", func(c *Config) { c.HBONE.OpenTimeout = 200 * time.Millisecond })
	w.apply(web.message(), message)
	wantClosed(t, web.dial(netip.AddrPortFrom(peer.Addr, 8080)))
	web.wantReason(telemetry.ReplyTimeout)
	web.proxy.Stop()
}

// TestDeadPeerIsNoticed: when the peer's host has gone, connections end and free
// their descriptors, in plaintext by TCP's time-out and in tunnels by pings.
func TestDeadPeerIsNoticed(t *testing.T) {
	w := newWorld(t)
	mortal := func(c *Config) {
		c.UserTimeout = 500 * time.Millisecond
		c.KeepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 1}
		c.HBONE = hbone.Config{PingInterval: 200 * time.Millisecond, PingTimeout: 500 * time.Millisecond}
	}
	web, shop, other := w.pod("web", mortal), w.pod("shop", mortal), w.pod("other", mortal)
	w.apply(web.message(), shop.message(), other.message(func(m *api.Workload) { m.TunnelProtocol = api.TunnelProtocol_NONE }))
	shop.serve(8080, echo)
	var cut []net.Conn // by the application, which learns nothing either
	apps := make(chan *net.TCPConn, 1)
	other.serve(8080, func(c *net.TCPConn) { apps <- c; echo(c) })
	t.Cleanup(func() {
		for _, c := range cut {
			_ = c.Close()
		}
	})
	tunnelled, direct := web.dial(shop.addr(8080)), web.dial(other.addr(8080))
	ping(t, tunnelled)
	ping(t, direct)
	cut = append(cut, <-apps)
	shop.Unplug(t)
	other.Unplug(t)
	for range 2 {
		if l := web.line(); l.Err == nil && l.DstWorkload != "shop" {
			t.Errorf("ended well: %+v", l)
		} else if r := reasonOf(l.Err); l.DstWorkload == "other" && r != telemetry.PeerTimeout {
			t.Errorf("plaintext connection ended with %q: %v", r, l.Err)
		}
	}
	wantClosed(t, tunnelled)
	wantClosed(t, direct)
	if n := web.proxy.open(); n != 0 {
		t.Errorf("%d connections are open", n)
	}
}

// TestRevocation: a revoked peer's tunnels end on both sides with their own
// reason, and it makes no new ones, in either role.
func TestRevocation(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	revoked := map[string]bool{}
	changed := make(chan struct{})
	check := func(chain []*x509.Certificate) error {
		mu.Lock()
		defer mu.Unlock()
		if id, err := spiffe.FromCertificate(chain[0]); err != nil || revoked[id.String()] {
			return fmt.Errorf("%w: %s", mtls.ErrRevoked, id)
		}
		return nil
	}
	with := func(c *Config) {
		c.Revoked = check
		c.RevocationsChanged = func() <-chan struct{} { mu.Lock(); defer mu.Unlock(); return changed }
	}
	revoke := func(names ...string) {
		mu.Lock()
		defer mu.Unlock()
		clear(revoked)
		for _, name := range names {
			revoked[w.ca.ID(name, name).String()] = true
		}
		close(changed)
		changed = make(chan struct{})
	}
	web, shop, other := w.pod("web", with), w.pod("shop", with), w.pod("other", with)
	w.apply(web.message(), shop.message(), other.message())
	shop.serve(8080, echo)

	server := web.dial(shop.addr(8080)) // its server is revoked: the client closes it
	ping(t, server)
	kept := other.dial(shop.addr(8080))
	ping(t, kept)
	revoke("web") // as a client it is closed by the server
	wantClosed(t, server)
	shop.wantReason(telemetry.CertRevoked)
	web.line()
	ping(t, kept)
	wantClosed(t, web.dial(shop.addr(8080)))
	if l := shop.wantReason(telemetry.CertRevoked); !errors.Is(l.Err, mtls.ErrRevoked) {
		t.Errorf("%v", l.Err)
	}
	web.line()
	revoke("shop") // as a server it is closed by its clients
	wantClosed(t, kept)
	other.wantReason(telemetry.CertRevoked)
	wantClosed(t, other.dial(shop.addr(8080)))
	other.wantReason(telemetry.CertRevoked)
	for p, reporter := range map[*pod]string{shop: "destination", other: "source"} {
		// A client may try again: its side of the handshake had succeeded.
		text, name := p.scrape(), `istio_crl_policy_rejections_total{reporter="`+reporter+`"} `
		_, value, _ := strings.Cut(text, name)
		value, _, _ = strings.Cut(value, "\n")
		if n, err := strconv.ParseFloat(value, 64); err != nil || n < 2 {
			t.Errorf("%s: %s%s, want at least 2", p.name, name, value)
		}
		if !strings.Contains(text, `response_flags="CERT_REVOKED"`) {
			t.Errorf("%s: no series with the flag", p.name)
		}
	}
	revoke()
	ping(t, web.dial(shop.addr(8080)))
}
