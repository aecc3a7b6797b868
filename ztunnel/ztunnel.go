// Package ztunnel wires the L4 node proxy together: one process per node that
// serves every enrolled pod of it. It decides nothing; read New to see the
// parts and Run to see the order in which they begin and end.
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

	"google.golang.org/grpc"

	"github.com/ambit-mesh/ambit/ztunnel/admin"
	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/identity"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
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

	istiod     []*grpc.ClientConn
	store      *workload.Store
	identities *identity.Cache
	xds        *xds.Client
	agent      *inpod.Agent
	admin      *admin.Server

	// proxies is the life of every pod's proxy: it outlasts the agent, which
	// drains them. Set by Run before the agent begins.
	proxies  context.Context
	quit     func()
	quitting chan struct{}
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

	// Control: istiod fills the store and signs for the identities.
	z.store = workload.NewStore(cfg.NodeName)
	if err := z.connect(); err != nil {
		return nil, err
	}
	// Data: the node agent names pods, and each gets a proxy.
	z.agent = inpod.New(inpod.Config{Socket: cfg.ZDSSocket, Start: z.startProxy, Log: z.part("inpod"), Metrics: z.podMetrics()})
	// Operators.
	z.admin, err = admin.New(admin.Config{
		Admin:   loopback(cfg.AdminPort, cfg.IPv6),
		Metrics: []string{wildcard(cfg.MetricsPort)},
		Ready:   []string{wildcard(cfg.ReadinessPort)},
		Dump:    z.dump, Levels: levels, Quit: z.quit, Serve: z.metrics.Handler(), Pending: z.pending, Log: z.part("admin"),
	})
	if err != nil {
		z.disconnect()
		return nil, fmt.Errorf("admin: %w", err)
	}
	return z, nil
}

// part returns the logger of one part.
func (z *Ztunnel) part(name string) *slog.Logger { return z.log.With(telemetry.KeyScope, name) }

// Run serves until ctx is done or an operator asks to quit, then drains the
// pods' connections and returns. It begins in the order of spec/ztunnel.md §1.4:
//
//  1. the log, then privileges are probed: without them nothing would work;
//  2. admin, certificates, xDS;
//  3. once istiod has told everything, the node agent, and with it the pods.
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
	if err := probe(z.cfg.PacketMark); err != nil {
		return err
	}

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	control, endControl := context.WithCancel(context.WithoutCancel(ctx))
	var parts sync.WaitGroup
	defer parts.Wait()
	defer endControl()
	for name, run := range map[string]func(context.Context) error{
		"admin": z.admin.Run, "identity": z.identities.Run, "xds": z.xds.Run, "prefetch": z.prefetch,
	} {
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
	case <-z.xds.Warm():
	case <-ctx.Done():
		return ended(ctx)
	}
	z.log.Info("configuration received")
	z.proxies = control
	if err := z.agent.Run(ctx); err != nil {
		return fmt.Errorf("node agent: %w", err)
	}
	return ended(ctx)
}

// ended returns why a part ended the process, nil if someone asked for it.
func ended(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (z *Ztunnel) announce() {
	z.log.Info("starting", "version", version(), "node", z.cfg.NodeName, "xds", z.cfg.XDSAddress, "ca", z.cfg.CAAddress)
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

// pending lists what the process is not ready for.
func (z *Ztunnel) pending() []string {
	var out []string
	select {
	case <-z.xds.Warm():
	default:
		out = append(out, "state manager")
	}
	if !z.agent.Ready() {
		out = append(out, "workload proxy manager")
	}
	return out
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
