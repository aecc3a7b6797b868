package source

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	typedapps "k8s.io/client-go/kubernetes/typed/apps/v1"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	typeddiscovery "k8s.io/client-go/kubernetes/typed/discovery/v1"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/collection"
)

// server is an API server of fakes, which know no versions and no schemas. What
// takes those is tried on a real one: kubernetes_cluster_test.go.
type server struct {
	t        *testing.T
	core     *fake.Clientset
	custom   *dynamicfake.FakeDynamicClient
	metadata *metadatafake.FakeMetadataClient
	// watched is told when definitions are watched: what happens between a list
	// and a watch is lost on a fake.
	watched chan struct{}
}

var policyGVR = schema.GroupVersionResource{Group: groupSecurity, Version: "v1", Resource: "authorizationpolicies"}

func newServer(t *testing.T, objects ...runtime.Object) *server {
	t.Helper()
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	s := &server{
		watched:  make(chan struct{}, 100),
		t:        t,
		core:     fake.NewClientset(objects...),
		custom:   dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{policyGVR: "AuthorizationPolicyList", definitionsGVR: "CustomResourceDefinitionList"}),
		metadata: metadatafake.NewSimpleMetadataClient(scheme),
	}
	s.metadata.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		w, err := s.metadata.Tracker().Watch(action.GetResource(), action.GetNamespace())
		s.watched <- struct{}{}
		return true, w, err
	})
	return s
}

func (s *server) clients() clients {
	return clients{
		core: core{s.core.CoreV1(), noStreams{}}, apps: apps{s.core.AppsV1(), noStreams{}}, discovery: discovery{s.core.DiscoveryV1(), noStreams{}},
		dynamic: s.custom, metadata: s.metadata,
	}
}

// The typed fakes do not say by themselves that they cannot stream lists.
type (
	noStreams struct{}
	core      struct {
		typedcore.CoreV1Interface
		noStreams
	}
	apps struct {
		typedapps.AppsV1Interface
		noStreams
	}
	discovery struct {
		typeddiscovery.DiscoveryV1Interface
		noStreams
	}
)

func (noStreams) IsWatchListSemanticsUnSupported() bool { return true }

// define adds a definition that is in force; the two fakes know nothing of each
// other.
func (s *server) define(plural, group, kind string, versions ...string) {
	s.t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{}
	crd.APIVersion, crd.Kind, crd.Name = "apiextensions.k8s.io/v1", "CustomResourceDefinition", plural+"."+group
	crd.Spec.Group, crd.Spec.Names.Plural, crd.Spec.Names.Kind = group, plural, kind
	for _, version := range versions {
		crd.Spec.Versions = append(crd.Spec.Versions, apiextensionsv1.CustomResourceDefinitionVersion{Name: version, Served: true})
	}
	crd.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
	body, err := runtime.DefaultUnstructuredConverter.ToUnstructured(crd)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.custom.Tracker().Create(definitionsGVR, &unstructured.Unstructured{Object: body}, ""); err != nil {
		s.t.Fatal(err)
	}
	names := &metav1.PartialObjectMetadata{}
	names.APIVersion, names.Kind, names.Name, names.ResourceVersion = crd.APIVersion, crd.Kind, crd.Name, "1"
	if err := s.metadata.Tracker().Create(definitionsGVR, names, ""); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) undefine(name string) {
	s.t.Helper()
	if err := errors.Join(s.custom.Tracker().Delete(definitionsGVR, "", name), s.metadata.Tracker().Delete(definitionsGVR, "", name)); err != nil {
		s.t.Fatal(err)
	}
}

func policyBody(name, version, action string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": groupSecurity + "/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"name": name, "namespace": "shop", "resourceVersion": version, "generation": int64(4)},
		"spec":     map[string]any{"action": action},
	}}
}

func (s *server) create(o *unstructured.Unstructured) {
	s.t.Helper()
	if err := s.custom.Tracker().Create(policyGVR, o, o.GetNamespace()); err != nil {
		s.t.Fatal(err)
	}
}

// kubernetesRig is a source that has not run yet.
type kubernetesRig struct {
	*Kubernetes
	objects *Objects
	loaded  chan struct{}
	changed chan struct{}
	reports []Report
}

func newKubernetesRig(t *testing.T, c clients) *kubernetesRig {
	t.Helper()
	r := &kubernetesRig{objects: NewObjects(collection.NewGraph()), loaded: make(chan struct{}), changed: make(chan struct{}, 1000)}
	collection.Sink(r.objects.AuthorizationPolicies, func(e []collection.Event[*authorizationPolicy]) { r.changed <- struct{}{} })
	k, err := newKubernetes(KubernetesConfig{
		Objects: r.objects, Log: slog.New(slog.DiscardHandler),
		Report: func(report Report) { r.reports = append(r.reports, report) },
		Loaded: func() { close(r.loaded) },
	}, c)
	if err != nil {
		t.Fatal(err)
	}
	r.Kubernetes = k
	return r
}

// start runs the source until the end of the test.
func (r *kubernetesRig) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func (r *kubernetesRig) state(kind string) Watched {
	for _, w := range r.Watched() {
		if w.Kind == kind {
			return w
		}
	}
	return Watched{}
}

func TestKubernetesKindsComeAndGo(t *testing.T) {
	namespace := &corev1.Namespace{}
	namespace.Name = "shop"
	s := newServer(t, namespace)
	s.create(policyBody("early", "1", "DENY"))
	r := newKubernetesRig(t, s.clients())
	r.start(t)
	<-r.loaded
	<-s.watched
	if _, ok := r.objects.Namespaces.Get("shop"); !ok {
		t.Error("namespace shop is not there after the first load")
	}
	if got := r.state("AuthorizationPolicy").State; got != StateAbsent || r.objects.AuthorizationPolicies.Len() != 0 {
		t.Errorf("without a definition: %s with %d objects, want %s with none", got, r.objects.AuthorizationPolicies.Len(), StateAbsent)
	}
	if _, ok := r.Resource(groupSecurity, "AuthorizationPolicy"); ok {
		t.Error("a kind without a definition has a resource")
	}
	s.define("authorizationpolicies", groupSecurity, "AuthorizationPolicy", "v1alpha9", "v1")
	<-r.changed
	if got := names(r.objects); !slices.Equal(got, []string{"early:DENY"}) {
		t.Errorf("once it is defined: %q, want early:DENY", got)
	}
	if got, _ := r.Resource(groupSecurity, "AuthorizationPolicy"); got != policyGVR {
		t.Errorf("resource %v, want %v", got, policyGVR)
	}
	s.undefine("authorizationpolicies." + groupSecurity)
	<-r.changed
	if got := names(r.objects); len(got) != 0 {
		t.Errorf("once the definition is gone: %q, want nothing", got)
	}
}

func TestKubernetesWaitsForWhatItMayNotRead(t *testing.T) {
	s := newServer(t)
	s.define("authorizationpolicies", groupSecurity, "AuthorizationPolicy", "v1")
	s.create(policyBody("one", "1", "DENY"))
	asked := make(chan struct{}, 100)
	s.custom.PrependReactor("list", "authorizationpolicies", func(clienttesting.Action) (bool, runtime.Object, error) {
		asked <- struct{}{}
		return true, nil, apierrors.NewForbidden(policyGVR.GroupResource(), "", errors.New("no"))
	})
	r := newKubernetesRig(t, s.clients())
	r.start(t)
	<-asked
	<-asked // the answer to the first has been noted
	want := Watched{
		Group: groupSecurity, Kind: "AuthorizationPolicy", Version: "v1", State: StateFailing,
		Error: "istiod may not list authorizationpolicies.security.istio.io: its ClusterRole has to allow get, list and watch of them: authorizationpolicies.security.istio.io is forbidden: no",
	}
	if diff := cmp.Diff(want, r.state("AuthorizationPolicy")); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	select {
	case <-r.loaded:
		t.Error("the first load is done although policies cannot be read")
	default:
	}
}

// batch is what is queued by the time that the source looks.
func batch(list ...any) map[manifest.Key]change {
	out := map[manifest.Key]change{}
	for _, o := range list {
		switch o := o.(type) {
		case *unstructured.Unstructured:
			out[manifest.KeyOf(o)] = change{object: o}
		case *corev1.Pod:
			out[manifest.Key{Kind: "Pod", Namespace: o.Namespace, Name: o.Name}] = change{object: o}
		case *metav1.PartialObjectMetadata:
			out[manifest.Key{Group: "telemetry.istio.io", Kind: "Telemetry", Namespace: o.Namespace, Name: o.Name}] = change{object: o, unread: true}
		case manifest.Key:
			out[o] = change{}
		}
	}
	return out
}

func TestKubernetesReports(t *testing.T) {
	r := newKubernetesRig(t, newServer(t).clients())
	key := manifest.Key{Group: groupSecurity, Kind: "AuthorizationPolicy", Namespace: "shop", Name: "one"}
	step := func(what string, changes map[manifest.Key]change, want Report, policies ...string) {
		t.Helper()
		r.reports = nil
		r.apply(t.Context(), changes)
		if diff := cmp.Diff([]Report{want}, r.reports); diff != "" {
			t.Errorf("%s: report (-want +got):\n%s", what, diff)
		}
		if got := names(r.objects); !slices.Equal(got, policies) {
			t.Errorf("%s: policies %q, want %q", what, got, policies)
		}
	}
	odd := policyBody("one", "2", "ALLOW")
	odd.Object["spec"].(map[string]any)["mood"] = "bad"
	odd.Object["status"] = map[string]any{"mood": "good"}
	wrong := policyBody("one", "4", "ALLOW")
	wrong.Object["spec"] = map[string]any{"rules": "all"}
	telemetry := &metav1.PartialObjectMetadata{}
	telemetry.Namespace, telemetry.Name = "shop", "t"

	step("a good object", batch(policyBody("one", "1", "DENY")), Report{}, "one:DENY")
	step("an unknown field", batch(odd), Report{Warnings: []Invalid{{Key: key, Generation: 4, Field: "spec.mood", Reason: "unknown field, which has no effect"}}}, "one:ALLOW")
	r.reports = nil
	for what, bad := range map[string]*unstructured.Unstructured{"a value": policyBody("one", "3", "FORBID"), "a type": wrong} {
		r.reports = nil
		r.apply(t.Context(), batch(bad))
		if got := r.reports[0].Invalid; len(got) != 1 || got[0].Key != key || got[0].Generation != 4 || got[0].Reason == "" {
			t.Errorf("%s that is wrong is reported as %+v", what, got)
		}
		if got := names(r.objects); !slices.Equal(got, []string{"one:ALLOW"}) {
			t.Errorf("%s is wrong: policies %q, want the last good one", what, got)
		}
	}
	step("mended", batch(policyBody("one", "5", "AUDIT")), Report{Valid: []manifest.Key{key}, Unwarned: []manifest.Key{key}}, "one:AUDIT")
	tkey := manifest.Key{Group: "telemetry.istio.io", Kind: "Telemetry", Namespace: "shop", Name: "t"}
	step("a kind that is not read", batch(telemetry), Report{Unread: []Invalid{{Key: tkey, Reason: "not read by istiod"}}}, "one:AUDIT")
	step("again", batch(telemetry), Report{}, "one:AUDIT")
	step("gone", batch(tkey, key), Report{Valid: []manifest.Key{tkey}})
}

// TestKubernetesIgnoresNoise: what a kubelet writes every minute causes no work.
func TestKubernetesIgnoresNoise(t *testing.T) {
	r := newKubernetesRig(t, newServer(t).clients())
	changes := 0
	collection.Sink(r.objects.Pods, func([]collection.Event[*corev1.Pod]) { changes++ })
	pod := func(version, image string, phase corev1.PodPhase) *corev1.Pod {
		p := &corev1.Pod{}
		p.Namespace, p.Name, p.UID, p.ResourceVersion = "shop", "web", types.UID("u"), version
		p.Spec.Containers = []corev1.Container{{Name: "c", Image: image}}
		p.Status.Phase = phase
		if _, err := reduce(p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	r.apply(t.Context(), batch(pod("1", "a", corev1.PodRunning)))
	r.apply(t.Context(), batch(pod("2", "b", corev1.PodRunning)))
	if changes != 1 {
		t.Errorf("%d changes of a pod of which only the image changed, want 1", changes)
	}
	r.apply(t.Context(), batch(pod("3", "b", corev1.PodFailed)))
	if changes != 2 {
		t.Errorf("%d changes, want one more because the pod failed", changes)
	}
}

func TestFeedQueuesDifferences(t *testing.T) {
	q := newQueue()
	f := newFeed(groupKind{"", "ConfigMap"}, q)
	config := func(name, version string) any {
		c := &corev1.ConfigMap{Data: map[string]string{mesh.MeshConfigKey: "x", "other": "y"}}
		c.Namespace, c.Name, c.ResourceVersion = "shop", name, version
		return c
	}
	want := func(what string, want ...string) {
		t.Helper()
		var got []string
		for key, c := range q.take() {
			text := key.Name + " gone"
			if o, ok := c.object.(*corev1.ConfigMap); ok {
				text = key.Name + " " + o.ResourceVersion + " " + o.Data[mesh.MeshConfigKey] + o.Data["other"]
			}
			got = append(got, text)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: queued %q, want %q", what, got, want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(f.Replace([]any{config("a", "1"), config("b", "1"), config("c", "1")}, "1"))
	want("first list, reduced", "a 1 x", "b 1 x", "c 1 x")
	do(f.Update(config("a", "1")))
	want("the same version again")
	do(f.Update(config("a", "2")))
	do(f.Update(config("a", "3")))
	want("two changes at once", "a 3 x")
	do(f.Delete(config("b", "1")))
	want("a deletion", "b gone")
	do(f.Replace([]any{config("a", "3"), config("c", "2"), config("d", "1")}, "9"))
	want("a list after an interruption", "c 2 x", "d 1 x")
	do(f.Replace([]any{config("d", "1")}, "10"))
	want("deletions during an interruption", "a gone", "c gone")
	f.clear()
	want("the kind is gone", "d gone")
	do(f.Replace([]any{config("d", "1")}, "11"))
	want("the kind is back", "d 1 x")
}
