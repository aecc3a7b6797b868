package serve

import (
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
)

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
