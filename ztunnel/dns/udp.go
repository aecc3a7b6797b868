package dns

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// serveUDP reads questions until the socket is closed, or, once it has a deadline, until
// those that had come are read.
func (s *Server) serveUDP(c *net.UDPConn) {
	receive := netns.AwaitDatagram
	draining := false
	for {
		var held buffer
		b, from, err := receive(c, func() []byte { held = takeBuffer(); return held[:] })
		if err == nil {
			b = bytes.Clone(b)
		}
		giveBack(held)
		switch {
		case err == nil:
			s.datagram(c, from, b)
		case errors.Is(err, net.ErrClosed) || draining && errors.Is(err, os.ErrDeadlineExceeded):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			receive, draining = netns.PollDatagram, true
		default:
			s.log.Warn("question not received", telemetry.KeyAddress, c.LocalAddr().String(), telemetry.KeyError, err)
			select { // what is wrong may last
			case <-time.After(100 * time.Millisecond):
			case <-s.life.Done():
			}
		}
	}
}

// datagram answers a question or has it passed on.
func (s *Server) datagram(c *net.UDPConn, from netip.AddrPort, b []byte) {
	q, ok := s.ask("udp", b)
	if !ok {
		return
	}
	send := func(b []byte) { _, _ = c.WriteToUDPAddrPort(b, from) } // who asked asks again
	a, what := s.decide(&q)
	if what == doAnswer {
		send(q.reply(a, q.limit()))
		return
	}
	if !s.hold(len(b)) {
		s.forwarded(&q, time.Now(), errTooMany)
		send(q.fail())
		return
	}
	s.working.Go(func() {
		defer s.release(len(b))
		if what == doAwait {
			if !s.await() {
				s.report(&q, telemetry.DNSUnknownSource, nil)
				send(q.fail())
				return
			}
			if a, what = s.decide(&q); what == doAnswer {
				send(q.reply(a, q.limit()))
				return
			}
		}
		started := time.Now()
		err := s.exchange(&q, b, s.asked.datagram(from, canonical(c.LocalAddr())), send)
		if err != nil {
			send(q.fail())
		}
		s.forwarded(&q, started, err)
	})
}

var errTooMany = errors.New("too many questions of the pod wait for an answer")

// hold reserves room for a question that is n bytes long and waits.
func (s *Server) hold(n int) bool {
	if s.held.Add(int64(n)) > maxHeld {
		s.held.Add(-int64(n))
		return false
	}
	select {
	case s.waiting <- struct{}{}:
		return true
	default:
		s.held.Add(-int64(n))
		return false
	}
}

func (s *Server) release(n int) {
	<-s.waiting
	s.held.Add(-int64(n))
}
