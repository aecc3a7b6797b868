package h2

func (r *reader) headers(h frameHeader) error {
	if h.stream == 0 {
		return protocolError("HEADERS on stream 0")
	}
	padding, left, err := r.padding(h)
	if err != nil {
		return err
	}
	if h.has(flagPriority) {
		// Deprecated, and ignored: https://www.rfc-editor.org/rfc/rfc9113#section-5.3
		const priorityLen = 5
		switch left -= priorityLen; {
		case left < 0 && padding > 0:
			return protocolError("padding longer than the frame")
		case left < 0:
			return &ConnError{FrameSize, "HEADERS too short for its priority"}
		}
		if err := r.in.skip(priorityLen); err != nil {
			return err
		}
	}
	r.block.begin(h.stream, h.has(flagEndStream))
	return r.fragment(left, padding, h.has(flagEndHeaders))
}

func (r *reader) continuation(h frameHeader) error {
	// "A CONTINUATION frame MUST be preceded by a HEADERS ... frame without the
	// END_HEADERS flag set." https://www.rfc-editor.org/rfc/rfc9113#section-6.10
	if r.block.id == 0 {
		return protocolError("CONTINUATION without HEADERS")
	}
	if err := r.costly("CONTINUATION"); err != nil {
		return err
	}
	return r.fragment(h.length, 0, h.has(flagEndHeaders))
}

// fragment decodes a piece of a header block, and handles the block if it is
// the last.
func (r *reader) fragment(n, padding int, last bool) error {
	for n > 0 {
		p, err := r.in.some(n)
		if err != nil {
			return err
		}
		if err := r.block.fragment(p, false); err != nil {
			return err
		}
		r.in.used(len(p))
		n -= len(p)
	}
	if err := r.in.skip(padding); err != nil {
		return err
	}
	if !last {
		return nil
	}
	if err := r.block.fragment(nil, true); err != nil {
		return err
	}
	id := r.block.id
	r.block.id = 0
	return r.gotBlock(id)
}

// gotBlock handles a complete header block.
func (r *reader) gotBlock(id uint32) error {
	s, known := r.c.stream(id)
	switch {
	case s != nil:
		return r.streamBlock(s)
	case known:
		return nil // of a stream that we have given up
	case r.c.cfg.Client:
		return protocolError("HEADERS on idle stream")
	}
	return r.request(id)
}

// streamBlock is an answer or trailers.
func (r *reader) streamBlock(s *Stream) error {
	b := r.block
	code, problem := NoError, ""
	answer := r.c.cfg.Client && !s.hasHead()
	switch {
	case s.receivedAll():
		code, problem = StreamClosed, "HEADERS after the end"
	case answer:
		code, problem = Protocol, b.response()
		if problem == "" && b.head.TooLarge {
			code, problem = EnhanceYourCalm, "header of the answer too large"
		}
	// "The frame types other than DATA or stream management frames ...
	// MUST NOT be sent on a connected stream and MUST be treated as a
	// stream error" https://www.rfc-editor.org/rfc/rfc9113#section-8.5
	case s.connected():
		code, problem = Protocol, "HEADERS on a connected stream"
	default:
		code, problem = Protocol, b.trailers()
	}
	switch {
	case problem != "":
		return r.c.streamError(s.id, code, problem)
	case answer && b.head.Status < 200:
		return r.costly("interim answer")
	case answer:
		s.answer(b.head, b.end)
	default:
		s.trailers(b.head.Fields)
	}
	return nil
}
