package hbone

import (
	"context"
	"net"

	"golang.org/x/net/http2"
)

// A Tunnel is the client side of one connection. It ends when Close is called,
// the connection breaks, or the last stream has ended after the peer said
// GOAWAY.
type Tunnel struct {
	c *conn
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
	t := &Tunnel{c: newConn(nc, cfg, true), ended: make(chan struct{})}
	c := t.c
	c.emptied = func() {
		if c.isDraining() {
			c.goodbye()
		}
		tell.emptied()
	}
	c.start()
	go func() { // ends with the connection; Close waits for it
		defer close(t.ended)
		_ = c.read.run() // the streams have been told
		c.wait()
		tell.ended()
	}()
	return t
}

// Open asks for a stream and waits until the peer has agreed to it. The error
// is a [*StatusError] when it has not. When ctx ends first, the stream is
// reset and the error is ctx's cause.
func (t *Tunnel) Open(ctx context.Context, r Request) (*Stream, error) {
	return t.c.open(ctx, r, false)
}

// Done is closed when the tunnel has ended.
func (t *Tunnel) Done() <-chan struct{} { return t.c.done }

// Close ends the tunnel and every stream on it, and waits until that is done.
func (t *Tunnel) Close() error {
	t.c.abort(http2.ErrCodeNo, errShutDown)
	<-t.ended
	return nil
}

// peerGoesAway is a GOAWAY from the peer: no new streams, those that it will
// not process end, the others run on.
//
// "Receivers of a GOAWAY frame MUST NOT open additional streams on the
// connection" https://www.rfc-editor.org/rfc/rfc9113#section-6.8
func (c *conn) peerGoesAway(last uint32, _ http2.ErrCode) {
	if !c.client {
		return // we open no streams, and it may still use its own
	}
	var refused []*Stream
	c.mu.Lock()
	c.draining = true
	empty := func() {}
	for id, s := range c.streams {
		if id > last {
			refused = append(refused, s)
			c.forget(s)
		}
	}
	if len(c.streams) == 0 {
		empty = c.emptied
	}
	c.mu.Unlock()
	for _, s := range refused {
		s.end(errUnprocessed, errUnprocessed)
	}
	empty()
}

func (c *conn) isDraining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining
}

// goodbye ends a connection on which nothing happens any more. It does not
// wait: the caller may be the reader.
func (c *conn) goodbye() {
	c.goAway(c.lastSeen(), http2.ErrCodeNo)
	c.w.close(errShutDown)
}
