// Package inpod learns from the node agent which pods ztunnel serves and runs one
// proxy for each. It speaks the ZDS protocol (apis/zds) as the dialling side: hello,
// a snapshot of adds, then adds and removals, one acknowledgement each.
//
// It owns the pods' network namespaces and decides when a proxy starts and stops; it
// does not know what a proxy is, which it gets as a function from ztunnel.go. All
// state belongs to the goroutine in Run; Ready and Pods may be called at any time.
// The protocol is spec/ztunnel.md §1.5.
package inpod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// ErrProtocol says that the node agent broke the protocol, so that what the two sides
// believe about the pods may differ; only a new process can start from nothing.
var ErrProtocol = errors.New("zds protocol error")

// Pod is a pod of this node as the agent describes it. NetNS is owned by the Agent and
// open for as long as the pod's proxy runs.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string
	NetNS                                *netns.NS
}

// Proxy is a running proxy of one pod.
type Proxy interface {
	// Stop ends listeners and connections at once and returns when all has ended.
	Stop()
}

// Drainer is a Proxy that can end gently: Drain is called in place of Stop when Run's
// context is done, because then the process ends and the pod does not.
type Drainer interface {
	Drain()
}

// Metrics are called by the Agent; a nil function is not called.
type Metrics struct {
	Active, Pending  func(n int) // pods with a proxy; pods whose proxy could not start
	Started, Stopped func()      // one proxy
}

// Config of an Agent.
type Config struct {
	Socket string                   // path of the node agent's socket
	Start  func(Pod) (Proxy, error) // called by one goroutine; must not wait for the network
	Log    *slog.Logger
	// Metrics are optional.
	Metrics Metrics
	// RetryInterval is how often proxies that could not start are tried again; 0 = 5 s.
	RetryInterval time.Duration
}

// State of a pod.
type State string

// The states, as the configuration dump prints them.
const (
	StateUp      State = "Up"
	StatePending State = "Pending" // the proxy could not start and is tried again
)

// PodState is a pod for the configuration dump. Proxy is nil unless the state is Up.
type PodState struct {
	Pod   Pod
	State State
	Proxy Proxy
}

// Agent is ztunnel's side of ZDS.
type Agent struct {
	cfg    Config
	ready  atomic.Bool
	detail atomic.Pointer[string]
	pods   atomic.Pointer[[]PodState]

	// The rest belongs to the goroutine in Run.
	running   map[string]running
	pending   map[string]Pod
	failed    error // why the latest proxy could not start
	away      error // why there is no connection
	connected bool
	snapshot  map[string]bool // uids named before SnapshotSent; nil after it
	retry     <-chan time.Time
	stops     sync.WaitGroup
}

type running struct {
	pod   Pod
	proxy Proxy
}

// Back-off of dialling and of connections that end before they are ready.
const (
	dialBackoffMin  = 20 * time.Millisecond
	helloBackoffMin = 5 * time.Millisecond
	backoffMax      = 15 * time.Second
)

// New returns an Agent that has not dialled yet.
func New(cfg Config) *Agent {
	if cfg.RetryInterval == 0 {
		cfg.RetryInterval = 5 * time.Second
	}
	a := &Agent{cfg: cfg, running: map[string]running{}, pending: map[string]Pod{}}
	a.pods.Store(&[]PodState{})
	a.describe()
	return a
}

// Ready says whether the agent is connected, has sent its snapshot, and every pod has
// its proxy.
func (a *Agent) Ready() bool { return a.ready.Load() }

// Detail says for people what Ready waits for; empty when it does not.
func (a *Agent) Detail() string { return *a.detail.Load() }

// describe makes what Ready waits for visible.
func (a *Agent) describe() {
	text := ""
	switch {
	case !a.connected && a.away != nil:
		text = fmt.Sprintf("node agent at %s: %v", a.cfg.Socket, a.away)
	case !a.connected:
		text = fmt.Sprintf("node agent at %s: connecting", a.cfg.Socket)
	case a.snapshot != nil:
		text = "the node agent has not sent all pods yet"
	case len(a.pending) > 0:
		text = fmt.Sprintf("%d pods without a proxy; the latest: %v", len(a.pending), a.failed)
	}
	a.detail.Store(&text)
}

// Pods lists the pods by UID.
func (a *Agent) Pods() []PodState { return *a.pods.Load() }

// Run follows the node agent until ctx is done, reconnecting as often as needed while
// the proxies keep running; then it drains every proxy and returns nil. The only error
// is ErrProtocol, after which the process must end; the proxies have been stopped.
func (a *Agent) Run(ctx context.Context) error {
	err := a.follow(ctx)
	a.ready.Store(false)
	for uid, r := range a.running {
		delete(a.running, uid)
		a.end(r, err == nil)
	}
	a.dropPending()
	a.stops.Wait()
	a.publish()
	return err
}

// follow is Run without the end.
func (a *Agent) follow(ctx context.Context) error {
	backoff := helloBackoffMin
	for {
		conn := a.dial(ctx)
		if conn == nil {
			return nil
		}
		wasReady, err := a.serve(ctx, conn)
		a.ready.Store(false)
		a.away = err
		a.describe()
		if errors.Is(err, ErrProtocol) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		a.cfg.Log.Warn("node agent connection ended", "error", err)
		if wasReady {
			backoff = helloBackoffMin
			continue
		}
		if !wait(ctx, jitter(backoff)) {
			return nil
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// dial returns nil when ctx is done.
func (a *Agent) dial(ctx context.Context) *net.UnixConn {
	backoff := dialBackoffMin
	for {
		conn, err := netns.DialSeqpacket(ctx, a.cfg.Socket)
		if err == nil {
			return conn
		}
		a.cfg.Log.Debug("node agent not reachable", "error", err, "retry_in", backoff)
		a.away = err
		a.describe()
		if !wait(ctx, backoff) {
			return nil
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// start runs the pod's proxy, or puts the pod on the list of those tried again.
func (a *Agent) start(pod Pod) error {
	proxy, err := a.cfg.Start(pod)
	if err != nil {
		a.pending[pod.UID], a.failed = pod, err
		if a.retry == nil {
			a.retry = time.After(a.cfg.RetryInterval)
		}
		return fmt.Errorf("start proxy for %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	a.running[pod.UID] = running{pod: pod, proxy: proxy}
	if a.cfg.Metrics.Started != nil {
		a.cfg.Metrics.Started()
	}
	a.cfg.Log.Info("pod added", "pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID)
	return nil
}

// retryPending tries every pending pod once more.
func (a *Agent) retryPending() {
	a.retry = nil
	pending := a.pending
	a.pending = map[string]Pod{}
	for _, pod := range pending {
		if err := a.start(pod); err != nil {
			a.cfg.Log.Warn("pod still pending", "uid", pod.UID, "error", err)
		}
	}
}

// stop ends the pod's proxy, if there is one.
func (a *Agent) stop(uid string) {
	r, ok := a.running[uid]
	if !ok {
		return
	}
	delete(a.running, uid)
	a.end(r, false)
	a.cfg.Log.Info("pod removed", "pod", r.pod.Namespace+"/"+r.pod.Name, "uid", uid)
}

// end stops or drains the proxy without holding up other pods; Run waits for it.
func (a *Agent) end(r running, drain bool) {
	a.stops.Go(func() {
		if d, ok := r.proxy.(Drainer); ok && drain {
			d.Drain()
		} else {
			r.proxy.Stop()
		}
		a.closeNS(r.pod)
		if a.cfg.Metrics.Stopped != nil {
			a.cfg.Metrics.Stopped()
		}
	})
}

func (a *Agent) dropPending() {
	for uid := range a.pending {
		a.forgetPending(uid)
	}
}

func (a *Agent) forgetPending(uid string) {
	if pod, ok := a.pending[uid]; ok {
		delete(a.pending, uid)
		a.closeNS(pod)
	}
}

func (a *Agent) closeNS(pod Pod) {
	if err := pod.NetNS.Close(); err != nil {
		a.cfg.Log.Warn("close network namespace", "uid", pod.UID, "error", err)
	}
}
