package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// Who wants to forge an answer to a question that is passed on has to guess the port, the
// id, and the question itself: each question has a socket of its own, connected, on a
// port that the kernel chooses, and an id chosen here. RFC 5452 §9.

var errNoResolver = errors.New("there is no resolver to ask")

// buffers are as long as a datagram can be. One is held only while there is something in
// it.
var buffers = sync.Pool{New: func() any { return new([maxMessage]byte) }}

type buffer = *[maxMessage]byte

func takeBuffer() buffer { return buffers.Get().(buffer) } //nolint:forcetypeassert // nothing else is in it

func giveBack(b buffer) {
	if b != nil {
		buffers.Put(b)
	}
}

// exchange asks resolvers in turn until one answers, and gives its answer, with the id of
// the question, to deliver, which must not keep it. msg is changed.
func (s *Server) exchange(q *question, msg []byte, resolvers []netip.AddrPort, deliver func([]byte)) error {
	if len(resolvers) == 0 {
		return errNoResolver
	}
	var errs []error
	for _, r := range resolvers {
		err := s.exchangeWith(r, q, msg, resolverTimeout/time.Duration(len(resolvers)), deliver)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
		if s.life.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func (s *Server) exchangeWith(r netip.AddrPort, q *question, msg []byte, timeout time.Duration, deliver func([]byte)) error {
	c, err := s.clients.Dial(r)
	if err != nil {
		return err
	}
	defer s.clients.Release(c)
	defer context.AfterFunc(s.life, func() { _ = c.Close() })()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	id := randomID()
	binary.BigEndian.PutUint16(msg, id)
	if _, err := c.Write(msg); err != nil {
		return fmt.Errorf("ask %s: %w", r, err)
	}
	for {
		var held buffer
		b, _, err := netns.AwaitDatagram(c, func() []byte { held = takeBuffer(); return held[:] })
		if err == nil && q.answeredBy(b, id) {
			binary.BigEndian.PutUint16(b, q.id)
			deliver(b)
			giveBack(held)
			return nil
		}
		giveBack(held)
		if err != nil {
			return fmt.Errorf("answer of %s: %w", r, err)
		}
	}
}

func randomID() uint16 {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint16(b[:])
}

// forwarded counts and logs what was passed on.
func (s *Server) forwarded(q *question, started time.Time, err error) {
	s.cfg.Metrics.Forwarded(s.labels(q), time.Since(started), err != nil)
	result := telemetry.DNSForwarded
	if err != nil {
		result = telemetry.DNSForwardingFailed + " (" + err.Error() + ")"
	}
	s.report(q, result, nil)
}
