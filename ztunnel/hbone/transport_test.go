package hbone_test

import (
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/identity/identitytest"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

// TestBatched moves messages of all sizes over real sockets and TLS, batched on
// either side, both, or neither.
func TestBatched(t *testing.T) {
	for _, test := range []struct {
		name           string
		client, server func(net.Conn) net.Conn
	}{
		{"both", hbone.Batched, hbone.Batched},
		{"client", hbone.Batched, same},
		{"server", same, hbone.Batched},
		{"neither", same, same},
	} {
		t.Run(test.name, func(t *testing.T) {
			tunnel, end := secureTunnel(t, test.client, test.server)
			defer end()
			var all sync.WaitGroup
			for seed := range uint64(8) {
				all.Go(func() { echoes(t, tunnel, rand.New(rand.NewPCG(seed, 0))) })
			}
			all.Wait()
		})
	}
}

func same(c net.Conn) net.Conn { return c }

// echoes sends messages and compares what comes back.
func echoes(t *testing.T, tunnel *hbone.Tunnel, rnd *rand.Rand) {
	t.Helper()
	s, err := tunnel.Open(t.Context(), hbone.Request{Authority: "a:1"})
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	defer func() { _ = s.Close() }()
	for range 60 {
		p := make([]byte, 1+rnd.IntN(1<<rnd.IntN(19)))
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		var sending sync.WaitGroup
		sending.Go(func() {
			if _, err := s.Write(p); err != nil {
				t.Errorf("write: %v", err)
			}
		})
		got := make([]byte, len(p))
		if _, err := io.ReadFull(s, got); err != nil || string(got) != string(p) {
			t.Errorf("echo of %d bytes: %v", len(p), err)
			return
		}
		sending.Wait()
	}
}

// secureTunnel returns a tunnel over TCP and TLS to an echo server; the server
// does its handshake when it is first read from or written to.
func secureTunnel(t *testing.T, client, server func(net.Conn) net.Conn) (tunnel *hbone.Tunnel, end func()) {
	t.Helper()
	ca := identitytest.New(t, "cluster.local")
	a, b := ca.ID("bench", "a"), ca.ID("bench", "b")
	certA, certB := ca.Issue(a, time.Hour), ca.Issue(b, time.Hour)
	l := listen(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		c, err := l.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		secure := tls.Server(server(c), mtls.ServerConfig(t.Context(), func(context.Context) (*mtls.Certificate, error) { return certB, nil }))
		err = hbone.Serve(t.Context(), secure, hbone.Config{}, func(in *hbone.Incoming) {
			s, err := in.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(s, s)
			_ = s.Close()
		})
		if err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	secure := tls.Client(client(c), mtls.ClientConfig(certA, []spiffe.ID{b}))
	if err := secure.Handshake(); err != nil {
		t.Fatal(err)
	}
	tunnel, err = hbone.NewTunnel(secure, hbone.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return tunnel, func() {
		_ = tunnel.Close()
		serving.Wait()
		_ = l.Close()
	}
}
