package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
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
