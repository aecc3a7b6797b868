package installer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/dynamic"

	"github.com/ambit-mesh/ambit/install/crds"
)

const (
	gatewayGroup     = "gateway.networking.k8s.io"
	annotationBundle = gatewayGroup + "/bundle-version"
	// oldestGatewayAPI is the first version in whose standard channel are all
	// kinds that istiod reads: GRPCRoute came last.
	oldestGatewayAPI = "v1.1.0"
	// fieldManager owns the fields of what is applied outside of releases.
	fieldManager = "ambitctl"
)

// gatewayAPI installs the Gateway API unless the cluster has any of it: which
// version there is, is for whoever installed it to decide.
func (i *Installer) gatewayAPI(ctx context.Context) error {
	present, err := i.gatewayDefinitions(ctx)
	if err != nil {
		return err
	}
	if len(present) > 0 && !ours(present) {
		i.say("gateway API: %s is there and left as it is", bundle(present))
		for _, warning := range tooOld(present) {
			i.say("  warning: %s", warning)
		}
		return nil
	}
	manifest, err := i.cfg.GatewayAPI()
	switch {
	case errors.Is(err, crds.ErrNoGatewayAPI) && len(present) > 0:
		i.say("gateway API: %s is there", bundle(present))
		return nil
	case errors.Is(err, crds.ErrNoGatewayAPI):
		return fmt.Errorf("the cluster has none, and %w. Install it first, for example from a checkout of this project:\n"+
			"  kubectl apply --server-side -f \"$(go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)/config/crd/standard\"\n"+
			"or build ambitctl with make build", err)
	case err != nil:
		return err
	}
	objects, err := decode(manifest)
	if err != nil {
		return err
	}
	if newer(present, objects) {
		i.say("gateway API: %s is there, which is newer than %s and left as it is", bundle(present), bundle(objects))
		return nil
	}
	if len(present) > 0 && bundle(present) == bundle(objects) && len(present) == len(names(objects, kindCRD)) {
		i.say("gateway API: %s is there", bundle(present))
		return nil
	}
	if i.cfg.DryRun {
		i.say("gateway API: %s would be installed", bundle(objects))
		return nil
	}
	for _, o := range objects {
		if err := i.applyOurs(ctx, o); err != nil {
			return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	i.say("gateway API: %s installed, %d kinds", bundle(objects), len(names(objects, kindCRD)))
	i.mapper.Reset()
	return i.wait(ctx, "gateway API", func(ctx context.Context) (bool, []string, error) {
		return i.established(ctx, names(objects, kindCRD))
	})
}

// gatewayDefinitions returns the definitions of the Gateway API's kinds that the
// cluster has.
func (i *Installer) gatewayDefinitions(ctx context.Context) ([]*unstructured.Unstructured, error) {
	list, err := i.dynamic.Resource(crdResource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for n := range list.Items {
		if strings.HasSuffix(list.Items[n].GetName(), "."+gatewayGroup) {
			out = append(out, &list.Items[n])
		}
	}
	return out, nil
}

// ours reports whether ambitctl has installed them all.
func ours(objects []*unstructured.Unstructured) bool {
	return !slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool {
		return o.GetLabels()[labelManagedBy] != managedByUs
	})
}

// bundle names the versions of definitions.
func bundle(objects []*unstructured.Unstructured) string {
	versions := map[string]bool{}
	for _, o := range objects {
		if o.GetKind() == kindCRD {
			versions[o.GetAnnotations()[annotationBundle]] = true
		}
	}
	if versions[""] {
		return "a version without a name"
	}
	return join(slices.Sorted(maps.Keys(versions)))
}

// tooOld returns a warning if definitions lack what the mesh reads.
func tooOld(present []*unstructured.Unstructured) []string {
	oldest := version.MustParseGeneric(oldestGatewayAPI)
	for _, o := range present {
		v, err := version.ParseGeneric(o.GetAnnotations()[annotationBundle])
		if err != nil {
			return []string{fmt.Sprintf("definition %s does not say its version; the mesh needs %s or newer", o.GetName(), oldestGatewayAPI)}
		}
		if v.LessThan(oldest) {
			return []string{fmt.Sprintf("definition %s is of %s; the mesh needs %s or newer", o.GetName(), v, oldestGatewayAPI)}
		}
	}
	return nil
}

// newer reports whether any definition that is present is of a newer version
// than those to be installed.
func newer(present, objects []*unstructured.Unstructured) bool {
	wanted, err := version.ParseGeneric(bundle(objects))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(present, func(o *unstructured.Unstructured) bool {
		v, err := version.ParseGeneric(o.GetAnnotations()[annotationBundle])
		return err == nil && wanted.LessThan(v)
	})
}

// applyOurs applies an object that is in no release, marked as ours.
func (i *Installer) applyOurs(ctx context.Context, o *unstructured.Unstructured) error {
	marked := o.DeepCopy()
	labels := marked.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[labelManagedBy] = managedByUs
	marked.SetLabels(labels)
	client, err := i.client(marked)
	if err != nil {
		return err
	}
	_, err = client.Apply(ctx, marked.GetName(), marked, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

// client returns the client for an object's kind, in its namespace.
func (i *Installer) client(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := o.GroupVersionKind()
	mapping, err := i.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return i.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace()), nil
	}
	return i.dynamic.Resource(mapping.Resource), nil
}
