package hbone

import (
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	frameHeaderLen = 9
	minFrameSize   = 16 << 10
	// maxPending bounds the DATA that waits for its turn; a writer that does
	// not fit waits. A buffer has some room beyond for control frames.
	maxPending    = 64 << 10
	writeBufSize  = maxPending + 2<<10
	maxUnsentCtrl = 1 << 20
)

// errNotReading ends a connection whose peer makes us answer and does not read
// the answers.
var errNotReading = errors.New("peer does not read answers to its frames")

// A writer puts frames on a connection in the order in which they were added.
// One goroutine at a time owns the connection (busy); frames added meanwhile
// gather in pending and go out together.
type writer struct {
	conn   net.Conn
	failed func(error) // called once, in a goroutine of its own, without locks

	mu      sync.Mutex
	turn    sync.Cond // busy became false, or a condition that stops a waiter changed
	waiters int
	busy    bool
	pending []byte
	err     error // no more writes
	frames  *http2.Framer
	hpack   *hpack.Encoder
	block   []byte // the header block being encoded
	flushes sync.WaitGroup
}

func (w *writer) init(conn net.Conn, failed func(error)) {
	w.conn, w.failed = conn, failed
	w.turn.L = &w.mu
	w.frames = http2.NewFramer((*pendingSink)(w), nil)
	w.hpack = hpack.NewEncoder((*blockSink)(w))
}

// pendingSink and blockSink append to the writer's buffers; mu is held.
type (
	pendingSink writer
	blockSink   writer
)

func (s *pendingSink) Write(p []byte) (int, error) {
	if s.pending == nil {
		s.pending = getWriteBuf()
	}
	s.pending = append(s.pending, p...)
	return len(p), nil
}

func (s *blockSink) Write(p []byte) (int, error) {
	s.block = append(s.block, p...)
	return len(p), nil
}

// control adds control frames, and never waits for the connection.
func (w *writer) control(add func(*http2.Framer) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	if err := add(w.frames); err != nil {
		w.fail(err)
		return
	}
	if len(w.pending) > maxUnsentCtrl {
		w.fail(errNotReading)
		return
	}
	w.start()
}

// start lets a goroutine of its own write what is pending.
func (w *writer) start() {
	if !w.busy && w.err == nil && len(w.pending) > 0 {
		w.busy = true
		w.flushes.Go(w.flush)
	}
}

// headers encodes a header block and adds it, then sends it without waiting.
// begin runs first, under the same lock, and names the stream: stream ids must
// reach the wire in order.
func (w *writer) headers(h headerBlock) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	id, err := h.begin()
	if err != nil {
		return err
	}
	w.block = w.block[:0]
	for _, f := range h.fields {
		if err := w.hpack.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value}); err != nil {
			w.fail(err)
			return err
		}
	}
	// Every peer takes frames of this size: no need to ask for its limit.
	rest, first := w.block, true
	for first || len(rest) > 0 {
		part := rest[:min(len(rest), minFrameSize)]
		rest = rest[len(part):]
		if first {
			err = w.frames.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: part, EndStream: h.endStream, EndHeaders: len(rest) == 0,
			})
		} else {
			err = w.frames.WriteContinuation(id, len(rest) == 0, part)
		}
		if err != nil {
			w.fail(err)
			return err
		}
		first = false
	}
	w.start()
	return nil
}

type headerBlock struct {
	begin     func() (id uint32, err error)
	fields    []Field
	endStream bool
}

// A dataFrame is one DATA frame to write, its flow control settled.
type dataFrame struct {
	payload []byte
	end     bool
	// queue keeps the caller from writing itself, so that it can be stopped
	// while the connection is stuck. The payload must then fit maxPending.
	queue bool
	s     *Stream // may stop the frame as long as it waits
}

// data writes f, or leaves it to whoever is writing if there is room. The
// payload is not kept. An error means that nothing of f was added.
func (w *writer) data(f dataFrame) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if w.err != nil {
			return w.err
		}
		if err := f.s.stopped(f.end); err != nil {
			w.leave()
			return err
		}
		if !w.busy && !f.queue {
			w.own(f)
			return nil
		}
		// An empty frame always fits: ending a stream never waits.
		if len(f.payload) == 0 || len(w.pending)+frameHeaderLen+len(f.payload) <= maxPending+frameHeaderLen {
			if w.pending == nil {
				w.pending = getWriteBuf()
			}
			w.pending = append(appendDataHeader(w.pending, f), f.payload...)
			w.start()
			return nil
		}
		w.start() // a queued frame may find the connection idle
		w.waiters++
		w.turn.Wait()
		w.waiters--
	}
}

// own writes what is pending and then f from the caller's goroutine.
func (w *writer) own(f dataFrame) {
	w.busy = true
	buf := w.pending
	if w.pending = nil; buf == nil {
		buf = getWriteBuf()
	}
	buf = appendDataHeader(buf, f)
	copied := min(len(f.payload), max(cap(buf)-len(buf), 0))
	buf = append(buf, f.payload[:copied]...)
	w.mu.Unlock()
	_, err := w.conn.Write(buf)
	if err == nil && copied < len(f.payload) {
		_, err = w.conn.Write(f.payload[copied:])
	}
	putWriteBuf(buf)
	w.mu.Lock()
	if err != nil {
		w.fail(err)
	}
	w.busy = false
	if w.waiters > 0 {
		w.turn.Signal() // that one writes what is pending too
		return
	}
	w.start()
}

// flush writes until nothing is pending or somebody waits for a turn.
func (w *writer) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.err == nil && len(w.pending) > 0 {
		buf := w.pending
		w.pending = nil
		w.mu.Unlock()
		_, err := w.conn.Write(buf)
		putWriteBuf(buf)
		w.mu.Lock()
		if err != nil {
			w.fail(err)
		}
		if w.waiters > 0 {
			break
		}
	}
	w.busy = false
	w.turn.Signal()
	if w.waiters == 0 {
		w.start()
	}
}

// leave passes the turn on when a waiter gives up.
func (w *writer) leave() {
	if w.busy {
		return
	}
	if w.waiters > 0 {
		w.turn.Signal()
		return
	}
	w.start()
}

// fail ends all writing; mu is held.
func (w *writer) fail(err error) {
	if w.err != nil {
		return
	}
	w.err = &tunnelError{err}
	w.pending = nil
	w.turn.Broadcast()
	w.flushes.Go(func() { w.failed(err) })
}

// stop ends all writing from outside; failed is not called.
func (w *writer) stop(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		w.pending = nil
	}
	w.turn.Broadcast()
}

// close ends all writing once what is pending has been written. It does not
// wait.
func (w *writer) close(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	w.flushes.Go(func() {
		_ = w.conn.SetWriteDeadline(time.Now().Add(goodbyeTimeout)) // best effort
		w.drain()
		w.failed(err)
	})
}

// wake lets waiters look again at what may stop them.
func (w *writer) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiters > 0 {
		w.turn.Broadcast()
	}
}

// drain waits until all is written. The caller bounds it with a write deadline
// on the connection.
func (w *writer) drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.start()
	for w.err == nil && (w.busy || len(w.pending) > 0) {
		w.start()
		w.waiters++
		w.turn.Wait()
		w.waiters--
	}
	w.leave()
}

func appendDataHeader(b []byte, f dataFrame) []byte {
	n := len(f.payload)
	var flags http2.Flags
	if f.end {
		flags = http2.FlagDataEndStream
	}
	return append(b, byte(n>>16), byte(n>>8), byte(n), byte(http2.FrameData), byte(flags),
		byte(f.s.id>>24), byte(f.s.id>>16), byte(f.s.id>>8), byte(f.s.id))
}
