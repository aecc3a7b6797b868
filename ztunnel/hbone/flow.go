package hbone

import "golang.org/x/net/http2"

// growWindow gives the connection more to send.
//
// "A sender MUST NOT allow a flow-control window to exceed 2^31-1 octets. If a
// sender receives a WINDOW_UPDATE that causes a flow-control window to exceed
// this maximum, it MUST terminate either the stream or the connection"
// https://www.rfc-editor.org/rfc/rfc9113#section-6.9.1
func (c *conn) growWindow(more int64) error {
	if more == 0 {
		return protocolError("WINDOW_UPDATE of 0")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sendWindow += more; c.sendWindow > maxWindow {
		return &connError{http2.ErrCodeFlowControl, "connection window too large"}
	}
	c.wakeFirst()
	return nil
}

// growWindow gives the stream more to send.
func (s *Stream) growWindow(more int64) {
	c := s.c
	c.mu.Lock()
	s.sendWindow += more
	tooLarge := s.sendWindow > maxWindow
	s.writable.Broadcast()
	c.mu.Unlock()
	// "A receiver MUST treat the receipt of a WINDOW_UPDATE frame with a
	// flow-control window increment of 0 as a stream error of type
	// PROTOCOL_ERROR" https://www.rfc-editor.org/rfc/rfc9113#section-6.9
	if more == 0 {
		c.streamError(s.id, http2.ErrCodeProtocol, "WINDOW_UPDATE of 0")
	} else if tooLarge {
		c.streamError(s.id, http2.ErrCodeFlowControl, "stream window too large")
	}
}

// setPeerWindow applies SETTINGS_INITIAL_WINDOW_SIZE.
//
// "When the value of SETTINGS_INITIAL_WINDOW_SIZE changes, a receiver MUST
// adjust the size of all stream flow-control windows that it maintains by the
// difference between the new value and the old value."
// https://www.rfc-editor.org/rfc/rfc9113#section-6.9.2
func (c *conn) setPeerWindow(size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	change := size - c.peerWindow
	c.peerWindow = size
	for _, s := range c.streams {
		if s.sendWindow += change; s.sendWindow > maxWindow {
			return &connError{http2.ErrCodeFlowControl, "stream window too large"}
		}
		if change > 0 {
			s.writable.Broadcast()
		}
	}
	return nil
}

func (c *conn) setPeerMax(n uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peerMax = n
}

// setTableSize applies SETTINGS_HEADER_TABLE_SIZE to what we encode; we never
// use more than the default.
func (w *writer) setTableSize(n uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hpack.SetMaxDynamicTableSizeLimit(min(n, headerTableSize))
}
