package installer

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	release "helm.sh/helm/v4/pkg/release/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestReadValues(t *testing.T) {
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte("global: {hub: file, tag: file}\nistiod: {replicaCount: 2}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadValues(Given{Files: []string{file}, Set: []string{"istiod.replicaCount=3"}, SetString: []string{"global.tag=1"}})
	want := map[string]any{"global": map[string]any{"hub": "file", "tag": "1"}, "istiod": map[string]any{"replicaCount": int64(3)}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, g := range []Given{{Files: []string{file + "x"}}, {Set: []string{"a[x]=c"}}, {SetString: []string{"noassignment"}}} {
		if _, err := ReadValues(g); err == nil {
			t.Errorf("%+v is accepted", g)
		}
	}
}

func TestSectionsShareGlobals(t *testing.T) {
	got, err := sections(parse(t, "global: {hub: all, tag: all}\ncni: {logLevel: debug, global: {tag: own}}"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]any{
		"base":    {"global": map[string]any{"hub": "all", "tag": "all"}},
		"istiod":  {"global": map[string]any{"hub": "all", "tag": "all"}},
		"ztunnel": {"global": map[string]any{"hub": "all", "tag": "all"}},
		"cni":     {"logLevel": "debug", "global": map[string]any{"hub": "all", "tag": "own"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestRollout(t *testing.T) {
	two := int32(2)
	deployment := func(generation int64, s appsv1.DeploymentStatus) rollout {
		d := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &two}, Status: s}
		d.Generation = generation
		return ofDeployment(d)
	}
	daemonSet := func(generation int64, s appsv1.DaemonSetStatus) rollout {
		d := &appsv1.DaemonSet{Status: s}
		d.Generation = generation
		return ofDaemonSet(d)
	}
	for _, c := range []struct {
		name string
		got  rollout
		done bool
		says string
	}{
		{"deployment that no controller has seen", deployment(1, appsv1.DeploymentStatus{}), false, "not begun"},
		{"deployment whose change no controller has seen", deployment(2, appsv1.DeploymentStatus{
			ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2,
		}), false, "not begun"},
		{"deployment with one of two", deployment(1, appsv1.DeploymentStatus{
			ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 1,
		}), false, "1 of 2 ready"},
		{"deployment with new pods that are not available, and old ones that are", deployment(1, appsv1.DeploymentStatus{
			ObservedGeneration: 1, Replicas: 3, UpdatedReplicas: 1, AvailableReplicas: 2,
		}), false, "1 of 2 ready"},
		{"deployment with an old pod left", deployment(1, appsv1.DeploymentStatus{
			ObservedGeneration: 1, Replicas: 3, UpdatedReplicas: 2, AvailableReplicas: 3,
		}), false, "2 of 2 ready, not all of the new version"},
		{"deployment", deployment(1, appsv1.DeploymentStatus{
			ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2,
		}), true, "2 of 2 ready"},
		{"daemon set with old pods", daemonSet(2, appsv1.DaemonSetStatus{
			ObservedGeneration: 2, DesiredNumberScheduled: 2, NumberAvailable: 2, UpdatedNumberScheduled: 1,
		}), false, "2 of 2 ready, not all of the new version"},
		{"daemon set", daemonSet(2, appsv1.DaemonSetStatus{
			ObservedGeneration: 2, DesiredNumberScheduled: 2, NumberAvailable: 2, UpdatedNumberScheduled: 2,
		}), true, "2 of 2 ready"},
		{"daemon set of a cluster without nodes", daemonSet(1, appsv1.DaemonSetStatus{ObservedGeneration: 1}), true, "0 of 0 ready"},
	} {
		if c.got.done() != c.done || c.got.String() != c.says {
			t.Errorf("%s: done %v, %q; want %v, %q", c.name, c.got.done(), c.got, c.done, c.says)
		}
	}
}

func TestProblems(t *testing.T) {
	pod := func(name string, s corev1.PodStatus) corev1.Pod {
		return corev1.Pod{Name: name, Spec: corev1.PodSpec{NodeName: "n1"}, Status: s}
	}
	container := func(ready bool, s corev1.ContainerState) corev1.PodStatus {
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", Ready: ready, State: s}}}
	}
	waiting := func(reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	crashed := container(false, waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container"))
	crashed.ContainerStatuses[0].RestartCount = 3
	crashed.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 2}
	going := pod("going", container(false, waiting("ErrImagePull", "")))
	going.DeletionTimestamp = &metav1.Time{}
	for _, c := range []struct {
		pod  corev1.Pod
		want string
		log  bool
	}{
		{pod: pod("good", container(true, corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}))},
		{pod: going},
		{pod: pod("a", container(false, waiting("ImagePullBackOff", "Back-off pulling image \"x\""))), want: `pod a: container c: ImagePullBackOff: Back-off pulling image "x"`},
		{pod: pod("b", crashed), want: "pod b: container c: CrashLoopBackOff (exit code 2, 3 restarts)", log: true},
		{pod: pod("d", container(false, waiting("ContainerCreating", ""))), want: "pod d: its containers are being created"},
		{pod: pod("e", container(false, corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})), want: "pod e: container c: runs and is not ready yet", log: true},
		{
			pod:  pod("f", corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/2 nodes are available"}}}),
			want: "pod f: not scheduled: 0/2 nodes are available",
		},
		{pod: pod("g", corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "disk"}), want: "pod g: failed: Evicted disk"},
		{pod: pod("h", corev1.PodStatus{Phase: corev1.PodPending}), want: "pod h: node n1 has not started it yet"},
	} {
		got := problems([]corev1.Pod{c.pod})
		switch {
		case c.want == "" && len(got) > 0:
			t.Errorf("pod %s: %v", c.pod.Name, got)
		case c.want != "" && (len(got) != 1 || got[0].String() != c.want || got[0].log != c.log):
			t.Errorf("pod %s: %+v, want %s", c.pod.Name, got, c.want)
		}
	}
}

func gatewayDefinition(version, manager string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetKind(kindCRD)
	o.SetName("gateways." + gatewayGroup)
	o.SetAnnotations(map[string]string{annotationBundle: version})
	o.SetLabels(map[string]string{labelManagedBy: manager})
	return o
}

func TestGatewayAPIVersions(t *testing.T) {
	for _, c := range []struct {
		version      string
		warns, newer bool
		named        string
	}{
		{version: "v1.0.0", warns: true, named: "v1.0.0"},
		{version: "v1.1.0", named: "v1.1.0"},
		{version: "v1.7.0", named: "v1.7.0"},
		{version: "v1.8.0-rc.1", newer: true, named: "v1.8.0-rc.1"},
		{version: "v2.0.0", newer: true, named: "v2.0.0"},
		{version: "", warns: true, named: "a version without a name"},
		{version: "main", warns: true, named: "main"},
	} {
		present := []*unstructured.Unstructured{gatewayDefinition(c.version, managedByUs)}
		if got := len(tooOld(present)) > 0; got != c.warns {
			t.Errorf("%q: warns %v", c.version, got)
		}
		if got := newer(present, []*unstructured.Unstructured{gatewayDefinition("v1.7.0", "")}); got != c.newer {
			t.Errorf("%q: newer than v1.7.0 %v", c.version, got)
		}
		if got := bundle(present); got != c.named {
			t.Errorf("%q is named %q", c.version, got)
		}
	}
	if !ours([]*unstructured.Unstructured{gatewayDefinition("v1", managedByUs)}) || ours([]*unstructured.Unstructured{gatewayDefinition("v1", managedByUs), gatewayDefinition("v1", "")}) {
		t.Error("one definition of somebody else's makes them all somebody else's")
	}
}

func TestDeadNodesAreNotWaitedFor(t *testing.T) {
	pod := func(node string) corev1.Pod { return corev1.Pod{Spec: corev1.PodSpec{NodeName: node}} }
	ending, lost := splitPods([]corev1.Pod{pod("a"), pod("b"), pod("a"), pod("")}, map[string]bool{"b": true})
	if len(ending) != 3 || !slices.Equal(nodesOf(lost), []string{"b"}) || !slices.Equal(nodesOf(ending), []string{"a"}) {
		t.Errorf("ending %v, lost %v", nodesOf(ending), nodesOf(lost))
	}
}

func TestPlanIsInTheOrderOfWork(t *testing.T) {
	rel := func(name string) *release.Release { return &release.Release{Name: name, Namespace: system} }
	present := map[string]*release.Release{"base": rel("ambit-base"), "cni": rel("my-cni"), "ztunnel": rel("ambit-ztunnel")}
	secret := &unstructured.Unstructured{}
	secret.SetKind("Secret")
	got := remains{
		releases: present, left: []*unstructured.Unstructured{secret}, definitions: []*unstructured.Unstructured{{}, {}},
		marked: []metav1.ObjectMeta{{}}, namespace: system,
	}.plan()
	want := []string{
		"release my-cni in istio-system", "release ambit-ztunnel in istio-system", "release ambit-base in istio-system",
		"1 Secret that istiod has made", "annotation ambient.istio.io/redirection of 1 pods",
		"2 definitions, and every object of these kinds", "namespace istio-system, unless something of others is in it",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := (remains{}).plan(); len(got) != 0 {
		t.Errorf("nothing is planned as %q", got)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for text, want := range map[string]string{
		`ServiceAccount "istiod" exists: invalid ownership metadata; label validation error`: "remove it there first",
		"at '': additional properties 'foo' not allowed":                                     "ambitctl manifest values",
		`Apply failed with 1 conflict: conflict with "kubectl-edit"`:                         "undo the edit",
	} {
		if got := explain(errors.New(text)).Error(); !strings.Contains(got, want) || !strings.HasPrefix(got, text) {
			t.Errorf("%s: %s", text, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("# only\n---\nkind: A\nmetadata: {name: b}\n"))
	f.Add([]byte("kind: A"))
	f.Add([]byte("- 1\n---\n{"))
	f.Fuzz(func(t *testing.T, text []byte) {
		objects, err := decode(text)
		if err != nil {
			return
		}
		for _, o := range objects {
			if o.GetKind() == "" || o.GetName() == "" {
				t.Errorf("%q has an object without kind or name", text)
			}
		}
	})
}
