// Package cni is the node agent: it decides which pods of its node belong to the mesh,
// programs their namespaces (ztunnel/redirect), hands the namespaces to ztunnel over ZDS,
// and tells the rest of the mesh by an annotation. It is also the CNI plugin by which the
// container runtime tells it of new pods.
//
// One goroutine in Run owns what is known of every pod and brings each, level-triggered,
// from how it is to how it should be: decide is the pure part. Whatever may take time
// runs beside it, one operation per pod at a time, and reports back. Sessions with
// ztunnels (zds.go) and calls of the plugin (events.go) send messages to the owner.
//
// The agent does not carry traffic: pods work while it is away, new ones do not start.
// It is run by cmd/ambit-cni. Behaviour: spec/control-plane.md §1.2 and §8,
// spec/ztunnel.md §1.5.
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Config of an Agent.
type Config struct {
	Source    Source
	Annotate  Annotate
	Scope     Scope
	DNS       bool   // redirect what pods ask of resolvers, where a pod's annotation does not say
	RunDir    string // the plugin's socket and the records of pods
	ZDSSocket string // ztunnels connect here
	// Exempt lets the node's probes of exactly these addresses pass the redirection; nil
	// when the node does not probe.
	Exempt func([]netip.Addr) error
	// Find looks for namespaces that the container runtime did not tell; may be nil.
	Find    Find
	ProcDir string // the host's /proc; empty = /proc
	Log     *slog.Logger
	// Installed says whether the plugin is; nil when that is not this process's business.
	Installed func() bool
	// AddTimeout is how long the plugin's ADD waits for the pod to be known, programmed
	// and acknowledged; 0 = 5 s.
	AddTimeout time.Duration
	// AfterFunc makes the timers of retries and polls; nil = time.AfterFunc.
	AfterFunc func(d time.Duration, f func()) (stop func())
}

const (
	retryMin      = 5 * time.Millisecond
	retryMax      = 5 * time.Second
	drainDelay    = 5 * time.Second // for peers to learn that the pod takes no new tunnels
	drainInterval = time.Second
)

// Agent is the node agent. Its fields below mail belong to the goroutine in Run.
type Agent struct {
	cfg     Config
	records records
	metrics *metrics
	mail    chan func() // run by the owner
	done    chan struct{}
	synced  chan struct{}  // closed when the source has told all pods
	serving chan struct{}  // closed when both sockets are there
	work    sync.WaitGroup // operations on pods
	upMu    sync.Mutex
	zdsUp   atomic.Bool
	plugUp  atomic.Bool
	ctx     context.Context

	entries  map[string]*entry // by UID
	sessions []*session        // oldest first
	isSynced bool
	probes   probes
	search   search
	leaving  bool          // nothing is wanted any more
	left     chan struct{} // closed when leaving is done
}

// New returns an Agent that does nothing yet.
func New(cfg Config) *Agent {
	if cfg.AddTimeout == 0 {
		cfg.AddTimeout = 5 * time.Second
	}
	if cfg.AfterFunc == nil {
		cfg.AfterFunc = func(d time.Duration, f func()) func() {
			t := time.AfterFunc(d, f)
			return func() { t.Stop() }
		}
	}
	return &Agent{
		cfg:     cfg,
		records: records{dir: filepath.Join(cfg.RunDir, "pods")},
		metrics: newMetrics(),
		mail:    make(chan func()),
		done:    make(chan struct{}),
		synced:  make(chan struct{}),
		serving: make(chan struct{}),
		entries: map[string]*entry{},
		probes:  probes{exempt: cfg.Exempt, pods: map[string][]netip.Addr{}},
		left:    make(chan struct{}),
	}
}

// Run works until ctx is done and returns nil, or until a part of it cannot go on. It
// leaves pods as they are: rules, annotations and records stay for the next agent.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.load(); err != nil {
		return fmt.Errorf("pod records: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.ctx = ctx
	var parts sync.WaitGroup
	for name, run := range map[string]func(context.Context) error{
		"source": func(ctx context.Context) error { return a.cfg.Source.Run(ctx, a.updatePods) },
		"plugin": a.serveEvents,
		"zds":    a.serveZDS,
	} {
		parts.Go(func() {
			err := run(ctx)
			if err == nil {
				err = errors.New("ended")
			}
			cancel(fmt.Errorf("%s: %w", name, err))
		})
	}
	a.own(ctx)
	close(a.done)
	parts.Wait()
	a.work.Wait()
	for _, e := range a.entries {
		e.close()
	}
	if a.search.stop != nil {
		a.search.stop()
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// own runs what is sent to the owner.
func (a *Agent) own(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-a.mail:
			f()
		}
	}
}

// post sends f to the owner, or drops it and says so when there is none any more.
func (a *Agent) post(f func()) bool {
	select {
	case a.mail <- f:
		return true
	case <-a.done:
		return false
	}
}

// up is called when a socket has come.
func (a *Agent) up(socket *atomic.Bool) {
	a.upMu.Lock()
	defer a.upMu.Unlock()
	socket.Store(true)
	if a.zdsUp.Load() && a.plugUp.Load() {
		close(a.serving)
	}
}

// load learns of pods that an earlier agent knew.
func (a *Agent) load() error {
	all, err := a.records.load(a.cfg.Log)
	for _, rec := range all {
		e := a.entry(rec.UID)
		e.record, e.recorded, e.seen = rec, true, true
		if !rec.Enrolled {
			continue
		}
		e.stage = stageProgrammed // at worst; to be verified
		if rec.NetNS == "" {
			continue
		}
		if _, lost := e.open(); lost != nil {
			a.cfg.Log.Warn("namespace of an enrolled pod is lost", "pod", e.name(), "error", lost)
		}
	}
	return err
}

func (a *Agent) entry(uid string) *entry {
	e := a.entries[uid]
	if e == nil {
		e = &entry{uid: uid}
		a.entries[uid] = e
	}
	return e
}

// updatePods takes what the source knows.
func (a *Agent) updatePods(pods []Pod) {
	a.post(func() {
		present := map[string]bool{}
		for _, p := range pods {
			present[p.UID] = true
			e := a.entry(p.UID)
			a.suspect(e, p)
			e.know(p, a.cfg.Scope)
		}
		if !a.isSynced {
			a.isSynced = true
			close(a.synced)
			a.adoptExemptions()
		}
		for _, e := range a.entries {
			if e.known && !present[e.uid] {
				e.known, e.annotation = false, ""
			}
			a.reconcile(e)
		}
	})
}
