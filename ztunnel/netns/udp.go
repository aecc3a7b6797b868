package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ListenUDP binds a UDP socket inside ns. Of the options, Mark and ReusePort count.
func (ns *NS) ListenUDP(addr netip.AddrPort, o ListenOptions) (*net.UDPConn, error) {
	c, err := ns.udp(addr.Addr(), func(fd int) error {
		if addr.Addr().Is6() {
			if err := set(fd, "IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
				return err
			}
		}
		if o.ReusePort {
			if err := set(fd, "SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
				return err
			}
		}
		if o.Mark != 0 {
			if err := setMark(fd, o.Mark); err != nil {
				return err
			}
		}
		return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(addr)))
	})
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: net.UDPAddrFromAddrPort(addr), Err: err}
	}
	return c, nil
}

// udp makes a socket of the address's family inside ns and prepares it there.
func (ns *NS) udp(a netip.Addr, prepare func(fd int) error) (*net.UDPConn, error) {
	domain := unix.AF_INET6
	if a.Is4() {
		domain = unix.AF_INET
	}
	var f *os.File
	err := ns.Do(func() error {
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := prepare(fd); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		f = os.NewFile(uintptr(fd), "udp")
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer f.Close() // FileConn has its own descriptor
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T is no UDP socket", c), c.Close())
	}
	return u, nil
}

// LeaveReusePort makes the kernel give datagrams that are yet to come to the other
// sockets of the port. What was received already can still be read, and the socket can
// still send to whom it wants: a connected socket takes datagrams of its peer only, and
// the peer here is an address from which nobody sends.
func LeaveReusePort(c *net.UDPConn) error {
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return net.ErrClosed
	}
	const discard = 9 // RFC 863; nothing of it is used
	return connectUDP(c, netip.AddrPortFrom(local.AddrPort().Addr().Unmap(), discard))
}

// AwaitDatagram reads one datagram into the buffer that take returns. take is called when
// there is something to read, so that waiting costs no buffer. The socket's deadline ends
// it, as does an error of the socket, such as that the peer refuses.
func AwaitDatagram(c *net.UDPConn, take func() []byte) (b []byte, from netip.AddrPort, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, from, err
	}
	if cerr := rc.Read(func(fd uintptr) bool {
		b, from, err = receive(int(fd), take)
		return !errors.Is(err, unix.EAGAIN)
	}); cerr != nil {
		return nil, from, cerr
	}
	return b, from, os.NewSyscallError("recvfrom", err)
}

// PollDatagram is AwaitDatagram for what is there already, whatever the deadline; it
// returns os.ErrDeadlineExceeded when nothing is.
func PollDatagram(c *net.UDPConn, take func() []byte) (b []byte, from netip.AddrPort, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, from, err
	}
	if cerr := rc.Control(func(fd uintptr) { b, from, err = receive(int(fd), take) }); cerr != nil {
		return nil, from, cerr
	}
	if errors.Is(err, unix.EAGAIN) {
		return nil, from, os.ErrDeadlineExceeded
	}
	return b, from, os.NewSyscallError("recvfrom", err)
}

// receive takes a buffer once there is a datagram. When that turns out to be damaged,
// the buffer is unused and taken again.
func receive(fd int, take func() []byte) ([]byte, netip.AddrPort, error) {
	if _, _, err := recvfrom(fd, nil, unix.MSG_PEEK); err != nil {
		return nil, netip.AddrPort{}, err
	}
	b := take()
	n, from, err := recvfrom(fd, b, 0)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		return b[:n], netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr).Unmap()
		if a.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(a.ZoneId), 10))
		}
		return b[:n], netip.AddrPortFrom(ip, uint16(a.Port)), nil
	}
	return b[:n], netip.AddrPort{}, nil
}

func recvfrom(fd int, b []byte, flags int) (int, unix.Sockaddr, error) {
	for {
		n, from, err := unix.Recvfrom(fd, b, flags)
		if !errors.Is(err, unix.EINTR) {
			return n, from, err
		}
	}
}
