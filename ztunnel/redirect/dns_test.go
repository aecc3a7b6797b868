package redirect_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// says answers datagrams and connections at an address with its name.
func (b *bed) says(ns *netns.NS, addr, name string, mark uint32) {
	b.t.Helper()
	c, err := ns.ListenUDP(netip.MustParseAddrPort(addr), netns.ListenOptions{Mark: mark})
	if err != nil {
		b.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 512)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s", name, buffer[:n]), from)
		}
	}()
	b.t.Cleanup(func() { _ = c.Close(); <-done })
	b.listen(ns, addr, netns.ListenOptions{Mark: mark}, func(c *net.TCPConn) { _, _ = fmt.Fprintln(c, name) })
}

// resolver is a pod in which somebody answers at port 53.
func (b *bed) resolver() *netnstest.Pod {
	b.t.Helper()
	p := netnstest.NewPod(b.t)
	b.says(p.NS, "0.0.0.0:53", "resolver", 0)
	if p.Addr6.IsValid() {
		b.says(p.NS, netip.AddrPortFrom(p.Addr6, 53).String(), "resolver", 0)
	}
	return p
}

// client is a socket of the pod, by which it may ask several.
func (b *bed) socket(p *netnstest.Pod, addr string, mark uint32) *net.UDPConn {
	b.t.Helper()
	c, err := p.NS.ListenUDP(netip.MustParseAddrPort(addr), netns.ListenOptions{Mark: mark, ReusePort: true})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

// answers asks over UDP and wants an answer of one name from the address that was asked.
func (b *bed) answers(c *net.UDPConn, to netip.Addr, what, want string) {
	b.t.Helper()
	asked := netip.AddrPortFrom(to, 53)
	if _, err := c.WriteToUDPAddrPort([]byte("?"), asked); err != nil {
		b.t.Errorf("%s: %v", what, err)
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	buffer := make([]byte, 512)
	n, from, err := c.ReadFromUDPAddrPort(buffer)
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if got := string(buffer[:n]); got != want+" ?" || from != asked || err != nil {
		b.t.Errorf("%s: got %q from %s, %v, want %q from %s", what, got, from, err, want+" ?", asked)
	}
}

// answersTCP asks over TCP.
func (b *bed) answersTCP(p *netnstest.Pod, to netip.Addr, mark uint32, what, want string) {
	b.t.Helper()
	c, err := p.NS.Dial(b.t.Context(), netip.AddrPortFrom(to, 53), netns.DialOptions{Mark: mark})
	if err != nil {
		b.t.Errorf("%s: %v", what, err)
		return
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if got, err := bufio.NewReader(c).ReadString('\n'); got != want+"\n" {
		b.t.Errorf("%s: got %q, %v, want %q", what, got, err, want)
	}
}

// server plays ztunnel's DNS server in the pod.
func (b *bed) server15053(p *netnstest.Pod) {
	b.t.Helper()
	b.says(p.NS, "127.0.0.1:15053", "ztunnel", mesh.MarkZtunnel)
	b.says(p.NS, "[::1]:15053", "ztunnel", mesh.MarkZtunnel)
}

func (b *bed) applyDNS(p *netnstest.Pod, on bool) {
	b.t.Helper()
	if err := redirect.Apply(p.NS.File(), redirect.Options{DNS: on}); err != nil {
		b.t.Fatal(err)
	}
}

func TestDNS(t *testing.T) {
	families(t, func(t *testing.T, b *bed, addr func(*netnstest.Pod) netip.Addr) {
		t.Helper()
		to, own := addr(b.resolver()), addr(b.client)
		anyAddr, loopback := "0.0.0.0:0", netip.MustParseAddr("127.0.0.1")
		if to.Is6() {
			anyAddr, loopback = "[::]:0", netip.IPv6Loopback()
		}
		b.server15053(b.client)
		app := func() *net.UDPConn { return b.socket(b.client, anyAddr, 0) }
		b.applyDNS(b.client, false)
		b.answers(app(), to, "capture is off", "resolver")
		b.applyDNS(b.client, true)
		b.answers(app(), to, "captured", "ztunnel")
		b.answers(b.socket(b.client, anyAddr, mesh.MarkZtunnel), to, "ztunnel's own", "resolver")
		b.answersTCP(b.client, to, 0, "captured", "ztunnel")
		b.answersTCP(b.client, to, mesh.MarkZtunnel, "ztunnel's own", "resolver")

		b.says(b.client.NS, netip.AddrPortFrom(own, 53).String(), "the pod's own resolver", 0)
		b.says(b.client.NS, netip.AddrPortFrom(loopback, 53).String(), "the pod's own resolver", 0)
		for what, to := range map[string]netip.Addr{"own address": own, "loopback": loopback} {
			b.answers(app(), to, what, "the pod's own resolver")
			b.answersTCP(b.client, to, 0, what, "the pod's own resolver")
		}

		if err := redirect.Release(b.client.NS.File()); err != nil {
			t.Fatal(err)
		}
		b.answers(app(), to, "released", "resolver")
		b.answersTCP(b.client, to, 0, "released", "resolver")
	})
}

// A port from which the pod asked a moment ago is ztunnel's now: its question must not
// take the way of the pod's, nor the pod's next one that of ztunnel's.
func TestDNSPortUsedTwice(t *testing.T) {
	families(t, func(t *testing.T, b *bed, addr func(*netnstest.Pod) netip.Addr) {
		t.Helper()
		to := addr(b.resolver())
		b.server15053(b.client)
		b.applyDNS(b.client, true)
		from := netip.AddrPortFrom(addr(b.client), 40053).String()
		for range 3 {
			for _, turn := range []struct {
				what, want string
				mark       uint32
			}{{"the pod", "ztunnel", 0}, {"ztunnel", "resolver", mesh.MarkZtunnel}} {
				c := b.socket(b.client, from, turn.mark)
				b.answers(c, to, turn.what, turn.want)
				_ = c.Close()
			}
		}
	})
}

// What asks from one port always is served by ztunnel after the release, while its flow
// lasts, and asks the resolver itself when the rules are gone, even where something else
// keeps the kernel tracking and translating.
func TestDNSRemoved(t *testing.T) {
	b := newBed(t)
	resolver := b.resolver()
	p := b.client
	foreign := trackEverything(t, p)
	before := state(t, p)
	b.server15053(p)
	b.applyDNS(p, true)
	c := b.socket(p, "0.0.0.0:40054", 0)
	b.answers(c, resolver.Addr, "enrolled", "ztunnel")
	if err := redirect.Release(p.NS.File()); err != nil {
		t.Fatal(err)
	}
	b.answers(c, resolver.Addr, "its flow lasts", "ztunnel")
	for range 2 {
		if err := redirect.Remove(p.NS.File()); err != nil {
			t.Fatal(err)
		}
	}
	b.answers(c, resolver.Addr, "removed", "resolver")
	if d := slices.Compare(before, state(t, p)); d != 0 {
		t.Errorf("left behind: %q, had %q", state(t, p), before)
	}
	if n := countQuestions(t, p); n != 0 {
		t.Errorf("%d flows to port 15053 left", n)
	}
	foreign()
}

// trackEverything makes a table of somebody else, for which the kernel tracks flows.
func trackEverything(t *testing.T, p *netnstest.Pod) (remove func()) {
	t.Helper()
	c := nft(t, p)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "foreign"})
	chain := c.AddChain(&nftables.Chain{
		Table: table, Name: "nat", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() {
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
}

func countQuestions(t *testing.T, p *netnstest.Pod) (n int) {
	t.Helper()
	err := p.NS.Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		for _, f := range flows {
			if f.Reverse.SrcPort == mesh.PortDNS {
				n++
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
