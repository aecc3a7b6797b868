package netns_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

// datagram is one datagram as a server sees it.
type datagram struct {
	Text string
	From netip.AddrPort
}

func receive(t *testing.T, c *net.UDPConn) datagram {
	t.Helper()
	d, err := receiveWithin(c, 5*time.Second)
	if err != nil {
		t.Fatalf("receive: %v", err)
	}
	return d
}

func receiveWithin(c *net.UDPConn, limit time.Duration) (datagram, error) {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return datagram{}, err
	}
	b := make([]byte, 512)
	n, from, err := c.ReadFromUDPAddrPort(b)
	return datagram{string(b[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}, err
}

func listenUDP(t *testing.T, ns *netns.NS, addr string, o netns.ListenOptions) *net.UDPConn {
	t.Helper()
	c, err := ns.ListenUDP(netip.MustParseAddrPort(addr), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func openConntrack(t *testing.T, ns *netns.NS) *netns.Conntrack {
	t.Helper()
	ct, err := ns.Conntrack()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ct.Close() })
	return ct
}

// The redirected datagram shows 127.0.0.1:15053 only; connection tracking tells the
// address that was asked, also when one socket asks two.
func TestOriginalUDP(t *testing.T) {
	p := netnstest.NewPod(t)
	netnstest.IstioDNS(t, p)
	ct := openConntrack(t, p.NS)
	for _, family := range []struct{ server, any, first, second string }{
		{"127.0.0.1:15053", "0.0.0.0:0", "8.8.8.8:53", "10.96.0.10:53"},
		{"[::1]:15053", "[::]:0", "[fd00:96::10]:53", "[fd00:96::11]:53"},
	} {
		t.Run(family.server, func(t *testing.T) {
			server := netip.MustParseAddrPort(family.server)
			if server.Addr().Is6() && !p.Addr6.IsValid() {
				return // this kernel has no IPv6: nothing that could break
			}
			listener := listenUDP(t, p.NS, family.server, netns.ListenOptions{Mark: 0x539, ReusePort: true})
			client := listenUDP(t, p.NS, family.any, netns.ListenOptions{})
			for _, asked := range []string{family.first, family.second, family.first} {
				to := netip.MustParseAddrPort(asked)
				ask := func() (datagram, error) {
					if _, err := client.WriteToUDPAddrPort([]byte(asked), to); err != nil {
						t.Fatal(err)
					}
					got := receive(t, listener)
					if got.Text != asked {
						t.Fatalf("received %q, want %q", got.Text, asked)
					}
					original, err := ct.OriginalUDP(got.From, server)
					if err != nil || original != to {
						t.Errorf("original destination: got %s, %v, want %s", original, err, to)
					}
					if _, err := listener.WriteToUDPAddrPort([]byte("answer"), got.From); err != nil {
						t.Fatal(err)
					}
					return receiveWithin(client, time.Second)
				}
				got, err := ask()
				for again := 0; errors.Is(err, os.ErrDeadlineExceeded) && again < 5; again++ {
					got, err = ask() // as a resolver's client does: the first answer over IPv6 is lost at times
				}
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(datagram{"answer", to}, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
					t.Errorf("answer comes from the address that was asked (-want +got):\n%s", d)
				}
			}
		})
	}
}

func TestOriginalUDPUntranslated(t *testing.T) {
	p := netnstest.NewPod(t)
	netnstest.IstioDNS(t, p)
	ct := openConntrack(t, p.NS)
	listener := listenUDP(t, p.NS, "127.0.0.1:15053", netns.ListenOptions{})
	client := listenUDP(t, p.NS, "127.0.0.1:0", netns.ListenOptions{})
	server := netip.MustParseAddrPort("127.0.0.1:15053")
	if _, err := client.WriteToUDPAddrPort([]byte("direct"), server); err != nil {
		t.Fatal(err)
	}
	got := receive(t, listener)
	if original, err := ct.OriginalUDP(got.From, server); err != nil || original != server {
		t.Errorf("datagram that was not redirected: got %s, %v, want %s", original, err, server)
	}
	if to, err := ct.OriginalUDP(netip.MustParseAddrPort("10.0.0.1:1"), server); !errors.Is(err, netns.ErrNotTracked) {
		t.Errorf("flow that does not exist: got %s, %v, want %v", to, err, netns.ErrNotTracked)
	}
}

func TestUDPClients(t *testing.T) {
	p := netnstest.NewPod(t)
	server := listenUDP(t, p.NS, "127.0.0.1:0", netns.ListenOptions{})
	other := listenUDP(t, p.NS, "127.0.0.1:0", netns.ListenOptions{})
	clients := netns.UDPClients{NS: p.NS, Mark: 0x539}
	defer clients.Close()
	dial := func() *net.UDPConn {
		t.Helper()
		c, err := clients.Dial(server.LocalAddr().(*net.UDPAddr).AddrPort())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := dial()
	from := receive(t, server).From
	for _, s := range []*net.UDPConn{other, server} {
		if _, err := s.WriteToUDPAddrPort(fmt.Appendf(nil, "from %v", s == server), from); err != nil {
			t.Fatal(err)
		}
	}
	taken := 0
	read := func() (string, error) {
		b, _, err := netns.AwaitDatagram(c, func() []byte { taken++; return make([]byte, 64) })
		return string(b), err
	}
	if got, err := read(); got != "from true" || err != nil {
		t.Errorf("got %q, %v, want the answer of the one that was asked", got, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if got, err := read(); !errors.Is(err, os.ErrDeadlineExceeded) || taken != 1 {
		t.Errorf("got %q, %v, buffers %d; want nothing from anybody else and no buffer for it", got, err, taken)
	}

	ports := map[uint16]bool{from.Port(): true}
	const n = 20
	for range n { // the same socket: what came for it before is not for its next user
		if _, err := server.WriteToUDPAddrPort([]byte("late"), from); err != nil {
			t.Fatal(err)
		}
		clients.Release(c)
		c = dial()
		from = receive(t, server).From
		ports[from.Port()] = true
		if _, err := server.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
			t.Fatal(err)
		}
		if got, err := read(); got != "answer" || err != nil {
			t.Errorf("used again: got %q, %v", got, err)
		}
	}
	if len(ports) < n*3/4 {
		t.Errorf("%d ports for %d questions", len(ports), n)
	}
	_ = server.Close()
	if _, err := c.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	if got, err := read(); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: got %q, %v, want %v", got, err, unix.ECONNREFUSED)
	}
	clients.Release(c)
}

// An old and a new process share the port until the old one leaves it.
func TestLeaveReusePort(t *testing.T) {
	p := netnstest.NewPod(t)
	o := netns.ListenOptions{ReusePort: true}
	old, successor := listenUDP(t, p.NS, "127.0.0.1:15053", o), listenUDP(t, p.NS, "127.0.0.1:15053", o)
	server := netip.MustParseAddrPort("127.0.0.1:15053")
	const n = 64
	send := func() {
		for range n { // each from its own port, by which the kernel chooses
			client := listenUDP(t, p.NS, "127.0.0.1:0", netns.ListenOptions{})
			if _, err := client.WriteToUDPAddrPort([]byte("?"), server); err != nil {
				t.Fatal(err)
			}
		}
	}
	send()
	if err := netns.LeaveReusePort(old); err != nil {
		t.Fatal(err)
	}
	send()
	for range n { // all of the second half is here
		receive(t, successor)
	}
	rest := drain(t, old) + drain(t, successor)
	if rest != n {
		t.Errorf("%d of the first %d were received", rest, n)
	}
	client := listenUDP(t, p.NS, "127.0.0.1:0", netns.ListenOptions{})
	if _, err := old.WriteToUDPAddrPort([]byte("late answer"), client.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
		t.Errorf("the old socket can still answer: %v", err)
	}
	if got := receive(t, client); got.Text != "late answer" || got.From != server {
		t.Errorf("got %v, want a late answer from %s", got, server)
	}
}

// drain reads what is there.
func drain(t *testing.T, c *net.UDPConn) (n int) {
	t.Helper()
	for b := make([]byte, 8); ; n++ {
		_, from, err := netns.PollDatagram(c, func() []byte { return b })
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n
		}
		if err != nil || from.Addr() != netip.MustParseAddr("127.0.0.1") {
			t.Fatalf("got a datagram from %s, %v, want one from 127.0.0.1", from, err)
		}
	}
}
