package installer

import (
	"bytes"
	"strings"
	"testing"

	release "helm.sh/helm/v4/pkg/release/v1"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// withObjects is an Installer whose API server holds objects.
func withObjects(istiods []runtime.Object, objects ...runtime.Object) (*Installer, *bytes.Buffer) {
	kinds := map[schema.GroupVersionResource]string{}
	for _, l := range leftoverList() {
		kinds[l.resource] = l.kind + "List"
	}
	out := &bytes.Buffer{}
	return &Installer{
		cfg: Config{Namespace: system, Out: out}, kube: fake.NewClientset(istiods...),
		dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, objects...),
	}, out
}

func istiodOf(name string, o owner) *appsv1.Deployment {
	d := &appsv1.Deployment{Name: name, Namespace: system, Labels: map[string]string{"app": "istiod", labelManagedBy: "Helm"}}
	d.Annotations = map[string]string{annotationRelease: o.release, annotationReleaseNamespace: o.namespace}
	return d
}

// caSecret is the authority's, made by a field manager.
func caSecret(manager string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion("v1")
	o.SetKind("Secret")
	o.SetNamespace(system)
	o.SetName(mesh.CASecretName)
	o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate}})
	return o
}

func waypointService() *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion("v1")
	o.SetKind("Service")
	o.SetNamespace("shop")
	o.SetName("waypoint")
	o.SetLabels(map[string]string{mesh.LabelGatewayManaged: mesh.ManagedMeshController})
	return o
}

// What istiod makes has the names and labels that Istio's gives: where Istio's
// runs, it is Istio's.
func TestLeftoversAreOursAlone(t *testing.T) {
	mine := owner{system, "ambit-istiod"}
	ours := map[string]*release.Release{"istiod": {Name: mine.release, Namespace: mine.namespace}}
	for _, c := range []struct {
		name    string
		istiods []runtime.Object
		manager string
		present map[string]*release.Release
		want    string // kinds
		says    string
	}{
		{"our own", []runtime.Object{istiodOf("istiod", mine)}, "istiod", ours, "Service Secret", ""},
		{"our own is gone", nil, "istiod", ours, "Service Secret", ""},
		{"a key that Istio has made and we have taken over", nil, "pilot-discovery", ours, "Service", ""},
		{"Istio's beside ours", []runtime.Object{istiodOf("istiod", mine), istiodOf("istiod-canary", owner{system, "istiod-canary"})}, "istiod", ours, "", "Deployment istio-system/istiod-canary"},
		{"Istio's alone", []runtime.Object{istiodOf("istiod", owner{system, "istiod"})}, "pilot-discovery", nil, "", "Deployment istio-system/istiod"},
		{"Istio's of no release", []runtime.Object{istiodOf("istiod", owner{})}, "istiod", nil, "", "Deployment istio-system/istiod"},
	} {
		i, out := withObjects(c.istiods, caSecret(c.manager), waypointService())
		left, err := i.leftovers(t.Context(), c.present)
		if err != nil {
			t.Fatal(err)
		}
		var kinds []string
		for _, o := range left {
			kinds = append(kinds, o.GetKind())
		}
		if got := strings.Join(kinds, " "); got != c.want {
			t.Errorf("%s: %q would be deleted, want %q", c.name, got, c.want)
		}
		if text := out.String(); (text == "") != (c.says == "") || !strings.Contains(text, c.says) {
			t.Errorf("%s: says %q, want %q", c.name, text, c.says)
		}
	}
}

// Helm keeps releases where HELM_DRIVER says: a definition whose release is in a
// ConfigMap has an owner.
func TestReleasesInConfigMapsOwnDefinitions(t *testing.T) {
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	stored := func(kind, name string) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{
			APIVersion: "v1", Kind: kind,
			Namespace: system, Name: name + ".v1", Labels: map[string]string{"owner": "helm", "name": name},
		}
	}
	i := &Installer{metadata: metadatafake.NewSimpleMetadataClient(scheme, stored("Secret", "a"), stored("ConfigMap", "b"))}
	for name, orphan := range map[string]bool{"a": false, "b": false, "c": true} {
		if got := i.orphan(t.Context(), owner{system, name}); got != orphan {
			t.Errorf("release %s: its objects are nobody's: %v, want %v", name, got, orphan)
		}
	}
}

func TestReusedValuesKeepWhatWasLeftOut(t *testing.T) {
	given := func(names ...any) map[string]any {
		return map[string]any{"base": map[string]any{"excludedCRDs": names}}
	}
	before := &release.Release{Config: given("sidecars.networking.istio.io")}
	i := &Installer{}
	if got := i.excluded(request{before: before}); len(got) != 0 {
		t.Errorf("without --reuse-values %v are left out", got)
	}
	i.cfg.ReuseValues = true
	if got := i.excluded(request{before: before}); len(got) != 1 {
		t.Errorf("with --reuse-values %v are left out, want what was", got)
	}
	if got := i.excluded(request{before: before, values: given()}); len(got) != 0 {
		t.Errorf("%v are left out, want none: that is said", got)
	}
	if got := i.excluded(request{}); len(got) != 0 {
		t.Errorf("at first install %v are left out", got)
	}
}
