package h2

import (
	"maps"
	"slices"
	"sync/atomic"
)

// Send windows belong to Conn.mu, receive windows to Stream.mu.

// maxGrown bounds what the receive windows of all streams have grown beyond
// their first size, on one connection and in the process: that much, and the
// first windows, may lie unread. Tests lower them.
var (
	maxGrownConn    int64 = 64 << 20
	maxGrownProcess int64 = 512 << 20
)

var processGrown atomic.Int64

// grow asks for n more bytes of receive window for a stream.
func (c *Conn) grow(n int64) bool {
	if c.grown.Add(n) > maxGrownConn {
		c.grown.Add(-n)
		return false
	}
	if processGrown.Add(n) > maxGrownProcess {
		c.shrink(n)
		return false
	}
	return true
}

func (c *Conn) shrink(n int64) {
	c.grown.Add(-n)
	processGrown.Add(-n)
}

// begin gives a new stream its first windows and makes it known; c.mu is held.
func (c *Conn) begin(s *Stream) {
	s.sendWindow = c.peerWindow
	s.window, s.recvWindow = c.firstWindow, c.firstWindow
	c.streams[s.id] = s
}

// settingsAcked: from now on the peer keeps to our first window. Until it has
// acknowledged a SETTINGS frame it need not know the values: one that allows
// less than the default binds it only now.
// https://www.rfc-editor.org/rfc/rfc9113#section-6.5.3
func (c *Conn) settingsAcked() {
	c.mu.Lock()
	less := c.firstWindow - int64(c.cfg.FirstWindow)
	c.firstWindow = int64(c.cfg.FirstWindow)
	streams := slices.Collect(maps.Values(c.streams))
	c.mu.Unlock()
	if less == 0 {
		return
	}
	for _, s := range streams {
		s.mu.Lock()
		s.window -= less
		s.recvWindow -= less
		s.mu.Unlock()
	}
}

// take gets send window for s, up to want bytes, and waits for it. A stream
// that has window waits for the connection's in line.
func (c *Conn) take(s *Stream, want int) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if err := s.stopped(false); err != nil {
			c.unqueue(s)
			return 0, err
		}
		if s.sendWindow <= 0 {
			c.unqueue(s)
			s.writable.Wait()
			continue
		}
		first := len(c.waiting) == 0 || c.waiting[0] == s
		if first && c.sendWindow > 0 {
			break
		}
		if !s.inLine {
			s.inLine = true
			c.waiting = append(c.waiting, s)
		}
		s.writable.Wait()
	}
	// Many small frames or one large one.
	n := min(int64(want), s.sendWindow, c.sendWindow, max(c.maxFrame.Load(), maxPending))
	if len(c.waiting) > 1 {
		n = min(n, maxPending) // leave some for the others
	}
	s.sendWindow -= n
	c.sendWindow -= n
	c.unqueue(s)
	return int(n), nil
}

// giveBack returns window that take gave and no frame has used.
func (c *Conn) giveBack(s *Stream, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.sendWindow += int64(n)
	c.sendWindow += int64(n)
	c.wakeFirst()
}

// unqueue takes s out of the line for the connection's window.
func (c *Conn) unqueue(s *Stream) {
	if s.inLine {
		s.inLine = false
		for i, other := range c.waiting {
			if other == s {
				c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
				break
			}
		}
	}
	c.wakeFirst()
}

func (c *Conn) wakeFirst() {
	if c.sendWindow > 0 && len(c.waiting) > 0 {
		c.waiting[0].writable.Broadcast()
	}
}

// growWindow gives the connection more to send.
//
// "A sender MUST NOT allow a flow-control window to exceed 2^31-1 octets. If a
// sender receives a WINDOW_UPDATE that causes a flow-control window to exceed
// this maximum, it MUST terminate either the stream or the connection"
// https://www.rfc-editor.org/rfc/rfc9113#section-6.9.1
func (c *Conn) growWindow(more int64) error {
	// "errors on the connection flow-control window MUST be treated as a
	// connection error" https://www.rfc-editor.org/rfc/rfc9113#section-6.9
	if more == 0 {
		return protocolError("WINDOW_UPDATE of 0")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sendWindow += more; c.sendWindow > maxWindow {
		return &ConnError{FlowControl, "connection window too large"}
	}
	c.wakeFirst()
	return nil
}

// growWindow gives the stream more to send.
func (s *Stream) growWindow(more int64) error {
	c := s.c
	c.mu.Lock()
	s.sendWindow += more
	tooLarge := s.sendWindow > maxWindow
	s.writable.Broadcast()
	c.mu.Unlock()
	// "A receiver MUST treat the receipt of a WINDOW_UPDATE frame with a
	// flow-control window increment of 0 as a stream error of type
	// PROTOCOL_ERROR" https://www.rfc-editor.org/rfc/rfc9113#section-6.9
	switch {
	case more == 0:
		return c.streamError(s.id, Protocol, "WINDOW_UPDATE of 0")
	case tooLarge:
		return c.streamError(s.id, FlowControl, "stream window too large")
	}
	return nil
}

// setPeerWindow applies SETTINGS_INITIAL_WINDOW_SIZE.
//
// "When the value of SETTINGS_INITIAL_WINDOW_SIZE changes, a receiver MUST
// adjust the size of all stream flow-control windows that it maintains by the
// difference between the new value and the old value."
// https://www.rfc-editor.org/rfc/rfc9113#section-6.9.2
func (c *Conn) setPeerWindow(size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	change := size - c.peerWindow
	c.peerWindow = size
	for _, s := range c.streams {
		if s.sendWindow += change; s.sendWindow > maxWindow {
			return &ConnError{FlowControl, "stream window too large"}
		}
		if change > 0 {
			s.writable.Broadcast()
		}
	}
	return nil
}
