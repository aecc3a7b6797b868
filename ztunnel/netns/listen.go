package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ListenOptions are set on a listener before it is bound; accepted connections
// inherit the mark and the time-out.
type ListenOptions struct {
	Mark        uint32 // SO_MARK; 0 = none
	Transparent bool   // IP_TRANSPARENT: accept for addresses that are not ours
	ReusePort   bool   // SO_REUSEPORT: an old and a new process share the port
	// UserTimeout is TCP_USER_TIMEOUT of the accepted connections: how long what was
	// sent may stay unacknowledged until the peer counts as dead; 0 = the kernel's.
	UserTimeout time.Duration
}

// Listen listens inside ns. The wildcard address "[::]" is dual-stack; where the
// namespace has no IPv6 it falls back to "0.0.0.0".
func (ns *NS) Listen(addr netip.AddrPort, o ListenOptions) (*net.TCPListener, error) {
	ln, err := ns.listen(addr, o)
	noIPv6 := errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
	if noIPv6 && addr.Addr() == netip.IPv6Unspecified() {
		addr = netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
		ln, err = ns.listen(addr, o)
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr), Err: err}
	}
	return ln, nil
}

func (ns *NS) listen(addr netip.AddrPort, o ListenOptions) (*net.TCPListener, error) {
	var f *os.File
	err := ns.Do(func() error {
		fd, err := socket(addr.Addr())
		if err != nil {
			return err
		}
		if err := bindListener(fd, addr, o); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		f = os.NewFile(uintptr(fd), "tcp:"+addr.String())
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer f.Close() // FileListener has its own descriptor
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// socket returns a non-blocking TCP socket of the address's family.
func socket(a netip.Addr) (int, error) {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	return fd, os.NewSyscallError("socket", err)
}

func bindListener(fd int, addr netip.AddrPort, o ListenOptions) error {
	if err := set(fd, "SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if addr.Addr().Is6() {
		only := 1
		if addr.Addr().IsUnspecified() {
			only = 0 // dual-stack
		}
		if err := set(fd, "IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return err
		}
	}
	if o.Mark != 0 {
		if err := setMark(fd, o.Mark); err != nil {
			return err
		}
	}
	if o.ReusePort {
		if err := set(fd, "SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
	}
	if o.Transparent {
		if err := setTransparent(fd, addr.Addr().Is6()); err != nil {
			return err
		}
	}
	if err := setUserTimeout(fd, o.UserTimeout); err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddr(addr)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("listen", unix.Listen(fd, unix.SOMAXCONN))
}

// setTransparent lets the socket bind to and accept for foreign addresses. On a
// dual-stack socket the IPv6 option covers IPv4 too: the kernel has one flag.
func setTransparent(fd int, v6 bool) error {
	if v6 {
		return set(fd, "IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
	}
	return set(fd, "IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1)
}

// setUserTimeout bounds how long sent bytes, and with keep-alive probes, may go without
// an acknowledgement; 0 leaves it to the kernel.
func setUserTimeout(fd int, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	return set(fd, "TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(max(d.Milliseconds(), 1)))
}

func setMark(fd int, mark uint32) error {
	return set(fd, "SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(mark))
}

func set(fd int, name string, level, opt, value int) error {
	if err := unix.SetsockoptInt(fd, level, opt, value); err != nil {
		return fmt.Errorf("setsockopt %s: %w", name, err)
	}
	return nil
}
