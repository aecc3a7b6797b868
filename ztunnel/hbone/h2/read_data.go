package h2

import "encoding/binary"

// data handles a DATA frame piece by piece as it arrives.
func (r *reader) data(h frameHeader) error {
	s, known := r.c.stream(h.stream)
	if !known {
		// "Receiving any frame other than HEADERS or PRIORITY on a stream in
		// [idle] state MUST be treated as a connection error of type
		// PROTOCOL_ERROR." https://www.rfc-editor.org/rfc/rfc9113#section-5.1
		return protocolError("DATA on idle stream")
	}
	// "The entire DATA frame payload is included in flow control, including
	// the Pad Length and Padding fields if present."
	// https://www.rfc-editor.org/rfc/rfc9113#section-6.1
	if r.window -= int64(h.length); r.window < 0 {
		return &ConnError{FlowControl, "more DATA than the connection's window"}
	}
	padding, left, err := r.padding(h)
	if err != nil {
		return err
	}
	end := h.has(flagEndStream)
	if left == 0 && !end {
		if err := r.costly("empty DATA"); err != nil {
			return err
		}
	}
	if s != nil {
		ok, err := s.expect(h.length, h.length-left)
		if err != nil {
			return err
		}
		if !ok {
			s = nil
		}
	}
	for left > 0 {
		p, err := r.in.some(left)
		if err != nil {
			return err
		}
		if s != nil {
			s.receive(p)
		}
		r.in.used(len(p))
		left -= len(p)
	}
	if err := r.in.skip(padding); err != nil {
		return err
	}
	// Credit for the connection is given when bytes have been read: streams
	// whose reader is slow cost their own window only.
	r.owe(uint32(h.length))
	if s != nil && end {
		s.remoteEnded()
	}
	return nil
}

// padding reads the Pad Length octet if there is one. It returns the length of
// the padding and of what lies between.
func (r *reader) padding(h frameHeader) (padding, left int, err error) {
	if !h.has(flagPadded) {
		return 0, h.length, nil
	}
	if h.length == 0 {
		return 0, 0, &ConnError{FrameSize, "padded frame without length"}
	}
	p, err := r.in.need(1)
	if err != nil {
		return 0, 0, unexpected(err)
	}
	padding = int(p[0])
	r.in.used(1)
	// "If the length of the padding is the length of the frame payload or
	// greater, the recipient MUST treat this as a connection error"
	// https://www.rfc-editor.org/rfc/rfc9113#section-6.1
	if padding >= h.length {
		return 0, 0, protocolError("padding longer than the frame")
	}
	return padding, h.length - 1 - padding, nil
}

// owe notes bytes of the connection's window to give back.
func (r *reader) owe(n uint32) {
	r.owed += n
	if r.owed < r.c.cfg.ConnWindow/4 {
		return
	}
	more := r.owed
	r.owed = 0
	r.window += int64(more)
	r.c.w.control(func(b []byte) []byte { return appendWindowUpdate(b, 0, more) })
}

func (r *reader) windowUpdate(h frameHeader) error {
	p, err := r.fixed(h, 4, h.stream != 0)
	if err != nil {
		return err
	}
	more := int64(binary.BigEndian.Uint32(p) & maxWindow)
	if h.stream == 0 {
		return r.c.growWindow(more)
	}
	s, known := r.c.stream(h.stream)
	if !known {
		return protocolError("WINDOW_UPDATE on idle stream")
	}
	if s == nil {
		return nil
	}
	return s.growWindow(more)
}
