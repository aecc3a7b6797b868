package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/rbac"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// Hold bounds how connections wait for what has not arrived yet. Zero values
// stand for the defaults.
type Hold struct {
	Connections int           // at once, per pod; default 1024
	Arrival     time.Duration // for the pod's workload and certificate; default 60 s
	Policy      time.Duration // for a policy that the workload names; default 5 s
}

// certificateRetry is how often a held connection asks again for a certificate
// that istiod has refused: it may not know yet that the pod runs here.
const certificateRetry = 250 * time.Millisecond

// A client is who opened a connection that may have to be held. Without a
// connection nobody looks whether it is still there.
type client struct {
	conn *net.TCPConn
	// gone says whether a client that sends no more has closed the connection;
	// unread is set when something of what it has sent has not been read. It may
	// still want to receive.
	gone func(unread bool) bool
}

var errClientGone = errors.New("the client has gone")

type holder struct {
	Hold
	waiting atomic.Int64
}

func newHolder(h Hold) holder {
	if h.Connections == 0 {
		h.Connections = 1024
	}
	if h.Arrival == 0 {
		h.Arrival = time.Minute
	}
	if h.Policy == 0 {
		h.Policy = 5 * time.Second
	}
	return holder{Hold: h}
}

// during runs wait with a deadline, as one of the connections held, and as long
// as the client is there.
func (h *holder) during(ctx context.Context, c client, limit time.Duration, wait func(context.Context) error) error {
	if h.waiting.Add(1) > int64(h.Connections) {
		h.waiting.Add(-1)
		return &telemetry.Refusal{Reason: telemetry.HoldLimit, Err: fmt.Errorf("%d connections of the pod are held already", h.Connections)}
	}
	defer h.waiting.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if c.conn == nil {
		return wait(ctx)
	}
	held, release := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait() // before anybody reads
	defer release(nil)
	watching.Go(func() {
		if netns.AwaitHangup(held, c.conn, c.gone) == nil {
			release(errClientGone)
		}
	})
	return wait(held)
}

// awaitWorkload returns the pod's own workload.
func (p *Proxy) awaitWorkload(ctx context.Context, c client) (*workload.Workload, error) {
	if w := p.workload(p.cfg.Store.Snapshot()); w != nil {
		return w, nil
	}
	var w *workload.Workload
	err := p.held.during(ctx, c, p.held.Arrival, func(ctx context.Context) error {
		return p.cfg.Store.Await(ctx, func(s *workload.Snapshot) bool {
			w = p.workload(s)
			return w != nil
		})
	})
	var refused *telemetry.Refusal
	switch {
	case errors.As(err, &refused):
		return nil, refused
	case err != nil:
		return nil, &telemetry.Refusal{Reason: telemetry.UnknownSource, Err: fmt.Errorf(
			"istiod has not told of pod %s/%s with service account %s: %w", p.cfg.Pod.Namespace, p.cfg.Pod.Name, p.cfg.Pod.ServiceAccount, err)}
	}
	return w, nil
}

// awaitCertificate waits for the first certificate of a workload.
func (p *Proxy) awaitCertificate(ctx context.Context, c client, w *workload.Workload) error {
	if seen := p.certified.Load(); seen != nil && *seen == w.Identity {
		return nil // renewals are the cache's care
	}
	err := p.held.during(ctx, c, p.held.Arrival, func(ctx context.Context) error {
		for {
			_, err := p.cfg.Certificate(ctx, w.Identity)
			if err == nil || ctx.Err() != nil {
				return err
			}
			select {
			case <-time.After(certificateRetry):
			case <-ctx.Done():
				return fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
		}
	})
	var refused *telemetry.Refusal
	switch {
	case errors.As(err, &refused):
		return refused
	case err != nil:
		return &telemetry.Refusal{Reason: telemetry.IdentityUnavailable, Err: err}
	}
	p.certified.Store(&w.Identity)
	return nil
}

// ruling is an allowed connection and what it was judged by.
type ruling struct {
	version  uint64
	workload *workload.Workload
}

// stale reports whether s could judge otherwise.
func (r ruling) stale(s *workload.Snapshot, w *workload.Workload) bool {
	return r.version != s.PolicyVersion() || r.workload != w
}

// authorize judges a connection to the pod by the policies of now. While a
// policy that the pod's workload names is missing, only a DENY counts; the
// connection is held for the rest, then refused.
func (p *Proxy) authorize(ctx context.Context, from client, c rbac.Conn) (ruling, error) {
	r, missing, err := p.judge(p.cfg.Store.Snapshot(), c)
	if err != nil || len(missing) == 0 {
		return r, err
	}
	waited := p.held.during(ctx, from, p.held.Policy, func(ctx context.Context) error {
		return p.cfg.Store.Await(ctx, func(s *workload.Snapshot) bool {
			r, missing, err = p.judge(s, c)
			return err != nil || len(missing) == 0
		})
	})
	var refused *telemetry.Refusal
	switch {
	case errors.As(waited, &refused):
		return r, refused
	case waited != nil:
		return r, &telemetry.Refusal{Reason: telemetry.PolicyMissing, Err: fmt.Errorf("policy %s has not arrived", strings.Join(missing, ", "))}
	}
	return r, err
}

// judge evaluates once. The error is a refusal that stands whatever is missing.
func (p *Proxy) judge(s *workload.Snapshot, c rbac.Conn) (ruling, []string, error) {
	w := p.workload(s)
	if w == nil {
		return ruling{}, nil, &telemetry.Refusal{Reason: telemetry.UnknownSource, Err: errors.New("the pod's workload is gone")}
	}
	policies, missing := s.PoliciesFor(w)
	v := rbac.Evaluate(policies, c)
	for _, f := range v.DryRun {
		p.log.Debug("dry-run policy would decide", telemetry.KeyPolicy, f.Policy, "rule", f.Rule, "action", f.Action.String())
	}
	if !v.Allowed && (len(missing) == 0 || v.Policy != "") {
		reason := telemetry.PolicyDenied
		if v.Invalid {
			reason = telemetry.PolicyInvalid
		}
		return ruling{}, missing, &telemetry.Refusal{Reason: reason, Err: errors.New(v.Reason)}
	}
	return ruling{version: s.PolicyVersion(), workload: w}, missing, nil
}

// watchPolicies closes live connections that the policies of now refuse.
func (p *Proxy) watchPolicies() {
	var last ruling
	for {
		changed := p.cfg.Store.Changed()
		s := p.cfg.Store.Snapshot()
		if w := p.workload(s); w != nil && last.stale(s, w) {
			last = ruling{s.PolicyVersion(), w}
			p.table.each(func(c *connection) { p.review(s, c) })
		}
		select {
		case <-changed:
		case <-p.draining.Done():
			return
		}
	}
}

// review closes a connection that a complete policy set denies.
func (p *Proxy) review(s *workload.Snapshot, c *connection) {
	if c.direction != telemetry.Inbound || !c.judged {
		return
	}
	_, missing, err := p.judge(s, c.rbac)
	var refused *telemetry.Refusal
	if len(missing) == 0 && errors.As(err, &refused) && refused.Reason == telemetry.PolicyDenied {
		c.close(telemetry.PolicyChanged, refused.Err)
	}
}
