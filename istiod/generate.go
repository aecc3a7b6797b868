package istiod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/deploy"
	"github.com/ambit-mesh/ambit/istiod/gateway"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
)

// retryAfter is how long a failed write waits.
const retryAfter = time.Second

// deployment is what a waypoint Gateway needs to run, or why it cannot be made.
type deployment struct {
	gateway string
	objects []runtime.Object
	users   []string // objects of the user under the names of ours
	err     error
}

func sameDeployment(a, b deployment) bool {
	return a.gateway == b.gateway && sameError(a.err, b.err) &&
		slices.Equal(a.users, b.users) && reflect.DeepEqual(a.objects, b.objects)
}

func sameError(a, b error) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Error() == b.Error()
}

// deployments derives the objects of waypoints. Reads Gateways and the
// ConfigMaps with their overlays, produces what has to exist.
func (v *views) deployments(o *source.Objects, image string) *collection.Derived[deployment] {
	options := collection.Options[deployment]{Key: func(d deployment) string { return d.gateway }, Equal: sameDeployment}
	return collection.Derive(o.Graph, "deployments", o.Gateways, options,
		func(c *collection.Context, g *gatewayv1.Gateway) []deployment {
			if !gateway.Deployable(g) {
				return nil
			}
			m := v.mesh(c)
			out := deployment{gateway: g.Namespace + "/" + g.Name}
			opts := deploy.Options{
				Image: image, ClusterDomain: m.ClusterDomain, ClusterID: m.ClusterID, TrustDomain: m.TrustDomain,
				Network: m.Network, SystemNamespace: m.SystemNamespace,
			}
			name, err := deploy.ParametersRef(g)
			if name != "" {
				config, ok := collection.Fetch(c, o.ConfigMaps, g.Namespace+"/"+name)
				if !ok {
					err = fmt.Errorf("spec.infrastructure.parametersRef: ConfigMap %s/%s does not exist", g.Namespace, name)
				} else {
					opts.Overlays = []deploy.Overlay{{Source: "ConfigMap " + g.Namespace + "/" + name, Data: config.Data}}
				}
			}
			var objects deploy.Objects
			if err == nil {
				objects, err = deploy.Waypoint(g, opts)
			}
			if out.err = err; err == nil {
				claim(c, &out, objects.ServiceAccount, o.ServiceAccounts)
				claim(c, &out, objects.Deployment, o.Deployments)
				claim(c, &out, objects.Service, o.Services)
			}
			return []deployment{out}
		})
}

// claim takes an object into the deployment unless the user has one of that
// name: what is not marked as managed is left alone, spec/control-plane.md §6.2.
func claim[T interface {
	runtime.Object
	metav1.Object
}](c *collection.Context, d *deployment, wanted T, existing collection.Collection[T]) {
	name := model.Key(wanted.GetNamespace(), wanted.GetName())
	if there, ok := collection.Fetch(c, existing, name); ok && !managed(there) {
		d.users = append(d.users, wanted.GetObjectKind().GroupVersionKind().Kind+" "+name)
		return
	}
	d.objects = append(d.objects, wanted)
}

// managed reports whether istiod has made the object.
func managed(o metav1.Object) bool {
	return o.GetLabels()[mesh.LabelGatewayManaged] == mesh.ManagedMeshController
}

// generator writes the objects that a cluster's controllers would: waypoints
// and root certificates. Work is noted under a name, from any goroutine and
// without waiting, and done in Run; the last note of a name counts.
type generator struct {
	store   *manifest.Store
	log     *slog.Logger
	wake    chan struct{}
	rootPEM []byte // set before Run

	mu   sync.Mutex
	todo map[string]func() error
}

func newGenerator(store *manifest.Store, log *slog.Logger) *generator {
	return &generator{store: store, log: log, wake: make(chan struct{}, 1), todo: map[string]func() error{}}
}

func (g *generator) note(name string, work func() error) {
	g.mu.Lock()
	g.todo[name] = work
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default: // a signal is there already
	}
}

// Run does what has been noted until ctx is done. What fails is tried again
// unless it has been noted anew.
func (g *generator) Run(ctx context.Context) error {
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.wake:
		case <-retry:
			retry = nil
		}
		if g.work(ctx) {
			retry = time.After(retryAfter)
		}
	}
}

func (g *generator) work(ctx context.Context) (failed bool) {
	g.mu.Lock()
	todo := g.todo
	g.todo = map[string]func() error{}
	g.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(todo)) {
		if ctx.Err() != nil {
			return false
		}
		err := todo[name]()
		if err == nil {
			continue
		}
		g.log.Warn("generated object cannot be written", slog.String("object", name), slog.Any("error", err))
		failed = true
		g.mu.Lock()
		if _, newer := g.todo[name]; !newer {
			g.todo[name] = todo[name]
		}
		g.mu.Unlock()
	}
	return failed
}

// deploy applies the objects of a deployment that came, changed or went.
func (g *generator) deploy(e collection.Event[deployment]) {
	g.note("waypoint "+e.Key, func() error {
		keep := map[manifest.Key]bool{}
		if e.New != nil {
			if e.New.err != nil {
				return nil // the Gateway's status says it; what runs goes on
			}
			for _, o := range e.New.objects {
				body, err := manifest.ToUnstructured(o)
				if err != nil {
					return err
				}
				keep[manifest.KeyOf(body)] = true
				if err := g.apply(body); err != nil {
					return err
				}
			}
		}
		namespace, name := splitKey(e.Key)
		return g.removeManaged(func(o *unstructured.Unstructured) bool {
			return o.GetNamespace() == namespace && o.GetLabels()[mesh.LabelGatewayName] == name && !keep[manifest.KeyOf(o)]
		})
	})
}

// sweep removes what belongs to Gateways that went while istiod was away.
func (g *generator) sweep(exists func(gateway string) bool) {
	g.note("waypoints of gateways that are gone", func() error {
		return g.removeManaged(func(o *unstructured.Unstructured) bool {
			return !exists(o.GetNamespace() + "/" + o.GetLabels()[mesh.LabelGatewayName])
		})
	})
}

// removeManaged deletes objects that istiod has made: those with its label, of
// the kinds that it makes. Pods carry the label too but are the kubelet's.
func (g *generator) removeManaged(which func(*unstructured.Unstructured) bool) error {
	stored, err := g.store.List()
	if err != nil {
		return err
	}
	for _, o := range stored {
		made := slices.Contains([]string{"Deployment", "Service", "ServiceAccount"}, o.GetKind())
		if !made || !managed(o) || !which(o) {
			continue
		}
		if err := g.store.Delete(manifest.KeyOf(o)); err != nil {
			return err
		}
	}
	return nil
}

// kept is what the cluster adds to a generated object.
var kept = [][]string{
	{"metadata", "uid"},
	{"metadata", "creationTimestamp"},
	{"metadata", "resourceVersion"},
	{"metadata", "generation"},
	{"status"},
	{"spec", "clusterIP"},
	{"spec", "clusterIPs"},
	{"spec", "ipFamilies"},
}

// apply writes an object when it differs from what is stored. What the cluster
// has added to it stays, and so does a whole object that is not ours.
func (g *generator) apply(body *unstructured.Unstructured) error {
	err := g.store.Update(manifest.KeyOf(body), func(o *unstructured.Unstructured) error {
		if managed(body) && !managed(o) {
			return nil // the user's; the Gateway's status will say so
		}
		merged := body.DeepCopy()
		for _, path := range kept {
			_, wanted, _ := unstructured.NestedFieldNoCopy(merged.Object, path...)
			value, there, _ := unstructured.NestedFieldCopy(o.Object, path...)
			if !there || wanted {
				continue
			}
			if err := unstructured.SetNestedField(merged.Object, value, path...); err != nil {
				return err
			}
		}
		if !sameBody(o, merged) {
			o.Object = merged.Object
		}
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return g.store.Apply(body)
	}
	return err
}

// withoutRoot are the namespaces that get no root certificate,
// spec/control-plane.md §7.3.
var withoutRoot = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

// setRoot says what the root certificate is. Before, Run must not be called.
func (g *generator) setRoot(pem []byte) { g.rootPEM = pem }

// root writes the root certificate into a namespace, or removes it from one
// that is gone. exists is asked when the work is done.
func (g *generator) root(namespace string, exists func(namespace string) bool) {
	if slices.Contains(withoutRoot, namespace) {
		return
	}
	g.note("root certificate of "+namespace, func() error {
		key := manifest.Key{Kind: "ConfigMap", Namespace: namespace, Name: mesh.RootCertConfig}
		if !exists(namespace) {
			return g.store.Delete(key)
		}
		body, err := manifest.ToUnstructured(&corev1.ConfigMap{
			APIVersion: "v1", Kind: "ConfigMap", Namespace: namespace, Name: mesh.RootCertConfig,
			Labels: map[string]string{mesh.LabelConfig: "true"},
			Data:   map[string]string{mesh.RootCertFile: string(g.rootPEM)},
		})
		if err != nil {
			return err
		}
		return g.apply(body)
	})
}

// sameBody compares as text: one side may hold numbers of another Go type.
func sameBody(a, b *unstructured.Unstructured) bool {
	left, leftErr := json.Marshal(a.Object)
	right, rightErr := json.Marshal(b.Object)
	return leftErr == nil && rightErr == nil && bytes.Equal(left, right)
}

func splitKey(key string) (namespace, name string) {
	namespace, name, _ = strings.Cut(key, "/")
	return namespace, name
}
