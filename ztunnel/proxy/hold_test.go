package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

func TestHeldUntilWorkloadAndCertificateArrive(t *testing.T) {
	w := newWorld(t)
	ready := make(chan struct{})
	own := w.certificate
	w.certificate = func(ctx context.Context, id spiffe.ID) (*mtls.Certificate, error) {
		select {
		case <-ready:
			return own(ctx, id)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	web, shop := w.pod("web"), w.pod("shop")
	shop.serve(8080, echo)
	w.apply(shop.message()) // of web nothing is known yet
	c := web.dial(shop.addr(8080))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection is held for the workload", func() bool { return web.proxy.held.waiting.Load() == 1 })
	w.apply(web.message())
	eventually(t, "both sides wait for certificates", func() bool {
		return web.proxy.held.waiting.Load() == 1 && web.proxy.workload(w.store.Snapshot()) != nil
	})
	close(ready)
	if got, err := io.ReadAll(io.LimitReader(c, 6)); err != nil || string(got) != "hello\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestHoldIsBounded(t *testing.T) {
	w := newWorld(t)
	w.hold = Hold{Connections: 2, Arrival: 300 * time.Millisecond}
	web := w.pod("web")
	target := netip.MustParseAddrPort("10.244.9.9:80")
	first, second := web.dial(target), web.dial(target)
	eventually(t, "two are held", func() bool { return web.proxy.held.waiting.Load() == 2 })
	wantClosed(t, web.dial(target))
	if l := web.wantReason(telemetry.HoldLimit); !l.Early {
		t.Errorf("%+v", l)
	}
	wantClosed(t, first)
	wantClosed(t, second)
	web.wantReason(telemetry.UnknownSource)
	web.wantReason(telemetry.UnknownSource)
}

// TestHeldClientThatLeavesIsForgotten: it frees its place at once, and one that
// only sends no more is held on.
func TestHeldClientThatLeavesIsForgotten(t *testing.T) {
	w := newWorld(t)
	web, shop := w.pod("web"), w.pod("shop")
	shop.serve(8080, echo)
	held := func(n int64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d are held", n), func() bool { return web.proxy.held.waiting.Load() == n })
	}
	for name, leave := range map[string]func(*net.TCPConn){
		"closes":                func(c *net.TCPConn) { _ = c.Close() },
		"closes after a word":   func(c *net.TCPConn) { _, _ = io.WriteString(c, "x"); _ = c.Close() },
		"resets":                func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
		"resets after a word":   func(c *net.TCPConn) { _, _ = io.WriteString(c, "x"); _ = c.SetLinger(0); _ = c.Close() },
		"resets after half":     func(c *net.TCPConn) { _ = c.CloseWrite(); _ = c.SetLinger(0); _ = c.Close() },
		"closes, captured late": nil,
	} {
		if leave == nil { // it has left before it is held
			late := make(chan struct{})
			c := web.connect(func(conn *net.TCPConn) { <-late; web.proxy.outbound(conn, shop.addr(8080)) })
			_ = c.Close()
			close(late)
		} else {
			c := web.dial(shop.addr(8080))
			held(1)
			leave(c)
		}
		if l := web.wantReason(telemetry.UnknownSource); !strings.Contains(l.Err.Error(), "the client has gone") {
			t.Errorf("client %s: %v", name, l.Err)
		}
		held(0)
	}
	half := web.dial(shop.addr(8080))
	held(1)
	_, _ = io.WriteString(half, "hello\n")
	_ = half.CloseWrite()
	w.apply(web.message(), shop.message())
	if got, err := io.ReadAll(half); err != nil || string(got) != "hello\n" {
		t.Errorf("half-closed while held: got %q, %v", got, err)
	}
}

// TestHeldForACertificate is the same for the other things that are waited for.
func TestHeldForACertificate(t *testing.T) {
	w := newWorld(t)
	w.certificate = func(ctx context.Context, _ spiffe.ID) (*mtls.Certificate, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	web, shop := w.pod("web"), w.pod("shop")
	w.apply(web.message(), shop.message(func(m *api.Workload) { m.AuthorizationPolicies = []string{"shop/late"} }))
	out := web.dial(shop.addr(8080))
	eventually(t, "it is held", func() bool { return web.proxy.held.waiting.Load() == 1 })
	_ = out.Close()
	web.wantReason(telemetry.IdentityUnavailable)
	plain := web.plain(shop, 8080)
	eventually(t, "it is held", func() bool { return shop.proxy.held.waiting.Load() == 1 })
	_ = plain.Close()
	shop.wantReason(telemetry.PolicyMissing)
	tunnel, err := web.NS.Dial(t.Context(), shop.addr(15008), noOptions)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is held", func() bool { return shop.proxy.held.waiting.Load() == 1 })
	_, _ = io.WriteString(tunnel, "hello")
	_ = tunnel.Close()
	shop.wantReason(telemetry.IdentityUnavailable)
}

func TestMissingPolicyIsHeldThenRefused(t *testing.T) {
	w := newWorld(t)
	w.hold = Hold{Policy: 300 * time.Millisecond}
	web, shop := w.pod("web"), w.pod("shop")
	shop.serve(8080, echo)
	named := func(m *api.Workload) { m.AuthorizationPolicies = []string{"shop/late"} }
	w.apply(web.message(), shop.message(named))
	wantClosed(t, web.dial(shop.addr(8080)))
	if l := shop.wantReason(telemetry.PolicyMissing); !strings.Contains(l.Err.Error(), "policy-missing: policy shop/late") {
		t.Errorf("%v", l.Err)
	}
	shop.proxy.held.Policy = patience           // for the connections from here on
	w.apply(web.message(), shop.message(named)) // which orders that before what reads it
	c := web.dial(shop.addr(8080))
	eventually(t, "the connection is held", func() bool { return shop.proxy.held.waiting.Load() == 1 })
	w.apply(policy("late", security.Action_ALLOW, security.Scope_WORKLOAD_SELECTOR, principal("cluster.local/ns/web/sa/web")))
	ping(t, c)
}
