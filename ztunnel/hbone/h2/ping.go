package h2

import (
	"crypto/rand"
	"time"
)

// A pinger finds out whether the peer is still there: a PING after
// PingInterval without one, and the end of the connection when the answer
// takes PingTimeout. Pings do not depend on other traffic (spec/ztunnel.md
// §2.10). Its fields are under Conn.mu.
type pinger struct {
	timer   *time.Timer
	waiting bool
	data    [8]byte
	turn    int // a timer of an older turn that fires late is ignored
}

func (c *Conn) startPings() {
	if c.cfg.PingInterval < 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.armPing(c.cfg.PingInterval, c.sendPing)
	}
}

// armPing calls next after d unless something else happens before.
func (c *Conn) armPing(d time.Duration, next func()) {
	c.stopPings()
	turn := c.ping.turn
	c.ping.timer = time.AfterFunc(d, func() {
		c.mu.Lock()
		current := c.err == nil && c.ping.turn == turn
		c.mu.Unlock()
		if current {
			next()
		}
	})
}

// stopPings is also called when the connection ends; c.mu is held.
func (c *Conn) stopPings() {
	c.ping.turn++
	if c.ping.timer != nil {
		c.ping.timer.Stop()
		c.ping.timer = nil
	}
}

func (c *Conn) sendPing() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	// Not predictable: an answer proves that the peer has read the question.
	_, _ = rand.Read(c.ping.data[:]) // never fails
	data := c.ping.data
	c.ping.waiting = true
	c.armPing(c.cfg.PingTimeout, func() { c.Abort(NoError, ErrPingTimeout) })
	c.mu.Unlock()
	c.w.control(func(b []byte) []byte { return appendPing(b, false, data) })
}

// pong is the answer to some PING of ours.
func (c *Conn) pong(data [8]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ping.waiting && c.ping.data == data && c.err == nil {
		c.ping.waiting = false
		c.armPing(c.cfg.PingInterval, c.sendPing)
	}
	if c.drained != nil && data == drainPing {
		c.drained()
	}
}
