package h2

import (
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"
)

const (
	// maxPending bounds the DATA that waits for its turn; a writer that does
	// not fit waits. A buffer has some room beyond for headers, control frames, and
	// to fill a record.
	maxPending    = 64 << 10
	writeBufSize  = maxPending + recordSize + 2<<10
	maxUnsentCtrl = 1 << 20
)

// A writer puts frames on a connection in the order in which they were added.
// One goroutine at a time owns the connection (busy); frames added meanwhile
// gather in pending and go out together.
type writer struct {
	c *Conn

	mu      sync.Mutex
	turn    sync.Cond // busy became false, or a condition that stops a waiter changed
	waiters int
	busy    bool
	pending []byte
	err     error // no more writes
	hpack   *hpack.Encoder
	block   []byte // the header block being encoded
}

func (w *writer) init(c *Conn) {
	w.c = c
	w.turn.L = &w.mu
	w.hpack = hpack.NewEncoder((*blockSink)(w))
}

// blockSink appends to the header block; mu is held.
type blockSink writer

func (s *blockSink) Write(p []byte) (int, error) {
	s.block = append(s.block, p...)
	return len(p), nil
}

// buffer returns what frames are appended to; mu is held.
func (w *writer) buffer() []byte {
	if w.pending == nil {
		w.pending = getWriteBuf()
	}
	return w.pending
}

// control adds control frames, and never waits for the connection.
func (w *writer) control(add func([]byte) []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	w.pending = add(w.buffer())
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
		w.c.tasks.Go(w.flush)
	}
}

// A headerBlock is a header block to write.
type headerBlock struct {
	// begin runs first, under the writer's lock: stream ids must reach the wire
	// in order.
	begin func() error
	s     *Stream
	head  *Head
	end   bool
	early []byte // s.early bytes of it follow as DATA
}

// headers encodes a header block and adds it. It is written by the caller if
// the connection is idle, else without waiting by whoever writes.
func (w *writer) headers(h headerBlock) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if err := h.begin(); err != nil {
		return err
	}
	w.block = w.block[:0]
	if err := h.head.encode(w.hpack); err != nil {
		w.fail(err)
		return err
	}
	w.pending = appendBlock(w.buffer(), h.s.id, w.block, h.end)
	if early := h.early[:min(h.s.early, len(h.early))]; len(early) > 0 {
		w.pending = appendData(w.pending, h.s.id, early, false, int(w.c.maxFrame.Load()))
	}
	if !w.busy {
		w.own(dataFrame{})
	}
	return nil
}

// A dataFrame is DATA to write, its flow control settled.
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
	limit := int(w.c.maxFrame.Load())
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
		if len(f.payload) == 0 || len(w.pending)+len(f.payload) <= maxPending {
			w.pending = appendData(w.buffer(), f.s.id, f.payload, f.end, limit)
			w.start()
			return nil
		}
		w.start() // a queued frame may find the connection idle
		w.waiters++
		w.turn.Wait()
		w.waiters--
	}
}

// appendTo appends f to buf, all but what is better written from where it is:
// a payload that fills records of its own.
func (f *dataFrame) appendTo(buf []byte, limit int) (b, rest []byte) {
	total := len(buf) + frameHeaderLen + len(f.payload)
	if len(f.payload) > limit || total <= recordSize {
		return appendData(buf, f.s.id, f.payload, f.end, limit), nil
	}
	h := frameHeader{length: len(f.payload), typ: FrameData, stream: f.s.id}
	if f.end {
		h.flags = flagEndStream
	}
	buf = appendFrameHeader(buf, h)
	copied := min(-len(buf)&(recordSize-1), len(f.payload))
	return append(buf, f.payload[:copied]...), f.payload[copied:]
}

// own writes what is pending and then f, unless that is none, from the caller's
// goroutine. mu is held, but not while writing.
func (w *writer) own(f dataFrame) {
	w.busy = true
	buf := w.buffer()
	w.pending = nil
	var rest []byte
	if f.s != nil {
		buf, rest = f.appendTo(buf, int(w.c.maxFrame.Load()))
	}
	w.mu.Unlock()
	err := w.c.net.WriteBuffers(buf, rest)
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
		err := w.c.net.WriteBuffers(buf, nil)
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
	w.err = &EndError{err}
	w.pending = nil
	w.turn.Broadcast()
	w.c.tasks.Go(func() { w.c.fail(err) })
}

// stop ends all writing from outside.
func (w *writer) stop(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		w.pending = nil
	}
	w.turn.Broadcast()
}

// close ends the connection once what is pending has been written. It does not
// wait.
func (w *writer) close(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	w.c.tasks.Go(func() {
		_ = w.c.net.SetWriteDeadline(time.Now().Add(goodbyeTimeout)) // best effort
		w.drain()
		w.c.fail(err)
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

// setTableSize applies SETTINGS_HEADER_TABLE_SIZE to what we encode; we never
// use more than the default.
func (w *writer) setTableSize(n uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hpack.SetMaxDynamicTableSizeLimit(min(n, defaultTable))
}
