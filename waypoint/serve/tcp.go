package serve

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

const (
	tcpTries    = 3               // endpoints that a byte stream is offered to
	flushPeriod = 5 * time.Second // of byte counters of streams that run
)

// bytes is one byte stream between a client and an endpoint.
type bytes struct {
	st       *stream
	listener *config.Listener
	start    time.Time
	cluster  *backend.Cluster
	endpoint *backend.Endpoint
	local    string
	flags    Flags
	details  string
	failure  string
	counters relay.Counters
	handles  *tcpHandles
	reported struct{ sent, received uint64 }
}

// tcp connects to an endpoint before the CONNECT is accepted, so that the
// client learns when there is none.
func (st *stream) tcp(in *hbone.Incoming, l *config.Listener) {
	b := &bytes{st: st, listener: l, start: time.Now()}
	defer b.record()
	far, ok := b.connect()
	if !ok {
		_ = in.Reject(503)
		return
	}
	conn, err := in.Accept()
	if err != nil {
		b.flags |= FlagDC
		_ = far.Close()
		return
	}
	st.conn = conn
	b.copy(far, nil)
}

// relay serves a stream that was accepted to see what it carries.
func (st *stream) relay(l *config.Listener, first []byte) {
	b := &bytes{st: st, listener: l, start: time.Now()}
	defer b.record()
	far, ok := b.connect()
	if !ok {
		st.conn.Reset()
		return
	}
	b.copy(far, first)
}

func (b *bytes) connect() (relay.Half, bool) {
	s := b.st.server
	target := b.listener.TCP.Pick(b.listener.Turn.Next())
	if b.cluster = s.cfg.Routes.Snapshot().Cluster(target.Cluster); b.cluster == nil {
		b.flags, b.details = FlagNC, clusterNotFound
		return nil, false
	}
	var tried []*backend.Endpoint
	for range tcpTries {
		b.endpoint = b.cluster.Choose(s.cfg.Random, tried)
		if b.endpoint == nil {
			b.flags, b.details = FlagUH, noHealthyEndpoint
			return nil, false
		}
		conn, err := s.cfg.Pool.Connect(b.st.ctx, b.endpoint, b.cluster.ConnectTimeout())
		if err == nil {
			b.flags, b.details, b.failure = 0, "", ""
			return b.half(conn)
		}
		b.flags, b.details, b.failure = FlagUF, connectFailed, err.Error()
		tried = append(tried, b.endpoint)
	}
	return nil, false
}

func (b *bytes) half(conn net.Conn) (relay.Half, bool) {
	far, ok := conn.(relay.Half)
	b.local = conn.LocalAddr().String()
	return far, ok
}

func (b *bytes) copy(far relay.Half, first []byte) {
	b.endpoint.Begin()
	defer b.endpoint.End()
	s := b.st.server
	b.handles = s.cfg.Metrics.tcp(b.st.source, s.target(b.endpoint), b.listener.Service, 0)
	b.handles.opened.Inc()
	s.relays.add(b)
	defer s.relays.remove(b)
	if err := relay.Copy(prefixedHalf(b.st.conn, first), far, &b.counters); err != nil {
		b.failure = err.Error()
	}
}

// report adds what was copied since the last time to the metrics.
func (b *bytes) report() {
	up, down := b.counters.Sent.Load(), b.counters.Received.Load()
	b.handles.received.Add(float64(up - b.reported.received))
	b.handles.sent.Add(float64(down - b.reported.sent))
	b.reported.received, b.reported.sent = up, down
}

// relays is the byte streams that run, so that counters move while they do.
type relays struct {
	mu   sync.Mutex
	list map[*bytes]struct{}
}

func (r *relays) add(b *bytes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.list == nil {
		r.list = map[*bytes]struct{}{}
	}
	r.list[b] = struct{}{}
}

func (r *relays) remove(b *bytes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.list, b)
	b.report()
}

func (r *relays) flush(ctx context.Context) {
	ticker := time.NewTicker(flushPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		for b := range r.list {
			b.report()
		}
		r.mu.Unlock()
	}
}
