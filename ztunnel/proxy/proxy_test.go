package proxy

import (
	"io"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

func TestTunnelBetweenPods(t *testing.T) {
	w := newWorld(t)
	web, shop := w.pod("web"), w.pod("shop")
	w.apply(web.message(), shop.message())
	shop.serve(8080, echo)

	c := web.dial(shop.addr(8080))
	ping(t, c)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("read to the end: %v", err)
	}
	out, in := web.wantReason(telemetry.OK), shop.wantReason(telemetry.OK)
	if out.DstAddr != shop.addr(15008) || out.DstHBONEAddr != shop.addr(8080).String() {
		t.Errorf("next hop %s, authority %s", out.DstAddr, out.DstHBONEAddr)
	}
	for _, l := range []*telemetry.AccessLine{out, in} {
		if l.SrcIdentity != "spiffe://cluster.local/ns/web/sa/web" || l.DstIdentity != "spiffe://cluster.local/ns/shop/sa/shop" {
			t.Errorf("%s: identities %q and %q", l.Direction, l.SrcIdentity, l.DstIdentity)
		}
		if l.SrcWorkload != "web" || l.DstWorkload != "shop" || l.Sent != 6 || l.Received != 6 {
			t.Errorf("%s: %+v", l.Direction, l)
		}
	}
	if in.SrcAddr.Addr() != web.Addr {
		t.Errorf("client address %s, want %s", in.SrcAddr.Addr(), web.Addr)
	}
}
