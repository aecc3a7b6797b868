package serve

import (
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
)

// idle ends a kept-alive connection when the server drains while no request is
// on it. A request that is already on its way is still served.
type idle struct {
	conn *hbone.Stream

	mu      sync.Mutex
	waiting bool
	late    bool
}

// newIdle registers a connection with the server until forget.
func (s *Server) newIdle(conn *hbone.Stream) *idle {
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

func (i *idle) drain() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.late = true
	if i.waiting {
		_ = i.conn.SetReadDeadline(time.Now().Add(drainIdle))
	}
}

func (i *idle) begin() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.waiting = true
	if i.late {
		_ = i.conn.SetReadDeadline(time.Now().Add(drainIdle))
	}
}

func (i *idle) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.waiting = false
	if i.late {
		_ = i.conn.SetReadDeadline(time.Time{})
	}
}

// watchAfter is how long a request runs before its client is watched. Most
// requests are over by then and cost nothing.
const watchAfter = 100 * time.Millisecond

// watch notices that the client of a long request is gone, and ends the
// request at the endpoint.
type watch struct {
	conn   *hbone.Stream
	client *codec.ServerConn
	timer  *time.Timer

	mu     sync.Mutex
	target *codec.ClientConn
	done   chan struct{} // closed when the reader that runs has ended
	gone   bool
}

func newWatch(conn *hbone.Stream, client *codec.ServerConn) *watch {
	return &watch{conn: conn, client: client}
}

// start watches for as long as a request runs on target. The request's body
// must have been read.
func (w *watch) start(target *codec.ClientConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target = target
	if w.timer == nil {
		w.timer = time.AfterFunc(watchAfter, w.look)
		return
	}
	w.timer.Reset(watchAfter)
}

func (w *watch) look() {
	w.mu.Lock()
	target := w.target
	if target == nil || w.done != nil {
		w.mu.Unlock()
		return
	}
	done := make(chan struct{})
	w.done = done
	w.mu.Unlock()
	defer close(done)
	if err := w.client.Waiting(); err != nil && !codec.Timeout(err) {
		w.mu.Lock()
		w.gone = true
		w.mu.Unlock()
		target.Abort()
	}
}

// stop ends the watching and reports whether the client is gone.
func (w *watch) stop() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.target == nil {
		return w.gone
	}
	w.target = nil
	w.timer.Stop()
	if done := w.done; done != nil {
		w.mu.Unlock()
		_ = w.conn.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = w.conn.SetReadDeadline(time.Time{})
		w.mu.Lock()
		w.done = nil
	}
	return w.gone
}
