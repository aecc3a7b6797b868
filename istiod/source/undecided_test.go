package source

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	securityapi "istio.io/api/security/v1beta1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/install/charts"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/model"
)

func meshConfigOf(text string) *corev1.ConfigMap {
	c := meshConfigMap(text)
	c.Namespace, c.Name = meshKey.Namespace, meshKey.Name
	return c
}

// A trust domain that cannot be read is not the default one.
func TestBadMeshConfigIsWaitedFor(t *testing.T) {
	r := newKubernetesRig(t, newServer(t, meshConfigOf("trustDomain: [")).clients())
	reported := make(chan Report, 10)
	r.cfg.Report = func(report Report) { reported <- report }
	r.start(t)
	for len((<-reported).Invalid) == 0 { //nolint:revive // until it is refused
	}
	pod := manifest.Key{Kind: "Pod", Namespace: "shop", Name: "p"}
	r.queue.put(pod, change{object: &corev1.Pod{Namespace: "shop", Name: "p"}})
	<-reported // the batch before is done
	select {
	case <-r.loaded:
		t.Fatal("the first load is done although the trust domain cannot be read")
	default:
	}
	if text := r.Missing(); !strings.Contains(text, "trust domain") || !strings.Contains(text, meshKey.Name) {
		t.Errorf("missing: %q", text)
	}
	r.queue.put(meshKey, change{object: meshConfigOf("trustDomain: example.org")})
	<-r.loaded
	if text := r.Missing(); text != "" {
		t.Errorf("missing after the first load: %q", text)
	}
	// What has been known once stays.
	r.queue.put(meshKey, change{object: meshConfigOf("trustDomain: [")})
	for len((<-reported).Invalid) == 0 { //nolint:revive // until it is refused
	}
	if c, ok := r.objects.ConfigMaps.Get(MeshConfigKey); !ok || !strings.Contains(c.Data["mesh"], "example.org") {
		t.Error("the last good configuration is gone")
	}
}

func TestBadMeshConfigInADirectoryIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := func(text string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: '" + text + "'\n"
	}
	write("mesh.yaml", config("trustDomain: ["))
	loaded, reported := make(chan struct{}), make(chan Report, 10)
	runInBackground(t, DirConfig{
		Objects: NewObjects(collection.NewGraph()), Dirs: []string{dir},
		Report: func(r Report) { reported <- r }, Loaded: func() { close(loaded) },
	})
	<-reported
	write("other.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
	<-reported
	select {
	case <-loaded:
		t.Fatal("the first load is done although the trust domain cannot be read")
	default:
	}
	write("mesh.yaml", config("trustDomain: example.org"))
	<-loaded
}

// A policy that an API server has accepted and we cannot read restricts.
func TestUnreadablePoliciesRestrict(t *testing.T) {
	r := newKubernetesRig(t, newServer(t).clients())
	policy := func(version, action string) *unstructured.Unstructured {
		body := policyBody("one", version, action)
		body.Object["spec"].(map[string]any)["selector"] = map[string]any{"matchLabels": map[string]any{"app": "a"}}
		return body
	}
	get := func() *authorizationPolicy {
		p, _ := r.objects.AuthorizationPolicies.Get("shop/one")
		return p
	}
	r.apply(t.Context(), batch(policy("1", "MAYBE")))
	p := get()
	if p == nil || !model.NewPolicy(p).Unreadable || p.Spec.GetAction() != securityapi.AuthorizationPolicy_DENY || len(p.Spec.GetRules()) != 1 {
		t.Fatalf("instead of a policy that cannot be read there is %v, want one that denies everything", p)
	}
	if diff := cmp.Diff(map[string]string{"app": "a"}, p.Spec.GetSelector().GetMatchLabels()); diff != "" {
		t.Errorf("selector (-want +got):\n%s", diff)
	}
	if got := r.reports[len(r.reports)-1].Invalid; len(got) != 1 || !strings.Contains(got[0].Reason, "everything is denied") {
		t.Errorf("reported as %+v", got)
	}
	r.apply(t.Context(), batch(policy("2", "ALLOW")))
	if p := get(); model.NewPolicy(p).Unreadable || p.Spec.GetAction() != securityapi.AuthorizationPolicy_ALLOW {
		t.Errorf("once it can be read: %v", p)
	}
	r.apply(t.Context(), batch(policy("3", "MAYBE")))
	if p := get(); model.NewPolicy(p).Unreadable {
		t.Error("the last good version has given way to one that denies")
	}
	key := manifest.KeyOf(policy("3", ""))
	r.apply(t.Context(), batch(key))
	r.apply(t.Context(), batch(policy("4", "MAYBE")))
	r.apply(t.Context(), batch(key))
	if get() != nil {
		t.Error("what stood in for the policy is there although it is gone")
	}

	peer := policyBody("strict", "1", "")
	peer.SetKind("PeerAuthentication")
	peer.Object["spec"] = map[string]any{"mtls": map[string]any{"mode": "STRICTEST"}}
	r.apply(t.Context(), batch(peer))
	if p, ok := r.objects.PeerAuthentications.Get("shop/strict"); !ok || p.Spec.GetMtls().GetMode() != securityapi.PeerAuthentication_MutualTLS_STRICT {
		t.Errorf("instead of a PeerAuthentication that cannot be read there is %v, want a STRICT one", p)
	}
	service := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": groupNetworking + "/v1", "kind": "VirtualService", "metadata": map[string]any{"name": "v", "namespace": "shop"},
		"spec": map[string]any{"hosts": "all"},
	}}
	r.apply(t.Context(), batch(service))
	if r.objects.VirtualServices.Len() != 0 {
		t.Error("something stands in for a VirtualService")
	}
}

func TestLostDefinitionsAreSeen(t *testing.T) {
	s := newServer(t)
	r := newKubernetesRig(t, s.clients())
	asked := make(chan struct{}, 100)
	lost := func(clienttesting.Action) (bool, runtime.Object, error) {
		asked <- struct{}{}
		return true, nil, apierrors.NewForbidden(definitionsGVR.GroupResource(), "", errors.New("no"))
	}
	s.metadata.PrependReactor("list", "*", lost)
	r.start(t)
	<-asked
	<-asked
	if got := r.state("CustomResourceDefinition"); got.State != StateFailing || !strings.Contains(got.Error, "may not list") {
		t.Errorf("definitions are %+v, want failing", got)
	}
}

// What istiod asks for, chart istiod lets it read: the groups are the same.
func TestGroupsAreThoseOfTheChart(t *testing.T) {
	text, err := charts.FS.ReadFile("istiod/templates/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var granted []string
	for _, found := range regexp.MustCompile(`apiGroups: \[(\S+\.istio\.io|gateway\.\S+)\]`).FindAllStringSubmatch(string(text), -1) {
		granted = append(granted, found[1])
	}
	slices.Sort(granted)
	want := slices.Sorted(slices.Values(meshGroups))
	if got := slices.Compact(granted); !slices.Equal(got, want) {
		t.Errorf("the chart grants %q, istiod asks for %q", got, want)
	}
	if ForMesh("install.istio.io") {
		t.Error("Istio's operator is asked about")
	}
}
