package h2

import "time"

// drainPing marks the PING between the two GOAWAYs of a graceful end.
var drainPing = [8]byte{'g', 'o', 'o', 'd', 'b', 'y', 'e'}

// Drain ends a server's connection gracefully, and returns when it has ended.
//
//  1. GOAWAY with the highest id and a PING: the client stops opening streams,
//     but those on their way are served.
//  2. When the PING is answered, or a second later: GOAWAY with the last id
//     that was seen. Later streams are ignored.
//  3. When the last stream has ended, or Config.Grace is over: close.
//
// "A server that is attempting to gracefully shut down a connection SHOULD
// send an initial GOAWAY frame with the last stream identifier set to 2^31-1"
// https://www.rfc-editor.org/rfc/rfc9113#section-6.8
func (c *Conn) Drain() {
	grace := time.NewTimer(c.cfg.Grace)
	defer grace.Stop()
	pong := make(chan struct{}, 1)
	c.mu.Lock()
	c.drained = func() { signal(pong) }
	c.mu.Unlock()
	c.w.control(func(b []byte) []byte {
		return appendPing(appendGoAway(b, maxStreamID, NoError), false, drainPing)
	})
	patience := time.NewTimer(goodbyeTimeout)
	defer patience.Stop()
	select {
	case <-pong:
	case <-patience.C:
	case <-grace.C:
		c.Abort(NoError, ErrShutDown)
		return
	case <-c.done:
		return
	}

	empty := make(chan struct{}, 1)
	c.mu.Lock()
	c.draining = true
	c.emptied = func() { signal(empty) }
	if len(c.streams) == 0 {
		c.emptied()
	}
	c.mu.Unlock()
	c.goAway(c.lastSeen(), NoError)
	select {
	case <-empty:
	case <-grace.C:
	case <-c.done:
		return
	}
	c.Abort(NoError, ErrShutDown)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// peerGoesAway is a GOAWAY from the peer: no new streams, those that it will
// not process end, the others run on.
//
// "Receivers of a GOAWAY frame MUST NOT open additional streams on the
// connection" https://www.rfc-editor.org/rfc/rfc9113#section-6.8
func (c *Conn) peerGoesAway(last uint32) {
	if !c.cfg.Client {
		return // we open no streams, and it may still use its own
	}
	var refused []*Stream
	c.mu.Lock()
	c.draining = true
	empty := func() {}
	for id, s := range c.streams {
		if id > last {
			refused = append(refused, s)
			c.forget(s)
		}
	}
	if len(c.streams) == 0 {
		empty = c.emptied
	}
	c.mu.Unlock()
	for _, s := range refused {
		s.end(ErrUnprocessed, ErrUnprocessed)
	}
	empty()
}

// Draining reports whether no new streams may be opened.
func (c *Conn) Draining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining
}

// Goodbye ends a connection on which nothing happens any more. It does not
// wait: the caller may be the reader.
func (c *Conn) Goodbye() {
	c.goAway(c.lastSeen(), NoError)
	c.w.close(ErrShutDown)
}
