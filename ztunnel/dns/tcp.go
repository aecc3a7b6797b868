package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// A pod's connection has a connection to the resolver of its own, made when the first
// question has to be passed on. So ids stay as they are, and answers of several messages
// (AXFR) pass as they come.

func (s *Server) serveTCP(l *net.TCPListener) {
	const firstDelay, maxDelay = 5 * time.Millisecond, time.Second
	delay := firstDelay
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			delay = firstDelay
			s.connection(c)
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		// Out of descriptors, most likely: let connections end before trying again.
		s.log.Warn("connection not accepted", telemetry.KeyAddress, l.Addr().String(), telemetry.KeyError, err)
		select {
		case <-time.After(delay):
			delay = min(2*delay, maxDelay)
		case <-s.life.Done():
			return
		}
	}
}

// connection serves a connection, or closes it when the pod has too many.
func (s *Server) connection(c *net.TCPConn) {
	select {
	case s.conns <- struct{}{}:
	default:
		_ = c.Close()
		return
	}
	s.working.Go(func() {
		defer func() { <-s.conns }()
		t := &stream{server: s, client: c, resolvers: s.asked.connection(c)}
		defer context.AfterFunc(s.life, t.close)()
		t.serve()
		t.close()
		t.pumping.Wait()
	})
}

// stream is one connection of the pod and what belongs to it.
type stream struct {
	server    *Server
	client    *net.TCPConn
	resolvers []netip.AddrPort
	pumping   sync.WaitGroup

	writeMu sync.Mutex // one message at a time to the client

	mu       sync.Mutex
	closed   bool
	resolver *net.TCPConn // nil: not connected
	pending  map[uint16]pending
}

// pending is a question that the resolver has not answered.
type pending struct {
	question
	started time.Time
}

// serve reads questions until the client has no more, or nothing happens for a while.
func (t *stream) serve() {
	for {
		t.alive()
		b, err := readMessage(t.client)
		if err != nil {
			if errors.Is(err, io.EOF) {
				t.finish()
			}
			return
		}
		if err := t.question(b); err != nil {
			return
		}
	}
}

// alive puts off the end of a connection on which nothing happens.
func (t *stream) alive() { _ = t.client.SetReadDeadline(time.Now().Add(idleTimeout)) }

// finish lets the resolver answer a client that has nothing more to ask.
func (t *stream) finish() {
	t.mu.Lock()
	r := t.resolver
	t.mu.Unlock()
	if r != nil {
		_ = r.CloseWrite()
		t.pumping.Wait()
	}
}

// question answers a question or passes it on. An error ends the connection.
func (t *stream) question(b []byte) error {
	s := t.server
	q, ok := s.ask("tcp", b)
	if !ok {
		return nil
	}
	a, what := s.decide(&q)
	if what == doAwait {
		if !s.await() {
			s.report(&q, telemetry.DNSUnknownSource, nil)
			return t.write(q.fail())
		}
		a, what = s.decide(&q)
	}
	if what == doAnswer {
		return t.write(q.reply(a, maxMessage))
	}
	return t.forward(&q, b)
}

// forward passes a question on, on the connection that there is or on a new one: resolvers
// close those on which nothing happens.
func (t *stream) forward(q *question, b []byte) error {
	started := time.Now()
	for {
		r, fresh, err := t.connect()
		if err == nil && !fresh && netns.Ended(r) {
			err = net.ErrClosed
		}
		if err == nil {
			if err = t.ask(r, q, b, started); err == nil {
				return nil
			}
		}
		if fresh || errors.Is(err, errTooMany) {
			t.server.forwarded(q, started, err)
			return t.write(q.fail())
		}
		if !t.detach(r) {
			return err
		}
	}
}

// connect returns the connection to the resolver, and whether it was made now.
func (t *stream) connect() (r *net.TCPConn, fresh bool, err error) {
	t.mu.Lock()
	r = t.resolver
	t.mu.Unlock()
	if r != nil {
		return r, false, nil
	}
	errs := []error{errNoResolver}
	s := t.server
	for _, to := range t.resolvers {
		ctx, cancel := context.WithTimeout(s.life, resolverTimeout/time.Duration(len(t.resolvers)))
		c, err := s.cfg.NetNS.Dial(ctx, to, netns.DialOptions{Mark: s.cfg.Mark})
		cancel()
		if err == nil {
			return c, true, t.attach(c)
		}
		errs = append(errs[:0], err)
	}
	return nil, true, errors.Join(errs...)
}

// attach begins to bring the resolver's answers to the client.
func (t *stream) attach(c *net.TCPConn) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = c.Close()
		return net.ErrClosed
	}
	t.resolver, t.pending = c, map[uint16]pending{}
	_ = c.SetReadDeadline(time.Now().Add(idleTimeout))
	t.pumping.Go(func() { t.pump(c) })
	return nil
}

// detach gives up a connection to the resolver. It reports false when the client waits
// for an answer on it: then its own ends, too.
func (t *stream) detach(r *net.TCPConn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = r.Close()
	if t.resolver == r && len(t.pending) > 0 {
		return false
	}
	if t.resolver == r {
		t.resolver = nil
	}
	return true
}

// ask passes a question on, byte for byte.
func (t *stream) ask(r *net.TCPConn, q *question, b []byte, started time.Time) error {
	if err := t.expect(r, q, started); err != nil {
		return err
	}
	_ = r.SetDeadline(started.Add(resolverTimeout))
	err := writeMessage(r, b)
	if err != nil {
		t.mu.Lock()
		delete(t.pending, q.id)
		t.mu.Unlock()
	}
	return err
}

// expect notes that the resolver has to answer.
func (t *stream) expect(r *net.TCPConn, q *question, started time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.resolver != r:
		return net.ErrClosed // by the resolver
	case len(t.pending) >= maxPipelined:
		return errTooMany
	}
	p := pending{*q, started}
	p.query.question = nil // a part of the message, which need not be kept
	t.pending[q.id] = p
	return nil
}

// pump brings answers to the client until the resolver has no more. A client that waits
// for an answer then is told so by the end of its connection.
func (t *stream) pump(r *net.TCPConn) {
	var err error
	for err == nil {
		var b []byte
		if b, err = readMessage(r); err == nil {
			t.alive()
			_ = r.SetReadDeadline(time.Now().Add(idleTimeout))
			t.answered(b)
			if err = t.write(b); err != nil {
				t.close() // a part of a message may have been written
			}
		}
	}
	t.mu.Lock()
	var unanswered map[uint16]pending
	if t.resolver == r {
		unanswered, t.resolver, t.pending = t.pending, nil, nil
	}
	t.mu.Unlock()
	_ = r.Close()
	for _, p := range unanswered {
		t.server.forwarded(&p.question, p.started, err)
	}
	if len(unanswered) > 0 {
		t.close()
	}
}

// answered counts the first message of an answer.
func (t *stream) answered(b []byte) {
	h, ok := readHeader(b)
	if !ok {
		return
	}
	t.mu.Lock()
	p, waiting := t.pending[h.id]
	delete(t.pending, h.id)
	t.mu.Unlock()
	if waiting {
		t.server.forwarded(&p.question, p.started, nil)
	}
}

// write sends one message to the client.
func (t *stream) write(b []byte) error {
	t.writeMu.Lock()
	defer t.writeMu.Unlock()
	_ = t.client.SetWriteDeadline(time.Now().Add(idleTimeout))
	return writeMessage(t.client, b)
}

// close ends both connections.
func (t *stream) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	_ = t.client.Close()
	if t.resolver != nil {
		_ = t.resolver.Close()
	}
}

// readMessage reads a message with its length in front, RFC 1035 §4.2.2.
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return b, nil
}

// writeMessage writes both at once, so that they leave in one segment.
func writeMessage(w io.Writer, b []byte) error {
	out := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b)))
	_, err := w.Write(append(out, b...))
	return err
}
