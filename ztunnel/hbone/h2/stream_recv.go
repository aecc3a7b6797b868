package h2

import (
	"io"
	"os"
)

// Read takes received bytes. It returns io.EOF when the peer has ended its
// direction. A stream that the peer has reset before that is a [*ResetError].
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.rmu.Lock()
	defer s.rmu.Unlock()
	b, err := s.next()
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	s.taken(n)
	return n, nil
}

// Unread returns how many bytes have been received and not been taken.
func (s *Stream) Unread() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.window - s.recvWindow - s.owed
}

// WriteTo writes received bytes to w straight from the receive buffer until
// EOF. Credit is given back to the peer when w has taken them.
func (s *Stream) WriteTo(w io.Writer) (int64, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	var total int64
	for {
		b, err := s.next()
		if err == io.EOF { //nolint:errorlint // next returns it bare
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(b)
		total += int64(n)
		s.taken(n)
		if err != nil {
			return total, err
		}
	}
}

// next waits for bytes and returns them where they are; rmu is held.
func (s *Stream) next() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.expired {
			return nil, os.ErrDeadlineExceeded
		}
		if b := s.recv.front(); b != nil {
			return b, nil
		}
		if s.recvErr != nil {
			return nil, s.recvErr
		}
		s.readable.Wait()
	}
}

// taken removes n of the bytes that next gave.
func (s *Stream) taken(n int) {
	s.mu.Lock()
	s.recv.took(n)
	more := s.credit(n)
	s.mu.Unlock()
	s.giveCredit(more)
}

// A forward is where a stream's bytes go.
type forward struct {
	to   Sink
	done func(error)
	// draining says that a goroutine writes what is queued; until that is done
	// new bytes must queue up behind.
	draining bool
}

// Forward passes received bytes on to a sink until the peer has ended its
// direction, and then calls done, once: with nil at EOF, else with why it
// ended. The reader of the connection writes to the sink itself; only while the
// sink takes no more does a goroutine wait for it. Forward does not wait: its
// caller waits for done, which may be called before Forward returns, holds no
// locks and must not wait for anything.
func (s *Stream) Forward(to Sink, done func(error)) {
	s.rmu.Lock() // until done
	s.mu.Lock()
	s.to = &forward{to: to, done: done}
	finish := func() {}
	switch {
	case !s.recv.empty():
		s.to.draining = true
		go s.drain(s.to) // ends with done at the latest
	case s.recvErr != nil:
		finish = s.forwarded(s.recvErr)
	}
	s.mu.Unlock()
	finish()
}

// forwarded ends Forward; s.mu is held. The caller calls what it returns after
// unlocking.
func (s *Stream) forwarded(err error) (finish func()) {
	done := s.to.done
	s.to = nil
	s.rmu.Unlock()
	if err == io.EOF { //nolint:errorlint // set by us, bare
		err = nil
	}
	return func() { done(err) }
}

// drain writes what is queued, waiting for the sink.
func (s *Stream) drain(f *forward) {
	for {
		s.mu.Lock()
		b := s.recv.front()
		if b == nil {
			finish := func() {}
			if f.draining = false; s.recvErr != nil {
				finish = s.forwarded(s.recvErr)
			}
			s.mu.Unlock()
			finish()
			return
		}
		s.mu.Unlock()
		n, err := f.to.Write(b)
		s.taken(n)
		if err != nil {
			s.mu.Lock()
			finish := s.forwarded(err)
			s.mu.Unlock()
			finish()
			return
		}
	}
}

// receive takes bytes from the tunnel's reader, which must not wait.
func (s *Stream) receive(p []byte) {
	s.mu.Lock()
	if s.dropped {
		s.mu.Unlock()
		return
	}
	n := 0
	if f := s.to; f != nil && !f.draining {
		var err error
		if n, err = f.to.TryWrite(p); err != nil {
			finish := s.forwarded(err)
			s.mu.Unlock()
			finish()
			return
		}
		if n < len(p) {
			f.draining = true
			go s.drain(f) // ends with done at the latest
		}
	}
	more := int64(0)
	if n > 0 {
		more = s.credit(n)
	}
	if n < len(p) {
		s.recv.add(p[n:])
		s.readable.Broadcast()
	}
	s.mu.Unlock()
	s.giveCredit(more)
}

// endReading says that no more bytes come, and why; the first call counts.
func (s *Stream) endReading(err error) {
	s.mu.Lock()
	if s.recvErr == nil {
		s.recvErr = err
	}
	s.tellAnswered()
	finish := func() {}
	if s.to != nil && !s.to.draining {
		finish = s.forwarded(s.recvErr)
	}
	s.readable.Broadcast()
	s.mu.Unlock()
	finish()
}

// answer is the head of the answer to a request of ours.
func (s *Stream) answer(h Head, end bool) {
	s.mu.Lock()
	s.isHead, s.head, s.status = true, h, h.Status
	s.mu.Unlock()
	if end {
		s.remoteEnded()
		return
	}
	s.mu.Lock()
	s.tellAnswered()
	s.mu.Unlock()
}

// tellAnswered lets Answer go on; s.mu is held.
func (s *Stream) tellAnswered() {
	if s.answered == nil {
		return
	}
	select {
	case <-s.answered:
	default:
		close(s.answered)
	}
}

// trailers ends what the peer sends.
func (s *Stream) trailers(fields []Field) {
	s.mu.Lock()
	s.trailer = fields
	s.mu.Unlock()
	s.remoteEnded()
}

// credit notes that n bytes have been taken, and returns how much window to
// give back, in steps worth a frame: more than was taken as long as the reader
// keeps up, which is that less than half of the window lies unread. s.mu is
// held.
func (s *Stream) credit(n int) (more int64) {
	s.owed += int64(n)
	if s.owed < s.window/4 || s.recvErr != nil {
		return 0
	}
	more, s.owed = s.owed, 0
	if unread := s.window - s.recvWindow - more; unread < s.window/2 {
		change := min(s.window, int64(s.c.cfg.StreamWindow)-s.window)
		if change > 0 && s.c.grow(change) {
			s.window += change
			s.grown += change
			more += change
		}
	}
	s.recvWindow += more
	return more
}

// giveCredit tells the peer.
//
// "A sender is able to send ... once the receiver sends a WINDOW_UPDATE frame
// as it consumes data" https://www.rfc-editor.org/rfc/rfc9113#section-6.9
func (s *Stream) giveCredit(more int64) {
	if more > 0 {
		s.c.w.control(func(b []byte) []byte { return appendWindowUpdate(b, s.id, uint32(more)) })
	}
}

// expect is called by the tunnel's reader at a DATA frame of length, overhead
// of it padding. If the frame is not in order the stream is reset and ok false.
func (s *Stream) expect(length, overhead int) (ok bool, err error) {
	s.mu.Lock()
	code, reason, more := NoError, "", int64(0)
	switch {
	case s.recvErr != nil:
		// "An endpoint that receives any frames after ... END_STREAM MUST
		// treat that as a stream error of type STREAM_CLOSED"
		// https://www.rfc-editor.org/rfc/rfc9113#section-5.1
		code, reason = StreamClosed, "DATA after the end"
	case s.c.cfg.Client && !s.isHead:
		code, reason = Protocol, "DATA before the answer"
	case int64(length) > s.recvWindow:
		// "A receiver MAY respond with a stream error or connection error of type
		// FLOW_CONTROL_ERROR" https://www.rfc-editor.org/rfc/rfc9113#section-6.9.1
		code, reason = FlowControl, "more DATA than the window"
	default:
		s.recvWindow -= int64(length)
		if overhead > 0 {
			more = s.credit(overhead)
		}
	}
	s.mu.Unlock()
	if reason != "" {
		return false, s.c.streamError(s.id, code, reason)
	}
	s.giveCredit(more)
	return true, nil
}

// hasHead reports whether the answer is here, or was given.
func (s *Stream) hasHead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isHead
}

// receivedAll reports whether the peer has ended its direction.
func (s *Stream) receivedAll() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recvErr != nil
}

// connected reports whether the stream is a tunnel, or about to be.
func (s *Stream) connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connect && (s.status == 0 || s.status/100 == 2)
}
