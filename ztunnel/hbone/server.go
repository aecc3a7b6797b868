package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/net/http2"
)

// drainPing marks the PING between the two GOAWAYs of a graceful end.
var drainPing = [8]byte{'g', 'o', 'o', 'd', 'b', 'y', 'e'}

// Serve reads requests from conn until it ends, and calls handle for each in a
// goroutine of its own. An accepted stream may outlive its handle.
//
// When ctx is done the client is told to open no more streams; those there are
// go on until they end or cfg.Grace is over. Serve returns when the connection
// is closed and every handle has returned: nil if the client or ctx ended it,
// else why.
func Serve(ctx context.Context, conn net.Conn, cfg Config, handle func(*Incoming)) error {
	c := newConn(conn, cfg, false)
	c.base = context.WithoutCancel(ctx)
	c.handle = handle
	c.handlers.Go(func() {
		select {
		case <-ctx.Done():
			c.drain()
		case <-c.done:
		}
	})
	err := conn.SetReadDeadline(time.Now().Add(c.cfg.PrefaceTimeout))
	c.start()
	if err == nil {
		err = c.read.preface()
	}
	if err == nil {
		err = c.read.run()
	}
	c.fail(err)
	c.wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if over(c.err) {
		return nil
	}
	return c.err
}

// over reports whether err says no more than that one side has ended the
// connection, be it in the middle of what the other was sending.
func over(err error) bool {
	for _, end := range []error{errPeerClosed, errShutDown, syscall.EPIPE, syscall.ECONNRESET, io.ErrClosedPipe} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// preface reads what every client sends first.
//
// "Clients and servers MUST treat an invalid connection preface as a
// connection error of type PROTOCOL_ERROR. A GOAWAY frame MAY be omitted in
// this case" https://www.rfc-editor.org/rfc/rfc9113#section-3.4
func (r *reader) preface() error {
	var b [len(http2.ClientPreface)]byte
	if _, err := io.ReadFull(r.buf, b[:]); err != nil {
		return r.readError(err)
	}
	if string(b[:]) != http2.ClientPreface {
		return protocolError("peer does not speak HTTP/2")
	}
	return nil
}

// drain ends the connection gracefully, and returns when it has ended.
//
//  1. GOAWAY with the highest id and a PING: the client stops opening streams,
//     but those on their way are served.
//  2. When the PING is answered, or a second later: GOAWAY with the last id
//     that was seen. Later streams are refused.
//  3. When the last stream has ended, or grace is over: close.
//
// "A server that is attempting to gracefully shut down a connection SHOULD
// send an initial GOAWAY frame with the last stream identifier set to 2^31-1"
// https://www.rfc-editor.org/rfc/rfc9113#section-6.8
func (c *conn) drain() {
	grace := time.NewTimer(c.cfg.Grace)
	defer grace.Stop()
	pong := make(chan struct{}, 1)
	c.mu.Lock()
	c.drained = func() {
		select {
		case pong <- struct{}{}:
		default:
		}
	}
	c.mu.Unlock()
	c.goAway(lastStreamID, http2.ErrCodeNo)
	c.w.control(func(fr *http2.Framer) error { return fr.WritePing(false, drainPing) })
	patience := time.NewTimer(goodbyeTimeout)
	defer patience.Stop()
	select {
	case <-pong:
	case <-patience.C:
	case <-grace.C:
		c.abort(http2.ErrCodeNo, errShutDown)
		return
	case <-c.done:
		return
	}

	empty := make(chan struct{}, 1)
	c.mu.Lock()
	c.draining = true
	c.emptied = func() {
		select {
		case empty <- struct{}{}:
		default:
		}
	}
	if len(c.streams) == 0 {
		c.emptied()
	}
	c.mu.Unlock()
	c.goAway(c.lastSeen(), http2.ErrCodeNo)
	select {
	case <-empty:
	case <-grace.C:
	case <-c.done:
		return
	}
	c.abort(http2.ErrCodeNo, errShutDown)
}

// newPeerID checks the id of a stream that the client opens.
//
// "The identifier of a newly established stream MUST be numerically greater
// than all streams that the initiating endpoint has opened or reserved. ... An
// endpoint that receives an unexpected stream identifier MUST respond with a
// connection error of type PROTOCOL_ERROR."
// https://www.rfc-editor.org/rfc/rfc9113#section-5.1.1
func (c *conn) newPeerID(id uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id%2 == 0 || id <= c.lastPeerID {
		return protocolError("unexpected stream id")
	}
	c.lastPeerID = id
	return nil
}

// request begins a stream for a header block of the client.
func (r *reader) request(f *http2.MetaHeadersFrame) error {
	c, id := r.c, f.StreamID
	if c.isDraining() {
		return nil // beyond the last id of our GOAWAY: to be ignored
	}
	if err := c.newPeerID(id); err != nil {
		return err
	}
	req, method, problem := readRequest(f)
	if problem != "" {
		if err := r.costly("malformed request"); err != nil {
			return err
		}
		c.writeReset(id, http2.ErrCodeProtocol)
		return nil
	}
	s := newStream(c)
	s.id = id
	ctx, cancel := context.WithCancel(c.base)
	s.cancel = cancel
	s.header = req.Header
	in := &Incoming{Request: req, Method: method, ctx: ctx, s: s}

	c.mu.Lock()
	switch {
	case c.err != nil:
		c.mu.Unlock()
		cancel()
		return nil // the reader is about to see it
	case c.zombies >= int(c.cfg.MaxStreams):
		c.mu.Unlock()
		cancel()
		return &connError{http2.ErrCodeEnhanceYourCalm, "too many requests given up before their answer"}
	case len(c.streams) >= int(c.cfg.MaxStreams):
		c.mu.Unlock()
		cancel()
		// "An endpoint that receives a HEADERS frame that causes its advertised
		// concurrent stream limit to be exceeded MUST treat this as a stream
		// error of type PROTOCOL_ERROR or REFUSED_STREAM."
		// https://www.rfc-editor.org/rfc/rfc9113#section-5.1.2
		c.writeReset(id, http2.ErrCodeRefusedStream)
		return r.costly("request beyond the limit")
	}
	s.sendWindow = c.peerWindow
	c.streams[id] = s
	c.mu.Unlock()
	if f.StreamEnded() {
		s.remoteEnded()
	}
	c.handlers.Go(func() { in.run(f.Truncated) })
	return nil
}

// Incoming is a request that waits for its answer: Accept or Reject, once.
// Without an answer the stream is reset when the handler returns. It is not
// safe for concurrent use.
type Incoming struct {
	Request Request
	// Method is CONNECT for all but a lost client, which should get a 400.
	Method string

	ctx  context.Context //nolint:containedctx // of this request, as in net/http
	s    *Stream
	done bool
}

// Context ends when the stream has ended both ways, or its connection.
func (in *Incoming) Context() context.Context { return in.ctx }

// LocalAddr returns the connection's own address.
func (in *Incoming) LocalAddr() net.Addr { return in.s.LocalAddr() }

// RemoteAddr returns the connection's other address.
func (in *Incoming) RemoteAddr() net.Addr { return in.s.RemoteAddr() }

func (in *Incoming) run(truncated bool) {
	if truncated {
		_ = in.Reject(431) // the client has gone if this fails
	} else {
		in.s.c.handle(in)
	}
	if !in.done {
		in.s.Reset()
	}
	in.handled()
}

// handled notes that the request costs nothing more than its stream.
func (in *Incoming) handled() {
	c := in.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	in.s.handled = true
	if in.s.zombie {
		in.s.zombie = false
		c.zombies--
	}
}

// Accept answers 200 and returns the stream.
func (in *Incoming) Accept(header ...Field) (*Stream, error) {
	if in.Method != "CONNECT" {
		return nil, errors.New("only a CONNECT can be accepted")
	}
	if err := in.answer(200, header, false); err != nil {
		return nil, err
	}
	return in.s, nil
}

// Reject answers with status and nothing else.
func (in *Incoming) Reject(status int) error {
	if err := in.answer(status, nil, true); err != nil {
		return err
	}
	in.s.ended(&in.s.localEnd)
	return in.s.Close() // resets with NO_ERROR if the client has not ended
}

func (in *Incoming) answer(status int, header []Field, end bool) error {
	if in.done {
		return errors.New("request has been answered")
	}
	s := in.s
	fields, err := responseFields(status, header)
	if err != nil {
		return err
	}
	in.done = true
	begin := func() (uint32, error) { return s.id, s.mayWrite() }
	if err := s.c.w.headers(headerBlock{begin: begin, fields: fields, endStream: end}); err != nil {
		s.Reset()
		return err
	}
	s.mu.Lock()
	s.isHead = true
	s.mu.Unlock()
	in.handled()
	return nil
}
