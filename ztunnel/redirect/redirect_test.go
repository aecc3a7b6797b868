package redirect_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

const appPort = 8080

// bed is a client pod, a server pod with an application that echoes, and what plays
// ztunnel in either.
type bed struct {
	t              *testing.T
	client, server *netnstest.Pod
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{t: t, client: netnstest.NewPod(t), server: netnstest.NewPod(t)}
	b.app(b.server)
	return b
}

// app echoes on the pod's own port, with the client's address in front.
func (b *bed) app(p *netnstest.Pod) {
	b.listen(p.NS, fmt.Sprintf("[::]:%d", appPort), netns.ListenOptions{}, func(c *net.TCPConn) {
		if _, err := fmt.Fprintf(c, "app %s\n", peer(c)); err == nil {
			_, _ = io.Copy(c, c)
		}
	})
}

// ztunnel relays what is redirected to its two ports and puts the original destination
// in front. The application sees the client's own address.
func (b *bed) ztunnel(p *netnstest.Pod) {
	b.t.Helper()
	for port, transparent := range map[int]bool{mesh.PortOutbound: false, mesh.PortInboundPlain: true} {
		o := netns.ListenOptions{Mark: mesh.MarkZtunnel, Transparent: true, ReusePort: true}
		b.listen(p.NS, fmt.Sprintf("[::]:%d", port), o, func(c *net.TCPConn) {
			to := netns.OriginalDst(c)
			if _, err := fmt.Fprintf(c, "%d %s\n", port, to); err != nil {
				return
			}
			d := netns.DialOptions{Mark: mesh.MarkZtunnel}
			if transparent {
				d.Source = peer(c)
			}
			app, err := p.NS.Dial(b.t.Context(), to, d)
			if err != nil {
				_, _ = fmt.Fprintln(c, err)
				return
			}
			relay(c, app)
		})
	}
}

// listen serves every connection until the test ends.
func (b *bed) listen(ns *netns.NS, addr string, o netns.ListenOptions, serve func(*net.TCPConn)) {
	b.t.Helper()
	ln, err := ns.Listen(netip.MustParseAddrPort(addr), o)
	if err != nil {
		b.t.Fatalf("listen %s: %v", addr, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				serve(c)
				_ = c.Close()
			})
		}
	})
	b.t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
}

func relay(a, b *net.TCPConn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(a, b)
		_ = a.CloseWrite()
	})
	_, _ = io.Copy(b, a)
	_ = b.CloseWrite()
	wg.Wait()
	_ = b.Close()
}

func peer(c *net.TCPConn) netip.Addr {
	return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

// conn is a connection of the test's client.
type conn struct {
	*net.TCPConn
	t     *testing.T
	local netip.AddrPort
}

func (b *bed) dial(from *netnstest.Pod, to netip.Addr) *conn {
	b.t.Helper()
	var ns *netns.NS
	if from != nil {
		ns = from.NS
	}
	c, err := ns.Dial(b.t.Context(), netip.AddrPortFrom(to, appPort), netns.DialOptions{})
	if err != nil {
		b.t.Fatalf("dial %s: %v", to, err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return &conn{TCPConn: c, t: b.t, local: c.LocalAddr().(*net.TCPAddr).AddrPort()}
}

// want reads one line.
func (c *conn) want(what, line string) {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	var got []byte
	for b := make([]byte, 1); !slices.Equal(b, []byte{'\n'}); {
		if _, err := c.Read(b); err != nil {
			c.t.Errorf("%s: got %q, %v, want %q", what, got, err, line)
			return
		}
		got = append(got, b...)
	}
	if string(got) != line+"\n" {
		c.t.Errorf("%s: got %q, want %q", what, got, line)
	}
}

func (c *conn) echoes(what string) {
	c.t.Helper()
	if _, err := c.Write([]byte("ping\n")); err != nil {
		c.t.Errorf("%s: %v", what, err)
		return
	}
	c.want(what, "ping")
}

func (b *bed) apply(p *netnstest.Pod) {
	b.t.Helper()
	if err := redirect.Apply(p.NS.File(), redirect.Options{}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) connections(p *netnstest.Pod, want int) {
	b.t.Helper()
	deadline := time.After(5 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := redirect.Connections(p.NS.File())
		if err != nil {
			b.t.Fatal(err)
		}
		if n == want {
			return
		}
		select {
		case <-deadline:
			b.t.Fatalf("open redirected connections: got %d, want %d", n, want)
		case <-tick.C:
		}
	}
}

// families are the addresses of the server by which each test is done.
func families(t *testing.T, f func(t *testing.T, b *bed, addr func(*netnstest.Pod) netip.Addr)) {
	t.Helper()
	t.Run("IPv4", func(t *testing.T) {
		f(t, newBed(t), func(p *netnstest.Pod) netip.Addr { return p.Addr })
	})
	t.Run("IPv6", func(t *testing.T) {
		b := newBed(t)
		if !b.client.Addr6.IsValid() {
			return // this kernel has none: nothing that could break
		}
		f(t, b, func(p *netnstest.Pod) netip.Addr { return p.Addr6 })
	})
}

func TestOutbound(t *testing.T) {
	families(t, func(t *testing.T, b *bed, addr func(*netnstest.Pod) netip.Addr) {
		t.Helper()
		client, server := addr(b.client), addr(b.server)
		old := b.dial(b.client, server)
		old.want("before enrolment", "app "+client.String())
		b.ztunnel(b.client)
		b.apply(b.client)
		old.echoes("connection older than enrolment")
		redirected := b.dial(b.client, server)
		redirected.want("new connection", fmt.Sprintf("15001 %s", netip.AddrPortFrom(server, appPort)))
		redirected.want("new connection, relayed", "app "+client.String())
		b.connections(b.client, 1)

		if err := redirect.Release(b.client.NS.File()); err != nil {
			t.Fatal(err)
		}
		redirected.echoes("redirected connection after release")
		old.echoes("old connection after release")
		direct := b.dial(b.client, server)
		direct.want("connection made after release", "app "+client.String())
		b.connections(b.client, 1)
		_ = redirected.Close()
		b.connections(b.client, 0)
		if err := redirect.Remove(b.client.NS.File()); err != nil {
			t.Fatal(err)
		}
		old.echoes("old connection after removal")
		direct.echoes("direct connection after removal")
	})
}

func TestInbound(t *testing.T) {
	families(t, func(t *testing.T, b *bed, addr func(*netnstest.Pod) netip.Addr) {
		t.Helper()
		client, server := addr(b.client), addr(b.server)
		old := b.dial(b.client, server)
		old.want("before enrolment", "app "+client.String())
		b.ztunnel(b.server)
		b.apply(b.server)
		old.echoes("connection older than enrolment")
		redirected := b.dial(b.client, server)
		redirected.want("new connection", fmt.Sprintf("15006 %s", netip.AddrPortFrom(server, appPort)))
		redirected.want("the application sees the client", "app "+client.String())
		redirected.echoes("redirected connection")
		// The caller's connection, and ztunnel's to the application.
		b.connections(b.server, 2)

		if err := redirect.Release(b.server.NS.File()); err != nil {
			t.Fatal(err)
		}
		redirected.echoes("redirected connection after release")
		old.echoes("old connection after release")
		direct := b.dial(b.client, server)
		direct.want("connection made after release", "app "+client.String())
		b.connections(b.server, 2)
		b.apply(b.server)
		direct.echoes("direct connection after enrolling again")
		redirected.echoes("redirected connection after enrolling again")
		_ = redirected.Close()
		b.connections(b.server, 0)
		if err := redirect.Remove(b.server.NS.File()); err != nil {
			t.Fatal(err)
		}
		old.echoes("old connection after removal")
	})
}

func TestExemptions(t *testing.T) {
	b := newBed(t)
	b.ztunnel(b.server)
	b.apply(b.server)
	b.dial(b.server, b.server.Addr).want("pod to its own address", "app "+b.server.Addr.String())
	b.dial(b.server, netip.MustParseAddr("127.0.0.1")).want("pod to loopback", "app 127.0.0.1")
	b.dial(b.client, b.server.Addr).want("anyone else", fmt.Sprintf("15006 %s:%d", b.server.Addr, appPort))

	b.listen(b.server.NS, "[::]:15008", netns.ListenOptions{Mark: mesh.MarkZtunnel}, func(c *net.TCPConn) {
		_, _ = fmt.Fprintf(c, "hbone\n")
	})
	c, err := b.client.NS.Dial(t.Context(), netip.AddrPortFrom(b.server.Addr, mesh.PortHBONE), netns.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if got, err := io.ReadAll(c); string(got) != "hbone\n" {
		t.Errorf("port 15008: got %q, %v, want ztunnel's own listener", got, err)
	}
	marked, err := b.server.NS.Dial(t.Context(), netip.AddrPortFrom(b.client.Addr, appPort), netns.DialOptions{Mark: mesh.MarkZtunnel})
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("ztunnel's own connection: got %v, %v, want to reach the client pod, where nobody listens", marked, err)
	}
}

func TestApplyTwiceAndRemove(t *testing.T) {
	p := netnstest.NewPod(t)
	before := state(t, p)
	apply := func() {
		t.Helper()
		if err := redirect.Apply(p.NS.File(), redirect.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	apply()
	once := state(t, p)
	if d := cmp.Diff(before, once); d == "" {
		t.Error("apply changed nothing")
	}
	apply()
	if d := cmp.Diff(once, state(t, p)); d != "" {
		t.Errorf("second apply is no change (-first +second):\n%s", d)
	}
	for range 2 {
		if err := redirect.Release(p.NS.File()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := redirect.Remove(p.NS.File()); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(before, state(t, p)); d != "" {
			t.Errorf("remove leaves nothing (-before +after):\n%s", d)
		}
	}
}

func TestDamagedTableIsRepaired(t *testing.T) {
	b := newBed(t)
	b.ztunnel(b.client)
	b.apply(b.client)
	c := nft(t, b.client)
	c.FlushTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "ambit"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	b.apply(b.client)
	b.dial(b.client, b.server.Addr).want("after repair", fmt.Sprintf("15001 %s:%d", b.server.Addr, appPort))
}

func nft(t *testing.T, p *netnstest.Pod) *nftables.Conn {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(p.NS.File().Fd())))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// state is everything that the package could have changed, rules with their handles.
func state(t *testing.T, p *netnstest.Pod) []string {
	t.Helper()
	var lines []string
	c := nft(t, p)
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		lines = append(lines, fmt.Sprintf("table %d %s", table.Family, table.Name))
	}
	chains, err := c.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			lines = append(lines, fmt.Sprintf("chain %s rule %d %s", ch.Name, r.Handle, r.UserData))
		}
	}
	err = p.NS.Do(func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				lines = append(lines, r.String())
			}
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Protocol != unix.RTPROT_KERNEL { // the kernel's own come with delay
					lines = append(lines, r.String())
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}
