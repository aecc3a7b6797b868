package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// A leader that has not renewed its Lease for renewWithin stops writing; the
// others wait for leaseLasts, so that there is time between for what it has begun.
const (
	leaseLasts  = 15 * time.Second
	renewWithin = 10 * time.Second
	leaseRetry  = 2 * time.Second
)

// LeaseConfig says which Lease, and who asks for it.
type LeaseConfig struct {
	Namespace, Name string
	Identity        string // of this replica, unlike any other's
	Log             *slog.Logger

	// Lasts is how long the Lease is held after its last renewal, whole
	// seconds; RenewWithin how long a leader that cannot renew it goes on;
	// Retry how often both are tried. 0 is 15 s, 10 s and 2 s.
	Lasts, RenewWithin, Retry time.Duration
}

// Lease makes one replica of several the one that writes.
type Lease struct {
	cfg    LeaseConfig
	client *client.CoordinationV1Client
}

// NewLease returns a Lease that nobody has asked for yet.
func NewLease(cfg *rest.Config, lease LeaseConfig) (*Lease, error) {
	c, err := client.NewForConfig(timed(cfg))
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	lease.Lasts = cmp.Or(lease.Lasts, leaseLasts)
	lease.RenewWithin = cmp.Or(lease.RenewWithin, renewWithin)
	lease.Retry = cmp.Or(lease.Retry, leaseRetry)
	return &Lease{cfg: lease, client: c}, nil
}

// Lead waits for the Lease, runs work while it is held, and again each time it
// has been won back, until ctx is done. work must end when its context does,
// which is when the Lease is lost, or given back because ctx is done: another
// replica may write from then on, or soon. An error of work ends Lead.
func (l *Lease) Lead(ctx context.Context, work func(ctx context.Context) error) error {
	for ctx.Err() == nil {
		if err := l.term(ctx, work); err != nil {
			return err
		}
	}
	return nil
}

// term is one time of waiting, leading and ending.
//
//  1. The elector runs in a context of its own: the Lease is renewed while the
//     work ends.
//  2. work runs in the elector's leading context, which ends with the Lease. It
//     ends with ctx, too, and in any case RenewWithin after the beginning of the
//     last request that has renewed the Lease: until a request is answered, the
//     elector waits, and the others count from when they see its effect.
//  3. When work has ended, the Lease is given back. The elector could do so, but
//     before its leading context ends.
func (l *Lease) term(ctx context.Context, work func(ctx context.Context) error) error {
	electing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	working, lose := context.WithCancel(electing)
	defer lose()
	expiry := time.AfterFunc(math.MaxInt64, lose)
	defer expiry.Stop()
	lock := heldLock{held: func(since time.Time) { expiry.Reset(time.Until(since.Add(l.cfg.RenewWithin))) }, Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: l.cfg.Namespace, Name: l.cfg.Name},
		Client:     l.client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: l.cfg.Identity},
	}}
	led := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, Name: l.cfg.Name,
		LeaseDuration: l.cfg.Lasts, RenewDeadline: l.cfg.RenewWithin, RetryPeriod: l.cfg.Retry,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				context.AfterFunc(leading, lose)
				close(led)
			},
			OnStoppedLeading: func() {},
			OnNewLeader:      l.observed,
		},
	})
	if err != nil {
		return fmt.Errorf("lease %s/%s: %w", l.cfg.Namespace, l.cfg.Name, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		elector.Run(electing)
	}()
	defer func() {
		stop()
		<-ended
		l.release(ctx, lock)
	}()
	select {
	case <-ctx.Done():
		return nil
	case <-led:
		return l.lead(ctx, working, work)
	}
}

// heldLock tells when each request began that has taken or renewed the Lease.
type heldLock struct {
	resourcelock.Interface

	held func(since time.Time)
}

// Create implements resourcelock.Interface.
func (h heldLock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return h.tell(h.Interface.Create, ctx, r)
}

// Update implements resourcelock.Interface.
func (h heldLock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return h.tell(h.Interface.Update, ctx, r)
}

func (h heldLock) tell(
	write func(context.Context, resourcelock.LeaderElectionRecord) error, ctx context.Context, r resourcelock.LeaderElectionRecord,
) error {
	since := time.Now()
	err := write(ctx, r)
	if err == nil {
		h.held(since)
	}
	return err
}

// release gives the Lease back if it is still held, so that another need not
// wait until it is over. Where that fails, another waits.
func (l *Lease) release(ctx context.Context, lock heldLock) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.RenewWithin)
	defer cancel()
	record, _, err := lock.Get(ctx)
	if err == nil && record.HolderIdentity == l.cfg.Identity {
		now := metav1.Now()
		err = lock.Interface.Update(ctx, resourcelock.LeaderElectionRecord{
			LeaseDurationSeconds: 1, AcquireTime: now, RenewTime: now, LeaderTransitions: record.LeaderTransitions,
		})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		l.cfg.Log.Info("the lease is not given back: it is free when it is over", slog.String("lease", l.cfg.Name), slog.Any("error", err))
	}
}

// lead runs work until leading ends, or ctx.
func (l *Lease) lead(ctx, leading context.Context, work func(ctx context.Context) error) error {
	working, stop := context.WithCancel(leading)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	l.cfg.Log.Info("this istiod writes statuses and generated objects now")
	err := work(working)
	switch {
	case ctx.Err() != nil:
	case leading.Err() != nil:
		l.cfg.Log.Warn("the lease is lost: another istiod may write now; this one goes on serving", slog.String("lease", l.cfg.Name))
	case err == nil:
		return errors.New("what the leader does has ended by itself")
	}
	if errors.Is(err, context.Canceled) && working.Err() != nil {
		return nil
	}
	return err
}

func (l *Lease) observed(identity string) {
	if identity != l.cfg.Identity {
		l.cfg.Log.Info("another istiod writes statuses and generated objects", slog.String("leader", identity))
	}
}
