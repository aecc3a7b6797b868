package hbone

import (
	"io"
	"os"

	"golang.org/x/net/http2"
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
	s.mu.Unlock()
	s.credit(n)
}

// credit gives window back to the peer, in steps worth a frame, and more of it
// as long as the reader keeps up: less than half of the window lies unread.
func (s *Stream) credit(n int) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	s.owed += uint32(n)
	more := s.owed
	if int64(more) < s.window/4 || s.recvErr != nil {
		s.mu.Unlock()
		return
	}
	s.owed = 0
	if unread := s.window - s.recvWindow - int64(more); unread < s.window/2 {
		grown := min(2*s.window, int64(s.c.cfg.StreamWindow))
		more += uint32(grown - s.window)
		s.window = grown
	}
	s.recvWindow += int64(more)
	s.mu.Unlock()
	s.c.w.control(func(fr *http2.Framer) error { return fr.WriteWindowUpdate(s.id, more) })
}

// expect is called by the tunnel's reader at a DATA frame of length. If the
// frame is not in order the stream is reset and false returned.
func (s *Stream) expect(length int) bool {
	s.mu.Lock()
	code, reason := http2.ErrCodeNo, ""
	switch {
	case s.recvErr != nil:
		// "An endpoint that receives any frames after ... END_STREAM MUST
		// treat that as a stream error of type STREAM_CLOSED"
		// https://www.rfc-editor.org/rfc/rfc9113#section-5.1
		code, reason = http2.ErrCodeStreamClosed, "DATA after the end"
	case s.c.client && !s.isHead:
		code, reason = http2.ErrCodeProtocol, "DATA before the answer"
	case int64(length) > s.recvWindow:
		code, reason = http2.ErrCodeFlowControl, "more DATA than the window"
	default:
		s.recvWindow -= int64(length)
	}
	s.mu.Unlock()
	if reason != "" {
		s.c.streamError(s.id, code, reason)
		return false
	}
	return true
}

// space returns room for up to n received bytes, nil if nobody wants them.
// filled must follow.
func (s *Stream) space(n int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dropped {
		return nil
	}
	return s.recv.space(n)
}

func (s *Stream) filled(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recv.filled(n)
	s.readable.Broadcast()
}

func (s *Stream) isAnswered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isHead
}
