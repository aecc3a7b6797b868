package relay

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/ambit-mesh/ambit/ztunnel/socket"
)

// A sink takes bytes, waiting or not. It is what [forwarder] knows; an alias,
// so that both packages name the same interface.
type sink = interface {
	io.Writer
	TryWrite(p []byte) (int, error)
}

// A target is a TCP connection's socket that counts what is written, and
// remembers its error, like counter.
type target struct {
	conn  *net.TCPConn
	sock  *socket.Conn
	count *atomic.Uint64

	mu  sync.Mutex // held while writing
	err error
}

// newTarget returns the target that a half is if it is a TCP connection, else
// nil.
func newTarget(h Half, count *atomic.Uint64) *target {
	conn, ok := h.(*net.TCPConn)
	if !ok {
		return nil
	}
	s, err := socket.New(conn)
	if err != nil {
		return nil // closed; the next use will say so
	}
	return &target{conn: conn, sock: s, count: count}
}

func (t *target) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wrote(t.sock.Write(p))
}

func (t *target) TryWrite(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wrote(t.sock.TryWrite(p))
}

// wrote notes the outcome of a write; t.mu is held.
func (t *target) wrote(n int, err error) (int, error) {
	if n > 0 {
		t.count.Add(uint64(n))
	}
	t.err = err
	return n, err
}

// failed returns what the last write said.
func (t *target) failed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// wasReset reports, when a read has said EOF, whether that is how a reset looks
// of which a write has learnt: Linux reports it once. (A reset that follows the
// peer's end is EPIPE: there EOF is the truth.) A write that goes on may not
// have said so yet. If the connection is dead it is about to, so wasReset waits
// for it; else it has not been reset.
func (t *target) wasReset() bool {
	if !t.mu.TryLock() {
		if !t.dead() {
			return false
		}
		t.mu.Lock()
	}
	defer t.mu.Unlock()
	return errors.Is(t.err, syscall.ECONNRESET)
}

// dead reports whether the connection neither sends nor receives any more.
func (t *target) dead() bool {
	raw, err := t.conn.SyscallConn()
	if err != nil {
		return true // closed
	}
	dead := true
	_ = raw.Control(func(fd uintptr) { // fails if it is closed
		const closed = 7 // TCP_CLOSE; the state is the first byte of TCP_INFO
		info, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO)
		dead = err != nil || binary.NativeEndian.AppendUint32(nil, uint32(info))[0] == closed
	})
	return dead
}

// moveTCP copies from a TCP connection until EOF, for which it returns nil.
// While it waits it holds no buffer.
func moveTCP(to io.Writer, from *socket.Conn) error {
	var b loan
	defer b.Put()
	for {
		n, err := from.Read(&b)
		if err == io.EOF { //nolint:errorlint // readers return it bare
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := to.Write(b.buf[:n]); err != nil {
			return err
		}
	}
}

// A loan is a [socket.Buffer] of the largest size from the pool.
type loan struct{ buf *[largeSize]byte }

// Get implements [socket.Buffer].
func (l *loan) Get() []byte {
	if l.buf == nil {
		l.buf = large.Get().(*[largeSize]byte)
	}
	return l.buf[:]
}

// Put implements [socket.Buffer].
func (l *loan) Put() {
	if l.buf != nil {
		large.Put(l.buf)
		l.buf = nil
	}
}
