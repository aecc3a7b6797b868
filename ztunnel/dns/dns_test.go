package dns_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

const (
	v4 = "0.0.0.0:0"
	v6 = "[::]:0"
)

// The whole way: a captured pod, ztunnel's server, two resolvers that say different
// things. The mesh's names are answered by the mesh, all others by whom the pod asked.
func TestPodWithTwoResolvers(t *testing.T) {
	b := newBed(t, own, service("cart.shop.svc.cluster.local", "10.96.0.1"))
	first, second := b.resolver(address("192.0.2.1")), b.resolver(address("192.0.2.2"))
	b.capture()
	for _, family := range []struct {
		any  string
		addr func(*resolver) netip.Addr
	}{
		{v4, func(r *resolver) netip.Addr { return r.Addr }},
		{v6, func(r *resolver) netip.Addr { return r.Addr6 }},
	} {
		if !family.addr(first).IsValid() {
			continue // this kernel has no IPv6: nothing that could break
		}
		one := b.client(b.pod.NS, family.any) // asks both from one port, as musl does
		for _, ask := range []struct {
			what string
			do   func(r *resolver, name string) []byte
		}{
			{"UDP, one port", func(r *resolver, name string) []byte {
				return one.ask(at53(family.addr(r)), question(name, miekg.TypeA))
			}},
			{"UDP", func(r *resolver, name string) []byte {
				return b.client(b.pod.NS, family.any).ask(at53(family.addr(r)), question(name, miekg.TypeA))
			}},
			{"TCP", func(r *resolver, name string) []byte {
				return b.askTCP(b.pod.NS, at53(family.addr(r)), 1, question(name, miekg.TypeA))[0]
			}},
		} {
			for _, want := range []struct {
				r          *resolver
				name, says string
			}{
				{first, "www.example.com", "NOERROR A 192.0.2.1"},
				{second, "www.example.com", "NOERROR A 192.0.2.2"},
				{first, "cart.shop", "NOERROR A 10.96.0.1"},
				{second, "cart.shop.svc.cluster.local", "NOERROR A 10.96.0.1"},
				{first, "cart.shop.shop.svc.cluster.local", "NOERROR A 10.96.0.1 CNAME cart.shop."},
				{second, "cart.nowhere.svc.cluster.local", "NOERROR A 192.0.2.2"},
			} {
				if got := said(t, ask.do(want.r, want.name)); got != want.says {
					t.Errorf("%s %s asked at %s: got %q, want %q", ask.what, want.name, family.addr(want.r), got, want.says)
				}
			}
		}
	}
	if n := b.log.count("level=WARN"); n != 0 {
		t.Errorf("%d warnings: %s", n, b.log.b.String())
	}
}

// Under Istio's rules the datagram shows as little, and the kernel knows as much.
func TestUnderIstiosRules(t *testing.T) {
	b := newBed(t, own, service("cart.shop.svc.cluster.local", "10.96.0.1"))
	r := b.resolver(address("192.0.2.1"))
	netnstest.IstioDNS(t, b.pod)
	for range 3 {
		c := b.client(b.pod.NS, v4)
		for name, want := range map[string]string{"www.example.com": "NOERROR A 192.0.2.1", "cart.shop": "NOERROR A 10.96.0.1"} {
			if got := said(t, c.ask(at53(r.Addr), question(name, miekg.TypeA))); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
	}
}

// What was not redirected asks ztunnel's resolvers, in turn, and the log says so once.
func TestFallback(t *testing.T) {
	b := newBed(t, own)
	r := b.resolver(address("192.0.2.1"))
	nobody := netnstest.NewPod(t)
	b.server.Stop()
	b.start(func(c *dns.Config) { c.Resolvers = []netip.AddrPort{at53(nobody.Addr), at53(r.Addr)} })
	server := netip.MustParseAddrPort("127.0.0.1:15053")
	for range 3 {
		for what, got := range map[string][]byte{
			"UDP": b.client(b.pod.NS, v4).ask(server, question("www.example.com", miekg.TypeA)),
			"TCP": b.askTCP(b.pod.NS, server, 1, question("www.example.com", miekg.TypeA))[0],
		} {
			if got := said(t, got); got != "NOERROR A 192.0.2.1" {
				t.Errorf("%s: got %q", what, got)
			}
		}
	}
	if n := b.log.count("not known which resolver the pod asked"); n != 1 {
		t.Errorf("said %d times, want once: %s", n, b.log.b.String())
	}
}

func TestNoResolver(t *testing.T) {
	b := newBed(t, own)
	server := netip.MustParseAddrPort("127.0.0.1:15053")
	for what, got := range map[string][]byte{
		"UDP": b.client(b.pod.NS, v4).ask(server, question("www.example.com", miekg.TypeA)),
		"TCP": b.askTCP(b.pod.NS, server, 1, question("www.example.com", miekg.TypeA))[0],
	} {
		if got := said(t, got); got != "SERVFAIL" {
			t.Errorf("%s: got %q", what, got)
		}
	}
}

// A resolver that refuses or says nothing makes a failure, in time for the pod to ask
// another one.
func TestResolverAway(t *testing.T) {
	b := newBed(t, own)
	nobody, mute := netnstest.NewPod(t), b.resolver(silent)
	b.capture()
	c := b.client(b.pod.NS, v4)
	for what, to := range map[string]netip.Addr{"refuses": nobody.Addr, "silent": mute.Addr} {
		start := time.Now()
		if got := said(t, c.ask(at53(to), question("www.example.com", miekg.TypeA))); got != "SERVFAIL" {
			t.Errorf("%s: got %q", what, got)
		}
		if took := time.Since(start); what == "refuses" && took > 2*time.Second {
			t.Errorf("%s: took %s", what, took)
		}
	}
	if got := said(t, b.askTCP(b.pod.NS, at53(nobody.Addr), 1, question("www.example.com", miekg.TypeA))[0]); got != "SERVFAIL" {
		t.Errorf("TCP: got %q", got)
	}
}

// Who forges answers is not believed, and finds no pattern in ports and ids.
func TestForgedAnswers(t *testing.T) {
	right := address("192.0.2.1")
	b := newBed(t, own)
	r := b.resolver(func(msg []byte, tcp bool) [][]byte {
		out := right(msg, tcp)
		other := bytes.Clone(address("6.6.6.6")(msg, tcp)[0])
		other[0] ^= 1 // another id
		m := new(miekg.Msg)
		if err := m.Unpack(msg); err != nil {
			return nil
		}
		m.Question[0].Name = "elsewhere.example.com."
		asked, err := m.Pack()
		if err != nil {
			return nil
		}
		return [][]byte{{}, msg, other, address("6.6.6.6")(asked, tcp)[0], out[0]}
	})
	b.capture()
	c := b.client(b.pod.NS, v4)
	const n = 40
	for range n {
		if got := said(t, c.ask(at53(r.Addr), question("www.example.com", miekg.TypeA))); got != "NOERROR A 192.0.2.1" {
			t.Errorf("got %q", got)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ports) < n*3/4 || len(r.ids) < n*3/4 {
		t.Errorf("%d questions with the same id from one port were passed on from %d ports with %d ids", n, len(r.ports), len(r.ids))
	}
}

// A question about the mesh that comes before istiod has told of the pod waits.
func TestPodNotKnownYet(t *testing.T) {
	b := newBed(t, service("cart.shop.svc.cluster.local", "10.96.0.1"))
	r := b.resolver(address("192.0.2.1"))
	b.capture()
	c, other := b.client(b.pod.NS, v4), b.client(b.pod.NS, v4)
	if _, err := c.WriteToUDPAddrPort(question("cart.shop", miekg.TypeA), at53(r.Addr)); err != nil {
		t.Fatal(err)
	}
	if got := said(t, other.ask(at53(r.Addr), question("www.example.com", miekg.TypeA))); got != "NOERROR A 192.0.2.1" {
		t.Errorf("what the mesh does not know needs no waiting: got %q", got)
	}
	workloadtest.Apply(t, b.store, own)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	answer := make([]byte, 512)
	n, _, err := c.ReadFromUDPAddrPort(answer)
	if err != nil {
		t.Fatal(err)
	}
	if got := said(t, answer[:n]); got != "NOERROR A 10.96.0.1" {
		t.Errorf("got %q", got)
	}
}

// A pod whose resolver is away holds no more than its share, and goes at once.
func TestBounded(t *testing.T) {
	b := newBed(t, own)
	mute := b.resolver(silent)
	b.capture()
	c := b.client(b.pod.NS, v4)
	_ = c.SetReadBuffer(1 << 20)
	const n = 600
	for i := range n {
		if _, err := c.WriteToUDPAddrPort(question(fmt.Sprintf("name-%d.example.com", i), miekg.TypeA), at53(mute.Addr)); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	answer := make([]byte, 512)
	for i := range n - 512 {
		l, _, err := c.ReadFromUDPAddrPort(answer)
		if err != nil {
			t.Fatalf("refusal %d: %v", i, err)
		}
		if got := said(t, answer[:l]); got != "SERVFAIL" {
			t.Errorf("got %q", got)
		}
	}
	start := time.Now()
	b.server.Stop()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

// Two servers share the port; while questions come without a pause the old one drains.
// Nothing is lost.
func TestHandOver(t *testing.T) {
	b := newBed(t, own, service("cart.shop.svc.cluster.local", "10.96.0.1"))
	r := b.resolver(address("192.0.2.1"))
	b.capture()
	var asking sync.WaitGroup
	stop, asked := make(chan struct{}), make(chan struct{}, 1)
	lost := make(chan error, 1000)
	for _, name := range []string{"cart.shop", "www.example.com"} {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := b.client(b.pod.NS, v4)
				if _, err := c.exchange(at53(r.Addr), question(name, miekg.TypeA)); err != nil {
					lost <- fmt.Errorf("%s: %w", name, err)
				}
				_ = c.Close()
				select {
				case asked <- struct{}{}:
				default:
				}
			}
		})
	}
	some := func() {
		for range 50 {
			<-asked
		}
	}
	some()
	b.start(nil)
	some()
	b.server.Drain()
	some()
	close(stop)
	asking.Wait()
	close(lost)
	for err := range lost {
		t.Errorf("lost: %v", err)
	}
}

func TestStartAgain(t *testing.T) {
	b := newBed(t, own)
	if err := dns.New(dns.Config{NetNS: b.pod.NS, Store: b.store, Metrics: b.metrics, Log: slog.New(slog.DiscardHandler)}).Start(t.Context()); err == nil {
		t.Error("a second server on a port that is not shared has started")
	}
	b.server.Stop()
	b.server.Stop()
	b.start(nil).Drain()
	if d := cmp.Diff(0, b.log.count("level=WARN")); d != "" {
		t.Errorf("warnings: %s", b.log.b.String())
	}
}
