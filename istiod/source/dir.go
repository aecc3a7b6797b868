package source

import (
	"context"
	"errors"
	"log/slog"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/collection"
)

// DirConfig is all that a Dir needs.
type DirConfig struct {
	Objects *Objects
	// Dirs are read in this order; an object in a later one hides that of the
	// same name in an earlier one.
	Dirs []string
	// Accepted keeps the last good version of every object of the first
	// directory, so that they count after a restart, too, where the present
	// ones are refused. Without it that is forgotten.
	Accepted *manifest.Store
	// Report is called after each batch that has something to say, Loaded once,
	// after everything that was there has been taken and reported.
	Report func(Report)
	Loaded func()
	Log    *slog.Logger
}

// Dir is the source that reads directories of manifests.
type Dir struct {
	intake
	cfg DirConfig

	broken   map[string]bool           // files
	restored map[string][]manifest.Key // by the broken file that held them before a restart
	missing  missing
}

// NewDir returns a Dir that has read nothing yet.
func NewDir(cfg DirConfig) (*Dir, error) {
	known, err := newIntake(cfg.Objects)
	if err != nil {
		return nil, err
	}
	return &Dir{intake: known, cfg: cfg, broken: map[string]bool{}, restored: map[string][]manifest.Key{}}, nil
}

// Run follows the directories until ctx is done.
func (d *Dir) Run(ctx context.Context) error {
	watcher := manifest.NewWatcher(d.cfg.Log, d.cfg.Dirs...)
	loaded := false
	return watcher.Run(ctx, func(changes []manifest.Change, initial bool) {
		d.apply(ctx, changes)
		if initial {
			d.restore(ctx)
		}
		d.missing.set(d.undecided)
		if loaded || d.undecided != "" {
			return
		}
		loaded = true
		if d.cfg.Loaded != nil {
			d.cfg.Loaded()
		}
	})
}

// Missing implements Source.
func (d *Dir) Missing() string { return d.missing.get() }

// Load takes changes once, as Run does with those that it finds, without
// following any directory: for offline commands and tests.
func (d *Dir) Load(ctx context.Context, changes ...manifest.Change) { d.apply(ctx, changes) }

// apply takes all changes as one batch, so that objects that were written
// together are seen together. Validation happens before the batch: it takes
// long, and nobody can read the collections meanwhile.
func (d *Dir) apply(ctx context.Context, changes []manifest.Change) {
	var report Report
	var edits []func(tx *collection.Tx)
	for _, change := range changes {
		d.file(change, &report)
		for _, o := range change.Set {
			if edit := d.set(ctx, o, &report); edit != nil {
				edits = append(edits, edit)
			}
		}
		for _, key := range append(d.outlived(change), change.Deleted...) {
			if edit := d.remove(key, &report); edit != nil {
				edits = append(edits, edit)
			}
		}
	}
	d.cfg.Objects.Graph.Update(func(tx *collection.Tx) {
		for _, edit := range edits {
			edit(tx)
		}
	})
	if d.cfg.Report != nil {
		d.cfg.Report(report)
	}
}

// file notes whether the file as a whole can be read.
func (d *Dir) file(change manifest.Change, report *Report) {
	if change.Err == nil {
		if d.broken[change.File] {
			delete(d.broken, change.File)
			report.Mended = append(report.Mended, change.File)
		}
		return
	}
	d.broken[change.File] = true
	out := FileError{File: change.File, Reason: change.Err.Error()}
	if where, ok := errors.AsType[*manifest.Error](change.Err); ok {
		out.Line, out.Reason = where.Line, where.Reason
	}
	report.Broken = append(report.Broken, out)
}

// set validates an object and returns how to take it, or nil.
func (d *Dir) set(ctx context.Context, o manifest.Object, report *Report) func(tx *collection.Tx) {
	group := groupKind{o.Key.Group, o.Key.Kind}
	k, read := d.kinds[group]
	if !read {
		if !d.unread[o.Key] {
			d.unread[o.Key] = true
			report.Unread = append(report.Unread, Invalid{Key: o.Key, File: o.File, Line: o.Line, Reason: "not read by istiod"})
		}
		return nil
	}
	o = d.inNamespace(o, k)
	typed, err := d.decode(ctx, o, group, k)
	if err != nil {
		d.refuse(Invalid{Key: o.Key, File: o.File, Line: o.Line}, err, report)
		return nil
	}
	d.unwarn(o.Key, report)
	d.warn(typed, nil, Invalid{Key: o.Key, File: o.File, Line: o.Line, Generation: generationOf(typed)}, report)
	d.mend(o.Key, report)
	d.taken[o.Key] = true
	d.keep(o)
	return func(tx *collection.Tx) { k.set(tx, typed) }
}

// inNamespace puts an object of a namespaced kind that names no namespace into
// the namespace default, as kubectl does, and takes the namespace from one of a
// cluster-scoped kind.
func (d *Dir) inNamespace(o manifest.Object, k kind) manifest.Object {
	want := o.Key.Namespace
	switch {
	case !k.namespaced:
		want = ""
	case want == "":
		want = metav1.NamespaceDefault
	}
	if want != o.Key.Namespace {
		o.Key.Namespace = want
		o.Body = o.Body.DeepCopy()
		o.Body.SetNamespace(want)
	}
	return o
}

// decode does what an API server does with a new object: the schema of the
// version that it is written in, defaults, conversion; then a strict decode.
func (d *Dir) decode(ctx context.Context, o manifest.Object, group groupKind, k kind) (any, error) {
	version := o.Body.GroupVersionKind().Version
	converted, ok := k.convert(o, group.group)
	if !ok {
		return nil, &fieldError{"apiVersion", "version " + version + " is not served"}
	}
	converted.Body = converted.Body.DeepCopy()
	if err := d.schemas.check(ctx, group, version, converted.Body.Object); err != nil {
		return nil, err
	}
	out, err := k.decode(converted)
	if err != nil {
		return nil, err
	}
	meta, ok := out.(metav1.Object)
	if !ok {
		return nil, errNoMetadata
	}
	if err := checkMeta(meta, k.namespaced); err != nil {
		return nil, err
	}
	return out, checkTyped(out)
}

// remove returns how to take an object out, or nil when it is not in.
func (d *Dir) remove(key manifest.Key, report *Report) func(tx *collection.Tx) {
	k, read := d.kinds[groupKind{key.Group, key.Kind}]
	if !read {
		delete(d.unread, key)
		report.Valid = append(report.Valid, key)
		return nil
	}
	switch {
	case !k.namespaced:
		key.Namespace = ""
	case key.Namespace == "":
		key.Namespace = metav1.NamespaceDefault
	}
	d.mend(key, report)
	d.unwarn(key, report)
	d.forget(key)
	if !d.taken[key] {
		return nil
	}
	delete(d.taken, key)
	return func(tx *collection.Tx) { k.remove(tx, objectKey(key.Namespace, key.Name)) }
}
