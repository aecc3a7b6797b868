package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// resources are those of the kinds that istiod generates.
var resources = map[schema.GroupKind]schema.GroupVersionResource{
	{Kind: "ConfigMap"}:                 {Version: "v1", Resource: "configmaps"},
	{Kind: "Service"}:                   {Version: "v1", Resource: "services"},
	{Kind: "ServiceAccount"}:            {Version: "v1", Resource: "serviceaccounts"},
	{Group: "apps", Kind: "Deployment"}: {Group: "apps", Version: "v1", Resource: "deployments"},
	{Group: "gateway.networking.k8s.io", Kind: "GatewayClass"}: {
		Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses",
	},
}

// ObjectsConfig says what is generated.
type ObjectsConfig struct {
	// FieldManager is in whose name objects are applied.
	FieldManager string
	// Foreign reports whether an object that exists must be left alone although
	// istiod wants one of its name.
	Foreign func(existing, wanted metav1.Object) bool
	// Kinds and Labels are what List finds.
	Kinds  []schema.GroupKind
	Labels map[string]string
}

// Objects are what istiod generates, in the API server.
type Objects struct {
	cfg    ObjectsConfig
	client dynamic.Interface
}

// NewObjects returns Objects.
func NewObjects(cfg *rest.Config, objects ObjectsConfig) (*Objects, error) {
	c, err := dynamic.NewForConfig(timed(cfg))
	if err != nil {
		return nil, fmt.Errorf("generated objects: %w", err)
	}
	return &Objects{cfg: objects, client: c}, nil
}

func (s *Objects) resource(kind schema.GroupKind, namespace string) (dynamic.ResourceInterface, error) {
	gvr, ok := resources[kind]
	if !ok {
		return nil, fmt.Errorf("istiod generates no %s", kind)
	}
	if namespace == "" {
		return s.client.Resource(gvr), nil
	}
	return s.client.Resource(gvr).Namespace(namespace), nil
}

// Apply makes an object what it should be, by server-side apply: fields that
// the object does not name are others', those that it does are taken from
// whoever changed them. An object that is not ours is left alone, and nothing is
// written into a namespace that is being deleted.
func (s *Objects) Apply(ctx context.Context, o *unstructured.Unstructured) error {
	r, err := s.resource(o.GroupVersionKind().GroupKind(), o.GetNamespace())
	if err != nil {
		return err
	}
	switch existing, err := r.Get(ctx, o.GetName(), metav1.GetOptions{}); {
	case apierrors.IsNotFound(err):
	case err != nil:
		return fmt.Errorf("%s: %w", manifest.KeyOf(o), err)
	case s.cfg.Foreign(existing, o):
		return nil
	default:
		// What is applied is this very object or nothing: by the time another
		// of its name may be the user's.
		o = o.DeepCopy()
		o.SetUID(existing.GetUID())
	}
	_, err = r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: s.cfg.FieldManager, Force: true})
	if err == nil || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return fmt.Errorf("%s: %w", manifest.KeyOf(o), err)
}

// Create makes an object unless one of its name exists.
func (s *Objects) Create(ctx context.Context, o *unstructured.Unstructured) error {
	r, err := s.resource(o.GroupVersionKind().GroupKind(), o.GetNamespace())
	if err != nil {
		return err
	}
	_, err = r.Create(ctx, o, metav1.CreateOptions{FieldManager: s.cfg.FieldManager})
	if err == nil || apierrors.IsAlreadyExists(err) {
		return nil
	}
	return fmt.Errorf("%s: %w", manifest.KeyOf(o), err)
}

// Delete removes an object; one that is gone is no error.
func (s *Objects) Delete(ctx context.Context, key manifest.Key) error {
	r, err := s.resource(schema.GroupKind{Group: key.Group, Kind: key.Kind}, key.Namespace)
	if err != nil {
		return err
	}
	background := metav1.DeletePropagationBackground
	err = r.Delete(ctx, key.Name, metav1.DeleteOptions{PropagationPolicy: &background})
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("%s: %w", key, err)
}

// List returns the objects that istiod has generated with these labels besides
// its own, in a namespace or, when that is empty, in all.
func (s *Objects) List(ctx context.Context, namespace string, with map[string]string) ([]*unstructured.Unstructured, error) {
	selector := labels.Merge(s.cfg.Labels, with).String()
	var out []*unstructured.Unstructured
	for _, kind := range s.cfg.Kinds {
		r, err := s.resource(kind, namespace)
		if err != nil {
			return nil, err
		}
		list, err := r.List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return nil, fmt.Errorf("list of %s: %w", kind, err)
		}
		for i := range list.Items {
			out = append(out, &list.Items[i])
		}
	}
	return out, nil
}
