package proxy

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// socks opens a connection of the pod by SOCKS; request follows the greeting.
func (p *pod) socks(request string) (net.Conn, byte) {
	t := p.w.t
	t.Helper()
	c, err := p.NS.Dial(t.Context(), netip.MustParseAddrPort("127.0.0.1:15080"), noOptions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, "\x05\x02\x01\x00"+request)
	answer := make([]byte, 12)
	if n, err := io.ReadFull(c, answer); err != nil {
		t.Fatalf("answer %q: %v", answer[:n], err)
	}
	if string(answer[:2]) != "\x05\x00" || answer[2] != 5 {
		t.Errorf("answer %q", answer)
	}
	return c, answer[3]
}

func TestSOCKS(t *testing.T) {
	w := newWorld(t)
	web, shop := w.pod("web", func(c *Config) {
		c.SOCKS5 = true
		c.Resolve = func(context.Context, string) ([]netip.Addr, error) { return nil, nil }
	}), w.pod("shop")
	w.apply(web.message(), shopService(), shop.message(inShop))
	shop.serve(8080, echo)
	shop.serve6(8080, echo)
	const port8080, port80 = "\x1f\x90", "\x00\x50"
	v4, v6 := shop.Addr.As4(), shop.Addr6.As16()
	for name, request := range map[string]string{
		"IPv4":          "\x05\x01\x00\x01" + string(v4[:]) + port8080,
		"IPv6":          "\x05\x01\x00\x04" + string(v6[:]) + port8080,
		"service":       "\x05\x01\x00\x03" + string(rune(len(shopHost))) + shopHost + port80,
		"address, text": "\x05\x01\x00\x03" + string(rune(len(shop.Addr.String()))) + shop.Addr.String() + port8080,
	} {
		c, code := web.socks(request)
		if code != socksOK {
			t.Errorf("%s: code %d", name, code)
			continue
		}
		ping(t, c)
		_ = c.Close()
		if l := web.wantReason(telemetry.OK); l.DstIdentity == "" {
			t.Errorf("%s: %+v", name, l)
		}
	}
	for name, tc := range map[string]struct {
		request string
		code    byte
	}{
		"unknown name": {"\x05\x01\x00\x03\x01x" + port80, socksUnreachable},
		"bind":         {"\x05\x02\x00\x01" + string(v4[:]) + port80, socksNotSupported},
		"type":         {"\x05\x01\x00\x09" + string(v4[:]) + port80, socksBadAddress},
	} {
		c, code := web.socks(tc.request)
		if code != tc.code {
			t.Errorf("%s: code %d, want %d", name, code, tc.code)
		}
		wantClosed(t, c)
		web.wantReason(telemetry.BadRequest)
	}
	// It leads nowhere else than a captured connection: not to ztunnel's own ports.
	c, _ := web.socks("\x05\x01\x00\x01\x7f\x00\x00\x01\x3a\xe8")
	wantClosed(t, c)
	web.wantReason(telemetry.SelfCall)
}

type socksPipe struct {
	io.Reader
	io.Writer
}

func FuzzSOCKS(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x01x\x00\x50"))
	f.Add([]byte("\x05\x02\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x3a\xe8"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var answer bytes.Buffer
		q, err := readSOCKS(socksPipe{bytes.NewReader(data), &answer})
		if err == nil && q.name == "" && !q.addr.IsValid() {
			t.Errorf("%q asks for nothing", data)
		}
		if answer.Len() > 2 {
			t.Errorf("answered %q", answer.Bytes())
		}
	})
}
