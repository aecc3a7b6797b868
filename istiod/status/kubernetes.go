package status

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/source"
)

// Requests for statuses per second, in the long run and at once: a change that
// concerns every object of a large mesh must not keep the API server from
// anything else, and must be through in minutes.
const (
	requestRate    = 50
	requestBurst   = 100
	requestTimeout = 10 * time.Second
)

// writeAttempts is how often an update is made anew on what another writer has
// left.
const writeAttempts = 5

// KubernetesConfig says where statuses are written.
type KubernetesConfig struct {
	// Objects are what the source has read; their statuses tell what is there.
	Objects *source.Objects
	// Resource returns where the objects of a kind are, when there are any:
	// source.Kubernetes.Resource.
	Resource func(group, kind string) (schema.GroupVersionResource, bool)
	// Config reaches the API server.
	Config *rest.Config
}

// Kubernetes is the Store in an API server: the status subresource of each
// object. How it is written depends on how the kind's lists merge:
//
//   - Services, Gateways and GatewayClasses by server-side apply, one field
//     manager per writer (spec/control-plane.md §1.4). What a writer no longer
//     says goes when it applies without it.
//   - Routes by reading, changing and updating: their list of parents has no
//     owners by part, so that applying it would take out what other controllers
//     say. Entries of other controllers stay.
//   - Istio's kinds likewise, for the same reason: conditions of types that are
//     not ours stay.
//
// Kinds without a status (a ConfigMap) and those of the Gateway API that istiod
// does not read have no place for what is to be said; the log says it.
//
// What the source has read tells whether there is anything to write; only then
// the API server is asked.
type Kubernetes struct {
	cfg    KubernetesConfig
	client dynamic.Interface
}

// NewKubernetes returns the Store.
func NewKubernetes(cfg KubernetesConfig) (*Kubernetes, error) {
	config := rest.CopyConfig(cfg.Config)
	config.QPS, config.Burst, config.Timeout = requestRate, requestBurst, requestTimeout
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("statuses: %w", err)
	}
	return &Kubernetes{cfg: cfg, client: client}, nil
}

// Watch implements Store.
func (s *Kubernetes) Watch(changed func(key manifest.Key)) { s.cfg.Objects.OnChange(changed) }

// Stored implements Store. Whether the status of a Gateway or GatewayClass is
// ours is only known where field managers are.
func (s *Kubernetes) Stored() ([]manifest.Key, error) {
	var out []manifest.Key
	for _, kind := range readKinds {
		for key, there := range kind.all(s.cfg.Objects) {
			if there.saysOurs() || kind.how == applied && kind.Group != "" && len(there.Conditions) > 0 {
				out = append(out, key)
			}
		}
	}
	return out, nil
}

// Write implements Store.
func (s *Kubernetes) Write(ctx context.Context, key manifest.Key, w Wanted, now time.Time) error {
	gvr, ok := s.cfg.Resource(key.Group, key.Kind)
	how := shapeOf(key)
	if !ok || how == nowhere {
		return nil
	}
	if there, read := s.there(key); read && there.satisfies(w) {
		return nil
	}
	var resource dynamic.ResourceInterface = s.client.Resource(gvr)
	if key.Namespace != "" {
		resource = s.client.Resource(gvr).Namespace(key.Namespace)
	}
	write := s.update
	if how == applied {
		write = s.apply
	}
	return answer(write(ctx, resource, key, w, now), gvr)
}

// there returns the status that the source has read; false when it has not read
// the object.
func (s *Kubernetes) there(key manifest.Key) (body, bool) {
	for _, kind := range readKinds {
		if kind.Group == key.Group && kind.Kind == key.Kind {
			return kind.get(s.cfg.Objects, key)
		}
	}
	return body{}, false
}

// answer classes the error of a write.
func answer(err error, gvr schema.GroupVersionResource) error {
	var status apierrors.APIStatus
	answered := errors.As(err, &status)
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		if apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse) { // no answer of an API: there is no such path
			return fmt.Errorf("definition of %s has no subresource status: it is not the one that this version knows", gvr.GroupResource())
		}
		return nil // gone; nobody has to be told
	case !answered, status.Status().Code >= http.StatusInternalServerError, apierrors.IsTooManyRequests(err):
		return fmt.Errorf("%w: %w", errUnanswered, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("istiod may not write: its ClusterRole has to allow get of %s, patch and update of %s/status: %w",
			gvr.GroupResource(), gvr.GroupResource(), err)
	}
	return err
}

// apply has each writer that has something to say, or had, apply it.
func (s *Kubernetes) apply(ctx context.Context, r dynamic.ResourceInterface, key manifest.Key, w Wanted, now time.Time) error {
	live, err := r.Get(ctx, key.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	there := decode(live)
	if there.newerThan(w.merge()) {
		return nil // the source will see that version, and we shall be here again
	}
	managers := managersOf(live)
	for writer := range managers {
		if _, wants := w.Writers[writer]; !wants && slices.Contains(writers, writer) {
			w.Writers = maps.Clone(w.Writers)
			if w.Writers == nil {
				w.Writers = map[string]Status{}
			}
			w.Writers[writer] = Status{}
		}
	}
	for writer, says := range w.apart() {
		says.keepTimes(there, metav1.NewTime(now.Truncate(time.Second)))
		if there.contains(says) && !managers[writer].exceeds(says) {
			continue
		}
		o, err := says.document(live)
		if err != nil {
			return err
		}
		if _, err := r.Apply(ctx, key.Name, o, metav1.ApplyOptions{FieldManager: writer, Force: true}, "status"); err != nil {
			return err
		}
	}
	return nil
}

// update changes our part of what is there.
func (s *Kubernetes) update(ctx context.Context, r dynamic.ResourceInterface, key manifest.Key, w Wanted, now time.Time) error {
	for attempt := 1; ; attempt++ {
		live, err := r.Get(ctx, key.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		wanted := w.merge()
		if decode(live).newerThan(wanted) {
			return nil // as in apply
		}
		changed, err := wanted.into(live, shapeOf(key), metav1.NewTime(now.Truncate(time.Second)))
		if err != nil || !changed {
			return err
		}
		_, err = r.UpdateStatus(ctx, live, metav1.UpdateOptions{FieldManager: WriterGateway})
		if !apierrors.IsConflict(err) || attempt == writeAttempts {
			return err
		}
	}
}

// document is what a writer applies to the object that has been looked at, and
// to no other of its name.
func (b body) document(live *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	status, err := b.unstructured()
	if err != nil {
		return nil, err
	}
	o := &unstructured.Unstructured{Object: map[string]any{}}
	if len(status) > 0 {
		o.Object["status"] = status
	}
	o.SetGroupVersionKind(live.GroupVersionKind())
	o.SetNamespace(live.GetNamespace())
	o.SetName(live.GetName())
	o.SetUID(live.GetUID())
	return o, nil
}

// shape is how the status of a kind is written.
type shape int

const (
	nowhere    shape = iota
	applied          // server-side apply per writer
	parents          // status.parents of a route
	conditions       // status.conditions of Istio
)

func shapeOf(key manifest.Key) shape {
	switch {
	case key.Group == "" && key.Kind == "Service":
		return applied
	case strings.HasSuffix(key.Group, ".istio.io"):
		return conditions
	case key.Group != gatewayv1.GroupName:
		return nowhere
	}
	switch key.Kind {
	case "Gateway", "GatewayClass":
		return applied
	case "HTTPRoute":
		return parents
	}
	return nowhere
}
