package source

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// What a feed waits between attempts: an API server that is back is heard soon.
var retryBackoff = wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 8, Cap: 8 * time.Second}

// The states of a feed.
const (
	StateAbsent   = "absent"   // the cluster does not have the kind
	StateListing  = "listing"  // what is there is being read
	StateWatching = "watching" // everything is known, and what changes
	StateFailing  = "failing"  // the last request was refused or not answered
)

// feed brings the objects of one kind from the API server to the queue. It is
// the store of a client-go Reflector, the half of an informer that watches: the
// other half would hold every object a second time. It remembers which version
// of each object it has queued, so that after an interruption it queues what
// has changed and what is gone, and nothing else.
type feed struct {
	group  groupKind
	unread bool // nothing is read of the objects but that they are there
	queue  *queue

	mu       sync.Mutex
	expected bool // the cluster has the kind
	gvr      schema.GroupVersionResource
	known    map[string]string // resourceVersion by "namespace/name"
	synced   bool              // everything that was there has been queued
	err      error             // of the last request, nil when it was answered
}

func newFeed(group groupKind, q *queue) *feed {
	return &feed{group: group, queue: q, known: map[string]string{}}
}

// expect says that the cluster has the kind, and where: it is not known before
// run has found what is there.
func (f *feed) expect(gvr schema.GroupVersionResource) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gvr, f.expected, f.synced, f.err = gvr, true, false, nil
}

// refuse says why an expected kind cannot be read.
func (f *feed) refuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// loaded reports whether all is known of the kind: also when there is none.
func (f *feed) loaded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.expected || f.synced
}

// pending says why the kind is not known.
func (f *feed) pending() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	return fmt.Errorf("reading %s", f.gvr.GroupResource())
}

// resource returns where the objects are, when the cluster has the kind.
func (f *feed) resource() (schema.GroupVersionResource, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gvr, f.expected
}

// run watches until ctx is done. A feed is run once at a time, but may be run
// again, in another version of its kind.
func (f *feed) run(ctx context.Context, lw listWatch) {
	backoff := retryBackoff
	watcher := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := lw.list(ctx, options)
			return list, f.answered(ctx, "list", err)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			w, err := lw.watch(ctx, options)
			return w, f.answered(ctx, "watch", err)
		},
	}, lw.client)
	silent := klog.Logger{}
	reflector := cache.NewReflectorWithOptions(watcher, nil, f, cache.ReflectorOptions{
		Logger: &silent, Name: f.group.String(), TypeDescription: f.group.String(), Backoff: &backoff,
	})
	reflector.RunWithContext(klog.NewContext(ctx, silent)) // errors are ours to tell, once and in our words
}

// answered notes whether a request has been answered, and says what it was for.
func (f *feed) answered(ctx context.Context, verb string, err error) error {
	if err != nil && (ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err)) {
		return err // an end, or a reason to list again
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = nil
	if err != nil {
		f.err = explain(verb, f.gvr, err)
	}
	return err
}

// explain says what to do about an error of a request.
func explain(verb string, gvr schema.GroupVersionResource, err error) error {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // without the address of the request
	}
	if !apierrors.IsForbidden(err) {
		return fmt.Errorf("%s %s: %w", verb, gvr.GroupResource(), err)
	}
	return fmt.Errorf("istiod may not %s %s: its ClusterRole has to allow get, list and watch of them: %w", verb, gvr.GroupResource(), err)
}

// clear queues the end of every object: the kind is gone.
func (f *feed) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expected, f.synced, f.err = false, false, nil
	for key := range f.known {
		f.queue.put(f.keyOf(key), change{})
	}
	clear(f.known)
}

func (f *feed) keyOf(key string) manifest.Key {
	namespace, name, namespaced := strings.Cut(key, "/")
	if !namespaced {
		namespace, name = "", key
	}
	return manifest.Key{Group: f.group.group, Kind: f.group.kind, Namespace: namespace, Name: name}
}

// set queues an object unless this version of it has been queued. The caller
// holds mu.
func (f *feed) set(o any) (key string, err error) {
	meta, err := meta.Accessor(o)
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.group, err)
	}
	key = objectKey(meta.GetNamespace(), meta.GetName())
	if version := meta.GetResourceVersion(); version == "" || f.known[key] != version {
		f.known[key] = version
		if o, err = reduce(o); err != nil {
			return "", err
		}
		f.queue.put(f.keyOf(key), change{object: o, unread: f.unread})
	}
	return key, nil
}

// Add implements cache.ReflectorStore.
func (f *feed) Add(o any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.set(o)
	return err
}

// Update implements cache.ReflectorStore.
func (f *feed) Update(o any) error { return f.Add(o) }

// Delete implements cache.ReflectorStore.
func (f *feed) Delete(o any) error {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, key)
	f.queue.put(f.keyOf(key), change{})
	return nil
}

// Replace implements cache.ReflectorStore: list is everything that there is.
func (f *feed) Replace(list []any, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	there := make(map[string]bool, len(list))
	for _, o := range list {
		key, err := f.set(o)
		if err != nil {
			return err
		}
		there[key] = true
	}
	for key := range f.known {
		if !there[key] {
			delete(f.known, key)
			f.queue.put(f.keyOf(key), change{})
		}
	}
	f.synced, f.err = true, nil
	f.queue.signal()
	return nil
}

// Resync implements cache.ReflectorStore.
func (f *feed) Resync() error { return nil }

// Transformer implements cache.TransformingStore: what is collected before a
// Replace is reduced, too.
func (f *feed) Transformer() cache.TransformFunc { return reduce }

// Watched is how one kind is read.
type Watched struct {
	Group   string `json:"group"`
	Kind    string `json:"kind"`
	Version string `json:"version,omitempty"`
	State   string `json:"state"`
	Error   string `json:"error,omitempty"`
	Objects int    `json:"objects"`
	// Unread objects have no effect: istiod does not read the kind.
	Unread bool `json:"unread,omitempty"`
}

func (f *feed) watched() Watched {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := Watched{
		Group: f.group.group, Kind: f.group.kind, Version: f.gvr.Version,
		State: StateWatching, Objects: len(f.known), Unread: f.unread,
	}
	switch {
	case !f.expected:
		out.State, out.Version = StateAbsent, ""
	case f.err != nil:
		out.State, out.Error = StateFailing, f.err.Error()
	case !f.synced:
		out.State = StateListing
	}
	return out
}

// queue holds what the feeds have found and the source has not yet taken, the
// last version of each object: no slow reader makes it longer than there are
// objects.
type queue struct {
	mu      sync.Mutex
	changes map[manifest.Key]change
	wake    chan struct{}
}

// change is the present version of an object; no object when it is gone.
type change struct {
	object any
	unread bool
}

func newQueue() *queue {
	return &queue{changes: map[manifest.Key]change{}, wake: make(chan struct{}, 1)}
}

func (q *queue) put(key manifest.Key, c change) {
	q.mu.Lock()
	q.changes[key] = c
	q.mu.Unlock()
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default: // a signal is there already
	}
}

func (q *queue) take() map[manifest.Key]change {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.changes
	q.changes = map[manifest.Key]change{}
	return out
}
