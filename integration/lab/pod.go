package lab

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod is one pod. What is above the line never changes; the rest belongs to
// cluster.run, to which the pod's keeper reports.
type pod struct {
	namespace, name, uid string
	labels, annotations  map[string]string
	spec                 corev1.PodSpec
	owner                *metav1.OwnerReference
	workload             string // its key
	revision             string
	node                 *node
	address              netip.Addr // the node's for a host-network pod
	created              time.Time
	stop                 context.CancelFunc

	phase       corev1.PodPhase
	reason      string // why it is not running yet
	message     string
	hasAddress  bool // its network is set up
	started     time.Time
	containers  []container
	terminating bool
	deletedAt   time.Time
	places      map[string]place // by container, once it can be entered
	dirty       bool             // its object must be written
}

// container is what is known of a container.
type container struct {
	name, image string
	running     bool
	ready       bool
	restarts    int32
	changed     time.Time // when it started or ended
	ended       bool      // at least once
	code        int32     // of the last end
	waiting     string    // why it does not run
}

func (p *pod) key() string { return p.namespace + "/" + p.name }

func (p *pod) account() string {
	return cmp.Or(p.spec.ServiceAccountName, p.spec.DeprecatedServiceAccount, "default")
}

func (p *pod) containersReady() bool {
	if p.phase != corev1.PodRunning {
		return false
	}
	for _, c := range p.containers {
		if !c.ready {
			return false
		}
	}
	return true
}

// ready says whether the pod is to be sent traffic.
func (p *pod) ready() bool { return p.containersReady() && !p.terminating }

func (p *pod) finished() bool {
	return p.phase == corev1.PodSucceeded || p.phase == corev1.PodFailed
}

func (p *pod) standing() standing {
	return standing{name: p.name, node: p.node.name, revision: p.revision, ready: p.ready(), leaving: p.terminating, created: p.created}
}

// hostName is what the pod's processes call themselves.
func (p *pod) hostName() string {
	if p.spec.HostNetwork {
		return p.node.name
	}
	return cmp.Or(p.spec.Hostname, p.name)
}

// newPod makes a pod of a workload on a node.
func newPod(w workload, n *node, address netip.Addr, now time.Time) *pod {
	p := &pod{
		namespace: w.name.Namespace, name: w.podName(), uid: newUID(),
		labels: maps.Clone(w.podLabels), annotations: maps.Clone(w.template.Annotations), spec: *w.template.Spec.DeepCopy(),
		owner: w.owner(), workload: w.key(), revision: w.revision, node: n, address: address, created: now,
		phase: corev1.PodPending, reason: "ContainerCreating", dirty: true, places: map[string]place{},
	}
	if p.spec.HostNetwork {
		p.address = n.address
	}
	for _, c := range p.spec.Containers {
		p.containers = append(p.containers, container{name: c.Name, image: c.Image, waiting: "ContainerCreating"})
	}
	return p
}

// container returns the container with the name.
func (p *pod) container(name string) *container {
	i := slices.IndexFunc(p.containers, func(c container) bool { return c.name == name })
	return &p.containers[i]
}

// object is the Pod as a cluster would have it.
func (p *pod) object() *corev1.Pod {
	o := &corev1.Pod{
		APIVersion: "v1", Kind: "Pod",
		Namespace: p.namespace, Name: p.name, UID: types.UID(p.uid), CreationTimestamp: metav1.NewTime(p.created),
		Labels: p.labels, Annotations: p.annotations,
		Spec: *p.spec.DeepCopy(),
	}
	if p.owner != nil {
		o.OwnerReferences = []metav1.OwnerReference{*p.owner}
		o.GenerateName = p.owner.Name + "-"
	}
	if p.terminating {
		o.DeletionTimestamp = new(metav1.NewTime(p.deletedAt))
	}
	o.Spec.NodeName, o.Spec.ServiceAccountName = p.node.name, p.account()
	o.Spec.RestartPolicy = cmp.Or(o.Spec.RestartPolicy, corev1.RestartPolicyAlways)
	o.Status = corev1.PodStatus{Phase: p.phase, Reason: "", Message: p.message, HostIP: p.node.address.String()}
	o.Status.HostIPs = []corev1.HostIP{{IP: p.node.address.String()}}
	if p.hasAddress {
		o.Status.PodIP = p.address.String()
		o.Status.PodIPs = []corev1.PodIP{{IP: p.address.String()}}
	}
	if !p.started.IsZero() {
		o.Status.StartTime = new(metav1.NewTime(p.started))
	}
	o.Status.Conditions = p.conditions()
	for _, c := range p.containers {
		o.Status.ContainerStatuses = append(o.Status.ContainerStatuses, c.status())
	}
	return o
}

func (p *pod) conditions() []corev1.PodCondition {
	condition := func(kind corev1.PodConditionType, is bool, reason, message string) corev1.PodCondition {
		if is {
			return corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue}
		}
		return corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason, Message: message}
	}
	return []corev1.PodCondition{
		condition(corev1.PodReadyToStartContainers, p.hasAddress, p.reason, p.message),
		condition(corev1.PodInitialized, true, "", ""),
		condition(corev1.PodReady, p.containersReady(), "ContainersNotReady", p.message),
		condition(corev1.ContainersReady, p.containersReady(), "ContainersNotReady", p.message),
		condition(corev1.PodScheduled, true, "", ""),
	}
}

func (c container) status() corev1.ContainerStatus {
	s := corev1.ContainerStatus{Name: c.name, Image: c.image, Ready: c.ready, RestartCount: c.restarts, Started: new(c.running)}
	ended := &corev1.ContainerStateTerminated{ExitCode: c.code, Reason: "Error", FinishedAt: metav1.NewTime(c.changed)}
	if c.code == 0 {
		ended.Reason = "Completed"
	}
	switch {
	case c.running:
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.changed)}
	case c.waiting != "":
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: c.waiting}
	default:
		s.State.Terminated = ended
	}
	if c.ended && s.State.Terminated == nil {
		last := *ended
		if c.running {
			last.FinishedAt = metav1.Time{}
		}
		s.LastTerminationState.Terminated = &last
	}
	return s
}
