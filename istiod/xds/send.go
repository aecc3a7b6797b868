package xds

import (
	"cmp"
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// message is one response in either protocol.
type message struct {
	typeURL string
	nonce   string
	version uint64
	add     []*entry
	remove  []string
	aliases bool
}

func compareNames(a, b *entry) int { return cmp.Compare(a.Name, b.Name) }

// send is the stream's sender. It ends with the stream or with ctx.
func (s *Server) send(ctx context.Context, w wire, st *stream, fail func(error)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-st.wake:
		}
		parts := st.take(s.cfg.Store)
		var err error
		if st.full {
			err = s.sendFull(w, st, parts, fail)
		} else {
			err = s.sendDelta(w, st, parts, fail)
		}
		if err != nil {
			return err
		}
	}
}

// sendDelta sends a turn: what is new, type by type in the order of pushOrder,
// and then the removals that had to wait.
func (s *Server) sendDelta(w wire, st *stream, parts []part, fail func(error)) error {
	for _, p := range parts {
		now := p
		if removedLast(p.sub.typeURL) {
			now.remove = nil
			if len(p.add) == 0 && len(p.remove) > 0 {
				continue // the removals below are the reply
			}
		}
		if err := s.sendPart(w, st, now, fail); err != nil {
			return err
		}
	}
	for _, p := range parts {
		if removedLast(p.sub.typeURL) && len(p.remove) > 0 {
			p.add = nil
			if err := s.sendPart(w, st, p, fail); err != nil {
				return err
			}
		}
	}
	return nil
}

// sendFull sends a turn to a state-of-the-world proxy: types that lose
// resources and gain none come last, so that nothing still names them.
func (s *Server) sendFull(w wire, st *stream, parts []part, fail func(error)) error {
	var last []part
	for _, p := range parts {
		adds := st.complete(s.cfg.Store, &p)
		if !adds && removedLast(p.sub.typeURL) {
			last = append(last, p)
			continue
		}
		if err := s.transmit(w, st, p, p.add, nil, fail); err != nil {
			return err
		}
		s.metrics.converged(p.since)
	}
	for _, p := range last {
		if err := s.transmit(w, st, p, p.add, nil, fail); err != nil {
			return err
		}
		s.metrics.converged(p.since)
	}
	return nil
}

// sendPart sends what a turn has of one type in messages of bounded size.
// Removals come last: a pod that takes over an address is there before its
// predecessor goes.
func (s *Server) sendPart(w wire, st *stream, p part, fail func(error)) error {
	add, remove := p.add, p.remove
	for once := true; once || len(add)+len(remove) > 0; once = false {
		size, adds, removes := 0, 0, 0
		for adds < len(add) && (adds == 0 || size+add[adds].size <= messageBytes) {
			size += add[adds].size
			adds++
		}
		if adds == len(add) {
			const overhead = 8
			for removes < len(remove) && (adds+removes == 0 || size+len(remove[removes])+overhead <= messageBytes) {
				size += len(remove[removes]) + overhead
				removes++
			}
		}
		if err := s.transmit(w, st, p, add[:adds], remove[:removes], fail); err != nil {
			return err
		}
		add, remove = add[adds:], remove[removes:]
	}
	s.metrics.converged(p.since)
	return nil
}

// transmit sends one message. A proxy that does not read for SendTimeout loses
// its stream; it comes back with the versions that it has.
func (s *Server) transmit(w wire, st *stream, p part, add []*entry, remove []string, fail func(error)) error {
	st.mu.Lock()
	m := message{
		typeURL: p.sub.typeURL, nonce: p.sub.next(), version: p.version,
		add: add, remove: remove, aliases: !p.sub.wildcard,
	}
	st.mu.Unlock()
	watchdog := time.AfterFunc(s.cfg.SendTimeout, func() {
		s.metrics.writeTimeout.Inc()
		fail(status.Errorf(codes.DeadlineExceeded, "no response was read for %s", s.cfg.SendTimeout))
	})
	defer watchdog.Stop()
	begin := time.Now()
	if err := w.send(m); err != nil {
		return err
	}
	s.metrics.pushed(m.typeURL, time.Since(begin))
	return nil
}
