package netns_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func TestListenAndDialInsidePods(t *testing.T) {
	a, b := netnstest.NewPod(t), netnstest.NewPod(t)
	ln := listen(t, b.NS, "[::]:0", netns.ListenOptions{})
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	for _, to := range []netip.Addr{b.Addr, b.Addr6} {
		if !to.IsValid() {
			continue
		}
		c, err := a.NS.Dial(t.Context(), netip.AddrPortFrom(to, port), netns.DialOptions{Mark: 0x539})
		if err != nil {
			t.Fatalf("dial %s: %v", to, err)
		}
		accepted, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		if got := remote(accepted); got != a.Addr && got != a.Addr6 {
			t.Errorf("peer of the connection to %s: got %s, want a's address", to, got)
		}
		if got, want := netns.OriginalDst(accepted), netip.AddrPortFrom(to, port); got != want {
			t.Errorf("original destination without a redirect: got %s, want %s", got, want)
		}
		closeAll(t, c, accepted)
	}
}

func TestDialFromForeignSource(t *testing.T) {
	p := netnstest.NewPod(t)
	foreign := netip.MustParseAddr("192.0.2.7")
	var seen netip.Addr
	ln := listen(t, p.NS, "0.0.0.0:0", netns.ListenOptions{})
	// Without the policy route the answer to a foreign address leaves the pod, so the
	// handshake cannot end: that the socket is bound is all there is to see here.
	ctx, cancel := context.WithCancel(t.Context())
	errc := make(chan error, 1)
	go func() {
		_, err := p.NS.Dial(ctx, addrOf(ln, p.Addr), netns.DialOptions{Source: foreign})
		errc <- err
	}()
	waitFor(t, "a connection attempt from the foreign source", func() bool {
		err := p.NS.Do(func() error {
			table, err := os.ReadFile("/proc/thread-self/net/tcp")
			if bytes.Contains(table, []byte("070200C0:")) {
				seen = foreign
			}
			return err
		})
		return err == nil && seen == foreign
	})
	cancel()
	if err := <-errc; !errors.Is(err, context.Canceled) {
		t.Errorf("dial given up: got %v, want context.Canceled", err)
	}
}

func TestDialErrors(t *testing.T) {
	p := netnstest.NewPod(t)
	if _, err := p.NS.Dial(t.Context(), netip.AddrPortFrom(p.Addr, 1), netns.DialOptions{}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: got %v, want ECONNREFUSED", err)
	}
	empty := netnstest.NewNS(t)
	if _, err := empty.Dial(t.Context(), netip.AddrPortFrom(p.Addr, 1), netns.DialOptions{}); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("no route: got %v, want ENETUNREACH", err)
	}
	_, err := p.NS.Dial(t.Context(), netip.AddrPortFrom(p.Addr, 1), netns.DialOptions{Source: netip.IPv6Loopback()})
	if err == nil {
		t.Error("source and target of different families: got no error")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	blackHole := netip.MustParseAddrPort("10.244.0.253:80")
	route := netnstest.NewPod(t)
	if _, err := route.NS.Dial(ctx, blackHole, netns.DialOptions{}); err == nil {
		t.Error("nobody answers: got no error")
	}
	cancel()
	if _, err := route.NS.Dial(ctx, blackHole, netns.DialOptions{}); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		t.Errorf("context already done: got %v", err)
	}
}

func TestTwoListenersShareAPort(t *testing.T) {
	ns := netnstest.NewNS(t)
	o := netns.ListenOptions{Mark: 0x539, Transparent: true, ReusePort: true}
	first := listen(t, ns, "[::]:15001", o)
	listen(t, ns, "[::]:15001", o)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	listen(t, ns, "127.0.0.1:15053", netns.ListenOptions{})
	if _, err := ns.Listen(netip.MustParseAddrPort("127.0.0.1:15053"), netns.ListenOptions{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("port taken: got %v, want EADDRINUSE", err)
	}
}

func TestEstablished(t *testing.T) {
	a, b := netnstest.NewPod(t), netnstest.NewPod(t)
	ln := listen(t, b.NS, "[::]:8080", netns.ListenOptions{})
	c, err := a.NS.Dial(t.Context(), netip.AddrPortFrom(b.Addr, 8080), netns.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, c, accepted)
	for _, tc := range []struct {
		name string
		ns   *netns.NS
		want netns.TCPConn
	}{
		{"client", a.NS, netns.TCPConn{Local: c.LocalAddr().(*net.TCPAddr).AddrPort(), Remote: netip.AddrPortFrom(b.Addr, 8080)}},
		{"server, mapped addresses", b.NS, netns.TCPConn{Local: netip.AddrPortFrom(b.Addr, 8080), Remote: c.LocalAddr().(*net.TCPAddr).AddrPort()}},
	} {
		got, err := tc.ns.Established()
		if err != nil || len(got) != 1 || got[0] != tc.want {
			t.Errorf("%s: got %v, %v, want %v", tc.name, got, err, tc.want)
		}
	}
}

func TestNamespaceIdentity(t *testing.T) {
	p := netnstest.NewPod(t)
	again, err := netns.Open(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, again)
	if !p.NS.Same(again) || p.NS.Same(netnstest.NewNS(t)) || p.NS.Same(nil) {
		t.Error("Same: want the same namespace only")
	}
	if err := again.Check(); err != nil {
		t.Errorf("check of a network namespace: %v", err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	null, err := netns.FromFile(f)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, null)
	if err := null.Check(); !errors.Is(err, netns.ErrNotNetNS) {
		t.Errorf("check of /dev/null: got %v, want ErrNotNetNS", err)
	}
	if err := null.Do(func() error { return nil }); err == nil {
		t.Error("entering /dev/null: got no error")
	}
}

func TestDoReturnsHome(t *testing.T) {
	ns := netnstest.NewNS(t)
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	inside := ""
	wrong := errors.New("wrong")
	err = ns.Do(func() error {
		inside, _ = os.Readlink("/proc/thread-self/ns/net")
		return wrong
	})
	if !errors.Is(err, wrong) || inside != ns.String() {
		t.Errorf("inside: got %q, %v, want %q", inside, err, ns)
	}
	for range 50 {
		if err := (*netns.NS)(nil).Do(func() error {
			if here, _ := os.Readlink("/proc/thread-self/ns/net"); here != home {
				t.Errorf("outside: got %q, want %q", here, home)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPackets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zds.sock")
	ln, err := netns.ListenSeqpacket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, ln)
	client, err := netns.DialSeqpacket(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(t, server)
	p := netnstest.NewPod(t)
	if err := netns.SendPacket(client, []byte("with a namespace"), p.NS.File()); err != nil {
		t.Fatal(err)
	}
	got, err := netns.ReceivePacket(server, make([]byte, 64))
	if err != nil || string(got.Body) != "with a namespace" || len(got.Files) != 1 {
		t.Fatalf("packet with a file: got %q, %d files, %v", got.Body, len(got.Files), err)
	}
	ns, err := netns.FromFile(got.Files[0])
	if err != nil || !ns.Same(p.NS) {
		t.Errorf("received namespace: got %v, %v, want %v", ns, err, p.NS)
	}
	closeAll(t, ns)
	if err := netns.SendPacket(client, bytes.Repeat([]byte("x"), 65), p.NS.File()); err != nil {
		t.Fatal(err)
	}
	if _, err := netns.ReceivePacket(server, make([]byte, 64)); !errors.Is(err, netns.ErrTruncated) {
		t.Errorf("packet too long: got %v, want ErrTruncated", err)
	}
	many := syscall.UnixRights(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	if _, _, err := client.WriteMsgUnix([]byte("x"), many, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := netns.ReceivePacket(server, make([]byte, 64)); !errors.Is(err, netns.ErrTruncated) {
		t.Errorf("too many files: got %v, want ErrTruncated", err)
	}
	if err := netns.SendPacket(client, nil, nil); err == nil {
		t.Error("empty packet: got no error")
	}
	closeAll(t, client)
	if _, err := netns.ReceivePacket(server, make([]byte, 64)); !errors.Is(err, io.EOF) {
		t.Errorf("end: got %v, want io.EOF", err)
	}
}

func listen(t *testing.T, ns *netns.NS, addr string, o netns.ListenOptions) *net.TCPListener {
	t.Helper()
	ln, err := ns.Listen(netip.MustParseAddrPort(addr), o)
	if err != nil {
		t.Fatalf("listen %s: %v", addr, err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

func addrOf(ln *net.TCPListener, a netip.Addr) netip.AddrPort {
	return netip.AddrPortFrom(a, ln.Addr().(*net.TCPAddr).AddrPort().Port())
}

func remote(c *net.TCPConn) netip.Addr {
	return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

func closeAll(t *testing.T, cs ...io.Closer) {
	t.Helper()
	for _, c := range cs {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("no %s within 5 s", what)
		case <-tick.C:
		}
	}
}
