package source

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/collection"
)

// fileAnnotation is, on an accepted object, the file that it was read from.
const fileAnnotation = "ambit-mesh.io/manifest-file"

// keep stores an accepted object of the first directory; those of the others
// are generated, and made again.
func (d *Dir) keep(o manifest.Object) {
	if d.cfg.Accepted == nil || !below(d.cfg.Dirs[0], o.File) {
		return
	}
	body := o.Body.DeepCopy()
	annotations := body.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[fileAnnotation] = o.File
	body.SetAnnotations(annotations)
	if err := d.cfg.Accepted.Apply(body); err != nil {
		d.cfg.Log.Warn("accepted object is not kept for a restart", slog.Any("object", o.Key), slog.Any("error", err))
	}
}

func below(dir, file string) bool {
	path, err := filepath.Rel(dir, file)
	return err == nil && !strings.HasPrefix(path, "..")
}

func (d *Dir) forget(key manifest.Key) {
	if d.cfg.Accepted == nil {
		return
	}
	if err := d.cfg.Accepted.Delete(key); err != nil {
		d.cfg.Log.Warn("object that is gone is still kept for a restart", slog.Any("object", key), slog.Any("error", err))
	}
}

// restore takes, after the first load, the last good versions of objects whose
// present ones are refused, and of those that a file held that cannot be read
// now. What is kept of others was deleted while nobody looked.
func (d *Dir) restore(ctx context.Context) {
	if d.cfg.Accepted == nil {
		return
	}
	kept, err := d.cfg.Accepted.List()
	if err != nil {
		d.cfg.Log.Warn("objects kept from before cannot be read", slog.Any("error", err))
		return
	}
	var edits []func(tx *collection.Tx)
	for _, body := range kept {
		key := manifest.KeyOf(body)
		annotations := body.GetAnnotations()
		file := annotations[fileAnnotation]
		if d.taken[key] {
			continue
		}
		if !d.bad[key] && !d.broken[file] {
			d.forget(key)
			continue
		}
		delete(annotations, fileAnnotation)
		body.SetAnnotations(annotations)
		k := d.kinds[groupKind{key.Group, key.Kind}]
		typed, err := d.decode(ctx, manifest.Object{Key: key, File: file, Body: body}, groupKind{key.Group, key.Kind}, k)
		if err != nil {
			d.cfg.Log.Warn("object kept from before is no longer valid", slog.Any("object", key), slog.Any("error", err))
			continue
		}
		d.cfg.Log.Warn("the last good version counts", slog.Any("object", key), slog.String("file", file))
		d.taken[key] = true
		if key == meshKey {
			d.undecided = ""
		}
		if !d.bad[key] {
			d.restored[file] = append(d.restored[file], key)
		}
		edits = append(edits, func(tx *collection.Tx) { k.set(tx, typed) })
	}
	d.cfg.Objects.Graph.Update(func(tx *collection.Tx) {
		for _, edit := range edits {
			edit(tx)
		}
	})
}

// outlived returns the restored objects that a file no longer holds, now that
// it can be read or is gone; its reader has never known of them.
func (d *Dir) outlived(change manifest.Change) []manifest.Key {
	if change.Err != nil {
		return nil
	}
	var gone []manifest.Key
	for _, key := range d.restored[change.File] {
		if !slices.ContainsFunc(change.Set, func(o manifest.Object) bool { return o.Key == key }) {
			gone = append(gone, key)
		}
	}
	delete(d.restored, change.File)
	return gone
}
