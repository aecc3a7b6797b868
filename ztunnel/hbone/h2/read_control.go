package h2

import "encoding/binary"

func (r *reader) settings(h frameHeader) error {
	switch {
	case h.stream != 0:
		return protocolError("SETTINGS on a stream")
	// "A SETTINGS frame with a length other than a multiple of 6 octets MUST be
	// treated as a connection error", and so must an acknowledgment that is not
	// empty https://www.rfc-editor.org/rfc/rfc9113#section-6.5
	case h.length%settingLen != 0, h.has(flagAck) && h.length > 0:
		return &ConnError{FrameSize, "SETTINGS of wrong length"}
	case h.has(flagAck):
		if r.acked {
			return r.costly("SETTINGS acknowledged again")
		}
		r.acked = true
		r.c.settingsAcked()
		return nil
	case h.length > maxSettings*settingLen:
		return &ConnError{EnhanceYourCalm, "too many settings"}
	}
	if err := r.costly("SETTINGS"); err != nil {
		return err
	}
	p, err := r.in.need(h.length)
	if err != nil {
		return unexpected(err)
	}
	// "The values in the SETTINGS frame MUST be processed in the order they
	// appear" https://www.rfc-editor.org/rfc/rfc9113#section-6.5.3
	for ; len(p) > 0; p = p[settingLen:] {
		if err := r.setting(setting{binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])}); err != nil {
			return err
		}
	}
	r.in.used(h.length)
	r.c.w.control(appendSettingsAck)
	return nil
}

// setting applies one setting, https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2
func (r *reader) setting(s setting) error {
	switch s.id {
	case settingInitialWindow:
		if s.value > maxWindow {
			return &ConnError{FlowControl, "SETTINGS_INITIAL_WINDOW_SIZE too large"}
		}
		return r.c.setPeerWindow(int64(s.value))
	case settingMaxFrameSize:
		if s.value < minFrameSize || s.value > maxFrameSize {
			return protocolError("SETTINGS_MAX_FRAME_SIZE out of range")
		}
		r.c.maxFrame.Store(int64(s.value))
	case settingMaxStreams:
		r.c.mu.Lock()
		r.c.peerMax = s.value
		r.c.mu.Unlock()
	case settingTableSize:
		r.c.w.setTableSize(s.value)
	case settingPush:
		if s.value > 1 || r.c.cfg.Client && s.value != 0 {
			return protocolError("SETTINGS_ENABLE_PUSH out of range")
		}
	default: // "MUST ignore that setting"; nothing that we send depends on the others
	}
	return nil
}

func (r *reader) ping(h frameHeader) error {
	p, err := r.fixed(h, 8, false)
	if err != nil {
		return err
	}
	data := [8]byte(p)
	if h.has(flagAck) {
		r.c.pong(data)
		return nil
	}
	if err := r.costly("PING"); err != nil {
		return err
	}
	r.c.w.control(func(b []byte) []byte { return appendPing(b, true, data) })
	return nil
}

func (r *reader) goAway(h frameHeader) error {
	const known = 8
	if h.stream != 0 {
		return protocolError("GOAWAY on a stream")
	}
	if h.length < known {
		return &ConnError{FrameSize, "GOAWAY too short"}
	}
	p, err := r.in.need(known)
	if err != nil {
		return unexpected(err)
	}
	last := binary.BigEndian.Uint32(p) & maxStreamID
	r.in.used(known)
	if err := r.in.skip(h.length - known); err != nil { // debug data
		return err
	}
	r.c.peerGoesAway(last)
	return nil
}

func (r *reader) reset(h frameHeader) error {
	p, err := r.fixed(h, 4, true)
	if err != nil {
		return err
	}
	code := ErrCode(binary.BigEndian.Uint32(p))
	s, known := r.c.stream(h.stream)
	if !known {
		return protocolError("RST_STREAM on idle stream")
	}
	if s == nil {
		return nil
	}
	if !r.c.cfg.Client && !s.hasHead() {
		if err := r.costly("RST_STREAM before the answer"); err != nil {
			return err
		}
	}
	s.peerReset(code)
	return nil
}

// priority is checked and ignored.
//
// "A PRIORITY frame with a length other than 5 octets MUST be treated as a
// stream error (Section 5.4.2) of type FRAME_SIZE_ERROR."
// https://www.rfc-editor.org/rfc/rfc9113#section-6.3
func (r *reader) priority(h frameHeader) error {
	if h.stream == 0 {
		return protocolError("PRIORITY on stream 0")
	}
	if h.length != 5 {
		const problem = "PRIORITY of wrong length"
		err := error(nil)
		if _, known := r.c.stream(h.stream); known {
			err = r.c.streamError(h.stream, FrameSize, problem)
		} else {
			err = r.costly(problem)
		}
		if err != nil {
			return err
		}
	}
	return r.in.skip(h.length)
}
