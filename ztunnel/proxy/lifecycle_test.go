package proxy

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

func TestCertificatesRotateUnderLoad(t *testing.T) {
	w := newWorld(t)
	var current atomic.Pointer[map[string]*mtls.Certificate]
	issue := func() {
		current.Store(&map[string]*mtls.Certificate{
			"web": w.ca.Issue(w.ca.ID("web", "web"), time.Hour), "shop": w.ca.Issue(w.ca.ID("shop", "shop"), time.Hour),
		})
	}
	issue()
	w.certificate = func(_ context.Context, id spiffe.ID) (*mtls.Certificate, error) {
		return (*current.Load())[id.Namespace()], nil
	}
	web := w.pod("web", func(c *Config) { c.PoolStreams = 2 }) // so that new tunnels are dialled all the time
	shop := w.pod("shop")
	w.apply(web.message(), shop.message())
	shop.serve(8080, echo)
	var load sync.WaitGroup
	failed := make(chan error, 4)
	for range 4 {
		conns := make([]*net.TCPConn, 15) // opened here: t.Fatal must not be called elsewhere
		for i := range conns {
			conns[i] = web.dial(shop.addr(8080))
		}
		load.Go(func() {
			for _, c := range conns {
				if err := tryPing(c); err != nil {
					failed <- err
					return
				}
				_ = c.Close()
			}
		})
		issue()
	}
	load.Wait()
	close(failed)
	for err := range failed {
		t.Errorf("a connection failed: %v", err)
	}
}

func TestDrainLetsConnectionsEnd(t *testing.T) {
	_, web, shop := pair(t)
	c := web.dial(shop.addr(8080))
	ping(t, c)
	drained := make(chan struct{})
	go func() { shop.proxy.Drain(); close(drained) }()
	eventually(t, "the listener is closed", func() bool {
		conn, err := web.NS.Dial(t.Context(), shop.addr(15008), noOptions)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	ping(t, c)
	select {
	case <-drained:
		t.Error("drained while a connection is open")
	default:
	}
	_ = c.Close()
	select {
	case <-drained:
	case <-time.After(patience):
		t.Error("not drained after the last connection has ended")
	}
}

func TestStopEndsConnections(t *testing.T) {
	_, web, shop := pair(t)
	c := web.dial(shop.addr(8080))
	ping(t, c)
	plain := web.plain(shop, 8080)
	ping(t, plain)
	shop.proxy.Stop()
	wantClosed(t, plain)
	wantClosed(t, c)
	for range 2 {
		shop.wantReason(telemetry.Shutdown)
	}
}

func TestOccupiedPortFailsStart(t *testing.T) {
	w := newWorld(t)
	web := w.pod("web")
	if err := New(web.proxy.cfg).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "port 15001") {
		t.Errorf("started beside another: %v", err)
	}
}

func TestConnectionsOlderThanTheProxyAreListed(t *testing.T) {
	w := newWorld(t)
	server := w.pod("shop")
	server.serve(8080, echo)
	older := w.pod("other") // a pod whose proxy is stopped, so that it can be enrolled again
	older.proxy.Stop()
	c, err := older.NS.Dial(t.Context(), server.addr(8080), noOptions)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	ping(t, c)
	var log bytes.Buffer
	cfg := older.proxy.cfg
	levels, _ := telemetry.NewLevels("info")
	cfg.Log = telemetry.NewLogger(&log, telemetry.Text, levels)
	p := New(cfg)
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if !strings.Contains(log.String(), "\tconnections not yet meshed\t") || !strings.Contains(log.String(), "count=1") {
		t.Errorf("log: %s", log.String())
	}
	want := Pair{Local: localAddr(c), Remote: server.addr(8080)}
	if got := p.Connections().NotYetMeshed; len(got) != 1 || got[0] != want {
		t.Errorf("not yet meshed: %v, want %v", got, want)
	}
	ping(t, c)
	_ = c.Close()
	eventually(t, "it is gone", func() bool { return len(p.Connections().NotYetMeshed) == 0 })
}

func TestDumpListsConnections(t *testing.T) {
	_, web, shop := pair(t)
	c := web.dial(shop.addr(8080))
	ping(t, c)
	want := fmt.Sprint([]Connection{{Src: localAddr(c).String(), OriginalDst: shop.addr(8080).String(), ActualDst: shop.addr(15008).String(), Protocol: "HBONE"}})
	if got := fmt.Sprint(web.proxy.Connections().Outbound); got != want {
		t.Errorf("outbound %s, want %s", got, want)
	}
	if in := shop.proxy.Connections().Inbound; len(in) != 1 || in[0].ActualDst != shop.addr(8080).String() {
		t.Errorf("inbound %v", in)
	}
}
