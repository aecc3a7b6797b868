// Package serve takes HBONE connections and serves what is inside: one request
// end to end, route → filter → backend, or one byte stream to an endpoint.
//
// It decides nothing that another package can decide: which rule answers is
// route's business, which endpoint is backend's, what is on the wire is codec's.
// It owns the order of things, the retries, the deadlines, and the telemetry of
// each request. One goroutine serves a stream; a request with a large body has
// a second one for the time of that body.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

const (
	handshakeLimit = 10 * time.Second
	sniffLimit     = 100 * time.Millisecond
	sourceLimit    = 250 * time.Millisecond // waiting for the description of a new source
	maxHeld        = 1024                   // streams that wait for their service at a time
	acceptPause    = 50 * time.Millisecond
	drainIdle      = time.Second // for requests that cross our goodbye on an idle connection
)

// Source of configuration, implemented by config.Builder.
type Source interface {
	Snapshot() *config.Snapshot
	Changed() <-chan struct{}
}

// Directory knows workloads by address, for telemetry. Its answers may come
// late: Watch asks for one, Lookup gives it once it is there.
type Directory interface {
	Watch(ip netip.Addr)
	Forget(ip netip.Addr)
	Lookup(ip netip.Addr) (Workload, bool)
	Changed() <-chan struct{}
}

// Workload is what telemetry says about one end of a request.
type Workload struct {
	Identity                                                    spiffe.ID
	Name, Namespace, Canonical, Revision, App, Version, Cluster string
}

// Config is what a Server needs.
type Config struct {
	Routes      Source
	Pool        *backend.Pool
	Certificate mtls.Source
	Directory   Directory
	Metrics     *Metrics
	Access      *AccessLog // nil: no access log
	Log         *slog.Logger
	Grace       time.Duration // for what is running when Run's context ends
	// Hold is how long a CONNECT to an unknown address waits for configuration;
	// 2 s when zero, not at all when negative.
	Hold time.Duration
	// Random is the source of choices; nil is math/rand/v2.
	Random func() uint64
}

// Server serves HBONE connections.
type Server struct {
	cfg      Config
	drain    chan struct{}
	held     atomic.Int64
	interned sync.Map // Workload -> *Workload
	idles    sync.Map // *idle -> nil
	conns    sync.WaitGroup
	relays   relays
}

// New returns a Server.
func New(cfg Config) *Server {
	if cfg.Random == nil {
		cfg.Random = rand.Uint64
	}
	if cfg.Hold == 0 {
		cfg.Hold = 2 * time.Second
	}
	return &Server{cfg: cfg, drain: make(chan struct{})}
}

// Run accepts connections from l until ctx ends; then it says goodbye on every
// tunnel and waits for what is running, at most Grace. It closes l.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	secure := mtls.ServerConfig(ctx, s.cfg.Certificate)
	stop := context.AfterFunc(ctx, func() {
		_ = l.Close()
		s.startDrain()
	})
	defer stop()
	flushed, endFlush := context.WithCancel(context.WithoutCancel(ctx))
	var flushing sync.WaitGroup
	flushing.Go(func() { s.relays.flush(flushed) })
	flushing.Go(func() { s.sweepIdle(flushed) })
	defer flushing.Wait()
	defer endFlush()
	defer s.conns.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if !passing(err) {
				return err
			}
			s.cfg.Log.Warn("accepting a connection", slog.Any("error", err))
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		s.conns.Go(func() { s.connection(ctx, tls.Server(hbone.Batched(conn), secure)) })
	}
}

// passing reports whether an error of Accept is the trouble of a moment: a
// client that is gone already, or too many open files.
func passing(err error) bool {
	for _, passes := range [...]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, os.ErrDeadlineExceeded} {
		if errors.Is(err, passes) {
			return true
		}
	}
	return false
}

// tunnel is one mTLS connection of a peer.
type tunnel struct {
	peer   spiffe.ID
	remote netip.AddrPort
	waited sync.Once // for the description of the source
}

func (s *Server) connection(ctx context.Context, conn *tls.Conn) {
	defer func() { _ = conn.Close() }()
	t := &tunnel{}
	if remote, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		a := remote.AddrPort()
		t.remote = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	handshake, cancel := context.WithTimeout(ctx, handshakeLimit)
	err := conn.HandshakeContext(handshake)
	cancel()
	if err == nil {
		t.peer, err = mtls.PeerID(conn.ConnectionState())
	}
	if err != nil {
		s.cfg.Log.Warn("tunnel refused", slog.String("src.addr", t.remote.String()), slog.Any("error", err))
		return
	}
	s.cfg.Directory.Watch(t.remote.Addr())
	defer s.cfg.Directory.Forget(t.remote.Addr())
	err = hbone.Serve(ctx, conn, hbone.Config{Grace: s.cfg.Grace}, func(in *hbone.Incoming) { s.incoming(t, in) })
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Debug("tunnel ended", slog.String("src.addr", t.remote.String()), slog.Any("error", err))
	}
}

// draining reports whether the server is about to end.
func (s *Server) draining() bool {
	select {
	case <-s.drain:
		return true
	default:
		return false
	}
}

func (s *Server) intern(w Workload) *Workload {
	if known, ok := s.interned.Load(w); ok {
		return known.(*Workload)
	}
	kept := w
	known, _ := s.interned.LoadOrStore(kept, &kept)
	return known.(*Workload)
}

// source describes the peer of a tunnel: the workload at its address when that
// has the identity that the peer proved, else only that identity. A new source
// is waited for once, for a moment.
func (s *Server) source(ctx context.Context, t *tunnel) *Workload {
	find := func() (Workload, bool) {
		w, ok := s.cfg.Directory.Lookup(t.remote.Addr())
		if ok && w.Identity != t.peer {
			return Workload{Identity: t.peer}, true
		}
		return w, ok
	}
	w, ok := find()
	if !ok {
		t.waited.Do(func() {
			limit := time.NewTimer(sourceLimit)
			defer limit.Stop()
			for !ok {
				changed := s.cfg.Directory.Changed()
				if w, ok = find(); ok {
					return
				}
				select {
				case <-changed:
				case <-limit.C:
					return
				case <-ctx.Done():
					return
				}
			}
		})
	}
	if !ok {
		w = Workload{Identity: t.peer}
	}
	return s.intern(w)
}

// target describes an endpoint. The answer is remembered once it is complete.
func (s *Server) target(e *backend.Endpoint) *Workload {
	if e == nil {
		return unknown
	}
	if known, ok := e.Memo.Load().(*Workload); ok {
		return known
	}
	w, ok := s.cfg.Directory.Lookup(e.Addr.Addr())
	if !ok || e.HBONE() && w.Identity != e.ID() {
		return s.intern(Workload{Identity: e.ID()})
	}
	known := s.intern(w)
	e.Memo.Store(known)
	return known
}

var unknown = &Workload{}
