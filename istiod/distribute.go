package istiod

import (
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
)

// places knows the namespaces: those that have an object, and those that
// merely have pods or service accounts, which no cluster has but a directory
// may.
type places struct {
	namespaces *collection.Derived[model.Namespace]
	pods       *collection.Index[model.Pod]
	accounts   *collection.Index[*corev1.ServiceAccount]
}

func newPlaces(v *views, o *source.Objects) places {
	return places{
		namespaces: v.namespaces,
		pods:       collection.NewIndex(v.pods, "namespace", func(p model.Pod) []string { return []string{p.Name.Namespace} }),
		accounts: collection.NewIndex(o.ServiceAccounts, "namespace", func(a *corev1.ServiceAccount) []string {
			return []string{a.Namespace}
		}),
	}
}

func (p places) has(namespace string) bool {
	_, ok := p.namespaces.Get(namespace)
	return ok || len(p.pods.Get(namespace)) > 0 || len(p.accounts.Get(namespace)) > 0
}

// state is what the generator looks up.
func (i *Istiod) state() state {
	o := i.objects
	at := newPlaces(i.views, o)
	has := at.has
	if i.platform.cluster {
		has = func(namespace string) bool {
			there, ok := o.Namespaces.Get(namespace)
			return ok && there.DeletionTimestamp == nil
		}
	}
	root := func(namespace string) (*corev1.ConfigMap, bool) {
		return o.ConfigMaps.Get(model.Key(namespace, mesh.RootCertConfig))
	}
	return state{
		deployment: i.deployments.Get,
		namespace:  has,
		gateway:    func(name string) bool { _, ok := o.Gateways.Get(name); return ok },
		class:      func(name string) bool { _, ok := o.GatewayClasses.Get(name); return ok },
		root:       root,
		all:        func() []task { return i.everything() },
	}
}

// everything is all that the generator can have to do. What belongs to objects
// that are gone by now is taskSweep's, which waits until all has been taken.
func (i *Istiod) everything() []task {
	out := []task{{taskClass, mesh.WaypointGatewayClass}}
	namespaces := map[string]bool{}
	for _, n := range i.views.namespaces.List() {
		namespaces[n.Name] = true
	}
	for _, p := range i.views.pods.List() {
		namespaces[p.Name.Namespace] = true
	}
	for _, a := range i.objects.ServiceAccounts.List() {
		namespaces[a.Namespace] = true
	}
	for _, c := range i.objects.ConfigMaps.List() {
		if c.Name == mesh.RootCertConfig {
			namespaces[c.Namespace] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(namespaces)) {
		out = append(out, task{taskRoot, name})
	}
	for _, d := range i.deployments.List() {
		out = append(out, task{taskWaypoint, d.gateway})
	}
	if i.tidied.Load() {
		out = append(out, task{taskSweep, ""})
	}
	return out
}

// distribute has the root certificate written into every namespace that comes
// up, and again where somebody changes it. It works with what Run hands to
// generator.setRoot.
func (i *Istiod) distribute() {
	check := func(namespace string) { i.generated.note(taskRoot, namespace) }
	collection.Sink(i.views.namespaces, func(events []collection.Event[model.Namespace]) {
		for _, event := range events {
			check(event.Key)
		}
	})
	collection.Sink(i.views.pods, func(events []collection.Event[model.Pod]) {
		for _, event := range events {
			if event.Old == nil || event.New == nil {
				namespace, _ := splitKey(event.Key)
				check(namespace)
			}
		}
	})
	collection.Sink(i.objects.ServiceAccounts, func(events []collection.Event[*corev1.ServiceAccount]) {
		for _, event := range events {
			namespace, _ := splitKey(event.Key)
			check(namespace)
		}
	})
	collection.Sink(i.objects.ConfigMaps, func(events []collection.Event[*corev1.ConfigMap]) {
		for _, event := range events {
			if namespace, name := splitKey(event.Key); name == mesh.RootCertConfig {
				i.generated.look(taskRoot, namespace)
			}
		}
	})
}

// generate has waypoints deployed as their Gateways come, change and go, and in
// a cluster also where somebody else changes the objects.
func (i *Istiod) generate() {
	collection.Sink(i.deployments, func(events []collection.Event[deployment]) {
		for _, event := range events {
			i.generated.note(taskWaypoint, event.Key)
		}
	})
	if !i.platform.cluster {
		return
	}
	collection.Sink(i.objects.GatewayClasses, func(events []collection.Event[*gatewayClass]) {
		for _, event := range events {
			if event.Key == mesh.WaypointGatewayClass && event.New == nil {
				i.generated.look(taskClass, event.Key)
			}
		}
	})
	watch(i.generated, i.objects.Deployments, func(d *coreDeployment) any { return d.Spec })
	watch(i.generated, i.objects.Services, func(s *coreService) any { return s.Spec })
	watch(i.generated, i.objects.ServiceAccounts, func(*corev1.ServiceAccount) any { return nil })
}

// watch has a waypoint looked at when one of its objects is changed in what
// istiod says of it. The status of a Deployment changes with each of its pods.
func watch[T metav1.Object](g *generator, from collection.Collection[T], spec func(T) any) {
	collection.Sink(from, func(events []collection.Event[T]) {
		for _, event := range events {
			old, is := event.Old, event.New
			if old == nil || !managed(*old) { // what comes up has been looked at when it was claimed
				continue
			}
			if is != nil && sameWords(*old, *is) && reflect.DeepEqual(spec(*old), spec(*is)) {
				continue
			}
			g.look(taskWaypoint, gatewayOf(*old))
		}
	})
}

func sameWords(a, b metav1.Object) bool {
	return maps.Equal(a.GetLabels(), b.GetLabels()) && maps.Equal(a.GetAnnotations(), b.GetAnnotations()) &&
		reflect.DeepEqual(a.GetOwnerReferences(), b.GetOwnerReferences())
}
