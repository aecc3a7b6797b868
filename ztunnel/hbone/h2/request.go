package h2

import "context"

// newPeerID checks the id of a stream that the client opens.
//
// "The identifier of a newly established stream MUST be numerically greater
// than all streams that the initiating endpoint has opened or reserved. ... An
// endpoint that receives an unexpected stream identifier MUST respond with a
// connection error of type PROTOCOL_ERROR."
// https://www.rfc-editor.org/rfc/rfc9113#section-5.1.1
func (c *Conn) newPeerID(id uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id%2 == 0 || id <= c.lastPeerID {
		return protocolError("unexpected stream id")
	}
	c.lastPeerID = id
	return nil
}

// request begins a stream for a header block of the client.
func (r *reader) request(id uint32) error {
	c, b := r.c, r.block
	if c.Draining() {
		return nil // beyond the last id of our GOAWAY: to be ignored
	}
	if err := c.newPeerID(id); err != nil {
		return err
	}
	if problem := b.request(); problem != "" {
		// "Malformed requests or responses that are detected MUST be treated as a
		// stream error (Section 5.4.2) of type PROTOCOL_ERROR."
		// https://www.rfc-editor.org/rfc/rfc9113#section-8.1.1
		c.writeReset(id, Protocol)
		return r.costly("malformed request")
	}
	s := newStream(c)
	s.id, s.head, s.connect = id, b.head, b.head.Method == methodConnect
	s.ctx, s.cancel = context.WithCancel(c.cfg.Base)
	if err := c.admit(s); err != nil || s.closed {
		s.cancel()
		if s.closed && err == nil {
			c.writeReset(id, RefusedStream)
			return r.costly("request beyond the limit")
		}
		return err
	}
	if b.end {
		s.remoteEnded()
	}
	c.tasks.Go(func() {
		c.cfg.Handle(s)
		if !s.hasHead() {
			s.Reset()
		}
		s.nowHandled()
	})
	return nil
}

// admit makes a request's stream known, or closed if there are too many.
//
// "An endpoint that receives a HEADERS frame that causes its advertised
// concurrent stream limit to be exceeded MUST treat this as a stream error of
// type PROTOCOL_ERROR or REFUSED_STREAM."
// https://www.rfc-editor.org/rfc/rfc9113#section-5.1.2
func (c *Conn) admit(s *Stream) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return c.err
	case c.zombies >= int(c.cfg.MaxStreams):
		return &ConnError{EnhanceYourCalm, "too many requests given up before their answer"}
	case len(c.streams) >= int(c.cfg.MaxStreams):
		s.closed = true
		return nil
	}
	c.begin(s)
	return nil
}

// nowHandled notes that the request costs nothing more than its stream.
func (s *Stream) nowHandled() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.handled = true
	if s.zombie {
		s.zombie = false
		c.zombies--
	}
}

// Respond sends a server's answer, once. end says that nothing follows.
func (s *Stream) Respond(h Head, end bool) error {
	if err := h.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	s.isHead, s.status = true, h.Status
	s.mu.Unlock()
	err := s.c.w.headers(headerBlock{begin: func() error { return s.stopped(false) }, s: s, head: &h, end: end})
	if err != nil {
		s.Reset()
		return err
	}
	s.nowHandled()
	if end {
		s.ended(&s.localEnd)
	}
	return nil
}

// Trail ends what we send with trailers, which a connected stream cannot.
func (s *Stream) Trail(fields []Field) error {
	h := Head{Fields: fields}
	if err := h.validate(); err != nil {
		return err
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if err := s.c.w.headers(headerBlock{begin: func() error { return s.stopped(false) }, s: s, head: &h, end: true}); err != nil {
		return err
	}
	s.ended(&s.localEnd)
	return nil
}
