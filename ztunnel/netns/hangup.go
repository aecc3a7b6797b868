package netns

import (
	"context"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// AwaitHangup blocks until the peer of c has reset the connection, or has ended its
// side and gone says so, and returns nil then; else ctx's error when that ends first.
// gone is told whether bytes lie unread. Nothing is read, but c's read deadline is
// used: nobody else may read meanwhile, and it is removed at the end.
func AwaitHangup(ctx context.Context, c *net.TCPConn, gone func(unread bool) bool) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	expire := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.SetReadDeadline(time.Unix(1, 0)) // fails only when c is closed, which wakes, too
		close(expire)
	})
	// Each packet of the peer makes the socket ready anew, also when bytes lie unread.
	err = rc.Read(func(fd uintptr) bool {
		ended, unread := peerEnded(int(fd))
		return ended && gone(unread)
	})
	if !stop() {
		<-expire
		_ = c.SetReadDeadline(time.Time{}) // as above
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Ended reports whether the peer of c sends no more: it has ended its side, or the
// connection. Nothing is read, and others may read meanwhile.
func Ended(c *net.TCPConn) (ended bool) {
	rc, err := c.SyscallConn()
	if err != nil {
		return true
	}
	err = rc.Control(func(fd uintptr) { ended, _ = peerEnded(int(fd)) })
	return ended || err != nil
}

// States of a socket, from the kernel's tcp_states.h.
const (
	tcpEstablished = 1
	tcpCloseWait   = 8
)

// peerEnded reports whether the peer sends no more, and whether what it has sent lies
// unread. After a reset nothing does.
func peerEnded(fd int) (ended, unread bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil || info.State == tcpEstablished {
		return false, false // the wait ends with ctx
	}
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	return true, info.State == tcpCloseWait && err == nil && n > 0
}

// Owned reports whether a process still has a socket of ns that is connected from
// local. The kernel keeps the socket of a client that has gone for a while, with no
// owner: that tells a client that has closed from one that only sends no more.
func (ns *NS) Owned(local netip.AddrPort) (bool, error) {
	owned := false
	err := ns.eachTCP(func(s tcpSocket) { owned = owned || (s.Local == local && s.owned) })
	return owned, err
}
