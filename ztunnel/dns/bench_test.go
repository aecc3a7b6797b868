package dns_test

import (
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

// go test -run xxx -bench . -benchmem ./ztunnel/dns
//
// Each row is one question from a captured pod and its answer, with the system calls of
// the client; direct is without ztunnel.

func benchmark(b *testing.B, capture bool, name string) {
	b.Helper()
	t := newBed(b, own, service("cart.shop.svc.cluster.local", "10.96.0.1"))
	r := t.resolver(address("192.0.2.1"))
	if capture {
		t.capture()
	}
	c, to, msg := t.client(t.pod.NS, v4), at53(r.Addr), question(name, miekg.TypeA)
	buffer := make([]byte, 512)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.WriteToUDPAddrPort(msg, to); err != nil {
			b.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, _, err := c.ReadFromUDPAddrPort(buffer); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMesh(b *testing.B)    { benchmark(b, true, "cart.shop.svc.cluster.local") }
func BenchmarkForward(b *testing.B) { benchmark(b, true, "www.example.com") }
func BenchmarkDirect(b *testing.B)  { benchmark(b, false, "www.example.com") }
