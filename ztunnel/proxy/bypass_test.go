package proxy

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// TestConnectionsBeforeTheRedirectionAreListed: what is opened after the start
// of the proxy and not captured yet is not yet meshed, too; connections of the
// proxy itself are not, nor is what is opened once the redirection is there.
func TestConnectionsBeforeTheRedirectionAreListed(t *testing.T) {
	w := newWorld(t)
	web := w.pod("web", func(c *Config) { c.Settle = 3 * time.Second })
	shop := w.pod("shop")
	plaintext := func(m *api.Workload) { m.TunnelProtocol = api.TunnelProtocol_NONE }
	w.apply(web.message(), shop.message(plaintext))
	shop.serve(8080, echo)
	direct := func() net.Conn {
		c, err := web.NS.Dial(t.Context(), shop.addr(8080), noOptions)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		ping(t, c)
		return c
	}
	list := func() (locals []netip.AddrPort) {
		for _, c := range web.proxy.Connections().NotYetMeshed {
			locals = append(locals, c.Local)
		}
		return locals
	}
	own := web.dial(shop.addr(8080)) // the proxy's own connection goes on in plaintext
	ping(t, own)
	before := direct()
	want := []netip.AddrPort{localAddr(before)}
	if got := list(); !slices.Equal(got, want) {
		t.Errorf("not yet meshed before the redirection: %v, want %v", got, want)
	}
	eventually(t, "the redirection is there", func() bool {
		web.proxy.bypass.mu.Lock()
		defer web.proxy.bypass.mu.Unlock()
		return !web.proxy.bypass.settling
	})
	direct()
	ping(t, own)
	if got := list(); !slices.Equal(got, want) {
		t.Errorf("not yet meshed after it: %v, want %v", got, want)
	}
	_ = before.Close()
	eventually(t, "it is gone", func() bool { return len(list()) == 0 })
}

func TestUnmeshed(t *testing.T) {
	conn := func(local, remote string) netns.TCPConn {
		return netns.TCPConn{Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
	}
	older := conn("10.0.0.1:40000", "10.0.0.9:80")
	got := unmeshed([]netns.TCPConn{
		conn("127.0.0.1:1", "127.0.0.1:2"), conn("10.0.0.1:40001", "10.0.0.9:80"), conn("127.0.0.1:15001", "10.0.0.1:40001"),
		conn("10.0.0.1:15008", "10.0.0.9:5"), conn("10.0.0.1:6", "10.0.0.9:15008"), conn("10.0.0.1:8080", "169.254.7.127:7"), older,
		conn("10.0.0.1:8080", "10.0.0.9:8"), conn("10.0.0.9:8", "10.0.0.1:8080"),
	})
	if !slices.Equal(got, []netns.TCPConn{older}) {
		t.Errorf("got %v, want %v", got, older)
	}
}
