package netns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// UDPClients makes sockets that ask one address each inside a namespace. A socket that is
// given back is used again, on another port: entering the namespace and making one costs
// far more than the rest of a question. The zero value with NS and Mark is usable, by many
// goroutines at once.
type UDPClients struct {
	NS   *NS
	Mark uint32 // SO_MARK; 0 = none

	mu     sync.Mutex
	closed bool
	idle   [2][]*net.UDPConn // IPv4, IPv6
}

// maxIdle is how many sockets of a family are kept: resolver libraries ask for two
// families at once.
const maxIdle = 2

// Dial returns a socket that sends to an address and receives from nobody else, on a port
// that the kernel chooses at random.
func (u *UDPClients) Dial(to netip.AddrPort) (*net.UDPConn, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	c := u.takeIdle(to.Addr())
	var err error
	if c == nil {
		c, err = u.NS.udp(to.Addr(), func(fd int) error {
			if u.Mark == 0 {
				return nil
			}
			return setMark(fd, u.Mark)
		})
	}
	if err == nil {
		if err = connectUDP(c, to); err != nil {
			err = errors.Join(err, c.Close())
		}
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "udp", Addr: net.UDPAddrFromAddrPort(to), Err: err}
	}
	return c, nil
}

func (u *UDPClients) takeIdle(a netip.Addr) *net.UDPConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := &u.idle[family(a)]
	n := len(*list)
	if n == 0 {
		return nil
	}
	c := (*list)[n-1]
	*list = (*list)[:n-1]
	return c
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// Release takes a socket back, or closes it when there are enough. Its port is free at
// once, and what has come for it is dropped.
func (u *UDPClients) Release(c *net.UDPConn) {
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok || disconnectUDP(c) != nil || !empty(c) {
		_ = c.Close()
		return
	}
	u.mu.Lock()
	list := &u.idle[family(local.AddrPort().Addr())]
	keep := !u.closed && len(*list) < maxIdle
	if keep {
		*list = append(*list, c)
	}
	u.mu.Unlock()
	if !keep {
		_ = c.Close()
	}
}

// Close closes the sockets that are kept, and those that are given back from now on.
func (u *UDPClients) Close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	for i := range u.idle {
		for _, c := range u.idle[i] {
			_ = c.Close()
		}
		u.idle[i] = nil
	}
}

// connectUDP makes the socket talk to one address.
func connectUDP(c *net.UDPConn, to netip.AddrPort) error {
	return onSocket(c, func(fd int) error { return os.NewSyscallError("connect", unix.Connect(fd, sockaddr(to))) })
}

// disconnectUDP makes the socket as it was before it was connected, without a port. The
// address that says so, with the family AF_UNSPEC, is one that x/sys/unix cannot express.
func disconnectUDP(c *net.UDPConn) error {
	return onSocket(c, func(fd int) error {
		to := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to)) //nolint:gosec // the kernel only reads it
		if errno != 0 {
			return os.NewSyscallError("disconnect", errno)
		}
		return nil
	})
}

// empty drops what the socket has received, and says whether that worked.
func empty(c *net.UDPConn) bool {
	err := onSocket(c, func(fd int) error {
		for {
			if _, _, err := recvfrom(fd, nil, 0); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
	})
	return errors.Is(err, unix.EAGAIN)
}

func onSocket(c *net.UDPConn, f func(fd int) error) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := rc.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
