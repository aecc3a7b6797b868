package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// cluster is the state of the lab and what acts on it. Everything below the
// line belongs to run; others post functions to it.
type cluster struct {
	options Options
	log     *slog.Logger
	store   *manifest.Store
	procs   *processes
	tokens  *issuer
	nodes   []*node
	dns     *dnsServer
	onReady func(waiting []string) // called when what the start waits for changes; nothing means up

	events chan event
	gone   chan struct{} // closed when run has ended

	mu      sync.Mutex
	changed chan struct{} // closed at the next change of the manifests

	objects   objects
	loaded    [origins]bool // the watcher has said what there is
	addresses clusterIPs
	refused   map[string]bool              // warnings that were given
	defaulted map[manifest.Key]bool        // Services that were written because of their address
	pods      map[string]*pod              // by key
	backends  []backend                    // sorted by name
	slices    map[manifest.Key]*sliceState // as written
	stale     bool                         // the manifests have changed since the last reconciliation
	up        bool
	ending    bool // pods that end are not replaced
	waiting   []string
	workers   sync.WaitGroup
}

// event is something for run to do; a query changes nothing.
type event struct {
	f     func()
	query bool
}

type sliceState struct{ body *unstructured.Unstructured }

func newCluster(options Options, log *slog.Logger) *cluster {
	return &cluster{
		options: options, log: log, store: manifest.NewStore(objectsDir(options.StateDir)), procs: newProcesses(),
		events: make(chan event, 64), gone: make(chan struct{}), changed: make(chan struct{}),
		addresses: clusterIPs{}, refused: map[string]bool{}, defaulted: map[manifest.Key]bool{},
		pods: map[string]*pod{}, slices: map[manifest.Key]*sliceState{},
		onReady: func([]string) {},
	}
}

// post has f, which changes something, run by run; it is dropped when run has
// ended.
func (c *cluster) post(f func()) { c.send(event{f: f}) }

// ask has f, which changes nothing that others depend on, run by run and waits
// for it.
func (c *cluster) ask(f func()) {
	done := make(chan struct{})
	c.send(event{f: func() { f(); close(done) }, query: true})
	select {
	case <-done:
	case <-c.gone:
	}
}

func (c *cluster) send(e event) {
	select {
	case c.events <- e:
	case <-c.gone:
	}
}

// manifestsChanged is closed when a manifest changes after the call.
func (c *cluster) manifestsChanged() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// run is the lab until ctx ends; it leaves the pods to the end of the process.
func (c *cluster) run(ctx context.Context) error {
	defer close(c.gone)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, origins+1)
	for from, dir := range [origins]string{fromUser: c.options.ConfigDir, fromGenerated: objectsDir(c.options.StateDir)} {
		watcher := manifest.NewWatcher(c.log, dir)
		go func() { failed <- watcher.Run(ctx, c.applier(origin(from))) }()
	}
	go func() { failed <- c.dns.run(ctx) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() == nil {
				return err
			}
		case e := <-c.events:
			if c.drain(e) {
				c.reconcile(ctx)
			}
		}
	}
}

// drain runs the event and what else has been posted, so that many cost one
// reconciliation, and says whether anything may have changed.
func (c *cluster) drain(e event) (changed bool) {
	for {
		e.f()
		changed = changed || !e.query || c.stale
		c.stale = false
		select {
		case e = <-c.events:
		default:
			return changed
		}
	}
}

// applier takes what the watcher of a directory sees.
func (c *cluster) applier(from origin) func([]manifest.Change, bool) {
	return func(changes []manifest.Change, initial bool) {
		c.send(event{query: true, f: func() {
			if !c.objects.apply(c.log, from, c.withoutOwn(from, changes)) && !initial {
				return
			}
			c.loaded[from] = true
			c.stale = true
			c.mu.Lock()
			close(c.changed)
			c.changed = make(chan struct{})
			c.mu.Unlock()
		}})
	}
}

// withoutOwn leaves out the Services that the lab has written: they are the
// user's, and would hide the user's next edit.
func (c *cluster) withoutOwn(from origin, changes []manifest.Change) []manifest.Change {
	if from != fromGenerated {
		return changes
	}
	for i := range changes {
		own := func(o manifest.Object) bool { return c.defaulted[o.Key] }
		changes[i].Set = slices.DeleteFunc(slices.Clone(changes[i].Set), own)
	}
	return changes
}

// reconcile brings everything to what the objects and pods say now.
func (c *cluster) reconcile(ctx context.Context) {
	if !c.loaded[fromUser] || !c.loaded[fromGenerated] || c.ending {
		return
	}
	c.reconcileServices()
	c.reconcilePods(ctx)
	c.reconcileEndpoints()
	for _, p := range c.sortedPods() {
		if p.dirty {
			p.dirty = false
			c.warn(c.writePod(p))
		}
	}
	c.checkReady()
}

func (c *cluster) warn(err error) {
	if err != nil && !c.refused[err.Error()] {
		c.refused[err.Error()] = true
		c.log.Warn("not done", "error", err)
	}
}

func (c *cluster) sortedPods() []*pod {
	all := make([]*pod, 0, len(c.pods))
	for _, p := range c.pods {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *pod) int { return strings.Compare(a.key(), b.key()) })
	return all
}

// writePod writes the pod's object; annotations that are not the pod's own, such
// as ambit-cni's, stay.
func (c *cluster) writePod(p *pod) error {
	body, err := manifest.ToUnstructured(p.object())
	if err != nil {
		return err
	}
	key := manifest.KeyOf(body)
	err = c.store.Update(key, func(o *unstructured.Unstructured) error {
		if o.GetUID() == types.UID(p.uid) {
			annotations := o.GetAnnotations()
			for name, value := range body.GetAnnotations() {
				if annotations == nil {
					annotations = map[string]string{}
				}
				annotations[name] = value
			}
			body.SetAnnotations(annotations)
		}
		o.Object = body.Object
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		err = c.store.Apply(body)
	}
	return err
}

// forget removes a pod that has been taken down.
func (c *cluster) forget(p *pod) {
	if c.pods[p.key()] == p {
		delete(c.pods, p.key())
		c.warn(c.store.Delete(manifest.Key{Kind: "Pod", Namespace: p.namespace, Name: p.name}))
	}
}

// reconcileServices gives Services addresses and writes those that got one.
func (c *cluster) reconcileServices() {
	var all []*corev1.Service
	c.objects.services.each(func(_ types.NamespacedName, s *corev1.Service) { all = append(all, s) })
	for _, err := range c.addresses.assign(all) {
		c.warn(err)
	}
	wanted := map[manifest.Key]bool{}
	var listed []*discoveryv1.EndpointSlice
	c.objects.slices.each(func(_ types.NamespacedName, s *discoveryv1.EndpointSlice) { listed = append(listed, s) })
	pods := c.sortedPods()
	c.backends = c.backends[:0]
	for _, s := range all {
		name := namespacedName(s.ObjectMeta)
		key := manifest.Key{Kind: "Service", Namespace: s.Namespace, Name: s.Name}
		address := c.addresses[name]
		if s.Spec.ClusterIP == "" && address.IsValid() {
			_, generated := c.objects.services[fromGenerated][name]
			if !generated {
				wanted[key], c.defaulted[key] = true, true
			}
			c.warn(c.writeService(key, s, address, generated))
		}
		b := backend{service: s, address: address}
		if len(s.Spec.Selector) > 0 {
			b.endpoints = selectEndpoints(s, pods)
		} else {
			b.endpoints = listedEndpoints(s, slicesOf(name, listed))
		}
		c.backends = append(c.backends, b)
	}
	for key := range c.defaulted {
		if !wanted[key] {
			delete(c.defaulted, key)
			if _, ok := c.objects.services[fromGenerated][nameOf(key)]; !ok {
				c.warn(c.store.Delete(key))
			}
		}
	}
}

func slicesOf(name types.NamespacedName, all []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	var found []*discoveryv1.EndpointSlice
	for _, s := range all {
		if namespacedName(s.ObjectMeta).Namespace == name.Namespace && s.Labels[discoveryv1.LabelServiceName] == name.Name {
			found = append(found, s)
		}
	}
	return found
}

// writeService writes the Service with the address that it got, as an API
// server would: into the generated object itself, or beside the user's.
func (c *cluster) writeService(key manifest.Key, s *corev1.Service, address netip.Addr, generated bool) error {
	complete := s.DeepCopy()
	complete.APIVersion, complete.Kind = "v1", "Service"
	complete.Spec.ClusterIP = address.String()
	complete.Spec.ClusterIPs = []string{address.String()}
	complete.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	if complete.Spec.Type == "" {
		complete.Spec.Type = corev1.ServiceTypeClusterIP
	}
	if !generated {
		body, err := manifest.ToUnstructured(complete)
		if err != nil {
			return err
		}
		return c.store.Apply(body)
	}
	return c.store.Update(key, func(o *unstructured.Unstructured) error {
		for path, value := range map[string]any{
			"clusterIP": address.String(), "clusterIPs": []any{address.String()}, "ipFamilies": []any{"IPv4"},
		} {
			if err := unstructured.SetNestedField(o.Object, value, "spec", path); err != nil {
				return err
			}
		}
		return nil
	})
}

// reconcileEndpoints publishes who is behind each Service: to the nodes first,
// which stop sending to a pod before anybody else hears of it.
func (c *cluster) reconcileEndpoints() {
	for i, b := range c.backends { // pods may have changed since
		if len(b.service.Spec.Selector) > 0 {
			c.backends[i].endpoints = selectEndpoints(b.service, c.sortedPods())
		}
	}
	rules := natRules(vips(c.backends))
	for _, n := range c.nodes {
		if err := n.nat.set(rules); err != nil {
			c.warn(fmt.Errorf("node %s: %w", n.name, err))
		}
	}
	c.dns.set(newZone(c.backends, c.sortedPods()))
	written := map[manifest.Key]bool{}
	for _, b := range c.backends {
		for _, slice := range endpointSlices(b) {
			body, err := manifest.ToUnstructured(slice)
			if err != nil {
				c.warn(err)
				continue
			}
			key := manifest.KeyOf(body)
			written[key] = true
			if old := c.slices[key]; old == nil || !equalBodies(old.body, body) {
				c.warn(c.store.Apply(body))
				c.slices[key] = &sliceState{body: body}
			}
		}
	}
	for key := range c.slices {
		if !written[key] {
			delete(c.slices, key)
			c.warn(c.store.Delete(key))
		}
	}
}

// stopAll ends every pod and waits, at most for the time.
func (c *cluster) stopAll(wait time.Duration) {
	c.ask(func() {
		c.ending = true
		for _, p := range c.pods {
			p.stop()
		}
	})
	done := make(chan struct{})
	go func() {
		c.workers.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(wait):
	}
}
