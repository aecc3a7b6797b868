// Package ztunnel wires the L4 proxy together: one process that serves every
// enrolled pod of a node, or the one workload whose network namespace it is in
// (config.Mode). It decides nothing; read New to see the parts and Run to see
// the order in which they begin and end.
package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/ztunnel/admin"
	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/identity"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
	"github.com/ambit-mesh/ambit/ztunnel/local"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/xds"
)

// Ztunnel is one process.
type Ztunnel struct {
	cfg     *config.Config
	log     *slog.Logger
	lines   *telemetry.Writer
	metrics *telemetry.Metrics

	istiod      []*xds.Conn
	store       *workload.Store
	local       *local.Source // nil without a local document
	identities  *identity.Cache
	revocations *mtls.Revocations // nil without CRL_PATH
	xds         *xds.Client       // nil without a control plane
	demand      *demand           // nil unless addresses are asked for on demand
	agent       *inpod.Agent      // nil in dedicated mode
	admin       *admin.Server
	dnsMetrics  *telemetry.DNSMetrics
	resolv      dns.ResolvConf // of our own namespace
	files       []*followed
	own         ownProxies

	// proxies is the life of every proxy: it outlasts what starts them, which
	// drains them, too. Set by Run before the first begins.
	proxies  context.Context
	quit     func()
	quitting chan struct{}
	draining atomic.Bool
}

// New makes every part and starts none; only the admin listeners are open
// already, so that a port in use is an error here. Log lines go to out.
func New(cfg *config.Config, out io.Writer) (*Ztunnel, error) {
	z := &Ztunnel{cfg: cfg, quitting: make(chan struct{})}
	z.quit = sync.OnceFunc(func() { close(z.quitting) })
	format, err := telemetry.ParseFormat(cfg.LogFormat)
	if err != nil {
		return nil, err
	}
	levels, err := telemetry.NewLevels(cfg.LogLevel)
	if err != nil {
		return nil, err
	}
	z.lines = telemetry.NewWriter(out, format)
	z.log = telemetry.NewLogger(z.lines, format, levels)
	z.metrics = telemetry.NewMetrics(cfg.Version)
	z.dnsMetrics = telemetry.NewDNSMetrics()
	if err := z.metrics.Register(z.dnsMetrics); err != nil {
		return nil, err
	}
	if z.resolv, err = resolvConf(); err != nil {
		return nil, err
	}

	// Control: istiod and files fill the store, an authority signs for the identities.
	z.store = workload.NewStore(cfg.NodeName, cfg.ClusterID)
	if err := z.readLocal(); err != nil {
		return nil, err
	}
	if err := z.connect(); err != nil {
		z.disconnect()
		return nil, err
	}
	z.readRevocations()

	// Data: the node agent names pods, and each gets a proxy.
	if cfg.Mode == config.Shared {
		z.agent = inpod.New(inpod.Config{Socket: cfg.ZDSSocket, Start: z.startProxy, Log: z.part("inpod"), Metrics: z.podMetrics()})
	}

	// Operators.
	z.admin, err = admin.New(admin.Config{
		Admin:   loopback(cfg.AdminPort, cfg.IPv6),
		Metrics: []string{wildcard(cfg.MetricsPort)},
		Ready:   []string{wildcard(cfg.ReadinessPort)},
		Dump:    z.dump, Levels: levels, Quit: z.quit, Serve: z.metrics.Handler(), Pending: z.pending, Notes: z.notes, Log: z.part("admin"),
	})
	if err != nil {
		z.disconnect()
		return nil, fmt.Errorf("admin: %w", err)
	}
	return z, nil
}

// part returns the logger of one part.
func (z *Ztunnel) part(name string) *slog.Logger { return z.log.With(telemetry.KeyScope, name) }

// Run serves until ctx is done or an operator asks to quit, then drains
// connections and returns. It begins in the order of spec/ztunnel.md §1.4:
//
//  1. the log, then privileges are probed: without them nothing would work; in
//     dedicated mode, listeners are opened, and accept nothing yet;
//  2. admin, certificates, xDS, and the files that are followed;
//  3. once istiod has told everything, the node agent, and with it the pods; or
//     the one workload.
//
// It ends in the opposite order, so that certificates and configuration are
// there until the last connection has ended.
func (z *Ztunnel) Run(ctx context.Context) error {
	lines, endLog := context.WithCancel(context.WithoutCancel(ctx))
	var logging sync.WaitGroup
	logging.Go(func() { _ = z.lines.Run(lines) }) // there is nowhere to report it
	defer logging.Wait()
	defer endLog()
	defer z.disconnect()
	z.announce()

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	control, endControl := context.WithCancel(context.WithoutCancel(ctx))
	z.proxies = control
	var parts sync.WaitGroup
	defer parts.Wait()
	defer endControl()

	serve := z.serveNode
	if z.cfg.Mode == config.Dedicated {
		if err := z.openOwn(); err != nil {
			return err
		}
		defer z.closeOwn()
		serve = z.serveOwn
	} else if err := probe(z.cfg.PacketMark); err != nil {
		return err
	}
	for name, run := range z.controls() {
		parts.Go(func() {
			if err := run(control); err != nil && control.Err() == nil {
				stop(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	parts.Go(func() {
		select {
		case <-z.quitting:
			stop(nil)
		case <-control.Done():
		}
	})

	select {
	case <-z.warm():
	case <-ctx.Done():
		return ended(ctx)
	}
	z.log.Info("configuration received")
	defer context.AfterFunc(ctx, func() {
		z.draining.Store(true)
		z.log.Info("draining", "deadline", z.cfg.DrainTimeout)
	})()
	if err := serve(ctx); err != nil {
		return err
	}
	return ended(ctx)
}

// controls are the parts that run for as long as the process does.
func (z *Ztunnel) controls() map[string]func(context.Context) error {
	parts := map[string]func(context.Context) error{"admin": z.admin.Run, "identity": z.identities.Run, "files": z.follow}
	if z.xds != nil {
		parts["xds"] = z.xds.Run
	}
	if z.cfg.Mode == config.Shared {
		parts["prefetch"] = z.prefetch
	}
	return parts
}

// ended returns why a part ended the process, nil if someone asked for it.
func ended(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (z *Ztunnel) announce() {
	z.log.Info("starting", "version", version(), "mode", string(z.cfg.Mode), "node", z.cfg.NodeName, "xds", z.cfg.XDSAddress, "ca", z.cfg.CAAddress)
	z.log.Info("effective configuration", "config", jsonText(z.cfg.Dump()))
	if len(z.cfg.Ignored) > 0 {
		z.log.Warn("environment variables have no effect in this version", "variables", fmt.Sprint(z.cfg.Ignored))
	}
}

// probe fails when this process lacks the privileges to serve pods.
func probe(mark uint32) error {
	ns, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	l, err := ns.Listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), netns.ListenOptions{Mark: mark})
	if err != nil {
		return fmt.Errorf("privileges: CAP_SYS_ADMIN and CAP_NET_ADMIN are needed: %w", err)
	}
	return l.Close()
}

func (z *Ztunnel) podMetrics() inpod.Metrics {
	m := z.metrics
	return inpod.Metrics{
		Active:  func(n int) { m.ProxiesActive.Set(float64(n)) },
		Pending: func(n int) { m.ProxiesPending.Set(float64(n)) },
		Started: m.ProxiesStarted.Inc, Stopped: m.ProxiesStopped.Inc,
	}
}

func loopback(port uint16, ipv6 bool) []string {
	out := []string{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port).String()}
	if ipv6 {
		out = append(out, netip.AddrPortFrom(netip.IPv6Loopback(), port).String())
	}
	return out
}

func wildcard(port uint16) string { return net.JoinHostPort("", fmt.Sprint(port)) }
