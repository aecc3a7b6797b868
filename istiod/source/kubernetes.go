package source

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/collection"
)

// Kinds that cannot be read are complained about this often, and this many
// times less often once the first load is done.
const (
	complainEvery = 10 * time.Second
	complainRarer = 6
	complainOf    = 5 // kinds in one line
)

// KubernetesConfig is all that a Kubernetes source needs.
type KubernetesConfig struct {
	Objects *Objects
	// Config reaches the API server.
	Config *rest.Config
	// Report is called after each batch that has something to say, Loaded once,
	// after everything that was there has been taken and reported. Neither waits
	// for kinds that the cluster does not have; Loaded waits for ever for one
	// that it has and that cannot be read: a mesh without its policies is open.
	Report func(Report)
	Loaded func()
	Log    *slog.Logger
}

// Kubernetes is the source that watches an API server. It never gives up: while
// the API server is away or refuses, the last known state stays.
//
// One feed per kind queues what it sees (feed.go); those of custom kinds come
// and go with their definitions (definitions.go). Run takes what is queued, each
// time all of it in one batch.
type Kubernetes struct {
	intake
	cfg         KubernetesConfig
	queue       *queue
	builtin     map[groupKind]*feed
	read        map[groupKind]listWatch // of builtin
	definitions *definitions
	missing     missing
	standing    map[manifest.Key]bool // a stand-in is taken in their place
}

// NewKubernetes returns a source that has read nothing yet.
func NewKubernetes(cfg KubernetesConfig) (*Kubernetes, error) {
	c, err := newClients(cfg.Config)
	if err != nil {
		return nil, err
	}
	return newKubernetes(cfg, c)
}

func newKubernetes(cfg KubernetesConfig, c clients) (*Kubernetes, error) {
	known, err := newIntake(cfg.Objects)
	if err != nil {
		return nil, err
	}
	k := &Kubernetes{intake: known, cfg: cfg, queue: newQueue(), builtin: map[groupKind]*feed{}, read: map[groupKind]listWatch{}, standing: map[manifest.Key]bool{}}
	for group, b := range c.builtin() {
		f := newFeed(group, k.queue)
		f.expect(schema.GroupVersionResource{Group: group.group, Version: k.kinds[group].versions[0], Resource: b.plural})
		k.builtin[group], k.read[group] = f, b.lw
	}
	k.definitions = newDefinitions(c, k.kinds, k.queue, cfg.Log)
	return k, nil
}

// Run follows the API server until ctx is done.
func (k *Kubernetes) Run(ctx context.Context) error {
	var feeds sync.WaitGroup
	defer feeds.Wait()
	for group, f := range k.builtin {
		feeds.Go(func() { f.run(ctx, k.read[group]) })
	}
	feeds.Go(func() { k.definitions.run(ctx) })

	ticker := time.NewTicker(complainEvery)
	defer ticker.Stop()
	loaded := false
	for ticks := 1; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if !loaded || ticks%complainRarer == 0 {
				k.complain(loaded)
			}
			ticks++
			continue
		case <-k.queue.wake:
		}
		if !loaded && len(k.pending()) > 0 { // before take: when nothing is pending, what there was is in the queue
			continue
		}
		k.apply(ctx, k.queue.take())
		k.missing.set(k.undecided)
		if !loaded && k.undecided == "" {
			loaded = true
			if k.cfg.Loaded != nil {
				k.cfg.Loaded()
			}
		}
	}
}

// feeds returns those of all kinds, sorted by group and kind.
func (k *Kubernetes) feeds() []*feed {
	out, _ := k.definitions.list()
	return slices.SortedFunc(slices.Values(slices.AppendSeq(out, maps.Values(k.builtin))), func(a, b *feed) int {
		return cmp.Or(cmp.Compare(a.group.group, b.group.group), cmp.Compare(a.group.kind, b.group.kind))
	})
}

// Watched says how each kind is read, sorted by group and kind.
func (k *Kubernetes) Watched() []Watched {
	var out []Watched
	for _, f := range k.feeds() {
		out = append(out, f.watched())
	}
	return append(out, k.definitions.watched())
}

// Missing implements Source.
func (k *Kubernetes) Missing() string {
	texts := make([]string, 0, complainOf)
	missing := k.pending()
	slices.SortStableFunc(missing, func(a, b error) int { // what has to be permitted, first
		return cmp.Compare(forbidden(b), forbidden(a))
	})
	for _, err := range missing[:min(len(missing), complainOf)] {
		texts = append(texts, err.Error())
	}
	if refused := k.missing.get(); refused != "" {
		texts = append(texts, refused)
	}
	return strings.Join(texts, "; ")
}

// Resource returns where the objects of a kind are, as far as the cluster has it.
func (k *Kubernetes) Resource(group, kind string) (schema.GroupVersionResource, bool) {
	for _, f := range k.feeds() {
		if f.group == (groupKind{group, kind}) {
			return f.resource()
		}
	}
	return schema.GroupVersionResource{}, false
}

// pending says why the first load is not complete.
func (k *Kubernetes) pending() (why []error) {
	if _, err := k.definitions.list(); err != nil {
		why = append(why, err)
	}
	for _, f := range k.feeds() {
		if !f.unread && !f.loaded() {
			why = append(why, f.pending())
		}
	}
	return why
}

// complain tells why the source does not know everything.
func (k *Kubernetes) complain(loaded bool) {
	if !loaded {
		k.cfg.Log.Warn("waiting for the API server: istiod serves nobody before it knows all policies", slog.String("why", k.Missing()))
		return
	}
	for _, w := range k.Watched() {
		if w.State == StateFailing {
			k.cfg.Log.Warn("kind cannot be read at the moment; what is known of it stays",
				slog.String("kind", groupKind{w.Group, w.Kind}.String()), slog.String("error", w.Error))
		}
	}
}

func forbidden(err error) int {
	if apierrors.IsForbidden(err) {
		return 1
	}
	return 0
}

// apply takes what is queued as one batch. Validation happens before the batch:
// it takes long, and nobody can read the collections meanwhile.
func (k *Kubernetes) apply(ctx context.Context, changes map[manifest.Key]change) {
	var report Report
	var edits []func(tx *collection.Tx)
	for _, key := range slices.SortedFunc(maps.Keys(changes), compareKeys) {
		var edit func(tx *collection.Tx)
		if c := changes[key]; c.object != nil {
			edit = k.set(ctx, key, c, &report)
		} else {
			edit = k.remove(key, &report)
		}
		if edit != nil {
			edits = append(edits, edit)
		}
	}
	if len(edits) > 0 {
		k.cfg.Objects.Graph.Update(func(tx *collection.Tx) {
			for _, edit := range edits {
				edit(tx)
			}
		})
	}
	if k.cfg.Report != nil {
		k.cfg.Report(report)
	}
}

func compareKeys(a, b manifest.Key) int {
	return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// set returns how to take an object, or nil.
func (k *Kubernetes) set(ctx context.Context, key manifest.Key, c change, report *Report) func(tx *collection.Tx) {
	at := Invalid{Key: key, Generation: generationOf(c.object)}
	if c.unread {
		if !k.unread[key] {
			k.unread[key] = true
			at.Reason = "not read by istiod"
			report.Unread = append(report.Unread, at)
		}
		return nil
	}
	group := groupKind{key.Group, key.Kind}
	kind := k.kinds[group]
	typed, unknown, err := k.decode(ctx, group, kind, c.object)
	if err != nil {
		edit := k.standIn(key, kind, c.object, &err)
		k.refuse(at, err, report)
		return edit
	}
	delete(k.standing, key)
	k.unwarn(key, report)
	k.warn(typed, unknown, at, report)
	k.mend(key, report)
	if _, custom := c.object.(*unstructured.Unstructured); !custom && k.taken[key] && kind.same(objectKey(key.Namespace, key.Name), typed) {
		return nil // most of what kubelets write is none of the mesh's business
	}
	k.taken[key] = true
	return func(tx *collection.Tx) { kind.set(tx, typed) }
}

// standIn returns how to take an object in the place of one that cannot be read
// and of which no version has been, and says so in the error; nil when there is
// none.
func (k *Kubernetes) standIn(key manifest.Key, kind kind, o any, err *error) func(tx *collection.Tx) {
	body, custom := o.(*unstructured.Unstructured)
	if !custom || k.taken[key] && !k.standing[key] {
		return nil
	}
	typed := standIn(key, body)
	if typed == nil {
		return nil
	}
	path, reason := splitField(*err)
	*err = &fieldError{path, reason + "; until it can be read, " + standInEffect[key.Kind] + " where it applies"}
	k.taken[key], k.standing[key] = true, true
	return func(tx *collection.Tx) { kind.set(tx, typed) }
}

// decode returns the typed object. The API server has validated it by a schema
// that need not be ours: values are checked again, and fields that we do not
// know are returned.
func (k *Kubernetes) decode(ctx context.Context, group groupKind, kind kind, o any) (typed any, unknown []string, err error) {
	typed = o
	if body, custom := o.(*unstructured.Unstructured); custom {
		version := body.GroupVersionKind().Version
		converted, ok := kind.convert(manifest.Object{Body: body}, group.group)
		if !ok {
			return nil, nil, &fieldError{"apiVersion", "version " + version + " is not read"}
		}
		body = converted.Body
		pruned, err := k.schemas.admit(ctx, group, version, body.Object)
		if err != nil {
			return nil, nil, err
		}
		if typed, unknown, err = kind.served(body); err != nil {
			return nil, nil, err
		}
		for _, field := range pruned {
			if userWrites(field) {
				unknown = append(unknown, field)
			}
		}
	}
	meta, ok := typed.(metav1.Object)
	if !ok {
		return nil, nil, errNoMetadata
	}
	meta.SetResourceVersion("") // so that a change of nothing else is none
	return typed, unknown, checkTyped(typed)
}

// remove returns how to take an object out, or nil when it is not in.
func (k *Kubernetes) remove(key manifest.Key, report *Report) func(tx *collection.Tx) {
	if k.unread[key] {
		delete(k.unread, key)
		report.Valid = append(report.Valid, key)
		return nil
	}
	k.mend(key, report)
	k.unwarn(key, report)
	if !k.taken[key] {
		return nil
	}
	delete(k.taken, key)
	delete(k.standing, key)
	kind := k.kinds[groupKind{key.Group, key.Kind}]
	return func(tx *collection.Tx) { kind.remove(tx, objectKey(key.Namespace, key.Name)) }
}
