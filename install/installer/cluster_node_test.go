//go:build cluster

package installer

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// node plays a node, its kubelet and the scheduler, unless the cluster has a
// node. fail names a container that never starts, and why.
type node struct {
	kube kubernetes.Interface
	fail func(container string) *corev1.ContainerState
}

const nodeName = "ambit-test-node"

func playNode(t *testing.T, fail func(container string) *corev1.ContainerState) {
	t.Helper()
	config, err := testFlags(t).ToRESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	n := node{kube: kubernetes.NewForConfigOrDie(config), fail: fail}
	nodes, err := n.kube.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes.Items) > 0 {
		if fail != nil {
			t.Fatal("this test needs a cluster without nodes: make one with cluster up --control-plane-only")
		}
		return
	}
	capacity := corev1.ResourceList{"cpu": quantity.MustParse("8"), "memory": quantity.MustParse("16Gi"), "pods": quantity.MustParse("100")}
	_, err = n.kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		Name: nodeName, Labels: map[string]string{"kubernetes.io/os": "linux"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() { defer close(ended); n.run(ctx, t.Logf) }()
	t.Cleanup(func() {
		if err := n.kube.CoreV1().Nodes().Delete(ctx, nodeName, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		stop()
		<-ended
	})
	status, err := json.Marshal(corev1.Node{Status: corev1.NodeStatus{
		Capacity: capacity, Allocatable: capacity,
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Test", LastHeartbeatTime: metav1.Now()}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.kube.CoreV1().Nodes().Patch(t.Context(), nodeName, types.StrategicMergePatchType, status, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

func (n node) run(ctx context.Context, log func(format string, args ...any)) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		pods, err := n.kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
		if err == nil {
			for _, pod := range pods.Items {
				if err := n.tend(ctx, &pod); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) {
					log("node: pod %s: %v", pod.Name, err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (n node) tend(ctx context.Context, pod *corev1.Pod) error {
	pods := n.kube.CoreV1().Pods(pod.Namespace)
	now := int64(0)
	switch {
	case pod.DeletionTimestamp != nil:
		return pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	case pod.Spec.NodeName == "":
		return pods.Bind(ctx, &corev1.Binding{
			Namespace: pod.Namespace, Name: pod.Name, Target: corev1.ObjectReference{Kind: "Node", Name: nodeName},
		}, metav1.CreateOptions{})
	case pod.Status.Phase == corev1.PodRunning:
		return nil
	}
	ready := corev1.ConditionTrue
	phase := corev1.PodRunning
	var statuses []corev1.ContainerStatus
	for _, c := range pod.Spec.Containers {
		s := corev1.ContainerStatus{Name: c.Name, Image: c.Image, Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}}
		if n.fail != nil {
			if state := n.fail(c.Name); state != nil {
				s.Ready, s.State, ready, phase = false, *state, corev1.ConditionFalse, corev1.PodPending
			}
		}
		statuses = append(statuses, s)
	}
	if len(pod.Status.ContainerStatuses) > 0 && phase == corev1.PodPending {
		return nil // it has been said
	}
	pod.Status.Phase, pod.Status.ContainerStatuses = phase, statuses
	pod.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
		{Type: corev1.ContainersReady, Status: ready},
		{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.Now()},
	}
	_, err := pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}
