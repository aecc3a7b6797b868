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
//
// A connection that comes before what it needs (the pod's own workload, its
// certificate, a policy) is held, bounded in number and time, then refused with
// the reason (hold.go). Rules: spec/ztunnel.md §2 and §3.
package proxy

import (
	"context"
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
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// Timeouts of single steps. None applies to a connection whose ends are joined.
const (
	connectTimeout   = 10 * time.Second
	handshakeTimeout = 10 * time.Second
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
	HBONE           hbone.Config
	PoolStreams     uint32        // on one tunnel that we open; 0 is the default
	DrainTimeout    time.Duration // for connections to end once Drain is called
	Hold            Hold
	Settle          time.Duration // how long after Start the redirection may not be in place; default 5 s
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

	// life ends when the proxy stops, draining when no new work is to be begun.
	life, draining     context.Context
	stopping, stopWork context.CancelCauseFunc
	listeners          []*net.TCPListener
	running            sync.WaitGroup
	bypass             bypass
	once               sync.Once
}

var errStopped = errors.New("the pod's proxy has stopped")

// New returns a proxy that does nothing yet.
func New(cfg Config) *Proxy {
	p := &Proxy{cfg: cfg, log: cfg.Log.With(telemetry.KeyWorkload, cfg.Pod.Namespace+"/"+cfg.Pod.Name), held: newHolder(cfg.Hold)}
	client := cfg.HBONE
	client.MaxStreams = cfg.PoolStreams
	p.pool = hbone.NewPool(p.dialTunnel, client)
	return p
}

// Start opens the pod's listeners and serves them until Stop, or until ctx ends.
// An error means that nothing runs.
func (p *Proxy) Start(ctx context.Context) error {
	p.life, p.stopping = context.WithCancelCause(ctx)
	p.draining, p.stopWork = context.WithCancelCause(p.life)
	p.bypass = bypass{settling: true, dialled: map[netns.TCPConn]bool{}, dialling: map[netip.AddrPort]int{}}
	p.notYetMeshed()
	serve := []struct {
		port  uint16
		serve func(*net.TCPConn)
	}{
		{mesh.PortOutbound, p.acceptOutbound},
		{mesh.PortInboundPlain, p.acceptPlain},
		{mesh.PortHBONE, p.acceptTunnel},
	}
	for _, s := range serve {
		l, err := p.listen(s.port)
		if err != nil {
			p.closeListeners()
			p.stopping(errStopped)
			return fmt.Errorf("port %d: %w", s.port, err)
		}
		p.listeners = append(p.listeners, l)
	}
	for i, s := range serve {
		l := p.listeners[i]
		p.running.Go(func() { p.accept(l, s.serve) })
	}
	p.running.Go(p.watchPolicies)
	p.running.Go(p.settle)
	return nil
}

func (p *Proxy) listen(port uint16) (*net.TCPListener, error) {
	addr := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	if p.cfg.IPv4Only {
		addr = netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	}
	o := netns.ListenOptions{Mark: p.cfg.Mark, ReusePort: p.cfg.ReusePort, Transparent: p.cfg.PreserveSource != Off}
	l, err := p.cfg.NetNS.Listen(addr, o)
	p.transparent = o.Transparent && err == nil
	if err != nil && p.cfg.PreserveSource == Auto && o.Transparent {
		o.Transparent = false
		l, err = p.cfg.NetNS.Listen(addr, o)
	}
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

// Drain closes the listeners, lets connections end for as long as the
// configuration allows, then stops.
func (p *Proxy) Drain() {
	p.closeListeners()
	p.stopWork(errStopped)
	ended := make(chan struct{})
	go func() { p.running.Wait(); close(ended) }() // ends with Stop below
	timer := time.NewTimer(p.cfg.DrainTimeout)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	case <-p.life.Done():
	}
	p.Stop()
	<-ended
}

// Stop ends listeners and connections and returns when all has ended.
func (p *Proxy) Stop() {
	p.once.Do(func() {
		p.closeListeners()
		p.stopping(errStopped)
		p.table.closeAll(telemetry.Shutdown, errStopped)
		_ = p.pool.Close() // every stream's own error has been reported
	})
	p.running.Wait()
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
