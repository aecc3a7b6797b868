package hbone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/hbone/h2"
)

// A Tunnel is the client side of one connection. It ends when Close is called,
// the connection breaks, or the last stream has ended after the peer said
// GOAWAY.
type Tunnel struct {
	c           *h2.Conn
	openTimeout time.Duration
	// ended is closed when every goroutine of the tunnel has returned.
	ended chan struct{}
}

// NewTunnel takes over conn, whose handshake is done. It writes the preface
// without waiting for the peer's.
func NewTunnel(conn net.Conn, cfg Config) (*Tunnel, error) {
	return newTunnel(conn, cfg, events{emptied: func() {}, ended: func() {}}), nil
}

// events tells the owner of a tunnel about it; no locks are held.
type events struct {
	emptied func() // the last stream has ended, again and again
	ended   func()
}

func newTunnel(nc net.Conn, cfg Config, tell events) *Tunnel {
	cfg = cfg.withDefaults(true)
	t := &Tunnel{openTimeout: cfg.OpenTimeout, ended: make(chan struct{})}
	config := cfg.http2(true)
	config.Emptied = func() {
		if t.c.Draining() {
			t.c.Goodbye()
		}
		tell.emptied()
	}
	t.c = h2.New(transport(nc), config)
	t.c.Start()
	go func() { // ends with the connection; Close waits for it
		defer close(t.ended)
		_ = t.c.Run() // the streams have been told
		t.c.Wait()
		tell.ended()
	}()
	return t
}

// Open asks for a stream and waits until the peer has agreed to it. The error
// is a [*StatusError] when it has not. When ctx ends first, the stream is
// reset and the error is ctx's cause.
func (t *Tunnel) Open(ctx context.Context, r Request) (*Stream, error) {
	s, _, err := t.open(ctx, r, false)
	return s, err
}

// open is Open. again reports that the peer has not seen the request.
func (t *Tunnel) open(ctx context.Context, r Request, reserved bool) (s *Stream, again bool, err error) {
	early := r.Early[:min(len(r.Early), MaxEarly)]
	s, err = t.c.Open(h2.Head{Method: http.MethodConnect, Authority: r.Authority, Fields: r.Header}, early, reserved)
	if err != nil {
		return nil, unseen(err) || isEnd(err), err
	}
	timeout := time.NewTimer(t.openTimeout)
	defer timeout.Stop()
	select {
	case <-s.Answered():
	case <-ctx.Done():
		s.Reset()
		return nil, false, context.Cause(ctx)
	case <-timeout.C:
		s.Reset()
		return nil, false, fmt.Errorf("connect: no answer within %v: %w", t.openTimeout, os.ErrDeadlineExceeded)
	}
	head, err := s.Answer()
	if err != nil {
		s.Reset() // over already; what was kept for it is given back
		// A tunnel that has died may have delivered what was sent early.
		again = unseen(err) || isEnd(err) && s.Early() == 0
		if reset, ok := errors.AsType[*ResetError](err); ok {
			err = fmt.Errorf("connect: %w", reset)
		}
		return nil, again, err
	}
	if head.Status != http.StatusOK {
		s.Reset()
		return nil, false, &StatusError{Status: head.Status}
	}
	if rest := r.Early[s.Early():]; len(rest) > 0 {
		if _, err := s.Write(rest); err != nil {
			s.Reset()
			return nil, false, err
		}
	}
	return s, false, nil
}

// unseen reports whether the peer has not looked at a request.
func unseen(err error) bool {
	return errors.Is(err, h2.ErrUnprocessed) || errors.Is(err, h2.ErrNoRoom)
}

// isEnd reports whether the tunnel has ended.
func isEnd(err error) bool {
	_, ok := errors.AsType[*h2.EndError](err)
	return ok
}

// Done is closed when the tunnel has ended.
func (t *Tunnel) Done() <-chan struct{} { return t.c.Done() }

// Close ends the tunnel and every stream on it, and waits until that is done.
func (t *Tunnel) Close() error {
	t.c.Abort(h2.NoError, h2.ErrShutDown)
	<-t.ended
	return nil
}
