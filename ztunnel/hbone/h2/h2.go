// Package h2 is HTTP/2 at the level of frames, client and server: the preface,
// SETTINGS, PING, GOAWAY, flow control, header blocks, and streams whose two
// directions end separately. Package hbone puts CONNECT tunnels on it; requests
// with bodies and trailers fit as well. It knows no TLS and no addresses: it is
// given a connection whose handshake is done. Of golang.org/x/net it uses HPACK
// only. Sections named in comments are of RFC 9113.
//
// How it is built. One goroutine per connection reads (read.go). It never
// writes to the connection and never waits for an application: it hands bytes
// to the stream's [Sink] if that takes them at once, and queues them otherwise
// (stream_recv.go), so that a stream whose reader is slow holds up no other.
// Any goroutine may write; whoever finds the connection idle writes on its own,
// and what others add meanwhile goes out together (write.go).
//
// Memory. What lies unread on a stream is at most its window. A window starts
// small and grows while the reader keeps up; what all windows have grown is
// bounded per connection and per process (window.go).
//
// Locks are taken in the order Stream.rmu or Stream.wmu, writer.mu, Conn.mu,
// Stream.mu; none but the first two is held across I/O that may wait.
// Everything is safe for concurrent use except where it says otherwise.
package h2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"
)

// A Field is one header field. Names are lower case and never begin with ":".
type Field struct{ Name, Value string }

// A Head is a request's or response's header block.
type Head struct {
	Method, Scheme, Authority, Path string // of a request
	Status                          int    // of a response
	Fields                          []Field
	// TooLarge says that the block exceeded the limit and is not complete; a
	// server should answer 431.
	TooLarge bool
}

// Config tunes a connection. Zero values give the defaults.
type Config struct {
	Client         bool
	FirstWindow    uint32        // bytes that the peer may send unread on a new stream; 65,535
	StreamWindow   uint32        // what that grows to; 4 MiB
	ConnWindow     uint32        // bytes in flight on the connection, at least 65,535; 16 MiB
	MaxFrameSize   uint32        // largest frame that we ask for; 1 MiB
	MaxHeaderBytes uint32        // header list limit; 16 KiB
	MaxStreams     uint32        // server: advertised limit; 200
	PingInterval   time.Duration // since the last answer; 10 s. Negative: no pings
	PingTimeout    time.Duration // 20 s
	PrefaceTimeout time.Duration // server: for the client's preface; 10 s
	Grace          time.Duration // server: for streams to end once it drains; 5 s

	Base context.Context //nolint:containedctx // server: of requests
	// Handle serves a request, in a goroutine of its own. A stream without an
	// answer is reset when it returns; one with an answer may outlive it.
	Handle func(*Stream)
	// Emptied is called when the last stream has ended, again and again. No
	// locks are held.
	Emptied func()
}

func (c Config) withDefaults() Config {
	c.StreamWindow = min(cmp.Or(c.StreamWindow, 4<<20), maxWindow)
	c.FirstWindow = min(cmp.Or(c.FirstWindow, defaultWindow), c.StreamWindow)
	c.ConnWindow = min(max(cmp.Or(c.ConnWindow, 16<<20), defaultWindow), maxWindow)
	c.MaxFrameSize = min(max(cmp.Or(c.MaxFrameSize, 1<<20), minFrameSize), maxFrameSize)
	c.MaxHeaderBytes = min(cmp.Or(c.MaxHeaderBytes, 16<<10), 1<<20)
	c.MaxStreams = cmp.Or(c.MaxStreams, 200)
	c.PingInterval = cmp.Or(c.PingInterval, 10*time.Second)
	c.PingTimeout = cmp.Or(c.PingTimeout, 20*time.Second)
	c.PrefaceTimeout = cmp.Or(c.PrefaceTimeout, 10*time.Second)
	c.Grace = cmp.Or(c.Grace, 5*time.Second)
	if c.Emptied == nil {
		c.Emptied = func() {}
	}
	return c
}

// A Sink takes a stream's bytes. The two methods are never called at once. It is
// an alias, so that others can name the same interface.
type Sink = interface {
	io.Writer
	// TryWrite takes as much of p as can be without waiting, maybe nothing.
	TryWrite(p []byte) (int, error)
}

// A ResetError is a stream that one side has given up. If it was for no
// mistake it is [syscall.EPIPE] for errors.Is.
type ResetError struct {
	Code   ErrCode
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
	return target == syscall.EPIPE && (e.Code == NoError || e.Code == Cancel || e.Code == StreamClosed)
}

// An EndError is what the streams of a connection that has ended return. It is
// [io.ErrUnexpectedEOF] for errors.Is.
type EndError struct{ Cause error }

func (e *EndError) Error() string        { return fmt.Sprintf("tunnel: %v", e.Cause) }
func (e *EndError) Unwrap() error        { return e.Cause }
func (e *EndError) Is(target error) bool { return target == io.ErrUnexpectedEOF }

// A ConnError is a connection error in the sense of §5.4.1: the peer is told
// its code.
type ConnError struct {
	Code   ErrCode
	Reason string
}

func (e *ConnError) Error() string { return fmt.Sprintf("%v: %s", e.Code, e.Reason) }

func protocolError(reason string) error { return &ConnError{Protocol, reason} }

// Errors that callers branch on.
var (
	// ErrNoRoom and ErrUnprocessed: the peer has not looked at the request,
	// which may be sent again on another connection.
	ErrNoRoom      = errors.New("tunnel takes no more streams")
	ErrUnprocessed = errors.New("peer refused the stream unprocessed")

	ErrPeerClosed  = errors.New("closed by peer")
	ErrShutDown    = errors.New("shut down")
	ErrPingTimeout = errors.New("peer does not answer pings")

	errWriteClosed = errors.New("write after CloseWrite")
	// errNotReading ends a connection whose peer makes us answer and does not
	// read the answers.
	errNotReading = errors.New("peer does not read answers to its frames")
)
