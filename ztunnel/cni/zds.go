package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/apis/zds"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

const (
	maxPacket   = 1024            // either side reads into a buffer of this size
	zdsDeadline = 5 * time.Second // for a request and its acknowledgement
	acceptBurst = 5               // connections per second
)

// errSession says that a request failed with the connection to ztunnel, and not because
// ztunnel refused it.
var errSession = errors.New("ztunnel connection")

// session is the connection of one ztunnel.
type session struct {
	conn *net.UnixConn
	wake chan struct{} // holds one token when queue may have something

	mu     sync.Mutex
	queue  []request
	closed bool

	// These belong to the Agent's owner.
	acked map[string]bool // UIDs of the pods that it serves
	ready bool            // it has its snapshot
}

// request is one message; done is called once, from the session's goroutine.
type request struct {
	message *zds.WorkloadRequest
	file    *os.File
	done    func(error)
}

// serveZDS accepts ztunnels once the pods are known.
func (a *Agent) serveZDS(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.synced:
	}
	if err := os.MkdirAll(filepath.Dir(a.cfg.ZDSSocket), 0o755); err != nil {
		return err
	}
	ln, err := netns.ListenSeqpacket(a.cfg.ZDSSocket)
	if err != nil {
		return err
	}
	a.up(&a.zdsUp)
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var sessions sync.WaitGroup
	defer sessions.Wait()
	limit := limiter{burst: acceptBurst, per: time.Second}
	for {
		conn, err := ln.AcceptUnix()
		if err != nil {
			return errors.Join(err, ctx.Err())
		}
		sessions.Go(func() { a.serveZtunnel(ctx, conn) })
		if !limit.wait(ctx) {
			return ctx.Err()
		}
	}
}

// serveZtunnel is the life of one connection: hello, snapshot, updates.
func (a *Agent) serveZtunnel(ctx context.Context, conn *net.UnixConn) {
	s := &session{conn: conn, wake: make(chan struct{}, 1), acked: map[string]bool{}}
	packets, stop := netns.ReadPackets(conn, maxPacket)
	defer stop()
	if err := hello(ctx, packets); err != nil {
		a.cfg.Log.Warn("ztunnel not accepted", "error", err)
		return
	}
	a.post(func() { a.join(s) })
	err := s.serve(ctx, packets)
	s.end(fmt.Errorf("%w: %w", errSession, err))
	a.post(func() { a.part(s, err) })
}

func hello(ctx context.Context, packets <-chan netns.Received) error {
	body, err := receive(ctx, packets)
	if err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	return parseHello(body)
}

func parseHello(body []byte) error {
	var m zds.ZdsHello
	if err := proto.Unmarshal(body, &m); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	if m.GetVersion() != zds.Version_V1 {
		return fmt.Errorf("hello: version %v, want %v", m.GetVersion(), zds.Version_V1)
	}
	return nil
}

// receive awaits one packet without files.
func receive(ctx context.Context, packets <-chan netns.Received) ([]byte, error) {
	deadline := time.NewTimer(zdsDeadline)
	defer deadline.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-deadline.C:
		return nil, fmt.Errorf("no answer within %s", zdsDeadline)
	case r := <-packets:
		r.Packet.Close()
		return r.Packet.Body, r.Err
	}
}

// serve sends what is queued, one request at a time, until the connection ends. Reading
// goes on meanwhile, so that the end is noticed when there is nothing to send.
func (s *session) serve(ctx context.Context, packets <-chan netns.Received) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-packets:
			r.Packet.Close()
			if r.Err != nil {
				return r.Err
			}
			return errors.New("a packet that answers nothing")
		case <-s.wake:
		}
		for q, ok := s.next(); ok; q, ok = s.next() {
			err := s.exchange(ctx, packets, q)
			q.done(err)
			if errors.Is(err, errSession) {
				return err
			}
		}
	}
}

// exchange sends a request and awaits its acknowledgement. The error is errSession when
// the connection cannot be used any more.
func (s *session) exchange(ctx context.Context, packets <-chan netns.Received, q request) error {
	body, err := proto.Marshal(q.message)
	if err != nil {
		return err
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(zdsDeadline)); err != nil {
		return fmt.Errorf("%w: %w", errSession, err)
	}
	err = netns.SendPacket(s.conn, body, q.file)
	if errors.Is(err, os.ErrClosed) && !errors.Is(err, net.ErrClosed) {
		return err // the pod went before its turn came: nothing was sent
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errSession, err)
	}
	answer, err := receive(ctx, packets)
	if err != nil {
		return fmt.Errorf("%w: ack: %w", errSession, err)
	}
	return parseAck(answer)
}

func parseAck(body []byte) error {
	var m zds.WorkloadResponse
	if err := proto.Unmarshal(body, &m); err != nil {
		return fmt.Errorf("%w: ack: %w", errSession, err)
	}
	if m.GetAck() == nil {
		return fmt.Errorf("%w: answer is not an ack", errSession)
	}
	if why := m.GetAck().GetError(); why != "" {
		return fmt.Errorf("ztunnel: %s", why)
	}
	return nil
}

// push queues a request, whose done will be called; false when the session has ended.
func (s *session) push(q request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.queue = append(s.queue, q)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return true
}

func (s *session) next() (request, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return request{}, false
	}
	q := s.queue[0]
	s.queue = s.queue[1:]
	return q, true
}

// end fails everything that is still queued.
func (s *session) end(err error) {
	s.mu.Lock()
	s.closed = true
	queue := s.queue
	s.queue = nil
	s.mu.Unlock()
	for _, q := range queue {
		q.done(err)
	}
}

// limiter lets so many things happen in any time of length per.
type limiter struct {
	burst int
	per   time.Duration
	last  []time.Time
}

// wait returns when the next thing may happen, false when ctx is done first.
func (l *limiter) wait(ctx context.Context) bool {
	l.last = append(l.last, time.Now())
	if len(l.last) < l.burst {
		return true
	}
	t := time.NewTimer(time.Until(l.last[0].Add(l.per)))
	defer t.Stop()
	l.last = l.last[1:]
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
