package hbone

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"

	"github.com/ambit-mesh/ambit/ztunnel/hbone/h2"
)

// Serve reads requests from conn until it ends, and calls handle for each in a
// goroutine of its own. An accepted stream may outlive its handle.
//
// When ctx is done the client is told to open no more streams; those there are
// go on until they end or cfg.Grace is over. Serve returns when the connection
// is closed and every handle has returned: nil if the client or ctx ended it,
// else why.
func Serve(ctx context.Context, conn net.Conn, cfg Config, handle func(*Incoming)) error {
	config := cfg.withDefaults(false).http2(false)
	config.Base = context.WithoutCancel(ctx)
	config.Handle = func(s *Stream) { incoming(s, handle) }
	c := h2.New(transport(conn), config)
	c.Start() // SETTINGS come before what Drain sends
	var draining sync.WaitGroup
	draining.Go(func() {
		select {
		case <-ctx.Done():
			c.Drain()
		case <-c.Done():
		}
	})
	err := c.Run()
	c.Wait()
	draining.Wait()
	if h2.Ended(err) {
		return nil
	}
	return err
}

func incoming(s *Stream, handle func(*Incoming)) {
	h := s.Head()
	in := &Incoming{Request: Request{Authority: h.Authority, Header: h.Fields}, Method: h.Method, s: s}
	if h.TooLarge {
		_ = in.Reject(http.StatusRequestHeaderFieldsTooLarge) // the client has gone if this fails
		return
	}
	handle(in)
}

// Incoming is a request that waits for its answer: Accept or Reject, once.
// Without an answer the stream is reset when the handler returns. It is not
// safe for concurrent use.
type Incoming struct {
	Request Request
	// Method is CONNECT for all but a lost client, which should get a 400.
	Method string

	s    *Stream
	done bool
}

// Context ends when the stream has ended both ways, or its connection.
func (in *Incoming) Context() context.Context { return in.s.Context() }

// LocalAddr returns the connection's own address.
func (in *Incoming) LocalAddr() net.Addr { return in.s.LocalAddr() }

// RemoteAddr returns the connection's other address.
func (in *Incoming) RemoteAddr() net.Addr { return in.s.RemoteAddr() }

// Accept answers 200 and returns the stream.
func (in *Incoming) Accept(header ...Field) (*Stream, error) {
	if in.Method != http.MethodConnect {
		return nil, errors.New("only a CONNECT can be accepted")
	}
	if err := in.answer(h2.Head{Status: http.StatusOK, Fields: header}, false); err != nil {
		return nil, err
	}
	return in.s, nil
}

// Reject answers with status and nothing else.
func (in *Incoming) Reject(status int) error {
	if err := in.answer(h2.Head{Status: status}, true); err != nil {
		return err
	}
	return in.s.Close() // resets with NO_ERROR if the client has not ended
}

func (in *Incoming) answer(h h2.Head, end bool) error {
	if in.done {
		return errors.New("request has been answered")
	}
	if err := in.s.Respond(h, end); err != nil {
		return err
	}
	in.done = true
	return nil
}
