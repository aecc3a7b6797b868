package installer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	release "helm.sh/helm/v4/pkg/release/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/install/crds"
)

// leftover is a kind of object that istiod makes while it runs, and which of
// them are its own.
type leftover struct {
	resource schema.GroupVersionResource
	kind     string
	system   bool // in the mesh's namespace only
	labels   string
	name     string // empty: any
	ours     func(*unstructured.Unstructured) bool
}

// leftovers of istiod. Deleting Deployments first leaves no pod without its
// account.
func leftoverList() []leftover {
	managed := mesh.LabelGatewayManaged + "=" + mesh.ManagedMeshController
	return []leftover{
		{resource: resource("apps", "deployments"), kind: "Deployment", labels: managed},
		{resource: resource("", "services"), kind: "Service", labels: managed},
		{resource: resource("", "serviceaccounts"), kind: "ServiceAccount", labels: managed},
		{resource: resource("", "configmaps"), kind: "ConfigMap", labels: mesh.LabelConfig + "=true", name: mesh.RootCertConfig},
		{resource: resource("coordination.k8s.io", "leases"), kind: "Lease", system: true, name: "istiod-leader"},
		{resource: resource("", "secrets"), kind: "Secret", system: true, name: mesh.CASecretName, ours: madeByIstiod},
		{
			resource: resource(gatewayGroup, "gatewayclasses"), kind: "GatewayClass", name: mesh.WaypointGatewayClass,
			ours: func(o *unstructured.Unstructured) bool {
				controller, _, _ := unstructured.NestedString(o.Object, "spec", "controllerName")
				return controller == mesh.MeshControllerName
			},
		},
	}
}

// madeByIstiod reports whether our istiod has made the object: Istio's key has
// the same name, and whoever lost it would lose all identities. istiod/kube says
// under which name istiod writes.
func madeByIstiod(o *unstructured.Unstructured) bool {
	return slices.ContainsFunc(o.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool { return f.Manager == mesh.ServiceIstiod })
}

func resource(group, name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: "v1", Resource: name}
}

func leftoverKinds() []string {
	var out []string
	for _, l := range leftoverList() {
		out = append(out, l.kind)
	}
	return out
}

// leftovers returns what istiod has made and no release contains. Istio's gives
// the same names and labels: where one runs that is not of the releases, nothing
// counts as ours.
func (i *Installer) leftovers(ctx context.Context, present map[string]*release.Release) ([]*unstructured.Unstructured, error) {
	istiods, err := i.kube.AppsV1().Deployments(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: "app=" + mesh.ServiceIstiod})
	if err != nil {
		return nil, fmt.Errorf("deployments of istiod: %w", err)
	}
	for n := range istiods.Items {
		if d := &istiods.Items[n]; !owners(present)[ownerOf(d)] {
			i.say("waypoints, root certificates and the authority's key stay: Deployment %s/%s is a control plane of somebody else's", d.Namespace, d.Name)
			return nil, nil
		}
	}
	var out []*unstructured.Unstructured
	for _, l := range leftoverList() {
		namespace := metav1.NamespaceAll
		if l.system {
			namespace = i.cfg.Namespace
		}
		options := metav1.ListOptions{LabelSelector: l.labels}
		if l.name != "" {
			options.FieldSelector = "metadata.name=" + l.name
		}
		list, err := i.dynamic.Resource(l.resource).Namespace(namespace).List(ctx, options)
		if apierrors.IsNotFound(err) { // the kind is not defined here
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.resource.Resource, err)
		}
		for n := range list.Items {
			o := &list.Items[n]
			if o.GetDeletionTimestamp() == nil && (l.ours == nil || l.ours(o)) {
				out = append(out, o)
			}
		}
	}
	return out, nil
}

// purgeable returns the definitions that go with the mesh: Istio's that belong
// to a release of ours, or to one that is gone, and the Gateway API's if we have
// installed it.
func (i *Installer) purgeable(ctx context.Context, present map[string]*release.Release) ([]*unstructured.Unstructured, error) {
	found, _, err := i.definitions(ctx, owners(present))
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, d := range found {
		o := &unstructured.Unstructured{}
		o.SetAPIVersion(crdResource.GroupVersion().String())
		o.SetKind(kindCRD)
		o.SetName(d.name)
		out = append(out, o)
	}
	definitions, err := i.gatewayDefinitions(ctx)
	if err != nil || len(definitions) == 0 || !ours(definitions) {
		return out, err
	}
	// With the definitions goes what came with them: the policy that guards them.
	manifest, err := i.cfg.GatewayAPI()
	if err != nil && !errors.Is(err, crds.ErrNoGatewayAPI) {
		return nil, err
	}
	bundle, err := decode(manifest)
	if err != nil {
		return nil, err
	}
	for _, o := range bundle {
		if o.GetKind() == kindCRD {
			continue
		}
		client, err := i.client(o)
		if err != nil {
			continue // a kind that this cluster does not have, so there is no such object
		}
		there, err := client.Get(ctx, o.GetName(), metav1.GetOptions{})
		if err == nil && ours([]*unstructured.Unstructured{there}) {
			out = append(out, there)
		} else if err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	return append(out, definitions...), nil
}

// marked returns the pods that still say that their connections are redirected.
// An agent takes that back itself, unless it has lost its permissions before it
// ended, as with helm uninstall, or its node is dead. Where Istio's agent runs,
// the marks are its own.
func (i *Installer) marked(ctx context.Context) ([]metav1.ObjectMeta, error) {
	others, err := i.kube.AppsV1().DaemonSets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: "k8s-app=istio-cni-node"})
	if err != nil || len(others.Items) > 0 {
		return nil, err
	}
	pods, err := i.metadata.Resource(resource("", "pods")).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("pods: %w", err)
	}
	var out []metav1.ObjectMeta
	for _, p := range pods.Items {
		if _, ok := p.Annotations[mesh.AnnotationRedirection]; ok {
			out = append(out, p.ObjectMeta)
		}
	}
	return out, nil
}

// unmark takes the mark off pods.
func (i *Installer) unmark(ctx context.Context, pods []metav1.ObjectMeta) error {
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null}}}`, mesh.AnnotationRedirection)
	for _, p := range pods {
		_, err := i.metadata.Resource(resource("", "pods")).Namespace(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Name, err)
		}
	}
	if len(pods) > 0 {
		i.say("annotation %s: removed from %d pods", mesh.AnnotationRedirection, len(pods))
	}
	return nil
}

// delete deletes objects and waits until they are gone.
func (i *Installer) delete(ctx context.Context, what string, objects []*unstructured.Unstructured) error {
	left := slices.Clone(objects)
	background := metav1.DeletePropagationBackground
	for _, o := range left {
		client, err := i.client(o)
		if err != nil {
			return fmt.Errorf("%s: %s %s: %w", what, o.GetKind(), o.GetName(), err)
		}
		err = client.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("%s: %s %s: %w", what, o.GetKind(), o.GetName(), err)
		}
	}
	err := i.wait(ctx, what, func(ctx context.Context) (bool, []string, error) {
		var err error
		left, err = i.still(ctx, left)
		if err != nil || len(left) == 0 {
			return err == nil, nil, err
		}
		return false, []string{fmt.Sprintf("%d objects are going, such as %s %s%s", len(left), left[0].GetKind(), left[0].GetName(), finalizers(left[0]))}, nil
	})
	if err == nil && len(objects) > 0 {
		i.say("%s: %d objects removed", what, len(objects))
	}
	return err
}

// still returns those of the objects that are there.
func (i *Installer) still(ctx context.Context, objects []*unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for _, o := range objects {
		client, err := i.client(o)
		if err != nil {
			return nil, err
		}
		there, err := client.Get(ctx, o.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, err
		case o.GetUID() != "" && there.GetUID() != o.GetUID(): // somebody has made it anew
		default:
			there.SetGroupVersionKind(o.GroupVersionKind())
			out = append(out, there)
		}
	}
	return out, nil
}

func finalizers(o *unstructured.Unstructured) string {
	if f := o.GetFinalizers(); len(f) > 0 {
		return ", which waits for " + join(f)
	}
	return ""
}

// ourNamespace reports whether ambitctl has made the mesh's namespace.
func (i *Installer) ourNamespace(ctx context.Context) (bool, error) {
	ns, err := i.kube.CoreV1().Namespaces().Get(ctx, i.cfg.Namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && ns.Labels[labelManagedBy] == managedByUs, err
}

// deleteNamespace deletes the mesh's namespace unless something of others is in
// it: what Kubernetes puts into every namespace does not count.
func (i *Installer) deleteNamespace(ctx context.Context) error {
	others, err := i.inNamespace(ctx)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", i.cfg.Namespace, err)
	}
	if len(others) > 0 {
		if len(others) > 5 {
			others = append(others[:5], fmt.Sprintf("and %d more", len(others)-5))
		}
		i.say("namespace %s: kept, because it holds %s", i.cfg.Namespace, join(others))
		return nil
	}
	namespaces := i.kube.CoreV1().Namespaces()
	if err := namespaces.Delete(ctx, i.cfg.Namespace, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("namespace %s: %w", i.cfg.Namespace, err)
	}
	err = i.wait(ctx, "namespace "+i.cfg.Namespace, func(ctx context.Context) (bool, []string, error) {
		ns, err := namespaces.Get(ctx, i.cfg.Namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil, nil
		}
		if err != nil {
			return false, nil, err
		}
		for _, c := range ns.Status.Conditions {
			if c.Status == "True" {
				return false, []string{string(c.Type) + ": " + c.Message}, nil
			}
		}
		return false, []string{"is going"}, nil
	})
	if err == nil {
		i.say("namespace %s: removed", i.cfg.Namespace)
	}
	return err
}

// inNamespace returns what is in the mesh's namespace that is neither going nor
// made by Kubernetes itself.
func (i *Installer) inNamespace(ctx context.Context) ([]string, error) {
	i.discovery.Invalidate() // definitions may have gone
	lists, err := i.discovery.ServerPreferredNamespacedResources()
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, err
	}
	var out []string
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || strings.Contains(r.Name, "/") || gv.Group == "" && r.Name == "endpoints" {
				continue // Endpoints are of a Service, and to ask for them draws a warning
			}
			found, err := i.metadata.Resource(gv.WithResource(r.Name)).Namespace(i.cfg.Namespace).List(ctx, metav1.ListOptions{})
			if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", r.Name, err)
			}
			for _, o := range found.Items {
				if o.DeletionTimestamp == nil && !ofKubernetes(gv.Group, r.Kind, o.ObjectMeta) {
					out = append(out, r.Kind+" "+o.Name)
				}
			}
		}
	}
	return out, nil
}

// ofKubernetes reports whether the object comes with a namespace or with an
// object that is there for its own sake.
func ofKubernetes(group, kind string, o metav1.ObjectMeta) bool {
	switch {
	case kind == "Event", group == "metrics.k8s.io", len(o.OwnerReferences) > 0:
		return true
	case group == "" && kind == "ServiceAccount":
		return o.Name == "default"
	case group == "" && kind == "ConfigMap":
		return o.Name == "kube-root-ca.crt"
	case kind == "EndpointSlice":
		return true // of a Service, which is counted itself or is gone
	}
	return false
}
