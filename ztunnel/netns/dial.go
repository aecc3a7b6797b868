package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DialOptions are set on a socket before it connects.
type DialOptions struct {
	Mark        uint32        // SO_MARK; 0 = none
	UserTimeout time.Duration // TCP_USER_TIMEOUT, as in ListenOptions; 0 = the kernel's
	// Source is bound transparently when valid: the peer sees a connection from
	// this address, on a port that the kernel chooses. It needs CAP_NET_ADMIN in the
	// user namespace that owns ns, and a route that brings the answers back.
	Source netip.Addr
}

// Dial connects inside ns. Only the making of the socket occupies a thread; the
// connection is awaited like any other I/O and given up when ctx is done.
func (ns *NS) Dial(ctx context.Context, to netip.AddrPort, o DialOptions) (*net.TCPConn, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	c, err := ns.dial(ctx, to, o)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return c, nil
}

func (ns *NS) dial(ctx context.Context, to netip.AddrPort, o DialOptions) (*net.TCPConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var f *os.File
	err := ns.Do(func() error {
		fd, err := boundSocket(to, o)
		if err != nil {
			return err
		}
		err = unix.Connect(fd, sockaddr(to))
		if err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return errors.Join(os.NewSyscallError("connect", err), unix.Close(fd))
		}
		// Only now: an unconnected socket would be reported ready at once.
		f = os.NewFile(uintptr(fd), "tcp:"+to.String())
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer f.Close() // FileConn has its own descriptor
	if err := awaitConnected(ctx, f); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// boundSocket returns a non-blocking socket with its options, bound when a source is
// wanted.
func boundSocket(to netip.AddrPort, o DialOptions) (fd int, err error) {
	fd, err = socket(to.Addr())
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if err := set(fd, "TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return -1, err
	}
	if o.Mark != 0 {
		if err := setMark(fd, o.Mark); err != nil {
			return -1, err
		}
	}
	if err := setUserTimeout(fd, o.UserTimeout); err != nil {
		return -1, err
	}
	if o.Source.IsValid() {
		return fd, bindSource(fd, o.Source.Unmap(), to.Addr())
	}
	return fd, nil
}

// bindSource gives the socket a source address that need not be ours. The port is
// chosen at connect time, so that it must be free for this destination only.
func bindSource(fd int, source, to netip.Addr) error {
	if source.Is4() != to.Is4() {
		return fmt.Errorf("source %s and target %s differ in family", source, to)
	}
	if err := setTransparent(fd, source.Is6()); err != nil {
		return err
	}
	level, freebind := unix.SOL_IP, unix.IP_FREEBIND
	if source.Is6() {
		level, freebind = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	if err := set(fd, "IP_FREEBIND", level, freebind, 1); err != nil {
		return err
	}
	if err := set(fd, "IP_BIND_ADDRESS_NO_PORT", unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(source, 0))); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// awaitConnected returns when the connection is made, has failed, or ctx is done.
func awaitConnected(ctx context.Context, f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var result error
	err = rc.Write(func(fd uintptr) bool {
		var done bool
		done, result = connected(int(fd))
		return done
	})
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, result)
}

// connected says whether the connection attempt has ended, and how.
func connected(fd int) (done bool, err error) {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, os.NewSyscallError("getsockopt", err)
	}
	switch errno := syscall.Errno(code); errno {
	case 0:
		_, err := unix.Getpeername(fd)
		return err == nil, nil
	case syscall.EINPROGRESS, syscall.EALREADY, syscall.EINTR:
		return false, nil
	default:
		return true, os.NewSyscallError("connect", errno)
	}
}
