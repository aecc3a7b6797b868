// Package proxy accepts the connections of one pod, asks package plan where
// they go and package rbac whether they may, and carries the bytes. It owns the
// pod's listeners and connections, and the one access line that each connection
// leaves. It decides nothing itself and keeps no configuration: what it needs
// to know is read from the newest workload.Snapshot for each connection.
//
// One Proxy runs per pod, started and stopped by package inpod through
// ztunnel.go. Its sockets live in the pod's network namespace:
//
//	15001  outbound.go     captured connections of the pod
//	15006  passthrough.go  captured plaintext connections to the pod
//	15008  inbound.go      tunnels to the pod
//	15080  socks.go        connections of the pod by SOCKS5, if wanted
//
// A connection that comes before what it needs (the pod's own workload, its
// certificate, a policy) is held, bounded in number and time, then refused with
// the reason (hold.go). Rules: spec/ztunnel.md §2 and §3.
package proxy

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/plan"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// Timeouts of single steps. None applies to a connection whose ends are joined.
// That of the answer to a CONNECT is hbone.Config's.
const (
	connectTimeout   = 10 * time.Second
	handshakeTimeout = 10 * time.Second // unless Config says otherwise
)

// Config is what one pod's proxy needs.
type Config struct {
	// The pod as the node agent names it; never looked up by address.
	Pod workload.Info
	// NetNS is the pod's network namespace; nil is the process's own.
	NetNS *netns.NS

	Store *workload.Store
	// Certificate returns the current certificate of an identity, waiting for the
	// first one until ctx ends.
	Certificate func(ctx context.Context, id spiffe.ID) (*mtls.Certificate, error)
	// Resolve looks up a workload known by hostname only.
	Resolve func(ctx context.Context, hostname string) ([]netip.Addr, error)

	Metrics *telemetry.Metrics
	Access  func(*telemetry.AccessLine)
	Log     *slog.Logger

	Network         string // ours
	Mark            uint32 // on every packet
	IPv4Only        bool
	ReusePort       bool
	PreserveSource  Tristate // connect to the application from the client's address
	ResponseBaggage bool     // send our labels back, and believe those of peers
	KeepAlive       net.KeepAliveConfig
	UserTimeout     time.Duration // of unacknowledged bytes until the peer counts as dead; 0 leaves it to the kernel
	HBONE           hbone.Config
	PoolStreams     uint32        // on one tunnel that we open; 0 is the default
	DrainTimeout    time.Duration // for connections to end once Drain is called
	Hold            Hold
	Handshake       time.Duration // for a TLS handshake; default 10 s
	Settle          time.Duration // how long after Start the redirection may not be in place; default 5 s

	// InboundOnly serves tunnels to the pod and captures nothing; clients' addresses
	// are not preserved (spec/ztunnel.md §1.8).
	InboundOnly bool
	// SOCKS5 also serves port 15080, on the loopback address.
	SOCKS5 bool
	// NoLocalhostAppTunnel connects to an application that wants the PROXY protocol at
	// the pod's address, not at the loopback address.
	NoLocalhostAppTunnel bool
	// PolicyInfo logs the decisions of policies, dry-run ones too, at level info instead
	// of debug.
	PolicyInfo bool

	// Revoked returns an error for a peer's certificates, leaf first, of which one is
	// revoked; nil stands for none. RevocationsChanged returns a channel that is closed
	// when Revoked may answer otherwise; nil: it never does.
	Revoked            func(chain []*x509.Certificate) error
	RevocationsChanged func() <-chan struct{}
	// TLS is what tunnels must use.
	TLS mtls.Policy
	// Demand asks istiod for what is at an address that the snapshot does not know, and
	// returns when that has been answered, with an error when it has not been; nil where
	// istiod tells everything by itself.
	Demand func(ctx context.Context, network string, ip netip.Addr) error
}

// Tristate is a choice that may be left to what the kernel allows.
type Tristate uint8

// The choices.
const (
	Auto Tristate = iota
	On
	Off
)

// Proxy is a pod's running proxy.
type Proxy struct {
	cfg         Config
	log         *slog.Logger
	pool        *hbone.Pool[poolKey]
	table       table
	held        holder
	certified   atomic.Pointer[spiffe.ID] // the identity last seen with a certificate
	transparent bool
	inner       *hbone.Pool[*innerKey]             // tunnels inside tunnels, never shared
	endpoints   *plan.Tally                        // what has been seen of them
	load        func(uid string) int               // of endpoints
	refused     func(uid string, port uint16) bool // by endpoints
	refusals    telemetry.Refusals
	access      *slog.Logger // tells only which access lines are wanted

	// life ends when the proxy stops, draining when no new work is to be begun.
	life, draining     context.Context
	stopping, stopWork context.CancelCauseFunc
	listeners          []listener
	running            sync.WaitGroup // connections, and what accepts them
	watching           sync.WaitGroup // what looks after them until the proxy stops
	bypass             bypass
	once               sync.Once
}

// listener is a port and what serves its connections.
type listener struct {
	*net.TCPListener
	serve func(*net.TCPConn)
}

var errStopped = errors.New("the pod's proxy has stopped")

// New returns a proxy that does nothing yet.
func New(cfg Config) *Proxy {
	p := &Proxy{cfg: cfg, log: cfg.Log.With(telemetry.KeyWorkload, cfg.Pod.Namespace+"/"+cfg.Pod.Name), held: newHolder(cfg.Hold), endpoints: plan.NewTally(time.Now)}
	p.load, p.refused = p.endpoints.Load, p.endpoints.Refused
	p.access = cfg.Log.With(telemetry.KeyScope, telemetry.ScopeAccess)
	p.cfg.TLS.Revoked = cfg.Revoked
	p.cfg.Handshake = cmp.Or(cfg.Handshake, handshakeTimeout)
	client := cfg.HBONE
	client.MaxStreams = cfg.PoolStreams
	p.pool = hbone.NewPool(p.dialTunnel, client)
	client.MaxStreams, client.IdleTimeout = 1, innerLinger
	p.inner = hbone.NewPool(p.dialInner, client)
	return p
}

// Listen opens the pod's listeners without accepting. An error means that none
// is open.
func (p *Proxy) Listen() error {
	wildcard := netip.IPv6Unspecified()
	if p.cfg.IPv4Only {
		wildcard = netip.IPv4Unspecified()
	}
	type port struct {
		addr  netip.AddrPort
		serve func(*net.TCPConn)
	}
	var ports []port
	if !p.cfg.InboundOnly {
		ports = append(ports, port{netip.AddrPortFrom(wildcard, mesh.PortOutbound), p.acceptOutbound},
			port{netip.AddrPortFrom(wildcard, mesh.PortInboundPlain), p.acceptPlain})
	}
	ports = append(ports, port{netip.AddrPortFrom(wildcard, mesh.PortHBONE), p.acceptTunnel})
	if p.cfg.SOCKS5 && !p.cfg.InboundOnly {
		ports = append(ports, port{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), portSOCKS), p.acceptSOCKS})
	}
	for _, one := range ports {
		l, err := p.listen(one.addr)
		if err != nil {
			p.closeListeners()
			p.listeners = nil
			return fmt.Errorf("port %d: %w", one.addr.Port(), err)
		}
		p.listeners = append(p.listeners, listener{l, one.serve})
	}
	return nil
}

// Start opens the pod's listeners, unless Listen has, and serves them until Stop,
// or until ctx ends. An error means that nothing runs.
func (p *Proxy) Start(ctx context.Context) error {
	p.bypass = bypass{settling: !p.cfg.InboundOnly, dialled: map[netns.TCPConn]bool{}, dialling: map[netip.AddrPort]int{}}
	if !p.cfg.InboundOnly {
		p.notYetMeshed()
	}
	if p.listeners == nil {
		if err := p.Listen(); err != nil {
			return err
		}
	}
	p.life, p.stopping = context.WithCancelCause(ctx)
	p.draining, p.stopWork = context.WithCancelCause(p.life)
	for _, l := range p.listeners {
		p.running.Go(func() { p.accept(l.TCPListener, l.serve) })
	}
	p.watching.Go(p.watchPolicies)
	p.watching.Go(p.watchRevocations)
	if !p.cfg.InboundOnly {
		p.watching.Go(p.settle)
	}
	return nil
}

func (p *Proxy) listen(addr netip.AddrPort) (*net.TCPListener, error) {
	preserve := p.cfg.PreserveSource
	if p.cfg.InboundOnly {
		preserve = Off
	}
	o := netns.ListenOptions{Mark: p.cfg.Mark, ReusePort: p.cfg.ReusePort, Transparent: preserve != Off, UserTimeout: p.cfg.UserTimeout}
	l, err := p.cfg.NetNS.Listen(addr, o)
	if err != nil && preserve == Auto {
		o.Transparent = false
		l, err = p.cfg.NetNS.Listen(addr, o)
	}
	p.transparent = o.Transparent && err == nil
	return l, err
}

func (p *Proxy) closeListeners() {
	for _, l := range p.listeners {
		_ = l.Close() // it is only read from
	}
}

// accept serves a listener until it is closed, each connection on a goroutine.
func (p *Proxy) accept(l *net.TCPListener, serve func(*net.TCPConn)) {
	const firstDelay, maxDelay = 5 * time.Millisecond, time.Second
	delay := firstDelay
	for {
		conn, err := l.AcceptTCP()
		if err == nil {
			delay = firstDelay
			p.running.Go(func() { serve(conn) })
			continue
		}
		if errors.Is(err, net.ErrClosed) || p.draining.Err() != nil {
			return
		}
		// Out of descriptors, most likely: let connections end before trying again.
		p.log.Warn("connection not accepted", telemetry.KeyAddress, l.Addr().String(), telemetry.KeyError, err)
		select {
		case <-time.After(delay):
			delay = min(2*delay, maxDelay)
		case <-p.draining.Done():
			return
		}
	}
}

// workload returns the pod's own workload, or nil while istiod has not told us.
func (p *Proxy) workload(s *workload.Snapshot) *workload.Workload {
	return s.WorkloadByInfo(p.cfg.Pod.Name, p.cfg.Pod.Namespace, p.cfg.Pod.ServiceAccount)
}

// remoteAddr and localAddr return a socket's ends, never IPv4-mapped.
func remoteAddr(c net.Conn) netip.AddrPort { return canonical(c.RemoteAddr()) }

func localAddr(c net.Conn) netip.AddrPort { return canonical(c.LocalAddr()) }

func canonical(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
