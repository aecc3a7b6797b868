// Package relay moves bytes between two connections, both ways, until both
// directions have ended (spec/ztunnel.md §2.11). It counts them while they move
// and keeps half-close: the end of one direction is passed on and the other
// goes on for as long as it likes. It opens nothing and knows no protocol; the
// proxy and the waypoint call it. Counters may be read at any time.
package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// A Half is one of the two connections, such as [*net.TCPConn]. Three optional
// methods are used: SetLinger or Reset to end it abruptly; Forward to have it
// write to a TCP connection without a goroutine of ours; and WriteTo, unless it
// is a TCP connection, to move bytes without a buffer of ours.
type Half interface {
	io.Reader
	io.Writer
	CloseWrite() error
	io.Closer
}

// forwarder is the optional Forward. It must not wait, but call done once all
// bytes have been written (nil) or cannot be.
type forwarder interface {
	Forward(to sink, done func(error))
}

// Counters count payload bytes as they are written.
type Counters struct {
	Sent     atomic.Uint64 // from the caller to the target
	Received atomic.Uint64 // from the target to the caller
}

// Copy moves bytes until both directions have ended, then closes both
// connections. A connection that its peer has reset counts as ended; the other
// one is then reset too, so that its application does not take a cut for an
// end. Any other error ends both directions at once and is returned. To stop
// it early, close both.
func Copy(caller, target Half, c *Counters) error {
	r := &relay{caller: caller, target: target}
	near, far := newTarget(caller, &c.Received), newTarget(target, &c.Sent)
	there := direction{from: caller, to: target, source: near, sink: far, names: [2]string{"caller", "target"}, count: &c.Sent}
	back := direction{from: target, to: caller, source: far, sink: near, names: [2]string{"target", "caller"}, count: &c.Received}
	var other sync.WaitGroup
	switch {
	case r.forward(back, &other):
		r.oneWay(there)
	case r.forward(there, &other):
		r.oneWay(back)
	default:
		other.Go(func() { r.oneWay(back) })
		r.oneWay(there)
	}
	other.Wait()
	// Both have been used to the end, or aborted: nothing is lost.
	_ = caller.Close()
	_ = target.Close()
	return r.err
}

type relay struct {
	caller, target Half

	aborted atomic.Bool
	err     error // read when both directions have ended
}

// abort ends both directions abruptly; the first call says why. To end a
// forwarder calls abort again, from within.
func (r *relay) abort(err error) {
	if !r.aborted.CompareAndSwap(false, true) {
		return
	}
	r.err = err
	reset(r.caller)
	reset(r.target)
}

type direction struct {
	from, to     Half
	source, sink *target // from and to, nil if they are no TCP connections
	names        [2]string
	count        *atomic.Uint64
}

// forward lets the source of a direction do the work if it can.
func (r *relay) forward(d direction, running *sync.WaitGroup) bool {
	from, ok := d.from.(forwarder)
	if !ok {
		return false
	}
	if d.sink == nil {
		return false
	}
	running.Add(1)
	from.Forward(d.sink, func(err error) {
		r.ended(d, d.sink.failed(), err)
		running.Done()
	})
	return true
}

// oneWay moves the bytes of one direction.
func (r *relay) oneWay(d direction) {
	if d.sink != nil {
		err := move(d.sink, d)
		r.ended(d, d.sink.failed(), err)
		return
	}
	out := &counter{to: d.to, count: d.count}
	err := move(out, d)
	r.ended(d, out.err, err)
}

// ended passes on the end of one direction: writeErr is what the receiver said
// last, err why no more is moved, nil at EOF. It does not wait.
func (r *relay) ended(d direction, writeErr, err error) {
	switch {
	case writeErr != nil && quiet(writeErr):
		// The receiver takes no more. What it has sent before, such as an
		// early answer, is still on its way: the other direction ends by itself,
		// and asks wasReset how.
	case writeErr != nil:
		r.abort(fmt.Errorf("write to %s: %w", d.names[1], writeErr))
	case err == nil && d.source != nil && d.source.wasReset():
		r.abort(nil)
	case err == nil:
		if err := d.to.CloseWrite(); err != nil && !quiet(err) {
			r.abort(fmt.Errorf("end writing to %s: %w", d.names[1], err))
		}
	case quiet(err):
		r.abort(nil)
	default:
		r.abort(fmt.Errorf("read from %s: %w", d.names[0], err))
	}
}

// counter writes, counts, and remembers whose fault an error was.
type counter struct {
	to    io.Writer
	count *atomic.Uint64
	err   error
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	if n > 0 {
		c.count.Add(uint64(n))
	}
	c.err = err
	return n, err
}

// move copies until EOF, for which it returns nil.
func move(to io.Writer, d direction) error {
	if d.source != nil {
		return moveTCP(to, d.source.sock)
	}
	if w, ok := d.from.(io.WriterTo); ok {
		_, err := w.WriteTo(to)
		return err
	}
	var b buffer
	defer b.free()
	for {
		n, err := d.from.Read(b.get())
		if n > 0 {
			if _, err := to.Write(b.bytes[:n]); err != nil {
				return err
			}
			b.used(n)
		}
		if err == io.EOF { //nolint:errorlint // readers return it bare
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// quiet reports whether err says no more than that a connection is over
// (spec/ztunnel.md §2.11), or that its owner has closed it.
func quiet(err error) bool {
	for _, end := range []error{
		io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ENOTCONN, net.ErrClosed, io.ErrClosedPipe,
	} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// reset closes h so that its peer does not take it for a good end.
func reset(h Half) {
	switch c := h.(type) {
	case interface{ Reset() }:
		c.Reset()
	case interface{ SetLinger(int) error }:
		_ = c.SetLinger(0) // if it fails, the close is a polite one
	}
	_ = h.Close() // it is over either way
}
