package source

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// definitionsGVR is where CustomResourceDefinitions are.
var definitionsGVR = schema.GroupVersionResource{Group: apiextensionsv1.GroupName, Version: "v1", Resource: "customresourcedefinitions"}

// definitions follows which custom kinds the cluster has, and in which
// versions, and runs a feed for each that concerns the mesh. It watches names
// only, and reads the few definitions that it needs: together the definitions
// of a cluster can be large.
//
// One goroutine, that of follow, owns everything but what mu guards.
type definitions struct {
	clients clients
	kinds   map[groupKind]kind
	found   *queue // of definitions
	objects *queue
	log     *slog.Logger
	feeds   *feed // of the definitions themselves

	running map[groupKind]*running
	told    map[groupKind]bool // that a kind is absent, or not read

	mu      sync.Mutex
	custom  map[groupKind]*feed
	current bool // every definition that is there has been looked at
	err     error
}

// running is the work of one feed.
type running struct {
	definition definition
	stop       context.CancelFunc
	done       chan struct{}
}

// definition is what is read of a CustomResourceDefinition.
type definition struct {
	group  groupKind
	plural string
	served []string // versions
}

func newDefinitions(c clients, kinds map[groupKind]kind, objects *queue, log *slog.Logger) *definitions {
	d := &definitions{
		clients: c, kinds: kinds, found: newQueue(), objects: objects, log: log,
		running: map[groupKind]*running{}, told: map[groupKind]bool{}, custom: map[groupKind]*feed{},
	}
	d.feeds = newFeed(groupKind{definitionsGVR.Group, "CustomResourceDefinition"}, d.found)
	d.feeds.expect(definitionsGVR)
	for group := range kinds {
		if ForMesh(group.group) {
			d.custom[group] = newFeed(group, objects)
		}
	}
	return d
}

// run follows the definitions until ctx is done and all feeds have ended.
func (d *definitions) run(ctx context.Context) {
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		d.feeds.run(ctx, d.clients.names(definitionsGVR))
	}()
	d.follow(ctx)
	<-watched
	for _, r := range d.running {
		<-r.done
	}
}

// follow takes definitions one after the other. One that cannot be read is
// tried again; until then nothing is known of its kind.
func (d *definitions) follow(ctx context.Context) {
	todo := map[manifest.Key]bool{} // true: it is there
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.found.wake:
		case <-retry:
		}
		retry = nil
		synced := d.feeds.loaded() // before take: what there was is in the queue by now
		for key, c := range d.found.take() {
			todo[key] = c.object != nil
		}
		err := d.look(ctx, todo)
		if err != nil {
			retry = time.After(retryBackoff.Cap / 4)
		}
		d.mu.Lock()
		d.err = err
		if synced && err == nil && !d.current {
			d.current = true
			d.sayAbsent()
		}
		d.mu.Unlock()
		d.objects.signal()
	}
}

// look reads the definitions of todo and takes those out that it has dealt
// with. The error is the last one.
func (d *definitions) look(ctx context.Context, todo map[manifest.Key]bool) error {
	var failed error
	for key, there := range todo {
		plural, group, _ := strings.Cut(key.Name, ".")
		if !ForMesh(group) {
			delete(todo, key)
			continue
		}
		var found definition
		if there {
			var err error
			if found, err = d.read(ctx, key.Name); err != nil {
				failed = err
				continue
			}
		}
		delete(todo, key)
		if found.plural != "" {
			d.present(ctx, found)
		} else {
			d.absent(group, plural)
		}
	}
	return failed
}

// read returns the definition of that name; none when it is gone, or not in
// force yet: then another change will come.
func (d *definitions) read(ctx context.Context, name string) (definition, error) {
	body, err := d.clients.dynamic.Resource(definitionsGVR).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return definition{}, nil
	}
	if err != nil {
		return definition{}, explain("get", definitionsGVR, err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(body.Object, &crd); err != nil {
		return definition{}, fmt.Errorf("definition %s: %w", name, err)
	}
	established := slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	})
	if !established {
		return definition{}, nil
	}
	out := definition{group: groupKind{crd.Spec.Group, crd.Spec.Names.Kind}, plural: crd.Spec.Names.Plural}
	for _, version := range crd.Spec.Versions {
		if version.Served {
			out.served = append(out.served, version.Name)
		}
	}
	return out, nil
}

// present has the objects of a kind watched, in the best of the versions that
// are served.
func (d *definitions) present(ctx context.Context, found definition) {
	if before := d.running[found.group]; before != nil {
		if slices.Equal(before.definition.served, found.served) && before.definition.plural == found.plural {
			return
		}
		d.end(found.group)
	}
	d.mu.Lock()
	f := d.custom[found.group]
	if f == nil {
		f = newFeed(found.group, d.objects)
		f.unread = true
		d.custom[found.group] = f
	}
	d.mu.Unlock()
	version, ok := found.version(d.kinds)
	gvr := schema.GroupVersionResource{Group: found.group.group, Version: version, Resource: found.plural}
	ctx, stop := context.WithCancel(ctx)
	r := &running{definition: found, stop: stop, done: make(chan struct{})}
	d.running[found.group] = r
	f.expect(gvr)
	if !ok {
		f.refuse(fmt.Errorf("%s is served in versions %q only, none of which istiod reads", found.group, found.served))
		close(r.done)
		return
	}
	lw := d.clients.custom(gvr)
	if f.unread {
		lw = d.clients.names(gvr)
	}
	go func() {
		defer close(r.done)
		f.run(ctx, lw)
	}()
	if !f.unread && d.told[found.group] {
		delete(d.told, found.group)
		d.log.Info("kind is in the cluster now", slog.String("kind", found.group.String()), slog.String("version", version))
	}
}

// version returns what to watch: the version that is read, or else one that can
// be converted to it. Of kinds that are not read any will do.
func (found definition) version(kinds map[groupKind]kind) (string, bool) {
	k, read := kinds[found.group]
	if !read {
		return strings.Join(found.served[:min(1, len(found.served))], ""), len(found.served) > 0
	}
	for _, version := range k.versions {
		if slices.Contains(found.served, version) {
			return version, true
		}
	}
	return "", false
}

// absent ends the watch of a kind that the cluster no longer has: its objects
// are gone with it.
func (d *definitions) absent(group, plural string) {
	for kind, r := range d.running {
		if kind.group == group && r.definition.plural == plural {
			d.end(kind)
			d.custom[kind].clear()
			d.tellAbsent(kind)
			return
		}
	}
}

func (d *definitions) end(kind groupKind) {
	r := d.running[kind]
	r.stop()
	<-r.done
	delete(d.running, kind)
}

// sayAbsent tells of the kinds that the cluster does not have at start.
func (d *definitions) sayAbsent() {
	var absent []string
	for kind := range d.kinds {
		if ForMesh(kind.group) && d.running[kind] == nil {
			d.told[kind] = true
			absent = append(absent, kind.String())
		}
	}
	if len(absent) > 0 {
		slices.Sort(absent)
		d.log.Info("kinds are not in the cluster; they will be read once they are", slog.Any("kinds", absent))
	}
}

func (d *definitions) tellAbsent(kind groupKind) {
	if _, read := d.kinds[kind]; read {
		d.told[kind] = true
		d.log.Info("kind is not in the cluster any more; its objects are gone", slog.String("kind", kind.String()))
	}
}

// list returns the feeds of custom kinds, and the first reason why not all of
// them are known.
func (d *definitions) list() (feeds []*feed, pending error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.custom {
		feeds = append(feeds, f)
	}
	switch {
	case d.err != nil:
		pending = d.err
	case !d.current || !d.feeds.loaded():
		pending = d.feeds.pending()
	}
	return feeds, pending
}

// watched says how the definitions themselves are read: without them a kind that
// comes is not seen.
func (d *definitions) watched() Watched {
	out := d.feeds.watched()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil && out.State != StateFailing {
		out.State, out.Error = StateFailing, d.err.Error()
	}
	return out
}
