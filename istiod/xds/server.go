package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	// defaultSendTimeout is long: a busy node may be slow, and a stalled stream
	// costs little.
	defaultSendTimeout = 5 * time.Minute
	// firstRequestTimeout bounds how long a stranger holds a stream open.
	firstRequestTimeout = 15 * time.Second
	// maxRequestBytes leaves room for the versions that a proxy reports when it
	// reconnects: some 100 bytes for each resource that it holds, of which a large
	// cluster has 200,000. Whom Authenticate refuses cannot send it.
	maxRequestBytes = 32 << 20
)

// Config is all that a Server needs.
type Config struct {
	Store *Store
	// Authenticate says who is calling before anything of the stream is read: a
	// request may be large. ctx carries the gRPC metadata; what Authenticate
	// returns is handed to Authorize. Nil lets everybody through.
	Authenticate func(ctx context.Context) (context.Context, error)
	// Authorize decides once per stream, on its first request, whether the
	// caller may be this node, and which scopes it gets. Of an error of either
	// function the caller is told the gRPC status within, the log all.
	Authorize func(ctx context.Context, node *corev3.Node) (scopes []string, err error)
	// Ready reports whether the store has its first complete contents. Nil is
	// always. Before, streams are refused: a proxy must not be given nothing.
	Ready   func() bool
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: not exported
	// SendTimeout ends the stream of a proxy that does not read; 0 is 5 minutes.
	SendTimeout time.Duration
}

// Server serves a Store.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	cfg     Config
	metrics *metrics
	closing chan struct{}

	running sync.WaitGroup // handlers and what they started

	mu      sync.Mutex
	closed  bool
	streams map[*stream]struct{}
}

// wire is one stream in the protocol that its proxy speaks.
type wire interface {
	receive() (request, error)
	send(message) error
}

// NewServer returns a Server. Its goroutines are those of its streams.
func NewServer(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.SendTimeout <= 0 {
		cfg.SendTimeout = defaultSendTimeout
	}
	return &Server{cfg: cfg, metrics: newMetrics(cfg.Metrics), closing: make(chan struct{}), streams: map[*stream]struct{}{}}
}

// Register adds the server to a gRPC server made with Options.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// Options are the gRPC server options that the protocol needs.
func Options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.MaxRecvMsgSize(maxRequestBytes)}
}

// DeltaAggregatedResources implements the incremental protocol.
func (s *Server) DeltaAggregatedResources(g discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(g.Context(), deltaWire{g}, false)
}

// StreamAggregatedResources implements the state-of-the-world protocol.
func (s *Server) StreamAggregatedResources(g discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(g.Context(), sotwWire{g}, true)
}

// Close ends every stream with Unavailable, so that proxies go elsewhere, and
// waits until they have ended. New ones are refused.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	s.running.Wait()
}

// enter counts a handler in, unless the server is closing.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.running.Add(1)
	}
	return !s.closed
}

// serve is one stream. Receiver and sender run beside it, so that either's end,
// a stalled proxy or Close ends the stream; gRPC then cancels ctx, which ends
// the two, and Close waits for them.
func (s *Server) serve(ctx context.Context, w wire, full bool) error {
	if !s.enter() {
		return status.Error(codes.Unavailable, "server is closing")
	}
	defer s.running.Done()
	if s.cfg.Ready != nil && !s.cfg.Ready() {
		return status.Error(codes.Unavailable, "configuration is not complete yet")
	}
	if s.cfg.Authenticate != nil {
		known, err := s.cfg.Authenticate(ctx)
		if err != nil {
			return s.refuse(ctx, "", err)
		}
		ctx = known
	}
	ended := make(chan error, 1)
	fail := func(err error) {
		select {
		case ended <- err:
		default: // it has ended already
		}
	}
	opened := make(chan *stream, 1)
	s.running.Go(func() { fail(s.receive(ctx, w, full, opened)) })
	patience := time.NewTimer(firstRequestTimeout)
	defer patience.Stop()
	for {
		select {
		case st := <-opened:
			patience.Stop()
			s.running.Go(func() { fail(s.send(ctx, w, st, fail)) })
		case err := <-ended:
			return err
		case <-patience.C:
			return status.Error(codes.DeadlineExceeded, "no first request")
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.closing:
			return status.Error(codes.Unavailable, "server is closing")
		}
	}
}

// receive is the stream's receiver. It announces the stream on opened once its
// first request has been authorized, and takes it out again when it ends.
func (s *Server) receive(ctx context.Context, w wire, full bool, opened chan<- *stream) error {
	first, err := w.receive()
	if err != nil {
		return ended(err)
	}
	st, err := s.open(ctx, first, full)
	if err != nil {
		return err
	}
	s.cfg.Store.join(st)
	defer s.cfg.Store.leave(st)
	s.add(st)
	defer s.drop(st)
	opened <- st
	for r := first; ; {
		if err := s.handle(st, r); err != nil {
			s.cfg.Log.Warn("xds request refused", "node", clip(st.node.GetId()), "error", err)
			return err
		}
		if r, err = w.receive(); err != nil {
			return ended(err)
		}
	}
}

// statusError is an error made by package status.
type statusError interface {
	error
	GRPCStatus() *status.Status
}

// ended is the end of a stream by its proxy, which is no error when it is clean.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// open decides whether the stream may be.
func (s *Server) open(ctx context.Context, first request, full bool) (*stream, error) {
	if first.node.GetId() == "" {
		return nil, status.Error(codes.InvalidArgument, "the first request needs a node with an id")
	}
	scopes, err := s.cfg.Authorize(ctx, first.node)
	if err != nil {
		return nil, s.refuse(ctx, first.node.GetId(), err)
	}
	st := newStream(first.node, scopes, full)
	st.peer = peerOf(ctx)
	return st, nil
}

// refuse logs why there is no stream and returns what the caller is told.
func (s *Server) refuse(ctx context.Context, node string, err error) error {
	s.cfg.Log.Warn("xds stream refused", "node", clip(node), "peer", peerOf(ctx), "error", err)
	if known, ok := errors.AsType[statusError](err); ok {
		return known.GRPCStatus().Err() // without what wraps it
	}
	return status.Error(codes.PermissionDenied, "node is not permitted")
}

func peerOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return ""
}

// handle applies one request: its answer to a response, then what it asks for.
func (s *Server) handle(st *stream, r request) error {
	fresh := s.answer(st, r)
	if !st.full {
		return st.update(s.cfg.Store, r)
	}
	if !fresh {
		return nil // a newer request that names everything will follow
	}
	return st.replace(s.cfg.Store, r)
}

// answer books an ACK or NACK. It reports false for one that is out of date.
func (s *Server) answer(st *stream, r request) (fresh bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	sub := st.subs[r.typeURL]
	if r.nonce == "" || sub == nil {
		return true // asks for something; a nonce of an earlier stream says nothing
	}
	if fresh := sub.answer(r.nonce); !fresh || (st.full && sub.acked != sub.sent) {
		s.metrics.expiredNonce.WithLabelValues(label(r.typeURL)).Inc()
		return false
	}
	if !r.rejected {
		return true
	}
	sub.rejected++
	sub.rejection = &Rejection{Nonce: r.nonce, Message: clip(r.rejection), Time: time.Now()}
	s.metrics.rejects.WithLabelValues(label(r.typeURL)).Inc()
	s.cfg.Log.Warn("xds response rejected", "node", clip(st.node.GetId()), "type", label(r.typeURL),
		"nonce", clip(r.nonce), "error", clip(r.rejection))
	return true
}

func (s *Server) add(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[st] = struct{}{}
	s.metrics.connected(st.node, 1)
	s.cfg.Log.Info("xds stream opened", "node", clip(st.node.GetId()), "peer", st.peer)
}

func (s *Server) drop(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	s.metrics.connected(st.node, -1)
	s.cfg.Log.Info("xds stream ended", "node", clip(st.node.GetId()), "peer", st.peer)
}

// clip keeps what a proxy sent from filling the log.
func clip(text string) string {
	const most = 1024
	if len(text) <= most {
		return text
	}
	return text[:most] + "…"
}
