package istiod

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/workqueue"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
)

// A write that fails waits for retryAfter, then for twice as long each time, up
// to retryAtMost.
const (
	retryAfter  = time.Second
	retryAtMost = time.Minute
)

// lookAfter is how long what somebody else has changed stays: two who want
// different things must not write as fast as they can.
const lookAfter = time.Second

// task is one thing to bring up to date: which kind of thing, and its name.
type task struct{ kind, name string }

// The kinds of tasks.
const (
	taskRoot     = "root certificate of namespace" // namespace
	taskWaypoint = "waypoint"                      // namespace/name of a Gateway
	taskSweep    = "waypoints of gateways that are gone"
	taskClass    = "gateway class" // name
)

// state is what a generator looks up when it does a task: how things are then.
type state struct {
	deployment func(gateway string) (deployment, bool)
	namespace  func(name string) bool
	gateway    func(name string) bool
	class      func(name string) bool
	// root returns the ConfigMap with the root certificate as it is.
	root func(namespace string) (*corev1.ConfigMap, bool)
	// all returns what is to be looked at when a generator starts.
	all func() []task
}

// generator writes the objects that a cluster's controllers would: waypoints
// and root certificates. A task is noted under its name, from any goroutine and
// without waiting, and done in Run as things are by then.
type generator struct {
	store   objectStore
	log     *slog.Logger
	state   state
	cluster bool   // see platform.cluster
	rootPEM []byte // set before Run

	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[task] // nil while Run does not run
}

// note has a task done. While nobody runs the generator it is forgotten: Run
// begins with everything.
func (g *generator) note(kind, name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.queue != nil {
		g.queue.Add(task{kind, name})
	}
}

// look has a task done soon, because somebody has changed what is to be written.
func (g *generator) look(kind, name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.queue != nil {
		g.queue.AddAfter(task{kind, name}, lookAfter)
	}
}

// Run does everything, and then what is noted, until ctx is done; it may be
// called again after that. What fails is tried again.
func (g *generator) Run(ctx context.Context) error {
	queue := g.start()
	defer g.stop()
	defer context.AfterFunc(ctx, queue.ShutDown)()
	for _, t := range g.state.all() {
		queue.Add(t)
	}
	for {
		t, closed := queue.Get()
		if closed || ctx.Err() != nil {
			return nil
		}
		err := g.do(ctx, t)
		switch {
		case err == nil:
			queue.Forget(t)
		case ctx.Err() == nil:
			g.log.Warn("generated object cannot be written; trying again", slog.String("object", t.kind+" "+t.name), slog.Any("error", err))
			queue.AddRateLimited(t)
		}
		queue.Done(t)
	}
}

// start makes the queue here because it runs a goroutine.
func (g *generator) start() workqueue.TypedRateLimitingInterface[task] {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue = workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[task](retryAfter, retryAtMost))
	return g.queue
}

func (g *generator) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue.ShutDown() // ends the queue's own goroutine
	g.queue = nil
}

func (g *generator) do(ctx context.Context, t task) error {
	switch t.kind {
	case taskRoot:
		return g.root(ctx, t.name)
	case taskWaypoint:
		return g.deploy(ctx, t.name)
	case taskSweep:
		return g.removeManaged(ctx, "", nil, func(o *unstructured.Unstructured) bool {
			_, wanted := g.state.deployment(gatewayOf(o))
			return !wanted
		})
	case taskClass:
		return g.class(ctx, t.name)
	}
	panic("no such task: " + t.kind)
}

// gatewayOf is the Gateway whose waypoint an object runs.
func gatewayOf(o metav1.Object) string {
	return o.GetNamespace() + "/" + o.GetLabels()[mesh.LabelGatewayName]
}

// deploy applies the objects of a deployment that came or changed, and removes
// those that it no longer has.
func (g *generator) deploy(ctx context.Context, gateway string) error {
	keep := map[manifest.Key]bool{}
	if d, ok := g.state.deployment(gateway); ok {
		if d.err != nil {
			return nil // the Gateway's status says it; what runs goes on
		}
		for _, o := range d.objects {
			body, err := manifest.ToUnstructured(o)
			if err != nil {
				return err
			}
			keep[manifest.KeyOf(body)] = true
			if err := g.store.Apply(ctx, body); err != nil {
				return err
			}
		}
	}
	namespace, name := splitKey(gateway)
	return g.removeManaged(ctx, namespace, map[string]string{mesh.LabelGatewayName: name}, func(o *unstructured.Unstructured) bool {
		return !keep[manifest.KeyOf(o)]
	})
}

// removeManaged deletes objects of waypoints. In a cluster those of a Gateway
// that is gone are the garbage collector's: that we do not see a Gateway is too
// little a reason to take a waypoint away.
func (g *generator) removeManaged(
	ctx context.Context, namespace string, with map[string]string, which func(*unstructured.Unstructured) bool,
) error {
	if _, gateway := with[mesh.LabelGatewayName]; gateway && g.cluster && !g.state.gateway(namespace+"/"+with[mesh.LabelGatewayName]) {
		return nil
	}
	list, err := g.store.List(ctx, namespace, with)
	if err != nil {
		return err
	}
	for _, o := range list {
		if !which(o) || g.cluster && !g.state.gateway(gatewayOf(o)) {
			continue
		}
		if err := g.store.Delete(ctx, manifest.KeyOf(o)); err != nil {
			return err
		}
	}
	return nil
}

// withoutRoot are the namespaces that get no root certificate,
// spec/control-plane.md §7.3.
var withoutRoot = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

// setRoot says what the root certificate is. Before, Run must not be called.
func (g *generator) setRoot(pem []byte) { g.rootPEM = pem }

// root writes the root certificate into a namespace, or removes it from one
// that is gone. A namespace of a cluster takes it along.
func (g *generator) root(ctx context.Context, namespace string) error {
	if slices.Contains(withoutRoot, namespace) {
		return nil
	}
	if !g.state.namespace(namespace) {
		if g.cluster {
			return nil
		}
		return g.store.Delete(ctx, manifest.Key{Kind: "ConfigMap", Namespace: namespace, Name: mesh.RootCertConfig})
	}
	wanted := &corev1.ConfigMap{
		APIVersion: "v1", Kind: "ConfigMap", Namespace: namespace, Name: mesh.RootCertConfig,
		Labels: map[string]string{mesh.LabelConfig: "true"},
		Data:   map[string]string{mesh.RootCertFile: string(g.rootPEM)},
	}
	there, ok := g.state.root(namespace)
	if ok && there.Data[mesh.RootCertFile] == wanted.Data[mesh.RootCertFile] && there.Labels[mesh.LabelConfig] == "true" {
		return nil
	}
	body, err := manifest.ToUnstructured(wanted)
	if err != nil {
		return err
	}
	return g.store.Apply(ctx, body)
}

// class makes the object of a GatewayClass that has none. One that exists is
// never changed, spec/control-plane.md §6.1.
func (g *generator) class(ctx context.Context, name string) error {
	if !g.cluster || g.state.class(name) {
		return nil
	}
	body, err := manifest.ToUnstructured(&gatewayv1.GatewayClass{
		APIVersion: gatewayv1.GroupVersion.String(), Kind: "GatewayClass", Name: name,
		Spec: gatewayv1.GatewayClassSpec{ControllerName: mesh.MeshControllerName},
	})
	if err != nil {
		return err
	}
	unstructured.RemoveNestedField(body.Object, "status")
	return g.store.Create(ctx, body)
}
