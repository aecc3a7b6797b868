package h2

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A Stream is one request with its answer. It is a [net.Conn] whose two
// directions end separately, like those of a TCP connection. A CONNECT that was
// answered with 2xx is connected: DATA is all that follows.
type Stream struct {
	c       *Conn
	id      uint32          // set once, before the stream is known to the reader
	connect bool            // the request is a CONNECT
	early   int             // bytes sent with the request
	ctx     context.Context //nolint:containedctx // server: of the request, as in net/http
	cancel  context.CancelFunc

	// answered is closed when the answer is known or will never come. Clients
	// wait for it.
	answered chan struct{}

	rmu sync.Mutex // held by whoever takes received bytes
	wmu sync.Mutex // held by the goroutine that sends
	cut bool       // under wmu: a Write has failed, what was sent is not the whole

	// sendErr is why nothing can be sent any more; the first error stays.
	sendErr      atomic.Pointer[error]
	writeExpired atomic.Bool
	queueWrites  atomic.Bool // a write deadline is set

	// Under Conn.mu.
	writable   sync.Cond // window, or sendErr, or the deadline
	sendWindow int64
	inLine     bool // in Conn.waiting
	localEnd   bool // END_STREAM is queued
	remoteEnd  bool // END_STREAM was received
	closed     bool
	zombie     bool // counted in Conn.zombies
	handled    bool // server: the handler has answered or returned
	writeBy    deadline

	mu         sync.Mutex
	readable   sync.Cond // bytes, or recvErr, or the deadline
	recv       queue
	to         *forward // where bytes go without being queued, if they do
	window     int64    // that the peer has when all is read
	recvWindow int64    // that the peer may still send
	grown      int64    // what window has grown beyond its first size
	owed       int64    // taken and not yet given back
	recvErr    error    // after the bytes in recv; io.EOF for a clean end
	dropped    bool     // by Close: received bytes are thrown away
	isHead     bool     // client: the answer is here. Server: it was given
	status     int      // of the answer
	head       Head     // what the peer has sent
	trailer    []Field
	readBy     deadline
	expired    bool // of readBy
}

func newStream(c *Conn) *Stream {
	s := &Stream{c: c, cancel: func() {}}
	if c.cfg.Client {
		s.answered = make(chan struct{})
	}
	s.writable.L = &c.mu
	s.readable.L = &s.mu
	return s
}

// Context ends when a request's stream has ended both ways, or its connection.
// Only a server's stream has one.
func (s *Stream) Context() context.Context { return s.ctx }

// Head returns the head that the peer has sent: the request, or the answer once
// it is there. Its fields must not be changed.
func (s *Stream) Head() Head {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head
}

// Header returns the fields of Head.
func (s *Stream) Header() []Field { return s.Head().Fields }

// Trailer returns the trailers that the peer has sent, nil before io.EOF.
func (s *Stream) Trailer() []Field {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trailer
}

// Early returns how many bytes have been sent with the request.
func (s *Stream) Early() int { return s.early }

// Answered is closed when Answer no longer waits.
func (s *Stream) Answered() <-chan struct{} { return s.answered }

// Answer waits for the answer to a request of ours. [ErrUnprocessed] and
// [ErrNoRoom] say that the request may be sent again.
func (s *Stream) Answer() (Head, error) {
	<-s.answered
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isHead {
		return s.head, nil
	}
	err := *s.sendErr.Load()
	// "Any request that was sent on the reset stream can be safely retried."
	// https://www.rfc-editor.org/rfc/rfc9113#section-8.7
	if reset, ok := err.(*ResetError); ok && reset.Code == RefusedStream { //nolint:errorlint // set by us, bare
		return Head{}, ErrUnprocessed
	}
	return Head{}, err
}

// LocalAddr returns the connection's own address.
func (s *Stream) LocalAddr() net.Addr { return s.c.net.LocalAddr() }

// RemoteAddr returns the connection's other address.
func (s *Stream) RemoteAddr() net.Addr { return s.c.net.RemoteAddr() }

// Write sends p. It returns when the bytes have been handed to the connection
// or are the next to be. A deadline or Close ends a Write that waits for flow
// control; one that is already writing to a connection that takes no bytes
// ends with the connection.
func (s *Stream) Write(p []byte) (int, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if len(p) == 0 {
		return 0, s.stopped(false)
	}
	sent := 0
	for sent < len(p) {
		queue, want := s.queueWrites.Load(), len(p)-sent
		if queue {
			want = min(want, minFrameSize)
		}
		n, err := s.c.take(s, want)
		if err != nil {
			s.cut = true
			return sent, err
		}
		err = s.c.w.data(dataFrame{s: s, payload: p[sent : sent+n], queue: queue})
		if err != nil {
			s.c.giveBack(s, n)
			s.cut = true
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// stopped reports why a frame must not be sent. A deadline does not keep a
// stream from being ended.
func (s *Stream) stopped(end bool) error {
	if err := s.sendErr.Load(); err != nil {
		return *err
	}
	if !end && s.writeExpired.Load() {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// CloseWrite ends what we send; the peer reads EOF after it. Reading goes on.
func (s *Stream) CloseWrite() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.c.mu.Lock()
	ended := s.localEnd
	s.c.mu.Unlock()
	if ended {
		return nil
	}
	if err := s.c.w.data(dataFrame{s: s, end: true}); err != nil {
		return err
	}
	s.ended(&s.localEnd)
	return nil
}

// ended notes that one direction has ended; with both the stream is over.
func (s *Stream) ended(direction *bool) {
	c := s.c
	c.mu.Lock()
	*direction = true
	if direction == &s.localEnd {
		s.sendErr.CompareAndSwap(nil, &errWriteClosed)
	}
	after := func() {}
	over := s.localEnd && s.remoteEnd
	if over {
		after = c.forget(s)
	}
	c.mu.Unlock()
	if over {
		s.cancel()
	}
	after()
}

// Close ends both directions at once and drops what has not been read. The peer
// reads EOF after what was sent, unless a Write has failed or goes on still:
// then, and for what it may yet send, the stream is reset.
func (s *Stream) Close() error {
	s.endWriting()
	s.close(func(localEnd bool) ErrCode {
		// "A server MAY request that the client abort transmission of a
		// request without error by sending a RST_STREAM with an error code of
		// NO_ERROR after sending a complete response"
		// https://www.rfc-editor.org/rfc/rfc9113#section-8.1
		if localEnd && !s.c.cfg.Client {
			return NoError
		}
		return Cancel
	})
	return nil
}

// endWriting is CloseWrite for Close, which never waits: neither for a Write
// nor for the connection.
func (s *Stream) endWriting() {
	if !s.wmu.TryLock() {
		return
	}
	defer s.wmu.Unlock()
	s.c.mu.Lock()
	over := s.closed || s.localEnd
	s.c.mu.Unlock()
	if over || s.cut || s.c.w.data(dataFrame{s: s, end: true, queue: true}) != nil {
		return
	}
	s.ended(&s.localEnd)
}

// Reset is Close for a stream that must not look as if it had ended well.
func (s *Stream) Reset() {
	s.close(func(bool) ErrCode { return Cancel })
}

func (s *Stream) close(code func(localEnd bool) ErrCode) {
	c := s.c
	c.mu.Lock()
	if s.closed {
		c.mu.Unlock()
		return
	}
	s.closed = true
	unfinished := c.streams[s.id] == s
	after := c.forget(s)
	localEnd := s.localEnd
	s.writeBy.stop()
	c.mu.Unlock()

	s.mu.Lock()
	s.dropped = true
	s.recv.drop()
	s.readBy.stop()
	s.recvErr = net.ErrClosed
	grown := s.grown
	s.grown = 0
	s.mu.Unlock()
	c.shrink(grown)
	s.end(net.ErrClosed, net.ErrClosed)
	if unfinished {
		c.writeReset(s.id, code(localEnd))
	}
	after()
}

// end stops both directions. A reader gets recvErr after what was received,
// unless that had ended before.
func (s *Stream) end(recvErr, sendErr error) {
	if !s.sendErr.CompareAndSwap(nil, &sendErr) {
		s.sendErr.CompareAndSwap(&errWriteClosed, &sendErr)
	}
	s.c.mu.Lock()
	s.writable.Broadcast()
	s.c.mu.Unlock()
	s.c.w.wake()
	s.endReading(recvErr)
	s.cancel()
}

// remoteEnded is the peer's END_STREAM.
func (s *Stream) remoteEnded() {
	s.endReading(io.EOF)
	s.ended(&s.remoteEnd)
}

// peerReset is the peer's RST_STREAM, which also ends what we send. Before its
// END_STREAM it is an error for the reader, whatever the code, and not the EOF
// of spec/ztunnel.md §2.11: what was received may not be the whole.
func (s *Stream) peerReset(code ErrCode) {
	c := s.c
	c.mu.Lock()
	after := c.giveUp(s)
	c.mu.Unlock()
	reset := &ResetError{Code: code}
	s.end(reset, reset)
	after()
}

// SetDeadline sets both deadlines.
func (s *Stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t) // never fails
	return s.SetWriteDeadline(t)
}

// SetReadDeadline bounds present and future reads; the zero time removes it.
// It does not bound Forward.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expired = s.readBy.set(t, &s.mu, func() {
		s.expired = true
		s.readable.Broadcast()
	}, func() {})
	if s.expired {
		s.readable.Broadcast()
	}
	return nil
}

// SetWriteDeadline bounds present and future writes; the zero time removes it.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.c.mu.Lock()
	s.queueWrites.Store(!t.IsZero())
	expired := s.writeBy.set(t, &s.c.mu, func() {
		s.writeExpired.Store(true)
		s.writable.Broadcast()
	}, s.c.w.wake)
	s.writeExpired.Store(expired)
	s.writable.Broadcast()
	s.c.mu.Unlock()
	if expired {
		s.c.w.wake()
	}
	return nil
}

// A deadline calls a function under a lock when its time has come.
type deadline struct {
	timer *time.Timer
	turn  int // of the latest set: an older timer that fires late is ignored
}

// set replaces the deadline, and reports whether the new one has passed
// already. The caller holds mu; expire will be called with it, then after
// without.
func (d *deadline) set(t time.Time, mu sync.Locker, expire, after func()) (expired bool) {
	d.stop()
	if t.IsZero() {
		return false
	}
	left := time.Until(t)
	if left <= 0 {
		return true
	}
	turn := d.turn
	d.timer = time.AfterFunc(left, func() {
		mu.Lock()
		current := d.turn == turn
		if current {
			expire()
		}
		mu.Unlock()
		if current {
			after()
		}
	})
	return false
}

func (d *deadline) stop() {
	d.turn++
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
