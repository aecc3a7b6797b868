package hbone_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// TestApplicationResetsDuringAnUpload: the client of the tunnel must not take
// what it has got for the whole answer.
func TestApplicationResetsDuringAnUpload(t *testing.T) {
	for range 100 {
		near, far := tcpEnds(t)
		target, app := tcpEnds(t)
		ctx, stop := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() {
			_ = hbone.Serve(ctx, far, hbone.Config{}, func(in *hbone.Incoming) {
				s, err := in.Accept()
				if err != nil {
					t.Errorf("accept: %v", err)
					return
				}
				var c relay.Counters
				if err := relay.Copy(s, target, &c); err != nil {
					t.Errorf("copy: %v", err)
				}
			})
		})
		tunnel, err := hbone.NewTunnel(near, hbone.Config{})
		if err != nil {
			t.Fatalf("tunnel: %v", err)
		}
		s, err := tunnel.Open(ctx, hbone.Request{Authority: "10.0.0.1:80"})
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		work.Go(func() {
			for p := make([]byte, 4096); ; {
				if _, err := s.Write(p); err != nil {
					return
				}
			}
		})
		_, _ = io.ReadFull(app, make([]byte, 64<<10))
		_, _ = io.WriteString(app, "part of an answer")
		_ = app.SetLinger(0)
		_ = app.Close()
		if b, err := io.ReadAll(s); err == nil {
			t.Errorf("client reads %q and a good end", b)
		}
		_ = s.Close()
		_ = tunnel.Close()
		stop()
		work.Wait()
	}
}

func tcpEnds(tb testing.TB) (a, b *net.TCPConn) {
	tb.Helper()
	l := listen(tb)
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		tb.Fatalf("dial: %v", err)
	}
	if b, err = l.AcceptTCP(); err != nil {
		tb.Fatalf("accept: %v", err)
	}
	return c.(*net.TCPConn), b
}
