package hbone

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	maxWindow       = 1<<31 - 1
	defaultWindow   = 65535 // of streams and connection before any SETTINGS, RFC 9113 §6.9.2
	readBufSize     = 4 << 10
	goodbyeTimeout  = time.Second // for the last frames to leave
	lastStreamID    = 1<<31 - 1
	headerTableSize = 4096
)

// A conn is one HTTP/2 connection, in either role. reader.go holds what its
// reading goroutine does and owns.
type conn struct {
	net    net.Conn
	cfg    Config
	client bool
	w      writer
	read   reader
	base   context.Context //nolint:containedctx // server: of requests
	handle func(*Incoming) // server: runs in a goroutine of its own

	done     chan struct{} // closed when the connection has failed or ended
	handlers sync.WaitGroup
	maxFrame atomic.Uint32 // the peer's limit

	mu         sync.Mutex
	streams    map[uint32]*Stream
	cause      error // why the connection is about to end
	err        error // why the connection has ended
	sendWindow int64
	peerWindow int64     // of new streams, as the peer wants it
	waiting    []*Stream // want sendWindow, in order
	nextID     uint32    // client: of the next stream
	lastPeerID uint32    // server: highest stream seen
	peerMax    uint32    // client: streams that the peer allows
	reserved   int       // client: streams about to be opened
	draining   bool      // no new streams: a GOAWAY was received or is about to end it
	zombies    int       // server: streams that are gone and still have an unanswered handler
	emptied    func()    // called without locks when the last stream has gone
	drained    func()    // called with mu when drainPing is answered
	ping       pinger
}

func newConn(nc net.Conn, cfg Config, client bool) *conn {
	c := &conn{
		net: nc, cfg: cfg.withDefaults(client), client: client,
		done:       make(chan struct{}),
		streams:    map[uint32]*Stream{},
		sendWindow: defaultWindow,
		peerWindow: defaultWindow,
		nextID:     1,
		peerMax:    100, // assumed until SETTINGS say otherwise, spec/ztunnel.md §2.10
		emptied:    func() {},
	}
	c.maxFrame.Store(minFrameSize)
	c.w.init(nc, c.fail)
	c.read.init(c)
	return c
}

// start queues our side of the connection preface and starts the pings.
//
// "The server connection preface consists of a potentially empty SETTINGS
// frame that MUST be the first frame", the client's is 24 octets "followed by
// a SETTINGS frame" https://www.rfc-editor.org/rfc/rfc9113#section-3.4
func (c *conn) start() {
	settings := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: c.firstWindow()},
		{ID: http2.SettingMaxFrameSize, Val: c.cfg.MaxFrameSize},
		{ID: http2.SettingMaxHeaderListSize, Val: c.cfg.MaxHeaderBytes},
	}
	if c.client {
		settings = append(settings, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	} else {
		settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.cfg.MaxStreams})
	}
	c.w.control(func(fr *http2.Framer) error {
		if c.client {
			if _, err := (*pendingSink)(&c.w).Write([]byte(http2.ClientPreface)); err != nil {
				return err
			}
		}
		if err := fr.WriteSettings(settings...); err != nil {
			return err
		}
		if more := c.cfg.ConnWindow - defaultWindow; more > 0 {
			return fr.WriteWindowUpdate(0, more)
		}
		return nil
	})
	c.startPings()
}

// firstWindow is the receive window that a stream starts with. A server's is
// small, so that a client costs little before it is allowed in and somebody
// reads; it grows while they do.
func (c *conn) firstWindow() uint32 {
	if c.client {
		return c.cfg.StreamWindow
	}
	return min(c.cfg.StreamWindow, defaultWindow)
}

// fail ends the connection and everything on it. Only the first call counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = cmp.Or(c.cause, err)
	err = c.err
	streams := c.streams
	c.streams = map[uint32]*Stream{}
	c.stopPings()
	c.mu.Unlock()

	c.w.stop(&tunnelError{err})
	for _, s := range streams {
		s.end(&tunnelError{err}, &tunnelError{err})
	}
	close(c.done)
	_ = c.net.Close() // the connection is over either way
}

// abort tells the peer why the connection ends, then fails.
//
// "An endpoint that encounters a connection error SHOULD first send a GOAWAY
// frame with the stream identifier of the last stream that it successfully
// received" https://www.rfc-editor.org/rfc/rfc9113#section-5.4.1
func (c *conn) abort(code http2.ErrCode, err error) {
	c.mu.Lock()
	c.cause = cmp.Or(c.cause, err)
	c.mu.Unlock()
	c.goAway(c.lastSeen(), code)
	_ = c.net.SetWriteDeadline(time.Now().Add(goodbyeTimeout)) // best effort
	c.w.drain()
	c.fail(err)
}

func (c *conn) goAway(last uint32, code http2.ErrCode) {
	c.w.control(func(fr *http2.Framer) error { return fr.WriteGoAway(last, code, nil) })
}

func (c *conn) lastSeen() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastPeerID
}

// wait returns when every goroutine of the connection has ended, the reading
// one excepted.
func (c *conn) wait() {
	c.handlers.Wait()
	c.w.flushes.Wait()
}

// stream returns the stream with an id. known is false if the id has never
// been in use.
func (c *conn) stream(id uint32) (s *Stream, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client {
		known = id%2 == 1 && id < c.nextID
	} else {
		known = id%2 == 1 && (id <= c.lastPeerID || c.draining) // after our GOAWAY more may come, to be ignored
	}
	return c.streams[id], known
}

// forget removes a stream that has ended both ways. c.mu is held; the caller
// calls what forget returns after unlocking.
func (c *conn) forget(s *Stream) (after func()) {
	if c.streams[s.id] != s {
		return func() {}
	}
	delete(c.streams, s.id)
	c.unqueue(s)
	if len(c.streams) > 0 {
		return func() {}
	}
	return c.emptied
}

// streamError ends one stream for something that the peer did wrong, or that
// we do not want any more.
func (c *conn) streamError(id uint32, code http2.ErrCode, reason string) {
	c.mu.Lock()
	s, after := c.streams[id], func() {}
	if s != nil {
		after = c.forget(s)
	}
	c.mu.Unlock()
	if s != nil {
		err := &ResetError{Code: code, Reason: reason}
		s.end(err, err)
	}
	c.writeReset(id, code)
	after()
}

func (c *conn) writeReset(id uint32, code http2.ErrCode) {
	c.w.control(func(fr *http2.Framer) error { return fr.WriteRSTStream(id, code) })
}

// open sends a CONNECT and waits for its answer.
func (c *conn) open(ctx context.Context, r Request, reserved bool) (*Stream, error) {
	fields, err := requestFields(r)
	if err != nil {
		if reserved {
			c.unreserve()
		}
		return nil, err
	}
	s := newStream(c)
	if err := c.w.headers(headerBlock{begin: func() (uint32, error) { return c.register(s, reserved) }, fields: fields}); err != nil {
		return nil, err
	}
	timeout := time.NewTimer(c.cfg.OpenTimeout)
	defer timeout.Stop()
	select {
	case <-s.answered:
	case <-ctx.Done():
		s.Reset()
		return nil, context.Cause(ctx)
	case <-timeout.C:
		s.Reset()
		return nil, fmt.Errorf("connect: no answer within %v: %w", c.cfg.OpenTimeout, os.ErrDeadlineExceeded)
	}
	status, err := s.answer()
	if err != nil {
		return nil, err
	}
	if status != 200 {
		s.Reset()
		return nil, &StatusError{Status: status}
	}
	return s, nil
}

// reserve makes room for one stream that is about to be opened. live is false
// if the connection will never have room again.
func (c *conn) reserve(most uint32) (ok, live bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.draining || c.nextID > maxWindow {
		return false, false
	}
	// At least one, else a pool would dial for ever; register knows better.
	if uint32(len(c.streams)+c.reserved) >= max(min(most, c.peerMax), 1) {
		return false, true
	}
	c.reserved++
	return true, true
}

func (c *conn) unreserve() {
	c.mu.Lock()
	c.reserved--
	after := func() {}
	if len(c.streams) == 0 {
		after = c.emptied
	}
	c.mu.Unlock()
	after()
}

// register gives a stream of ours its id. Called by the writer, so that ids
// reach the peer in order.
func (c *conn) register(s *Stream, reserved bool) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if reserved {
		c.reserved--
	}
	switch {
	case c.err != nil:
		return 0, &tunnelError{c.err}
	case c.draining, c.nextID > maxWindow:
		return 0, errUnprocessed
	// "Endpoints MUST NOT exceed the limit set by their peer."
	// https://www.rfc-editor.org/rfc/rfc9113#section-5.1.2
	case uint32(len(c.streams)) >= c.peerMax:
		return 0, errNoRoom
	}
	s.id = c.nextID
	c.nextID += 2
	s.sendWindow = c.peerWindow
	c.streams[s.id] = s
	return s.id, nil
}

// take gets send window for a frame of s, up to want bytes, and waits for it.
// A stream that has window waits for the connection's in line.
func (c *conn) take(s *Stream, want int) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if err := s.mayWrite(); err != nil {
			c.unqueue(s)
			return 0, err
		}
		if s.sendWindow <= 0 {
			c.unqueue(s)
			s.writable.Wait()
			continue
		}
		first := len(c.waiting) == 0 || c.waiting[0] == s
		if first && c.sendWindow > 0 {
			break
		}
		if !s.inLine {
			s.inLine = true
			c.waiting = append(c.waiting, s)
		}
		s.writable.Wait()
	}
	n := min(int64(want), s.sendWindow, c.sendWindow, int64(c.maxFrame.Load()))
	if len(c.waiting) > 1 {
		n = min(n, maxPending) // leave some for the others
	}
	s.sendWindow -= n
	c.sendWindow -= n
	c.unqueue(s)
	return int(n), nil
}

// giveBack returns window that take gave and no frame has used.
func (c *conn) giveBack(s *Stream, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.sendWindow += int64(n)
	c.sendWindow += int64(n)
	c.wakeFirst()
}

// unqueue takes s out of the line for the connection's window.
func (c *conn) unqueue(s *Stream) {
	if !s.inLine {
		if c.sendWindow > 0 {
			c.wakeFirst()
		}
		return
	}
	s.inLine = false
	for i, other := range c.waiting {
		if other == s {
			c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
			break
		}
	}
	c.wakeFirst()
}

func (c *conn) wakeFirst() {
	if c.sendWindow > 0 && len(c.waiting) > 0 {
		c.waiting[0].writable.Broadcast()
	}
}

// reader is the state that only the reading goroutine of a connection touches.
type reader struct {
	c      *conn
	buf    *bufio.Reader
	frames *http2.Framer
	window int64  // that the peer may still send
	owed   uint32 // read and not yet given back
	abuse  int    // frames that cost us more than the peer, since abuseAt
	since  time.Time
}

func (r *reader) init(c *conn) {
	r.c = c
	r.buf = bufio.NewReaderSize(c.net, readBufSize)
	r.frames = http2.NewFramer(nil, r.buf)
	r.frames.SetMaxReadFrameSize(c.cfg.MaxFrameSize)
	r.frames.ReadMetaHeaders = hpack.NewDecoder(headerTableSize, nil)
	r.frames.MaxHeaderListSize = c.cfg.MaxHeaderBytes
	r.window = int64(c.cfg.ConnWindow)
}

// run reads frames until the connection ends, tells the peer if it was at
// fault, and fails every stream.
func (r *reader) run() error {
	err := r.loop()
	if ce, ok := errors.AsType[*connError](err); ok {
		r.c.abort(ce.code, err)
	} else {
		r.c.fail(err)
	}
	return err
}
