// Package socket moves bytes through TCP sockets at the lowest cost that the
// runtime's poller allows: a system call that cannot wait is not announced to
// the scheduler, and a reader that waits holds no buffer. It opens and closes
// nothing. Packages relay and hbone use it. One goroutine may read while
// another writes; deadlines and Close of the connection itself apply.
package socket

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// A Conn is a TCP connection's socket.
type Conn struct {
	raw   syscall.RawConn
	recv  call // arguments and results of receive
	send  call
	into  Buffer
	read  func(fd uintptr) bool // receive, made once
	write func(fd uintptr) bool
	try   func(fd uintptr) bool
}

type call struct {
	p     []byte
	n     int
	errno syscall.Errno
}

// A Buffer lends room for received bytes.
type Buffer interface {
	// Get returns the room, which is not empty.
	Get() []byte
	// Put takes it back: nothing has come yet.
	Put()
}

// New returns the socket of a connection, which stays the caller's.
func New(conn *net.TCPConn) (*Conn, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &Conn{raw: raw}
	c.read, c.write, c.try = c.receive, c.sendAll, c.sendOnce
	return c, nil
}

// Read waits for bytes and reads them into what b lends then. It returns how
// many they are, or io.EOF.
func (c *Conn) Read(b Buffer) (int, error) {
	c.into = b
	err := c.raw.Read(c.read)
	c.into = nil
	n, errno := c.recv.n, c.recv.errno
	c.recv = call{}
	switch {
	case err != nil: // closed, or the deadline
		return 0, err
	case errno != 0:
		return 0, os.NewSyscallError("recvfrom", errno)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// receive reads once. Neither this nor sendOnce can wait, so the scheduler need
// not know of them: telling it, as package syscall does, costs more than a small
// message itself, and hands the processor on while a large one is copied.
func (c *Conn) receive(fd uintptr) bool {
	p := c.into.Get()
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), //nolint:gosec // the call's buffer
			syscall.MSG_DONTWAIT, 0, 0)
		switch errno {
		case syscall.EINTR:
		case syscall.EAGAIN:
			c.into.Put()
			return false
		default:
			c.recv.n, c.recv.errno = int(n), errno
			return true
		}
	}
}

// Write writes all of p, waiting if it must.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return c.sent(p, c.write)
}

// TryWrite writes as much of p as the socket takes at once, maybe nothing.
func (c *Conn) TryWrite(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return c.sent(p, c.try)
}

func (c *Conn) sent(p []byte, how func(uintptr) bool) (int, error) {
	c.send = call{p: p}
	err := c.raw.Write(how)
	n, errno := c.send.n, c.send.errno
	c.send = call{}
	switch {
	case err != nil:
		return n, err
	case errno != 0:
		return n, os.NewSyscallError("sendto", errno)
	}
	return n, nil
}

// sendAll writes what is left, and tells whether the socket took it or failed.
func (c *Conn) sendAll(fd uintptr) bool {
	for c.send.n < len(c.send.p) {
		p := c.send.p[c.send.n:]
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), //nolint:gosec // the call's buffer
			syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			c.send.n += int(n)
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			c.send.errno = errno
			return true
		}
	}
	return true
}

// sendOnce is sendAll that never waits.
func (c *Conn) sendOnce(fd uintptr) bool {
	c.sendAll(fd)
	return true
}
