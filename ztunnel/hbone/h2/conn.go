package h2

import (
	"cmp"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const goodbyeTimeout = time.Second // for the last frames to leave

// A Conn is one HTTP/2 connection, in either role. It runs from Start until
// Run has returned.
type Conn struct {
	net  Transport
	cfg  Config
	w    writer
	read reader

	done     chan struct{} // closed when the connection has failed or ended
	tasks    sync.WaitGroup
	maxFrame atomic.Int64 // the peer's limit
	grown    atomic.Int64 // what the windows of streams have grown

	mu          sync.Mutex
	streams     map[uint32]*Stream
	cause       error // why the connection is about to end
	err         error // why the connection has ended
	sendWindow  int64
	peerWindow  int64     // of new streams, as the peer wants it
	waiting     []*Stream // want sendWindow, in order
	nextID      uint32    // client: of the next stream
	lastPeerID  uint32    // server: highest stream seen
	peerMax     uint32    // client: streams that the peer allows
	firstWindow int64     // that the peer has on a new stream
	reserved    int       // client: streams about to be opened
	draining    bool      // no new streams: a GOAWAY was received or is about to end it
	zombies     int       // server: streams that are gone and still have an unanswered handler
	emptied     func()    // called without locks when the last stream has gone
	drained     func()    // called with mu when drainPing is answered
	ping        pinger
}

// New returns a connection on which nothing happens yet.
func New(nc net.Conn, cfg Config) *Conn {
	cfg = cfg.withDefaults()
	c := &Conn{
		net: transport(nc), cfg: cfg,
		done:       make(chan struct{}),
		streams:    map[uint32]*Stream{},
		sendWindow: defaultWindow,
		peerWindow: defaultWindow,
		// Until it acknowledges our SETTINGS the peer may think that it is more.
		firstWindow: max(int64(cfg.FirstWindow), defaultWindow),
		nextID:      1,
		peerMax:     100, // assumed until SETTINGS say otherwise, spec/ztunnel.md §2.10
		emptied:     cfg.Emptied,
	}
	c.maxFrame.Store(minFrameSize)
	c.w.init(c)
	c.read.init(c)
	return c
}

// Start queues our side of the preface and starts the pings. It does not wait.
//
// "The server connection preface consists of a potentially empty SETTINGS
// frame that MUST be the first frame", the client's is 24 octets "followed by
// a SETTINGS frame" https://www.rfc-editor.org/rfc/rfc9113#section-3.4
func (c *Conn) Start() {
	settings := []setting{
		{settingInitialWindow, c.cfg.FirstWindow},
		{settingMaxFrameSize, c.cfg.MaxFrameSize},
		{settingMaxHeaderList, c.cfg.MaxHeaderBytes},
	}
	if c.cfg.Client {
		settings = append(settings, setting{settingPush, 0})
	} else {
		settings = append(settings, setting{settingMaxStreams, c.cfg.MaxStreams})
	}
	c.w.control(func(b []byte) []byte {
		if c.cfg.Client {
			b = append(b, preface...)
		}
		b = appendSettings(b, settings...)
		// "The connection flow-control window can only be changed using
		// WINDOW_UPDATE frames." https://www.rfc-editor.org/rfc/rfc9113#section-6.9.2
		if more := c.cfg.ConnWindow - defaultWindow; more > 0 {
			b = appendWindowUpdate(b, 0, more)
		}
		return b
	})
	c.startPings()
}

// Run reads frames until the connection ends, tells the peer if it was at
// fault, and fails every stream. It returns why it ended. After it, Wait waits
// for what else runs.
func (c *Conn) Run() error {
	err := c.read.run()
	if ce, ok := errors.AsType[*ConnError](err); ok {
		c.Abort(ce.Code, err)
	} else {
		c.fail(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Wait returns when every goroutine of the connection has ended, that of Run
// excepted. Handle's are among them.
func (c *Conn) Wait() { c.tasks.Wait() }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// fail ends the connection and everything on it. Only the first call counts.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = cmp.Or(c.cause, err)
	err = c.err
	streams := c.streams
	c.streams = map[uint32]*Stream{}
	c.stopPings()
	c.mu.Unlock()

	c.w.stop(&EndError{err})
	for _, s := range streams {
		s.end(&EndError{err}, &EndError{err})
	}
	close(c.done)
	_ = c.net.Close() // the connection is over either way
}

// Abort tells the peer why the connection ends, then fails it.
//
// "An endpoint that encounters a connection error SHOULD first send a GOAWAY
// frame with the stream identifier of the last stream that it successfully
// received" https://www.rfc-editor.org/rfc/rfc9113#section-5.4.1
func (c *Conn) Abort(code ErrCode, err error) {
	c.mu.Lock()
	c.cause = cmp.Or(c.cause, err)
	c.mu.Unlock()
	c.goAway(c.lastSeen(), code)
	_ = c.net.SetWriteDeadline(time.Now().Add(goodbyeTimeout)) // best effort
	c.w.drain()
	c.fail(err)
}

// Ended reports whether err says no more than that one side has ended the
// connection, be it in the middle of what the other was sending.
func Ended(err error) bool {
	for _, end := range []error{ErrPeerClosed, ErrShutDown, syscall.EPIPE, syscall.ECONNRESET, io.ErrClosedPipe} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

func (c *Conn) goAway(last uint32, code ErrCode) {
	c.w.control(func(b []byte) []byte { return appendGoAway(b, last, code) })
}

func (c *Conn) lastSeen() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastPeerID
}

// stream returns the stream with an id. known is false if the id has never
// been in use.
func (c *Conn) stream(id uint32) (s *Stream, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.Client {
		known = id%2 == 1 && id < c.nextID
	} else {
		known = id%2 == 1 && (id <= c.lastPeerID || c.draining) // after our GOAWAY more may come, to be ignored
	}
	return c.streams[id], known
}

// Streams returns how many streams are open.
func (c *Conn) Streams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

// forget removes a stream that has ended both ways. c.mu is held; the caller
// calls what forget returns after unlocking.
func (c *Conn) forget(s *Stream) (after func()) {
	if c.streams[s.id] != s {
		return func() {}
	}
	delete(c.streams, s.id)
	c.unqueue(s)
	if len(c.streams) > 0 {
		return func() {}
	}
	return c.emptied
}

// giveUp is forget for a stream that ends because of what the peer did. Its
// handler counts until it answers, whoever sends the RST_STREAM: else a client
// could have any number of them. c.mu is held.
func (c *Conn) giveUp(s *Stream) (after func()) {
	if !c.cfg.Client && !s.handled && !s.zombie {
		s.zombie = true
		c.zombies++
	}
	return c.forget(s)
}

// streamError ends one stream for something that the peer did wrong, §5.4.2.
// Only the reader may call it. The error is the connection's: too many of them.
func (c *Conn) streamError(id uint32, code ErrCode, reason string) error {
	c.mu.Lock()
	s, after := c.streams[id], func() {}
	if s != nil {
		after = c.giveUp(s)
	}
	c.mu.Unlock()
	if s != nil {
		err := &ResetError{Code: code, Reason: reason}
		s.end(err, err)
	}
	c.writeReset(id, code)
	after()
	return c.read.costly(reason)
}

func (c *Conn) writeReset(id uint32, code ErrCode) {
	c.w.control(func(b []byte) []byte { return appendReset(b, id, code) })
}
