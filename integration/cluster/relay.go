package cluster

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

func apiAddress() netip.AddrPort { return netip.AddrPortFrom(controlPlaneAddress, apiPort) }

// serveRelay joins each connection that the listener accepts to a new one to
// the target, until the listener is closed. The two may be in different network
// namespaces: a socket stays in the one where it was made.
func serveRelay(listener net.Listener, target netip.AddrPort, log *slog.Logger) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			log.Warn("relay", "error", err)
			<-time.After(100 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		go relayTo(conn, target)
	}
}

func relayTo(conn net.Conn, target netip.AddrPort) {
	defer conn.Close()
	other, err := net.DialTimeout("tcp", target.String(), 5*time.Second)
	if err != nil {
		return // as if nobody listened here
	}
	defer other.Close()
	var both sync.WaitGroup
	both.Go(func() { copyHalf(conn, other) })
	both.Go(func() { copyHalf(other, conn) })
	both.Wait()
}

// copyHalf copies until one side has no more, and says so to the other.
func copyHalf(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = to.Close()
		_ = from.Close()
		return
	}
	if c, ok := to.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
}
