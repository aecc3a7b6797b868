package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

const (
	block = 256 << 10 // of a bulk write
	// warmup is for connections to be made, windows to grow and tunnels to open.
	warmup = 300 * time.Millisecond
	// patience is how long one operation may take before the system is called
	// broken.
	patience = 30 * time.Second
)

// measurement is one load on one system in one round.
type measurement struct {
	bytes, ops float64
	elapsed    time.Duration
	cpu        time.Duration // of the proxies
	foreign    float64       // share of the machine that others took
	latencies  []time.Duration
}

// load runs workers until the context ends and measures a window after the
// warm-up. A worker reports what it does to the recorder.
type load struct {
	workers int
	work    func(ctx context.Context, s *system, r *recorder) error
}

// recorder counts what one worker does while the window is open.
type recorder struct {
	open      *atomic.Bool
	ops       int
	latencies []time.Duration
}

func (r *recorder) done(began time.Time) {
	if r.open.Load() {
		r.ops++
		r.latencies = append(r.latencies, time.Since(began))
	}
}

// run measures for d.
func (l load) run(ctx context.Context, s *system, d time.Duration) (measurement, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var open atomic.Bool
	recorders := make([]*recorder, l.workers)
	failed := make(chan error, l.workers)
	var workers sync.WaitGroup
	for i := range recorders {
		recorders[i] = &recorder{open: &open, latencies: make([]time.Duration, 0, 1<<14)}
		workers.Go(func() {
			if err := l.work(ctx, s, recorders[i]); err != nil && ctx.Err() == nil {
				failed <- err
			}
		})
	}
	defer workers.Wait()
	defer cancel()
	if err := pause(ctx, warmup, failed); err != nil {
		return measurement{}, err
	}
	before, err := sample(s)
	if err != nil {
		return measurement{}, err
	}
	open.Store(true)
	if err := pause(ctx, d, failed); err != nil {
		return measurement{}, err
	}
	open.Store(false)
	after, err := sample(s)
	if err != nil {
		return measurement{}, err
	}
	cancel()
	workers.Wait()
	m := after.since(before)
	for _, r := range recorders {
		m.ops += float64(r.ops)
		m.latencies = append(m.latencies, r.latencies...)
	}
	return m, nil
}

// pause waits, unless a worker fails first.
func pause(ctx context.Context, d time.Duration, failed <-chan error) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// bulk sends as much as the system takes.
func bulk(ctx context.Context, s *system, _ *recorder) error {
	c, err := s.client.Dial(ctx, s.sink())
	if err != nil {
		return err
	}
	defer closeWith(ctx, c)()
	for buffer := make([]byte, block); ; {
		if _, err := c.Write(buffer); err != nil {
			return err
		}
	}
}

// pings exchanges messages of a size, one after the other.
func pings(size int) func(ctx context.Context, s *system, r *recorder) error {
	return func(ctx context.Context, s *system, r *recorder) error {
		c, err := s.client.Dial(ctx, s.echo())
		if err != nil {
			return err
		}
		defer closeWith(ctx, c)()
		for message := make([]byte, size); ; {
			began, err := ping(c, message)
			if err != nil {
				return err
			}
			r.done(began)
		}
	}
}

// ping is one exchange; it returns when it began.
func ping(c net.Conn, message []byte) (time.Time, error) {
	began := time.Now()
	if _, err := c.Write(message); err != nil {
		return began, err
	}
	_, err := io.ReadFull(c, message)
	return began, err
}

// short opens a connection, exchanges one byte, ends it in order, and so on.
func short(ctx context.Context, s *system, r *recorder) error {
	for {
		began := time.Now()
		if err := one(ctx, s); err != nil {
			return fmt.Errorf("short connection: %w", err)
		}
		r.done(began)
	}
}

func one(ctx context.Context, s *system) error {
	c, err := s.client.Dial(ctx, s.echo())
	if err != nil {
		return err
	}
	defer closeWith(ctx, c)()
	if _, err := ping(c, make([]byte, 1)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes and %w, want the end", n, err)
	}
	return nil
}

// handshake opens a tunnel to the server's proxy, as another ztunnel would, as
// far as the SETTINGS of both, and closes it.
func handshake(ctx context.Context, s *system, r *recorder) error {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.cert}, RootCAs: s.pool, NextProtos: []string{http2.NextProtoTLS},
		InsecureSkipVerify: true, //nolint:gosec // the peer is the process under test; verifying would cost this side only
	}
	for {
		began := time.Now()
		if err := greet(ctx, s, cfg); err != nil {
			return fmt.Errorf("handshake: %w", err)
		}
		r.done(began)
	}
}

func greet(ctx context.Context, s *system, cfg *tls.Config) error {
	raw, err := s.stranger.Dial(ctx, s.tunnel())
	if err != nil {
		return err
	}
	defer closeWith(ctx, raw)()
	c := tls.Client(raw, cfg)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return err
	}
	framer := http2.NewFramer(c, c)
	if err := framer.WriteSettings(); err != nil {
		return err
	}
	frame, err := framer.ReadFrame()
	if err != nil {
		return err
	}
	if frame.Header().Type != http2.FrameSettings {
		return fmt.Errorf("first frame is %s, want SETTINGS", frame.Header())
	}
	return nil
}

// closeWith closes c when ctx ends, when nothing has happened for too long, or
// when the function that it returns is called.
func closeWith(ctx context.Context, c net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	return func() {
		stop()
		_ = c.Close()
	}
}

// counter counts the bytes that arrive at the sink.
type counter struct{ n atomic.Int64 }

func (s *counter) sink(c net.Conn) {
	defer func() { _ = c.Close() }()
	for buffer := make([]byte, block); ; {
		n, err := c.Read(buffer)
		s.n.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func echo(c net.Conn) {
	defer func() { _ = c.Close() }()
	for buffer := make([]byte, 4<<10); ; {
		n, err := c.Read(buffer)
		if err != nil {
			return
		}
		if _, err := c.Write(buffer[:n]); err != nil {
			return
		}
	}
}
