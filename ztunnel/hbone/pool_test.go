package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// dialer makes tunnels to servers in memory and counts them.
type dialer struct {
	t      *testing.T
	cfg    Config
	handle func(*Incoming)

	mu      sync.Mutex
	dials   int
	servers []context.CancelFunc // drain each
	conns   []net.Conn           // server side
	serving sync.WaitGroup
}

func (d *dialer) dial(ctx context.Context, _ string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	client, server := connPair(d.t)
	serveCtx, stop := context.WithCancel(context.Background())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dials++
	d.servers = append(d.servers, stop)
	d.conns = append(d.conns, server)
	d.serving.Go(func() {
		_ = Serve(serveCtx, server, d.cfg, d.handle)
		stop()
	})
	return client, nil
}

func (d *dialer) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dials
}

func poolTest(t *testing.T, cfg, serverCfg Config, test func(t *testing.T, p *Pool[string], d *dialer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{t: t, cfg: serverCfg, handle: echo(t)}
		p := NewPool(d.dial, cfg)
		test(t, p, d)
		_ = p.Close()
		d.serving.Wait()
		if _, err := p.Open(context.Background(), "a", Request{Authority: "a:1"}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("open on a closed pool: got %v, want net.ErrClosed", err)
		}
	})
}

func poolOpen(t *testing.T, p *Pool[string], key string) *Stream {
	t.Helper()
	s, err := p.Open(t.Context(), key, Request{Authority: "a:1"})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

// finish ends a stream of an echo server well.
func finish(t *testing.T, s *Stream) {
	t.Helper()
	closeWrite(t, s)
	readAll(t, "echo", s, "")
	_ = s.Close()
}

func TestPoolShares(t *testing.T) {
	poolTest(t, Config{MaxStreams: 4}, Config{}, func(t *testing.T, p *Pool[string], d *dialer) {
		t.Helper()
		var all sync.WaitGroup
		streams := make([]*Stream, 4)
		for i := range streams {
			all.Go(func() { streams[i] = poolOpen(t, p, "a") })
		}
		all.Wait()
		if got := d.count(); got != 1 {
			t.Errorf("4 streams at once: %d dials, want 1", got)
		}
		fifth := poolOpen(t, p, "a")
		if got := d.count(); got != 2 {
			t.Errorf("one stream too many: %d dials, want 2", got)
		}
		finish(t, streams[0])
		finish(t, poolOpen(t, p, "a"))
		if got := d.count(); got != 2 {
			t.Errorf("a full tunnel returns to use: %d dials, want 2", got)
		}
		finish(t, poolOpen(t, p, "b"))
		if got := d.count(); got != 3 {
			t.Errorf("another key: %d dials, want 3", got)
		}
		finish(t, fifth)
	})
}

func TestPoolHeedsPeersLimit(t *testing.T) {
	poolTest(t, Config{}, Config{MaxStreams: 2}, func(t *testing.T, p *Pool[string], d *dialer) {
		t.Helper()
		for range 4 {
			poolOpen(t, p, "a")
		}
		if got := d.count(); got != 2 {
			t.Errorf("4 streams over tunnels for 2: %d dials, want 2", got)
		}
	})
}

func TestPoolIdle(t *testing.T) {
	poolTest(t, Config{IdleTimeout: time.Minute}, Config{}, func(t *testing.T, p *Pool[string], d *dialer) {
		t.Helper()
		s := poolOpen(t, p, "a")
		time.Sleep(time.Hour)
		finish(t, s)
		time.Sleep(50 * time.Second)
		finish(t, poolOpen(t, p, "a"))
		time.Sleep(50 * time.Second)
		finish(t, poolOpen(t, p, "a"))
		if got := d.count(); got != 1 {
			t.Errorf("used in time: %d dials, want 1", got)
		}
		time.Sleep(61 * time.Second)
		d.serving.Wait() // it has been closed
		p.mu.Lock()
		if len(p.tunnels) != 0 {
			t.Errorf("pool still has %d keys", len(p.tunnels))
		}
		p.mu.Unlock()
		finish(t, poolOpen(t, p, "a"))
		if got := d.count(); got != 2 {
			t.Errorf("after the idle timeout: %d dials, want 2", got)
		}
	})
}

// TestPoolSurvivesDraining: GOAWAY of a server costs no request, and running
// streams go on.
func TestPoolSurvivesDraining(t *testing.T) {
	poolTest(t, Config{}, Config{Grace: time.Hour}, func(t *testing.T, p *Pool[string], d *dialer) {
		t.Helper()
		running := poolOpen(t, p, "a")
		d.servers[0]()
		synctest.Wait() // what is opened before the client knows is still served
		for range 10 {
			finish(t, poolOpen(t, p, "a"))
		}
		if got := d.count(); got != 2 {
			t.Errorf("%d dials, want 2", got)
		}
		finish(t, running)
	})
}

// TestPoolSurvivesDeath: a tunnel that dies with a request on its way is
// replaced.
func TestPoolSurvivesDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{t: t}
		d.handle = func(in *Incoming) {
			d.mu.Lock()
			first, conn := d.dials == 1, d.conns[0]
			d.mu.Unlock()
			if first {
				_ = conn.Close()
				return
			}
			echo(t)(in)
		}
		p := NewPool(d.dial, Config{})
		finish(t, poolOpen(t, p, "a"))
		if got := d.count(); got != 2 {
			t.Errorf("%d dials, want 2", got)
		}
		_ = p.Close()
		d.serving.Wait()
	})
}

// TestPoolDeadTunnelIsForgotten even if nobody asks for its key again.
func TestPoolDeadTunnelIsForgotten(t *testing.T) {
	poolTest(t, Config{}, Config{}, func(t *testing.T, p *Pool[string], d *dialer) {
		t.Helper()
		s := poolOpen(t, p, "a")
		_ = d.conns[0].Close()
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("read on a dead tunnel succeeded")
		}
		synctest.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.tunnels) != 0 {
			t.Errorf("pool still has %d keys", len(p.tunnels))
		}
	})
}

func TestPoolDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("connection refused")
		fail := make(chan struct{})
		dials, givenUp := 0, make(chan struct{}, 1)
		p := NewPool(func(ctx context.Context, key string) (net.Conn, error) {
			dials++
			select {
			case <-fail:
				return nil, refused
			case <-ctx.Done():
				givenUp <- struct{}{}
				return nil, ctx.Err()
			}
		}, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		first, others := make(chan error, 1), make(chan error, 3)
		go func() {
			_, err := p.Open(ctx, "a", Request{Authority: "a:1"})
			first <- err
		}()
		for range 3 {
			go func() {
				_, err := p.Open(t.Context(), "a", Request{Authority: "a:1"})
				others <- err
			}()
		}
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("caller that leaves: got %v", err)
		}
		close(fail)
		for range 3 {
			if err := <-others; !errors.Is(err, refused) {
				t.Errorf("caller that waits: got %v, want the dial's error", err)
			}
		}
		if dials != 1 {
			t.Errorf("%d dials, want 1", dials)
		}

		fail = make(chan struct{}) // nobody waits any more: the dial ends
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Open(ctx, "a", Request{Authority: "a:1"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		<-givenUp
		_ = p.Close()
	})
}

func TestPoolCloseEndsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dialer{t: t, handle: echo(t)}
		p := NewPool(d.dial, Config{})
		s := poolOpen(t, p, "a")
		_ = p.Close()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read: got %v", err)
		}
		d.serving.Wait()
	})
}
