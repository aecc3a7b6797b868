package lab

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// origin says which directory an object is from.
type origin int

const (
	fromUser      origin = iota // the user's manifests
	fromGenerated               // STATE/objects; overrides the user's of the same key
	origins
)

// kind holds the objects of one kind, from both directories.
type kind[T any] [origins]map[types.NamespacedName]T

func (k *kind[T]) set(from origin, name types.NamespacedName, object T) {
	if k[from] == nil {
		k[from] = map[types.NamespacedName]T{}
	}
	k[from][name] = object
}

func (k *kind[T]) remove(from origin, name types.NamespacedName) bool {
	_, known := k[from][name]
	delete(k[from], name)
	return known
}

// get returns the object in force.
func (k *kind[T]) get(name types.NamespacedName) (T, bool) {
	if object, ok := k[fromGenerated][name]; ok {
		return object, true
	}
	object, ok := k[fromUser][name]
	return object, ok
}

// each calls f for the objects in force, sorted by name.
func (k *kind[T]) each(f func(name types.NamespacedName, object T)) {
	names := slices.AppendSeq(slices.Collect(maps.Keys(k[fromUser])), maps.Keys(k[fromGenerated]))
	slices.SortFunc(names, compareNames)
	for _, name := range slices.Compact(names) {
		object, _ := k.get(name)
		f(name, object)
	}
}

func compareNames(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// objects is what the manifests say, as far as a kubelet and the controllers
// before it care.
type objects struct {
	deployments kind[*appsv1.Deployment]
	daemonSets  kind[*appsv1.DaemonSet]
	pods        kind[*corev1.Pod] // of the user only
	services    kind[*corev1.Service]
	slices      kind[*discoveryv1.EndpointSlice] // of the user only
	accounts    kind[*corev1.ServiceAccount]
	configMaps  kind[*corev1.ConfigMap]
}

// apply takes what one directory's watcher has seen. A file or object that
// cannot be read changes nothing. It says whether anything has changed: most of
// what happens to the generated objects is the lab's own writing.
func (o *objects) apply(log *slog.Logger, from origin, changes []manifest.Change) (changed bool) {
	for _, change := range changes {
		if change.Err != nil {
			log.Warn("manifest not taken", "error", change.Err)
		}
		for _, object := range change.Set {
			taken, err := o.set(from, object)
			if err != nil {
				log.Warn("object not taken", "error", err)
			}
			if !taken {
				continue
			}
			changed = true
			if fields := unsupportedFields(object); len(fields) > 0 {
				log.Warn("fields have no effect in the lab", "object", object.Key.String(), "fields", strings.Join(fields, ", "))
			}
		}
		for _, key := range change.Deleted {
			changed = o.delete(from, key) || changed
		}
	}
	return changed
}

// set takes an object and says whether it has.
func (o *objects) set(from origin, object manifest.Object) (bool, error) {
	name := nameOf(object.Key)
	switch object.Key.Group + "/" + object.Key.Kind {
	case "apps/Deployment":
		return put(&o.deployments, from, name, object, &appsv1.Deployment{})
	case "apps/DaemonSet":
		return put(&o.daemonSets, from, name, object, &appsv1.DaemonSet{})
	case "/Service":
		return put(&o.services, from, name, object, &corev1.Service{})
	case "/ServiceAccount":
		return put(&o.accounts, from, name, object, &corev1.ServiceAccount{})
	case "/ConfigMap":
		return put(&o.configMaps, from, name, object, &corev1.ConfigMap{})
	case "apps/StatefulSet", "apps/ReplicaSet", "batch/Job", "batch/CronJob":
		return false, fmt.Errorf("%s:%d: %s: the lab runs no pods of this kind", object.File, object.Line, object.Key)
	case "/Pod":
		if from == fromUser { // the others are the lab's own
			return put(&o.pods, from, name, object, &corev1.Pod{})
		}
	case "discovery.k8s.io/EndpointSlice":
		if from == fromUser {
			return put(&o.slices, from, name, object, &discoveryv1.EndpointSlice{})
		}
	}
	return false, nil
}

func put[T runtime.Object](k *kind[T], from origin, name types.NamespacedName, object manifest.Object, into T) (bool, error) {
	if err := manifest.Decode(object, into); err != nil {
		return false, err
	}
	k.set(from, name, into)
	return true, nil
}

// delete forgets an object and says whether it was known.
func (o *objects) delete(from origin, key manifest.Key) bool {
	name := nameOf(key)
	switch key.Group + "/" + key.Kind {
	case "apps/Deployment":
		return o.deployments.remove(from, name)
	case "apps/DaemonSet":
		return o.daemonSets.remove(from, name)
	case "/Service":
		return o.services.remove(from, name)
	case "/ServiceAccount":
		return o.accounts.remove(from, name)
	case "/ConfigMap":
		return o.configMaps.remove(from, name)
	case "/Pod":
		return o.pods.remove(from, name)
	case "discovery.k8s.io/EndpointSlice":
		return o.slices.remove(from, name)
	}
	return false
}

// nameOf is the object's name, in namespace default where it says none.
func nameOf(key manifest.Key) types.NamespacedName {
	return types.NamespacedName{Namespace: cmp.Or(key.Namespace, corev1.NamespaceDefault), Name: key.Name}
}
