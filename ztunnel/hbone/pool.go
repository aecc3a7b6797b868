package hbone

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"
)

// A Pool opens streams over tunnels that it dials when needed, keeps and
// shares, by key. A tunnel without streams is closed after Config.IdleTimeout.
type Pool[K comparable] struct {
	dial func(ctx context.Context, key K) (net.Conn, error)
	cfg  Config

	running sync.WaitGroup // dials, and tunnels being closed

	mu      sync.Mutex
	closed  bool
	tunnels map[K][]*pooled
	dials   map[K]*dialing
}

// pooled is a tunnel of the pool.
type pooled struct {
	tunnel *Tunnel
	idle   *time.Timer // runs while there is no stream; under Pool.mu
}

// dialing is a dial that one or more callers wait for.
type dialing struct {
	cancel  context.CancelFunc
	waiters int           // under Pool.mu; the dial is given up without
	done    chan struct{} // closed when err is set
	err     error
}

// NewPool returns an empty pool. dial makes a connection whose handshake is
// done; it runs once per key at a time, and its context ends when nobody waits
// for it any more.
func NewPool[K comparable](dial func(ctx context.Context, key K) (net.Conn, error), cfg Config) *Pool[K] {
	return &Pool[K]{
		dial: dial, cfg: cfg.withDefaults(true),
		tunnels: map[K][]*pooled{}, dials: map[K]*dialing{},
	}
}

// openAttempts bounds how often a request is sent when tunnels die of it or
// refuse it unprocessed.
const openAttempts = 3

// Open opens a stream on a tunnel for key. A request that no peer has answered
// because its tunnel has died or is going away is sent on another one, unless the
// peer may have delivered what was sent early.
func (p *Pool[K]) Open(ctx context.Context, key K, r Request) (*Stream, error) {
	for attempt := 1; ; attempt++ {
		t, err := p.get(ctx, key)
		if err != nil {
			return nil, err
		}
		s, again, err := t.open(ctx, r, true)
		if err == nil {
			return s, nil
		}
		if !again || attempt == openAttempts || ctx.Err() != nil {
			return nil, err
		}
		if isEnd(err) {
			_ = t.Close() // forgets it, too
		}
	}
}

// get returns a tunnel with room for a stream, which is reserved.
func (p *Pool[K]) get(ctx context.Context, key K) (*Tunnel, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, net.ErrClosed
		}
		if t := p.pick(key); t != nil {
			p.mu.Unlock()
			return t, nil
		}
		d := p.dials[key]
		if d == nil {
			d = p.startDial(ctx, key)
		}
		d.waiters++
		p.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil {
				return nil, d.err
			}
		case <-ctx.Done():
			p.leave(key, d)
			return nil, context.Cause(ctx)
		}
	}
}

// pick reserves a stream on the first tunnel that has room, and forgets those
// that are dead; p.mu is held.
func (p *Pool[K]) pick(key K) *Tunnel {
	list := p.tunnels[key]
	for i := 0; i < len(list); {
		ok, live := list[i].tunnel.c.Reserve(p.cfg.MaxStreams)
		if ok {
			list[i].idle.Stop()
			return list[i].tunnel
		}
		if live {
			i++
			continue
		}
		list[i].idle.Stop()
		list = slices.Delete(list, i, i+1)
		p.set(key, list)
	}
	return nil
}

func (p *Pool[K]) set(key K, list []*pooled) {
	if len(list) == 0 {
		delete(p.tunnels, key)
		return
	}
	p.tunnels[key] = list
}

// startDial dials in a goroutine of its own, because who asked first may leave
// first; p.mu is held.
func (p *Pool[K]) startDial(ctx context.Context, key K) *dialing {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d := &dialing{cancel: cancel, done: make(chan struct{})}
	p.dials[key] = d
	p.running.Go(func() {
		defer cancel()
		nc, err := p.dial(ctx, key)
		p.dialed(key, d, nc, err)
	})
	return d
}

// dialed ends a dial, well or not.
func (p *Pool[K]) dialed(key K, d *dialing, nc net.Conn, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer close(d.done)
	if p.dials[key] == d {
		delete(p.dials, key)
	}
	if err == nil && p.closed {
		_ = nc.Close() // nobody has used it
		err = net.ErrClosed
	}
	if err != nil {
		d.err = err
		return
	}
	e := &pooled{}
	e.idle = time.AfterFunc(p.cfg.IdleTimeout, func() { p.release(key, e) })
	e.tunnel = newTunnel(nc, p.cfg, events{
		emptied: func() { p.emptied(key, e) },
		ended:   func() { p.remove(key, e) },
	})
	p.tunnels[key] = append(p.tunnels[key], e)
}

// leave gives up waiting for a dial.
func (p *Pool[K]) leave(key K, d *dialing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.waiters--; d.waiters > 0 {
		return
	}
	d.cancel()
	if p.dials[key] == d {
		delete(p.dials, key) // who comes now starts afresh
	}
}

// emptied starts the clock of a tunnel that has no streams.
func (p *Pool[K]) emptied(key K, e *pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || !slices.Contains(p.tunnels[key], e) {
		return
	}
	e.idle.Reset(p.cfg.IdleTimeout)
}

// release closes a tunnel that has been idle for long enough.
func (p *Pool[K]) release(key K, e *pooled) {
	p.mu.Lock()
	if p.closed || !e.tunnel.c.Retire() {
		p.mu.Unlock()
		return
	}
	p.drop(key, e)
	p.running.Add(1)
	p.mu.Unlock()
	defer p.running.Done()
	_ = e.tunnel.Close() // never fails
}

// remove forgets a tunnel that has ended.
func (p *Pool[K]) remove(key K, e *pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(key, e)
}

// drop takes e out of the pool; p.mu is held.
func (p *Pool[K]) drop(key K, e *pooled) {
	e.idle.Stop()
	p.set(key, slices.DeleteFunc(p.tunnels[key], func(other *pooled) bool { return other == e }))
}

// Close ends all tunnels and their streams, and every dial, and waits for that.
func (p *Pool[K]) Close() error {
	p.mu.Lock()
	p.closed = true
	var tunnels []*Tunnel
	for _, list := range p.tunnels {
		for _, e := range list {
			e.idle.Stop()
			tunnels = append(tunnels, e.tunnel)
		}
	}
	clear(p.tunnels)
	for _, d := range p.dials {
		d.cancel()
	}
	p.mu.Unlock()
	var closing sync.WaitGroup
	for _, t := range tunnels {
		closing.Go(func() { _ = t.Close() }) // never fails
	}
	closing.Wait()
	p.running.Wait()
	return nil
}
