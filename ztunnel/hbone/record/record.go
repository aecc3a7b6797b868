// Package record lies between crypto/tls and a socket, and lets it move many
// TLS records with one system call: crypto/tls itself reads and writes one at a
// time. It looks at the records' lengths only. Package hbone uses it.
package record

import (
	"encoding/binary"
	"io"
	"net"
	"sync"

	"github.com/ambit-mesh/ambit/ztunnel/socket"
)

const (
	// MaxPlain is the most that one record carries.
	MaxPlain  = 16 << 10
	headerLen = 5
	// bufSize holds eight full records and what is around them.
	bufSize = 136 << 10
)

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// A Conn is a connection to be given to crypto/tls. It behaves like the one
// that it is made of until Hold is called. What is said of [net.Conn] holds,
// but one goroutine only may read: crypto/tls sees to that.
type Conn struct {
	net.Conn
	sock *socket.Conn // nil: through Conn

	in   *[bufSize]byte  // nil while it would hold less than a header
	r, w int             // in[r:w] has come and crypto/tls has not taken it
	part [headerLen]byte // its first w are in[:w] while in is nil
	left int             // of the record that begins before r

	mu   sync.Mutex // held while writing: records keep their order
	held bool
	out  *[bufSize]byte // nil while nothing is in it
	n    int            // bytes in out
	err  error          // of a write: all that follow fail, too
}

// New returns a Conn over c, which it takes over. If c is a TCP connection, or
// has a method Socket that returns one whose bytes are its own, they are moved
// by package socket.
func New(c net.Conn) *Conn {
	r := &Conn{Conn: c}
	tcp, ok := c.(*net.TCPConn)
	if wrapped, is := c.(interface{ Socket() *net.TCPConn }); is {
		tcp, ok = wrapped.Socket(), true
	}
	if ok && tcp != nil {
		if s, err := socket.New(tcp); err == nil { // else it is closed
			r.sock = s
		}
	}
	return r
}

// Read gives no more than the rest of one record, so that crypto/tls holds no
// part of the next and More can tell.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if c.left == 0 {
		for c.w-c.r < headerLen {
			if err := c.fill(); err != nil && c.r == c.w {
				return 0, err
			} else if err != nil {
				break // the beginning of a header, and no more
			}
		}
		if c.left = c.next(); c.left == 0 {
			c.left = c.w - c.r
		}
	} else if c.r == c.w {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	c.Get() // what was put aside
	n := copy(p, c.in[c.r:min(c.w, c.r+c.left)])
	c.r += n
	c.left -= n
	return n, nil
}

// Await waits until there are bytes to read and returns how many there are, 0
// if Read will say why there are none.
func (c *Conn) Await() int {
	if c.r == c.w {
		_ = c.fill() // comes again
	}
	return c.w - c.r
}

// next returns the length of the record that begins at r, header included; 0 if
// its header is not there.
func (c *Conn) next() int {
	if c.w-c.r < headerLen {
		return 0
	}
	return headerLen + int(binary.BigEndian.Uint16(c.in[c.r+3:]))
}

// More reports whether a whole record has come that crypto/tls has not taken.
func (c *Conn) More() bool {
	n := c.next()
	return c.left == 0 && n > 0 && n <= c.w-c.r
}

// fill reads once, waiting if it must.
func (c *Conn) fill() error {
	if c.r > 0 {
		c.w = copy(c.in[:], c.in[c.r:c.w])
		c.r = 0
	}
	var n int
	var err error
	if c.sock != nil {
		n, err = c.sock.Read(c)
	} else {
		n, err = c.Conn.Read(c.Get())
	}
	c.w += n
	if err != nil {
		c.Put()
		return err
	}
	if n == 0 {
		return io.ErrNoProgress
	}
	return nil
}

// Get and Put are [socket.Buffer]'s: who waits for a record holds no buffer,
// though part of its header may have come.
func (c *Conn) Get() []byte {
	if c.in == nil {
		c.in = buffers.Get().(*[bufSize]byte)
		copy(c.in[:], c.part[:c.w])
	}
	return c.in[c.w:]
}

// Put is Get's counterpart.
func (c *Conn) Put() {
	if c.in != nil && c.w < headerLen {
		copy(c.part[:], c.in[:c.w])
		buffers.Put(c.in)
		c.in = nil
	}
}

// Write sends p, or keeps it until Flush if Hold was called.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if !c.held {
		return c.send(p)
	}
	if c.n+len(p) > bufSize {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) > bufSize {
		return c.send(p)
	}
	if c.out == nil {
		c.out = buffers.Get().(*[bufSize]byte)
	}
	c.n += copy(c.out[c.n:], p)
	return len(p), nil
}

// Hold makes Write keep what it gets until Flush.
func (c *Conn) Hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = true
}

// Flush sends what Write has kept.
func (c *Conn) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	return c.flush()
}

func (c *Conn) flush() error {
	if c.n == 0 || c.err != nil {
		return c.err
	}
	_, err := c.send(c.out[:c.n])
	buffers.Put(c.out)
	c.out, c.n = nil, 0
	return err
}

// send writes all of p; c.mu is held.
func (c *Conn) send(p []byte) (n int, err error) {
	if c.sock != nil {
		n, err = c.sock.Write(p)
	} else {
		n, err = c.Conn.Write(p)
	}
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		c.err = err
	}
	return n, err
}
