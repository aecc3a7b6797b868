package serve

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
)

// stream is one CONNECT inside a tunnel.
type stream struct {
	server    *Server
	tunnel    *tunnel
	source    *Workload
	authority string
	listener  string // name: hostname:port
	conn      *hbone.Stream
	ctx       context.Context //nolint:containedctx // ends with the stream, which this is
}

// incoming answers a CONNECT, spec/ztunnel.md §3.2 where it applies.
func (s *Server) incoming(t *tunnel, in *hbone.Incoming) {
	authority := in.Request.Authority
	if in.Method != "CONNECT" {
		s.reject(t, in, 400, "method is "+in.Method+", want CONNECT")
		return
	}
	if !validAuthority(authority) {
		s.reject(t, in, 400, "authority is neither address:port nor host:port")
		return
	}
	l := s.find(in.Context(), authority)
	if l == nil {
		s.reject(t, in, 404, "no service of this waypoint has this address")
		return
	}
	st := &stream{
		server: s, tunnel: t, authority: authority, listener: l.Name, ctx: in.Context(),
		source: s.source(in.Context(), t),
	}
	if l.Routes == nil {
		st.tcp(in, l)
		return
	}
	conn, err := in.Accept()
	if err != nil {
		return
	}
	st.conn = conn
	defer func() { _ = conn.Close() }()
	if l.TCP == nil {
		st.http(nil)
		return
	}
	first, isHTTP := sniff(conn)
	if isHTTP {
		st.http(first)
		return
	}
	st.relay(l, first)
}

func (s *Server) reject(t *tunnel, in *hbone.Incoming, status int, reason string) {
	s.cfg.Log.Warn("connect refused", slog.String("src.addr", t.remote.String()), slog.String("src.identity", t.peer.String()),
		slog.String("authority", in.Request.Authority), slog.Int("status", status), slog.String("error", reason))
	_ = in.Reject(status)
}

func validAuthority(authority string) bool {
	if _, err := netip.ParseAddrPort(authority); err == nil {
		return true
	}
	i := strings.LastIndexByte(authority, ':')
	if i <= 0 || i+1 == len(authority) {
		return false
	}
	for _, c := range authority[i+1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return !strings.ContainsAny(authority[:i], ":/@ ")
}

// find returns the service port that an authority names. One that is not known
// is waited for: the caller's ztunnel may have heard of the service's waypoint
// before the waypoint did.
func (s *Server) find(ctx context.Context, authority string) *config.Listener {
	if l := s.cfg.Routes.Snapshot().Listener(authority); l != nil {
		return l
	}
	if s.cfg.Hold < 0 || s.held.Add(1) > maxHeld {
		return nil
	}
	defer s.held.Add(-1)
	limit := time.NewTimer(s.cfg.Hold)
	defer limit.Stop()
	for {
		changed := s.cfg.Routes.Changed()
		if l := s.cfg.Routes.Snapshot().Listener(authority); l != nil {
			return l
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// sniff reads the first bytes of a stream whose protocol nobody declared. A
// client that is silent for a moment waits for its server to speak first, which
// HTTP clients do not.
func sniff(conn *hbone.Stream) (first []byte, isHTTP bool) {
	buf := make([]byte, 0, 64)
	_ = conn.SetReadDeadline(time.Now().Add(sniffLimit))
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	for {
		n, err := conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		is, more := looksLikeHTTP(buf)
		if !more || err != nil || len(buf) == cap(buf) {
			return buf, is
		}
	}
}

// looksLikeHTTP says whether bytes begin an HTTP/1 request: a known method, a
// space, and a target. more means that they are too few to tell.
func looksLikeHTTP(p []byte) (is, more bool) {
	for _, method := range [...]string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "PATCH ", "TRACE ", "CONNECT "} {
		n := min(len(p), len(method))
		if string(p[:n]) != method[:n] {
			continue
		}
		if len(p) <= len(method) {
			return false, true
		}
		return p[len(method)] > ' ' && p[len(method)] < 0x7f, false
	}
	return false, false
}

// http serves requests on a stream until it ends.
func (st *stream) http(first []byte) {
	c := codec.NewServerConn(st.conn, first)
	w := newWatch(st.conn, c)
	idle := st.server.newIdle(st.conn)
	defer st.server.idles.Delete(idle)
	for {
		req, err := idle.next(c)
		if err != nil {
			st.refuse(c, err)
			return
		}
		x := &exchange{st: st, server: st.server, conn: c, watch: w, req: req, start: time.Now()}
		x.serve()
		if x.detached || c.Closes() {
			c.Linger(time.Second)
			return
		}
	}
}
