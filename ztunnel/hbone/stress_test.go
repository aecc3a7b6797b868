package hbone

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
)

// chunky passes on a connection's bytes in pieces of random size.
type chunky struct {
	net.Conn
	mu  sync.Mutex
	rnd *rand.Rand
}

func (c *chunky) size(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n == 0 {
		return 0
	}
	return 1 + c.rnd.IntN(min(n, 1+c.rnd.IntN(40_000)))
}

func (c *chunky) Read(p []byte) (int, error) { return c.Conn.Read(p[:c.size(len(p))]) }

func (c *chunky) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		n, err := c.Conn.Write(p[sent : sent+c.size(len(p)-sent)])
		if sent += n; err != nil {
			return sent, err
		}
	}
	return len(p), nil
}

// TestStress moves random bytes in random pieces over many streams both ways
// at once, with small and large windows, and compares checksums.
func TestStress(t *testing.T) {
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			configs := []Config{{}, {StreamWindow: 1000, MaxFrameSize: 16 << 10}, {StreamWindow: 70_000, ConnWindow: 65535, MaxFrameSize: 20_000}}
			a, b := connPair(t)
			client := &chunky{Conn: a, rnd: rand.New(rand.NewPCG(seed, 1))}
			server := &chunky{Conn: b, rnd: rand.New(rand.NewPCG(seed, 2))}
			handle, streams := accepting(t)
			e := connectOver(t, client, server, configs[rnd.IntN(3)], configs[rnd.IntN(3)], handle)
			var all sync.WaitGroup
			for i := range uint64(12) {
				near, far := e.open(), <-streams
				all.Go(func() { transfer(t, near, far, rand.New(rand.NewPCG(seed, 10+i))) })
				all.Go(func() { transfer(t, far, near, rand.New(rand.NewPCG(seed, 100+i))) })
			}
			all.Wait()
			synctest.Wait()
			if n := e.tunnel.c.Streams(); n != 0 {
				t.Errorf("%d streams left", n)
			}
			e.close()
		})
	}
}

// transfer moves up to 300 KB from one end to the other.
func transfer(t *testing.T, from, to *Stream, rnd *rand.Rand) {
	t.Helper()
	useWriteTo, wantSum, gotSum := rnd.IntN(2) == 0, sha256.New(), sha256.New()
	readSize := 1 + rnd.IntN(20_000)
	var reading sync.WaitGroup
	reading.Go(func() {
		var err error
		if useWriteTo {
			_, err = to.WriteTo(gotSum)
		} else {
			_, err = io.CopyBuffer(gotSum, struct{ io.Reader }{to}, make([]byte, readSize))
		}
		if err != nil {
			t.Errorf("read: %v", err)
		}
	})
	for left := rnd.IntN(300_000); left > 0; {
		p := make([]byte, 1+rnd.IntN(min(left, 1+rnd.IntN(100_000))))
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		wantSum.Write(p)
		if n, err := from.Write(p); n != len(p) || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
		left -= len(p)
	}
	closeWrite(t, from)
	reading.Wait()
	if string(gotSum.Sum(nil)) != string(wantSum.Sum(nil)) {
		t.Error("what arrived is not what was sent")
	}
}

// TestChurn opens, uses and aborts streams from many goroutines.
func TestChurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{MaxStreams: 100}, echo(t))
		var all sync.WaitGroup
		for worker := range uint64(20) {
			rnd := rand.New(rand.NewPCG(1, worker))
			all.Go(func() {
				for range 50 {
					s, err := e.tunnel.Open(t.Context(), Request{Authority: "a:1"})
					if err != nil {
						t.Errorf("open: %v", err)
						return
					}
					_, _ = s.Write(make([]byte, rnd.IntN(5000)))
					switch rnd.IntN(3) {
					case 0:
						s.Reset()
					case 1:
						closeWrite(t, s)
						_, _ = io.Copy(io.Discard, s)
						_ = s.Close()
					default:
						_, _ = s.Read(make([]byte, 10))
						_ = s.Close()
					}
				}
			})
		}
		all.Wait()
		synctest.Wait()
		if n := e.tunnel.c.Streams(); n != 0 {
			t.Errorf("%d streams left", n)
		}
		e.close()
	})
}
