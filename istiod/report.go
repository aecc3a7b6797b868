package istiod

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
	"github.com/ambit-mesh/ambit/istiod/status"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// report tells the log and the statuses what the source did not take.
func (i *Istiod) report(r source.Report) {
	for _, file := range r.Broken {
		i.log.Warn("manifest file not taken; its last good objects stay", slog.String("file", at(file.File, file.Line)), slog.String("reason", file.Reason))
		i.untaken[file.File] = true
		i.statuses.File(file.File, errors.New(at(file.File, file.Line)+": "+file.Reason))
	}
	for _, file := range r.Mended {
		i.log.Info("manifest file taken again", slog.String("file", file))
		delete(i.untaken, file)
		i.statuses.File(file, nil)
	}
	for _, o := range r.Invalid {
		i.log.Warn("object not taken; its last good version stays", attributes(o)...)
		i.statuses.Set(status.WriterValidation, o.Key, status.Invalid(o.Generation, message(o)))
		if o.Key.Kind == "Gateway" {
			i.untaken[o.Key.String()] = true
		}
	}
	for _, key := range r.Valid {
		delete(i.untaken, key.String())
		i.statuses.Set(status.WriterValidation, key, status.Status{})
	}
	i.warn(r)
	i.reportUnread(r.Unread)
	i.tidy()
}

// warn brings what the source says of parts of accepted objects into the graph,
// where it joins what istiod itself finds without effect.
func (i *Istiod) warn(r source.Report) {
	if len(r.Unwarned)+len(r.Warnings) == 0 {
		return
	}
	found := map[string]warning{}
	for _, o := range r.Warnings {
		i.log.Warn("part of an object has no effect", attributes(o)...)
		w := found[o.Key.String()]
		w.object, w.generation = o.Key, o.Generation
		w.notices = append(w.notices, model.Notice{Object: o.Key, Field: o.Field, Message: o.Reason})
		found[o.Key.String()] = w
	}
	i.objects.Graph.Update(func(tx *collection.Tx) {
		for _, key := range r.Unwarned {
			i.views.warnings.Delete(tx, key.String())
		}
		for _, w := range found {
			i.views.warnings.Set(tx, w)
		}
	})
}

// warning is what the source has found without effect in one object.
type warning struct {
	object     manifest.Key
	generation int64
	notices    []model.Notice
}

func newWarnings(g *collection.Graph) *collection.Input[warning] {
	return collection.NewInput(g, "warnings", func(w warning) string { return w.object.String() }, nil)
}

// reportUnread logs each kind that is not read once, and says so on the objects
// of groups that are there for the mesh.
func (i *Istiod) reportUnread(list []source.Invalid) {
	for _, o := range list {
		kind := o.Key.Kind + "." + o.Key.Group
		if !i.unreadKinds[kind] {
			i.unreadKinds[kind] = true
			i.log.Info("kind is not read by istiod", slog.String("kind", o.Key.Kind), slog.String("group", o.Key.Group),
				slog.String("first", cmp.Or(at(o.File, o.Line), o.Key.String())))
		}
		if source.ForMesh(o.Key.Group) {
			i.statuses.Set(status.WriterValidation, o.Key, status.Invalid(o.Generation, message(o)))
		}
	}
}

func attributes(o source.Invalid) []any {
	out := []any{slog.String("object", o.Key.String())}
	if o.File != "" {
		out = append(out, slog.String("file", at(o.File, o.Line)))
	}
	if o.Field != "" {
		out = append(out, slog.String("field", o.Field))
	}
	return append(out, slog.String("reason", o.Reason))
}

func message(o source.Invalid) string {
	text := ""
	if o.File != "" {
		text = at(o.File, o.Line) + ": "
	}
	if o.Field != "" {
		text += o.Field + ": "
	}
	return text + o.Reason
}

func at(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}

// policyDump shows what each policy comes to at ztunnel.
func policyDump(policies []model.Policy, rootNamespace string) map[string]translate.PolicyResult {
	out := map[string]translate.PolicyResult{}
	for _, p := range policies {
		out[p.Key()] = translate.Authorization(p, rootNamespace)
	}
	return out
}
