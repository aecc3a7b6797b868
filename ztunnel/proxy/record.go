package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/plan"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// record is what one connection reports: an access line when it ends, however
// it ends, and metrics once its other end is known.
type record struct {
	p        *Proxy
	line     telemetry.AccessLine
	counters relay.Counters
	metric   *telemetry.Connection
	begun    time.Time
}

// begin starts the record of a connection. Until open is called it is early:
// only its line will tell of it.
func (p *Proxy) begin(d telemetry.Direction, src, dst netip.AddrPort) *record {
	return &record{p: p, begun: time.Now(), line: telemetry.AccessLine{Early: true, Direction: d, SrcAddr: src, DstAddr: dst}}
}

// open counts the connection. l.Direction is filled in.
func (r *record) open(l telemetry.Labels) {
	l.Direction = r.line.Direction
	r.line.Early = false
	r.metric = r.p.cfg.Metrics.Traffic.Open(l, func() (received, sent uint64) {
		return r.counters.Sent.Load(), r.counters.Received.Load()
	})
}

// end writes the line. err is why the connection ended, nil if it ended well.
func (r *record) end(err error) {
	now := time.Now()
	r.line.Time, r.line.Duration, r.line.Err = now, now.Sub(r.begun), err
	// Sent and received are seen from this proxy; the counters from the caller.
	r.line.Sent, r.line.Received = r.counters.Sent.Load(), r.counters.Received.Load()
	if r.line.Direction == telemetry.Inbound {
		r.line.Sent, r.line.Received = r.line.Received, r.line.Sent
	}
	reason := reasonOf(err)
	if r.metric != nil {
		r.metric.Close(reason)
	}
	if err == nil && r.line.Early { // nothing was refused and nothing happened
		return
	}
	if err != nil {
		r.p.cfg.Metrics.Failed(r.line.Direction, reason)
		r.p.refusals.Add(&r.line)
	}
	r.write(&r.line)
}

func (r *record) write(l *telemetry.AccessLine) {
	if r.p.access.Enabled(r.p.life, l.Level()) {
		r.p.cfg.Access(l)
	}
}

// joined tells of a connection whose ends are about to be joined, to whoever
// wants that much.
func (r *record) joined() {
	if !r.p.access.Enabled(r.p.life, slog.LevelDebug) {
		return
	}
	l := r.line
	l.Opened, l.Time = true, time.Now()
	r.p.cfg.Access(&l)
}

// source and destination fill in an end that istiod told us of; w may be nil.
func (r *record) source(w *workload.Workload) {
	if w != nil {
		r.line.SrcWorkload, r.line.SrcNamespace, r.line.SrcCluster = shownName(w), w.Namespace, w.ClusterID
	}
}

func (r *record) destination(w *workload.Workload) {
	if w != nil {
		r.line.DstWorkload, r.line.DstNamespace, r.line.DstCluster = shownName(w), w.Namespace, w.ClusterID
	}
}

func shownName(w *workload.Workload) string { return cmp.Or(w.Name, w.CanonicalName) }

// peer returns a workload's labels; w may be nil.
func peer(w *workload.Workload) telemetry.Peer {
	if w == nil {
		return telemetry.Peer{}
	}
	return telemetry.Peer{
		Workload: w.WorkloadName, Namespace: w.Namespace, CanonicalService: w.CanonicalName, CanonicalRev: w.CanonicalRevision,
		App: w.CanonicalName, Version: w.CanonicalRevision, Cluster: w.ClusterID,
		Region: w.Locality.Region, Zone: w.Locality.Zone, Known: true,
	}
}

func withService(l *telemetry.Labels, svc *workload.Service) {
	if svc != nil {
		l.Service, l.ServiceName, l.ServiceNamespace = svc.Key.Hostname, svc.Name, svc.Key.Namespace
	}
}

// join carries bytes between the two ends until both directions have ended, and
// returns why they ended, nil if well. c is registered meanwhile.
func (p *Proxy) join(c *connection, caller, target relay.Half, r *record) error {
	r.joined()
	err := relay.Copy(caller, target, &r.counters)
	if why := c.why.Load(); why != nil {
		return why
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return &telemetry.Refusal{Reason: telemetry.PeerTimeout, Err: err}
	}
	return &telemetry.Refusal{Reason: telemetry.Broken, Err: err}
}

// release closes what is done with; what matters of its end has been reported.
func release(c io.Closer) { _ = c.Close() }

// both returns a function that ends two halves at once.
func both(a, b io.Closer) func() {
	return func() {
		abort(a)
		abort(b)
	}
}

// abort closes a connection so that its peer does not take it for a clean end.
func abort(c io.Closer) {
	switch c := c.(type) {
	case interface{ Reset() }: // a stream
		c.Reset()
	case *net.TCPConn:
		_ = c.SetLinger(0) // it is closed anyway
		_ = c.Close()
	default:
		_ = c.Close()
	}
}

// reasonOf returns the reason that an error carries.
func reasonOf(err error) telemetry.Reason {
	var refused *telemetry.Refusal
	switch {
	case err == nil:
		return telemetry.OK
	case errors.As(err, &refused):
		return refused.Reason
	}
	return telemetry.ConnectFailed
}

// refusal translates plan's problem into the reason that log and metrics show.
func refusal(err error) error {
	var e *plan.Error
	if !errors.As(err, &e) {
		return err
	}
	reasons := [...]telemetry.Reason{
		plan.SelfCall: telemetry.SelfCall, plan.BadAuthority: telemetry.BadRequest, plan.IPMismatch: telemetry.IPMismatch,
		plan.UnknownDestination: telemetry.UnknownDestination, plan.NoHealthyEndpoint: telemetry.NoHealthyEndpoint,
		plan.WaypointUnavailable: telemetry.WaypointUnavailable, plan.NotSupported: telemetry.NotSupported,
		plan.GatewayUnavailable: telemetry.GatewayUnavailable,
	}
	return &telemetry.Refusal{Reason: reasons[e.Problem], Err: err}
}

// dialError names what an operator should look at when a connect fails.
func dialError(err error, to netip.AddrPort) error {
	if _, ok := errors.AsType[*telemetry.Refusal](err); ok {
		return err
	}
	reason := telemetry.ConnectFailed
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) {
		reason = telemetry.ConnectTimeout
		if ownPort(to.Port()) {
			err = fmt.Errorf("%w; maybe a NetworkPolicy blocks port 15008", err)
		}
	}
	return &telemetry.Refusal{Reason: reason, Err: err}
}
