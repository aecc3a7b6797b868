package source

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

func fullPod() *corev1.Pod {
	always, yes := corev1.ContainerRestartPolicyAlways, true
	p := &corev1.Pod{
		Spec: corev1.PodSpec{
			ServiceAccountName: "web", NodeName: "n1", HostNetwork: true,
			Containers:     []corev1.Container{{Name: "c", Image: "i", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}, Env: []corev1.EnvVar{{Name: "A", Value: "b"}}}},
			InitContainers: []corev1.Container{{Name: "s", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 81}}}},
			Volumes:        []corev1.Volume{{Name: "v"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			Conditions:        []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue, Message: "m"}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "c", RestartCount: 3}},
		},
	}
	p.Namespace, p.Name, p.UID = "shop", "web-abc-x", types.UID("u")
	p.Labels = map[string]string{"app": "web", "pod-template-hash": "abc"}
	p.Annotations = map[string]string{mesh.AnnotationRedirection: mesh.RedirectionEnabled, corev1.LastAppliedConfigAnnotation: "{}"}
	p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-abc", Controller: &yes}}
	p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
	return p
}

// TestReduceKeepsWhatTheModelReads would fail when the model comes to read more
// of a pod than is kept.
func TestReduceKeepsWhatTheModelReads(t *testing.T) {
	p := fullPod()
	want := model.NewPod(p)
	for range 2 {
		if _, err := reduce(p); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, model.NewPod(p), cmp.Comparer(func(a, b interface{ String() string }) bool { return a.String() == b.String() })); diff != "" {
		t.Errorf("the model of a reduced pod differs (-want +got):\n%s", diff)
	}
	if len(p.ManagedFields)+len(p.Spec.Volumes)+len(p.Status.ContainerStatuses)+len(p.Spec.Containers[0].Env) > 0 || p.Annotations[corev1.LastAppliedConfigAnnotation] != "" {
		t.Errorf("a reduced pod still has parts that nobody reads: %+v", p)
	}
}

func TestReduceDeployment(t *testing.T) {
	d := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{MinReadySeconds: 5}}
	d.Labels = map[string]string{mesh.LabelGatewayManaged: mesh.ManagedMeshController}
	if _, err := reduce(d); err != nil || d.Spec.MinReadySeconds != 5 {
		t.Errorf("a Deployment of ours lost its spec (error %v)", err)
	}
	d.Labels = nil
	if _, err := reduce(d); err != nil || d.Spec.MinReadySeconds != 0 {
		t.Errorf("a Deployment of a user has kept its spec (error %v)", err)
	}
}

// FuzzServed: nothing that an API server may send makes a batch fail.
func FuzzServed(f *testing.F) {
	f.Add("security.istio.io", "AuthorizationPolicy", []byte(`{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":"a","namespace":"b"},"spec":{"action":"DENY","x":1}}`))
	f.Add("gateway.networking.k8s.io", "Gateway", []byte(`{"apiVersion":"gateway.networking.k8s.io/v1beta1","metadata":{"name":"a","namespace":"b"},"spec":{"listeners":[{"port":"x"}]},"status":{"y":2}}`))
	f.Fuzz(func(t *testing.T, group, kind string, data []byte) {
		body, ok := anyObject(data)
		if !ok {
			return
		}
		r := newKubernetesRig(t, newServer(t).clients())
		if _, read := r.kinds[groupKind{group, kind}]; !read {
			return
		}
		r.apply(t.Context(), map[manifestKey]change{{Group: group, Kind: kind, Namespace: "b", Name: "a"}: {object: body}})
	})
}
