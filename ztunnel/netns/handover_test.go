package netns_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

// echoOnce accepts until the listener is closed, and answers each client with the
// byte that it sends.
func echoOnce(l *net.TCPListener, serving *sync.WaitGroup) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		serving.Go(func() {
			defer func() { _ = c.Close() }()
			_, _ = io.CopyN(c, c, 1)
		})
	}
}

// TestHandOver: listeners of a port follow each other while clients connect all the
// time, as at an upgrade; every connection is taken and answered.
func TestHandOver(t *testing.T) {
	server, client := netnstest.NewPod(t), netnstest.NewPod(t)
	o := netns.ListenOptions{ReusePort: true}
	var serving, load sync.WaitGroup
	defer serving.Wait()
	ctx, stop := context.WithCancel(t.Context())
	current := listen(t, server.NS, "[::]:15001", o)
	serving.Go(func() { echoOnce(current, &serving) })
	if handed, err := server.NS.HandOver(ctx, []*net.TCPListener{current}); handed || err != nil {
		t.Errorf("with nobody to take over: %v, %v", handed, err)
	}

	addrs := []netip.Addr{server.Addr}
	if server.Addr6.IsValid() {
		addrs = append(addrs, server.Addr6)
	}
	failures := make(chan error, 8)
	made := make(chan struct{}, 1<<20)
	for i := range 4 {
		to := netip.AddrPortFrom(addrs[i%len(addrs)], 15001)
		load.Go(func() {
			for ctx.Err() == nil {
				if err := once(client.NS, to); err != nil {
					failures <- fmt.Errorf("%s: %w", to, err)
					return
				}
				made <- struct{}{}
			}
		})
	}
	const times = 5
	for range times {
		for range 100 { // connections to the present pair of listeners
			select {
			case <-made:
			case err := <-failures:
				t.Error(err)
			}
		}
		next := listen(t, server.NS, "[::]:15001", o)
		serving.Go(func() { echoOnce(next, &serving) })
		limit, cancel := context.WithTimeout(ctx, 20*time.Second)
		if handed, err := server.NS.HandOver(limit, []*net.TCPListener{current}); !handed || err != nil {
			t.Errorf("hand over: %v, %v", handed, err)
		}
		cancel()
		_ = current.Close()
		current = next
	}
	stop()
	load.Wait()
	_ = current.Close()
	select {
	case err := <-failures:
		t.Error(err)
	default:
	}
}

func once(ns *netns.NS, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := ns.Dial(ctx, to, netns.DialOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// TestHandOverToOlder: when the listener that remains is not where the youngest is
// expected, new connections come late but none is refused.
func TestHandOverToOlder(t *testing.T) {
	server, client := netnstest.NewPod(t), netnstest.NewPod(t)
	o := netns.ListenOptions{ReusePort: true}
	older := listen(t, server.NS, "[::]:15001", o)
	younger := listen(t, server.NS, "[::]:15001", o)
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() { echoOnce(older, &serving) })
	if handed, err := server.NS.HandOver(t.Context(), []*net.TCPListener{younger}); !handed || err != nil {
		t.Fatal(handed, err)
	}
	done := make(chan error, 1)
	go func() { done <- once(client.NS, netip.AddrPortFrom(server.Addr, 15001)) }()
	waitFor(t, "the client has sent its first packet", func() bool {
		half, err := client.NS.HalfOpen()
		return err == nil && half == 1
	})
	_ = younger.Close()
	if err := <-done; err != nil {
		t.Errorf("connection during the hand-over: %v", err)
	}
	_ = older.Close()
}

// TestListenersAreCounted: both ways to count find the same.
func TestListenersAreCounted(t *testing.T) {
	p := netnstest.NewPod(t)
	o := netns.ListenOptions{ReusePort: true}
	for _, at := range []string{"[::]:15001", "[::]:15001", "127.0.0.1:15053", "[::1]:15053", "0.0.0.0:80"} {
		listen(t, p.NS, at, o)
	}
	want := map[netip.AddrPort]int{
		netip.MustParseAddrPort("[::]:15001"): 2, netip.MustParseAddrPort("127.0.0.1:15053"): 1,
		netip.MustParseAddrPort("[::1]:15053"): 1, netip.MustParseAddrPort("0.0.0.0:80"): 1,
	}
	for name, count := range map[string]func() (map[netip.AddrPort]int, error){"asked": p.NS.Listeners, "table": p.NS.ListenersFromTable} {
		if got, err := count(); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
	}
}
