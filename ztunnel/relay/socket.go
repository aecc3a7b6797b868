package relay

import (
	"io"
	"net"
	"sync/atomic"

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
	sock  *socket.Conn
	count *atomic.Uint64
	err   error
}

func (t *target) Write(p []byte) (int, error)    { return t.wrote(t.sock.Write(p)) }
func (t *target) TryWrite(p []byte) (int, error) { return t.wrote(t.sock.TryWrite(p)) }

func (t *target) wrote(n int, err error) (int, error) {
	if n > 0 {
		t.count.Add(uint64(n))
	}
	t.err = err
	return n, err
}

// tcpSocket returns the socket of a half that is a TCP connection, else nil.
func tcpSocket(h Half) *socket.Conn {
	conn, ok := h.(*net.TCPConn)
	if !ok {
		return nil
	}
	s, err := socket.New(conn)
	if err != nil {
		return nil // closed; the next use will say so
	}
	return s
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
