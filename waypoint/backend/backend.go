// Package backend chooses the endpoint that serves a request and keeps the
// connections to endpoints: HBONE tunnels in which the endpoint must prove one
// of the identities that istiod expects of it, or plain TCP for endpoints
// outside the mesh, and on top of either, idle HTTP/1.1 connections.
//
// It decides nothing about requests and does not retry; serve does. An endpoint
// outlives configuration updates that keep its address, service and identities,
// so that its connections and its count of running requests do too. Everything
// here is safe for concurrent use.
package backend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

const (
	idleTimeout  = time.Minute // of an HTTP/1.1 connection; shorter than servers usually wait
	maxIdle      = 256         // per endpoint
	staleAfter   = time.Second // idle for longer, a connection is not trusted with what cannot be repeated
	avoidAfter   = 2 * time.Second
	connectLimit = 10 * time.Second
)

// Key identifies an endpoint across configuration updates.
type Key struct {
	Addr    netip.AddrPort
	Service string // hostname, told to the endpoint's ztunnel
	IDs     string // acceptable identities, sorted, separated by spaces; "" is plain TCP
}

// Endpoint is one address that serves requests.
type Endpoint struct {
	Key
	Workload string // uid
	// Memo is for serve, which remembers there what it knows about the endpoint.
	Memo atomic.Value

	id      spiffe.ID
	running atomic.Int64
	failed  atomic.Int64 // when connecting failed last, Unix nanoseconds

	mu     sync.Mutex
	idle   []idleConn // oldest first
	closed bool
	refs   int // guarded by Pool.mu
}

type idleConn struct {
	conn  *codec.ClientConn
	since time.Time
}

// HBONE reports whether the endpoint is reached through a tunnel.
func (e *Endpoint) HBONE() bool { return e.IDs != "" }

// ID returns the identity expected of the endpoint, the first when there are
// several, zero for plain TCP.
func (e *Endpoint) ID() spiffe.ID { return e.id }

// Running returns how many requests run on the endpoint.
func (e *Endpoint) Running() int64 { return e.running.Load() }

// Begin counts a request as running; the caller calls End.
func (e *Endpoint) Begin() { e.running.Add(1) }

// End is the counterpart of Begin.
func (e *Endpoint) End() { e.running.Add(-1) }

// Config is what a Pool needs.
type Config struct {
	Certificate mtls.Source // the waypoint's own
	// Dial opens a TCP connection; nil is net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// TunnelPort is where endpoints take tunnels, 15008 when zero.
	TunnelPort uint16
}

// Pool holds endpoints and their connections.
type Pool struct {
	cfg     Config
	tunnels *hbone.Pool[tunnel]

	mu        sync.Mutex
	endpoints map[Key]*Endpoint
}

type tunnel struct {
	addr netip.AddrPort
	ids  string
}

// NewPool returns a pool without endpoints. Nothing is dialled before it is
// needed.
func NewPool(cfg Config) *Pool {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.TunnelPort == 0 {
		cfg.TunnelPort = mesh.PortHBONE
	}
	p := &Pool{cfg: cfg, endpoints: map[Key]*Endpoint{}}
	p.tunnels = hbone.NewPool(p.dialTunnel, hbone.Config{})
	return p
}

// Run closes what has been idle for too long, and everything when ctx ends.
func (p *Pool) Run(ctx context.Context) error {
	ticker := time.NewTicker(idleTimeout / 4)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			for _, e := range p.all() {
				e.closeIdle(now.Add(-idleTimeout))
			}
		case <-ctx.Done():
			for _, e := range p.all() {
				e.close()
			}
			return p.tunnels.Close()
		}
	}
}

func (p *Pool) all() []*Endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*Endpoint, 0, len(p.endpoints))
	for _, e := range p.endpoints {
		list = append(list, e)
	}
	return list
}

// acquire returns the endpoint of a key, making it when it is new.
func (p *Pool) acquire(k Key, workload string) *Endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.endpoints[k]
	if e == nil {
		e = &Endpoint{Key: k, Workload: workload}
		if ids := splitIDs(k.IDs); len(ids) > 0 {
			e.id = ids[0]
		}
		p.endpoints[k] = e
	}
	e.refs++
	return e
}

// release undoes acquire; the last one closes idle connections. Requests that
// run go on.
func (p *Pool) release(e *Endpoint) {
	p.mu.Lock()
	e.refs--
	last := e.refs == 0
	if last {
		delete(p.endpoints, e.Key)
	}
	p.mu.Unlock()
	if last {
		e.close()
	}
}

// joinIDs makes the comparable form of a list of identities, which is sorted.
func joinIDs(ids []spiffe.ID) string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	return strings.Join(texts, " ")
}

func splitIDs(text string) []spiffe.ID {
	var ids []spiffe.ID
	for s := range strings.FieldsSeq(text) {
		if id, err := spiffe.Parse(s); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

func (p *Pool) dialTunnel(ctx context.Context, k tunnel) (net.Conn, error) {
	own, err := p.cfg.Certificate(ctx)
	if err != nil {
		return nil, fmt.Errorf("own certificate: %w", err)
	}
	conn, err := p.cfg.Dial(ctx, "tcp", k.addr.String())
	if err != nil {
		return nil, err
	}
	secure := newTLSClient(conn, own, splitIDs(k.ids))
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", k.addr, err), conn.Close())
	}
	return secure, nil
}

// Connect opens a byte stream to an endpoint.
func (p *Pool) Connect(ctx context.Context, e *Endpoint, limit time.Duration) (net.Conn, error) {
	if limit <= 0 {
		limit = connectLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var conn net.Conn
	var err error
	if e.HBONE() {
		k := tunnel{netip.AddrPortFrom(e.Addr.Addr(), p.cfg.TunnelPort), e.IDs}
		var stream *hbone.Stream
		stream, err = p.tunnels.Open(ctx, k, hbone.Request{
			Authority: e.Addr.String(),
			Header:    []hbone.Field{{Name: mesh.HeaderForwarded, Value: "host=" + e.Service}},
		})
		conn = stream
	} else {
		conn, err = p.cfg.Dial(ctx, "tcp", e.Addr.String())
	}
	if err != nil {
		e.failed.Store(time.Now().UnixNano())
		return nil, fmt.Errorf("endpoint %s: %w", e.Addr, err)
	}
	return conn, nil
}

// HTTP returns a connection for one request: an idle one or, when there is
// none or the request cannot be repeated and the idle one may be stale, a new
// one.
func (p *Pool) HTTP(ctx context.Context, e *Endpoint, limit time.Duration, repeatable bool) (*codec.ClientConn, error) {
	trust := time.Time{}
	if !repeatable {
		trust = time.Now().Add(-staleAfter)
	}
	if c := e.takeIdle(trust); c != nil {
		return c, nil
	}
	return p.NewHTTP(ctx, e, limit)
}

// NewHTTP returns a connection that no request used yet.
func (p *Pool) NewHTTP(ctx context.Context, e *Endpoint, limit time.Duration) (*codec.ClientConn, error) {
	conn, err := p.Connect(ctx, e, limit)
	if err != nil {
		return nil, err
	}
	return codec.NewClientConn(conn), nil
}

// Done takes a connection back after its request: kept when another request
// may follow on it, else closed.
func (p *Pool) Done(e *Endpoint, c *codec.ClientConn) {
	if !c.Reusable() || !e.putIdle(c) {
		_ = c.Close()
	}
}

func (e *Endpoint) takeIdle(notBefore time.Time) *codec.ClientConn {
	e.mu.Lock()
	defer e.mu.Unlock()
	last := len(e.idle) - 1
	if last < 0 || e.idle[last].since.Before(notBefore) {
		return nil
	}
	c := e.idle[last].conn
	e.idle[last] = idleConn{}
	e.idle = e.idle[:last]
	return c
}

func (e *Endpoint) putIdle(c *codec.ClientConn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.idle) >= maxIdle {
		return false
	}
	e.idle = append(e.idle, idleConn{c, time.Now()})
	return true
}

func (e *Endpoint) closeIdle(before time.Time) {
	e.mu.Lock()
	n := 0
	for n < len(e.idle) && e.idle[n].since.Before(before) {
		n++
	}
	old := append([]idleConn(nil), e.idle[:n]...)
	e.idle = append(e.idle[:0], e.idle[n:]...)
	e.mu.Unlock()
	for _, c := range old {
		_ = c.conn.Close()
	}
}

func (e *Endpoint) close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.closeIdle(time.Now().Add(time.Hour))
}

// Refused reports whether an error of Connect says that the endpoint's side
// refused the stream without looking at it, rather than not being reachable.
func Refused(err error) bool {
	var status *hbone.StatusError
	return errors.As(err, &status)
}
