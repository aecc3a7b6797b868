package proxy

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// TestHandOverUnderLoad: one proxy of a pod follows another, as at an upgrade of
// ztunnel, while connections are opened all the time: through tunnels to the pod,
// over IPv4 and IPv6, and in plaintext to the ports of the proxy. None is refused
// or reset.
func TestHandOverUnderLoad(t *testing.T) {
	w := newWorld(t)
	shared := func(c *Config) {
		c.ReusePort, c.Access = true, func(*telemetry.AccessLine) {}
		c.HBONE = hbone.Config{Grace: patience}
	}
	web, shop := w.pod("web", shared), w.pod("shop", shared)
	w.apply(web.message(), shop.message())
	shop.serve(8080, echo)
	shop.serve6(8080, echo)

	var load sync.WaitGroup
	var made atomic.Int64
	stop := make(chan struct{})
	problems := make(chan error, 16)
	run := func(once func() error) {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := once(); err != nil {
					problems <- err
					return
				}
				made.Add(1)
			}
		})
	}
	tunnelled := func(to netip.AddrPort) {
		run(func() error {
			c := web.dial(to)
			defer func() { _ = c.Close() }()
			return tryPing(c)
		})
	}
	tunnelled(shop.addr(8080))
	if shop.Addr6.IsValid() {
		tunnelled(shop.addr6(8080))
	}
	// What is captured meets the listeners themselves. A connection to one of them that
	// was not captured is refused as a self-call, after it has been accepted: its line
	// says so, and the connection is closed and not reset.
	run(func() error {
		c, err := web.NS.Dial(t.Context(), shop.addr(15006), netns.DialOptions{})
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		return wantEnd(c)
	})

	for range 3 {
		reached := made.Load() + 50
		eventually(t, "there is load", func() bool { return made.Load() >= reached || len(problems) > 0 })
		old := shop.proxy
		next := New(old.cfg)
		if err := next.Start(t.Context()); err != nil {
			t.Fatalf("start the next proxy: %v", err)
		}
		t.Cleanup(next.Stop)
		shop.proxy = next
		old.Drain()
	}
	close(stop)
	load.Wait()
	close(problems)
	for err := range problems {
		t.Error(err)
	}
	t.Logf("%d connections", made.Load())
}
