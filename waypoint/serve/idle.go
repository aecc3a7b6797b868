package serve

import (
	"context"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
)

// How long a client may take. Nothing is timed per request: a sweep looks at
// all connections once per sweepPeriod, which the limits are late by at most.
const (
	quietLimit  = time.Hour        // without a request, as with Istio
	headLimit   = 60 * time.Second // from the first byte of a request's head to its last
	sweepPeriod = 5 * time.Second
)

// phase is what a client's connection waits for.
type phase uint8

const (
	serving phase = iota // nothing of the client's: a request runs
	quiet                // for the first byte of a request
	reading              // for the rest of its head
)

// idle bounds how long a connection waits for its client, and ends it when the
// server drains while no request is on it. A request whose head is whole is
// served in any case.
type idle struct {
	conn interface{ SetReadDeadline(t time.Time) error }

	mu      sync.Mutex
	phase   phase
	since   time.Time // of the first sweep that saw the phase; zero before it
	expired bool      // a sweep has ended the phase
	late    bool      // the server drains
}

// newIdle registers a connection with the server; its owner deletes it from
// Server.idles.
func (s *Server) newIdle(conn interface{ SetReadDeadline(t time.Time) error }) *idle {
	i := &idle{conn: conn}
	s.idles.Store(i, nil)
	if s.draining() {
		i.drain()
	}
	return i
}

func (s *Server) startDrain() {
	close(s.drain)
	s.idles.Range(func(i, _ any) bool {
		i.(*idle).drain()
		return true
	})
}

// sweepIdle looks at all connections until ctx ends.
func (s *Server) sweepIdle(ctx context.Context) {
	ticker := time.NewTicker(sweepPeriod)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			s.sweep(now)
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) sweep(now time.Time) {
	s.idles.Range(func(i, _ any) bool {
		i.(*idle).sweep(now)
		return true
	})
}

func (i *idle) sweep(now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.phase == serving || i.expired {
		return
	}
	limit := quietLimit
	if i.phase == reading {
		limit = headLimit
	}
	switch {
	case i.since.IsZero():
		i.since = now
	case now.Sub(i.since) >= limit:
		i.expired = true
		_ = i.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

func (i *idle) drain() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.late = true
	if i.phase != serving {
		_ = i.conn.SetReadDeadline(time.Now().Add(drainIdle))
	}
}

// enter begins a phase and reports whether a sweep has ended the one before.
func (i *idle) enter(p phase) (expired bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	expired = i.expired
	switch {
	case i.late && p != serving && (expired || i.phase == serving):
		_ = i.conn.SetReadDeadline(time.Now().Add(drainIdle))
	case expired, i.late && p == serving:
		_ = i.conn.SetReadDeadline(time.Time{})
	}
	i.phase, i.since, i.expired = p, time.Time{}, false
	return expired
}

// next waits for a request and reads its head.
func (i *idle) next(c *codec.ServerConn) (*codec.Request, error) {
	i.enter(quiet)
	defer i.enter(serving)
	if err := c.Waiting(); err != nil {
		return nil, err
	}
	i.enter(reading)
	req, err := c.Next()
	if expired := i.enter(serving); expired && codec.Timeout(err) {
		err = &codec.Error{Status: 408, Reason: "the head of the request did not come in time"}
	}
	return req, err
}
