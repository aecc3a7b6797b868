// Package hbone carries byte streams inside HTTP/2 CONNECT: many streams over
// one connection (a tunnel), each with the half-close and the back-pressure of
// a TCP connection. [NewTunnel] is the client side, [Serve] the server side,
// [Pool] keeps tunnels open and shares them.
//
// It knows no workloads, no TLS and no addresses: it is given a connection
// whose handshake is done. Frames are parsed and header blocks coded by
// golang.org/x/net/http2; streams, flow control and the order of writes are
// decided here, because that package cannot express "finished sending, still
// reading" (spec/ztunnel.md App. D.2). The parameters are those of
// spec/ztunnel.md §2.10.
//
// How it is built: one goroutine per tunnel reads. It never writes to the
// connection and never waits for an application, so that a stream whose reader
// is slow holds up no other. Any goroutine may write; whoever finds the
// connection idle writes on its own, and what others add meanwhile goes out
// together (writer.go). Locks are taken in the order Stream.rmu or Stream.wmu,
// writer.mu, conn.mu, Stream.mu; conn.mu is never held across I/O.
//
// Everything is safe for concurrent use except where it says otherwise.
//
// Benchmarks: go test -run ^$ -bench . ./ztunnel/hbone
package hbone

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"golang.org/x/net/http2"
)

// A Field is one header field. Names are lower case and never begin with ":".
type Field struct{ Name, Value string }

// A Request is what a CONNECT asks for.
type Request struct {
	Authority string
	Header    []Field
}

// Config tunes an endpoint. The zero value gives the defaults named below,
// which are those of spec/ztunnel.md §2.10.
type Config struct {
	StreamWindow   uint32        // bytes that the peer may send unread on a stream, a server's grows from 64 KiB to it; 4 MiB
	ConnWindow     uint32        // bytes in flight on the connection, at least 64 KiB; 16 MiB
	MaxFrameSize   uint32        // largest frame that we ask for; 1 MiB
	MaxHeaderBytes uint32        // header list limit; 16 KiB for a client, 64 KiB for a server
	MaxStreams     uint32        // server: advertised limit, 200. Pool: streams on one tunnel, 100
	PingInterval   time.Duration // since the last answer; 10 s. Negative: no pings
	PingTimeout    time.Duration // 20 s
	OpenTimeout    time.Duration // client: for the answer to a CONNECT; 30 s
	PrefaceTimeout time.Duration // server: for the client's preface; 10 s
	IdleTimeout    time.Duration // pool: a tunnel without a stream is closed after; 5 min
	Grace          time.Duration // server: for streams to end once ctx is done; 5 s
}

// minConnWindow is the window that every connection starts with.
const minConnWindow = 65535

// withDefaults fills what is zero.
func (c Config) withDefaults(client bool) Config {
	headerBytes, streams := uint32(64<<10), uint32(200)
	if client {
		headerBytes, streams = 16<<10, 100
	}
	c.StreamWindow = min(cmp.Or(c.StreamWindow, 4<<20), maxWindow)
	c.ConnWindow = min(max(cmp.Or(c.ConnWindow, 16<<20), minConnWindow), maxWindow)
	c.MaxFrameSize = min(max(cmp.Or(c.MaxFrameSize, 1<<20), minFrameSize), 1<<24-1)
	c.MaxHeaderBytes = cmp.Or(c.MaxHeaderBytes, headerBytes)
	c.MaxStreams = cmp.Or(c.MaxStreams, streams)
	c.PingInterval = cmp.Or(c.PingInterval, 10*time.Second)
	c.PingTimeout = cmp.Or(c.PingTimeout, 20*time.Second)
	c.OpenTimeout = cmp.Or(c.OpenTimeout, 30*time.Second)
	c.PrefaceTimeout = cmp.Or(c.PrefaceTimeout, 10*time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 5*time.Minute)
	c.Grace = cmp.Or(c.Grace, 5*time.Second)
	return c
}

// A StatusError is a CONNECT that was answered with a status other than 200.
type StatusError struct{ Status int }

func (e *StatusError) Error() string { return fmt.Sprintf("connect: peer answered %d", e.Status) }

// A ResetError is a stream that one side has given up. If it was for no
// mistake it is [syscall.EPIPE] for errors.Is.
type ResetError struct {
	Code   http2.ErrCode
	Reason string // ours; empty when the peer did it
}

func (e *ResetError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("stream reset by peer: %v", e.Code)
	}
	return fmt.Sprintf("stream reset: %v: %s", e.Code, e.Reason)
}

// Is makes a harmless reset look like that of a socket (spec/ztunnel.md §2.11).
func (e *ResetError) Is(target error) bool {
	return target == syscall.EPIPE && (endsQuietly(e.Code) || e.Code == http2.ErrCodeStreamClosed)
}

// endsQuietly reports whether a reset with code blames nobody.
func endsQuietly(code http2.ErrCode) bool {
	return code == http2.ErrCodeNo || code == http2.ErrCodeCancel
}

// A tunnelError is what the streams of a tunnel that has ended return. It is
// [io.ErrUnexpectedEOF] for errors.Is.
type tunnelError struct{ cause error }

func (e *tunnelError) Error() string        { return fmt.Sprintf("tunnel: %v", e.cause) }
func (e *tunnelError) Unwrap() error        { return e.cause }
func (e *tunnelError) Is(target error) bool { return target == io.ErrUnexpectedEOF }

var (
	// errNoRoom and errUnprocessed: the peer has not looked at the request,
	// which may be sent again on another tunnel.
	errNoRoom      = errors.New("tunnel takes no more streams")
	errUnprocessed = errors.New("peer refused the stream unprocessed")

	errPeerClosed  = errors.New("closed by peer")
	errShutDown    = errors.New("shut down")
	errPingTimeout = errors.New("peer does not answer pings")
	errWriteClosed = errors.New("write after CloseWrite")
)
