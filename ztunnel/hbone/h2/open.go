package h2

// Open sends a request and returns its stream without waiting for the answer:
// that is [Stream.Answer]'s. Of early, which is copied, as much is sent with it
// as the windows allow; see [Stream.Early]. If room was made by Reserve,
// reserved says so. An error means that nothing was sent.
func (c *Conn) Open(h Head, early []byte, reserved bool) (*Stream, error) {
	if err := h.validate(); err != nil {
		if reserved {
			c.unreserve()
		}
		return nil, err
	}
	s := newStream(c)
	s.connect = h.Method == methodConnect
	err := c.w.headers(headerBlock{
		begin: func() error { return c.register(s, reserved, len(early)) }, s: s, head: &h, early: early,
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Reserve makes room for one stream that is about to be opened; no more than
// most may be open. live is false if the connection will never have room again.
func (c *Conn) Reserve(most uint32) (ok, live bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.draining || c.nextID > maxStreamID {
		return false, false
	}
	// At least one, else a pool would dial for ever; register knows better.
	if uint32(len(c.streams)+c.reserved) >= max(min(most, c.peerMax), 1) {
		return false, true
	}
	c.reserved++
	return true, true
}

func (c *Conn) unreserve() {
	c.mu.Lock()
	c.reserved--
	after := func() {}
	if len(c.streams) == 0 {
		after = c.emptied
	}
	c.mu.Unlock()
	after()
}

// Retire makes the connection take no more streams if it has none.
func (c *Conn) Retire() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams)+c.reserved > 0 {
		return false
	}
	c.draining = true
	return true
}

// register gives a stream of ours its id, and window for up to early bytes.
// Called by the writer, so that ids reach the peer in order.
//
// "The identifier of a newly established stream MUST be numerically greater
// than all streams that the initiating endpoint has opened"
// https://www.rfc-editor.org/rfc/rfc9113#section-5.1.1
func (c *Conn) register(s *Stream, reserved bool, early int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if reserved {
		c.reserved--
	}
	switch {
	case c.err != nil:
		return &EndError{c.err}
	case c.draining, c.nextID > maxStreamID:
		return ErrUnprocessed
	// "Endpoints MUST NOT exceed the limit set by their peer."
	// https://www.rfc-editor.org/rfc/rfc9113#section-5.1.2
	case uint32(len(c.streams)) >= c.peerMax:
		return ErrNoRoom
	}
	s.id = c.nextID
	c.nextID += 2
	c.begin(s)
	if len(c.waiting) == 0 && early > 0 {
		s.early = int(max(min(int64(early), s.sendWindow, c.sendWindow, maxPending), 0))
		s.sendWindow -= int64(s.early)
		c.sendWindow -= int64(s.early)
	}
	return nil
}
