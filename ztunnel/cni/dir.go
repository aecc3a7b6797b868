package cni

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
)

// Dir is the Source of a mesh without a cluster: directories of manifests.
type Dir struct {
	node    string
	log     *slog.Logger
	watcher *manifest.Watcher
	store   *manifest.Store

	// These belong to the goroutine in Run.
	pods       map[manifest.Key]Pod
	namespaces map[string]map[string]string // labels
}

// NewDir reads the user's manifests in configDir and the generated ones below stateDir.
func NewDir(log *slog.Logger, node, configDir, stateDir string) *Dir {
	objects := filepath.Join(stateDir, "objects")
	return &Dir{
		node:       node,
		log:        log,
		watcher:    manifest.NewWatcher(log, configDir, objects),
		store:      manifest.NewStore(objects),
		pods:       map[manifest.Key]Pod{},
		namespaces: map[string]map[string]string{},
	}
}

// Run implements Source.
func (d *Dir) Run(ctx context.Context, update func([]Pod)) error {
	return d.watcher.Run(ctx, func(changes []manifest.Change, initial bool) {
		changed := false
		for _, c := range changes {
			if c.Err != nil {
				d.log.Warn("manifest not read, its last good objects stay", "file", c.File, "error", c.Err)
			}
			// What moved within this batch is deleted from one file and set from another.
			for _, key := range c.Deleted {
				changed = d.delete(key) || changed
			}
		}
		for _, c := range changes {
			for _, o := range c.Set {
				changed = d.set(o) || changed
			}
		}
		if changed || initial {
			update(d.list())
		}
	})
}

func (d *Dir) delete(key manifest.Key) bool {
	if isNamespace(key) {
		delete(d.namespaces, key.Name)
		return true
	}
	_, known := d.pods[key]
	delete(d.pods, key)
	return known
}

func (d *Dir) set(o manifest.Object) bool {
	switch {
	case isNamespace(o.Key):
		d.namespaces[o.Key.Name] = o.Body.GetLabels()
		return true
	case o.Key.Group == "" && o.Key.Kind == "Pod":
		pod, ok := d.pod(o.Body)
		if !ok {
			return d.delete(o.Key)
		}
		d.pods[o.Key] = pod
		return true
	}
	return false
}

func isNamespace(key manifest.Key) bool { return key.Group == "" && key.Kind == "Namespace" }

// pod reads a pod of this node; what has no UID has not been started by anyone.
func (d *Dir) pod(o *unstructured.Unstructured) (Pod, bool) {
	node, _, _ := unstructured.NestedString(o.Object, "spec", "nodeName")
	if node != d.node || o.GetUID() == "" {
		return Pod{}, false
	}
	account, _, _ := unstructured.NestedString(o.Object, "spec", "serviceAccountName")
	if account == "" {
		account = "default"
	}
	host, _, _ := unstructured.NestedBool(o.Object, "spec", "hostNetwork")
	phase, _, _ := unstructured.NestedString(o.Object, "status", "phase")
	return Pod{
		UID:            string(o.GetUID()),
		Name:           o.GetName(),
		Namespace:      o.GetNamespace(),
		ServiceAccount: account,
		Labels:         o.GetLabels(),
		Annotations:    o.GetAnnotations(),
		HostNetwork:    host,
		Ended:          phase == "Succeeded" || phase == "Failed",
	}, true
}

// list joins the pods with the labels of their namespaces.
func (d *Dir) list() []Pod {
	pods := slices.Collect(maps.Values(d.pods))
	for i := range pods {
		pods[i].NamespaceLabels = d.namespaces[pods[i].Namespace]
	}
	return pods
}

// Annotate is of type Annotate.
func (d *Dir) Annotate(_ context.Context, pod Pod, value string) error {
	key := manifest.Key{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name}
	err := d.store.Update(key, func(o *unstructured.Unstructured) error {
		annotations := o.GetAnnotations()
		if string(o.GetUID()) != pod.UID || annotations[mesh.AnnotationRedirection] == value {
			return nil
		}
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[mesh.AnnotationRedirection] = value
		if value == "" {
			delete(annotations, mesh.AnnotationRedirection)
		}
		o.SetAnnotations(annotations)
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
