package installer

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// workload is a Deployment or DaemonSet of ours.
type workload struct {
	kind, namespace, name string
}

// rollout is how far a workload is.
type rollout struct {
	ready, wanted int32
	// current says that no pod of an older version is left, and that the
	// numbers are of the newest.
	current  bool
	begun    bool // the controller has seen what is wanted
	selector *metav1.LabelSelector
}

func (r rollout) done() bool { return r.current && r.ready >= r.wanted }

func (r rollout) String() string {
	if !r.begun {
		return "not begun"
	}
	if !r.current && r.ready >= r.wanted {
		return fmt.Sprintf("%d of %d ready, not all of the new version", r.ready, r.wanted)
	}
	return fmt.Sprintf("%d of %d ready", r.ready, r.wanted)
}

func ofDeployment(d *appsv1.Deployment) rollout {
	wanted, s := int32(1), d.Status
	if d.Spec.Replicas != nil {
		wanted = *d.Spec.Replicas
	}
	return rollout{
		ready: min(s.AvailableReplicas, s.UpdatedReplicas), wanted: wanted, selector: d.Spec.Selector, begun: s.ObservedGeneration >= d.Generation,
		current: s.ObservedGeneration >= d.Generation && s.UpdatedReplicas >= wanted && s.Replicas <= s.UpdatedReplicas,
	}
}

func ofDaemonSet(d *appsv1.DaemonSet) rollout {
	s := d.Status
	updated := s.UpdatedNumberScheduled
	if d.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType {
		updated = s.DesiredNumberScheduled // the user replaces the pods
	}
	return rollout{
		ready: s.NumberAvailable, wanted: s.DesiredNumberScheduled, selector: d.Spec.Selector, begun: s.ObservedGeneration >= d.Generation,
		current: s.ObservedGeneration >= d.Generation && updated >= s.DesiredNumberScheduled,
	}
}

func (i *Installer) rollout(ctx context.Context, w workload) (rollout, error) {
	if w.kind == kindDeployment {
		d, err := i.kube.AppsV1().Deployments(w.namespace).Get(ctx, w.name, metav1.GetOptions{})
		if err != nil {
			return rollout{}, err
		}
		return ofDeployment(d), nil
	}
	d, err := i.kube.AppsV1().DaemonSets(w.namespace).Get(ctx, w.name, metav1.GetOptions{})
	if err != nil {
		return rollout{}, err
	}
	return ofDaemonSet(d), nil
}

// problem is why a pod is not ready.
type problem struct {
	pod, container string // container is empty when it is the pod's
	text           string
	log            bool // the container has run, so its log may tell why
	previous       bool // what it says is in the log of the run before
	starting       bool // nothing is known but that its containers do not start
	young          bool // what every pod goes through: wrong only if it lasts
}

func (p problem) String() string {
	if p.container == "" {
		return fmt.Sprintf("pod %s: %s", p.pod, p.text)
	}
	return fmt.Sprintf("pod %s: container %s: %s", p.pod, p.container, p.text)
}

// problems says what is wrong with pods. A pod that merely starts is no problem.
func problems(pods []corev1.Pod) []problem {
	var out []problem
	for _, pod := range pods {
		if pod.DeletionTimestamp != nil {
			continue
		}
		out = append(out, problemsOf(pod)...)
	}
	slices.SortFunc(out, func(a, b problem) int { return cmp.Compare(a.String(), b.String()) })
	return out
}

func problemsOf(pod corev1.Pod) []problem {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return []problem{{pod: pod.Name, text: "not scheduled: " + c.Message}}
		}
	}
	if pod.Status.Phase == corev1.PodFailed {
		return []problem{{pod: pod.Name, text: strings.TrimSpace("failed: " + pod.Status.Reason + " " + pod.Status.Message)}}
	}
	if pod.Status.Phase == corev1.PodPending && len(pod.Status.ContainerStatuses) == 0 && pod.Spec.NodeName != "" {
		return []problem{{pod: pod.Name, text: "node " + pod.Spec.NodeName + " has not started it yet", starting: true, young: true}}
	}
	var out []problem
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		p := problem{pod: pod.Name, container: c.Name}
		last := c.LastTerminationState.Terminated
		switch {
		case c.State.Waiting != nil && (c.State.Waiting.Reason == "ContainerCreating" || c.State.Waiting.Reason == "PodInitializing"):
			out = append(out, problem{pod: pod.Name, text: "its containers are being created", starting: true, young: true})
			return out
		case c.State.Waiting != nil:
			p.text = describe(c.State.Waiting.Reason, c.State.Waiting.Message)
			if p.log = last != nil; p.log {
				p.previous = true
				p.text = fmt.Sprintf("%s (exit code %d, %d restarts)", c.State.Waiting.Reason, last.ExitCode, c.RestartCount)
			}
		case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
			p.text, p.log = fmt.Sprintf("ended with exit code %d: %s", c.State.Terminated.ExitCode, c.State.Terminated.Reason), true
		case c.State.Running != nil && !c.Ready:
			p.text, p.log, p.young = "runs and is not ready yet", true, true
		default:
			continue
		}
		out = append(out, p)
	}
	return out
}

func describe(reason, message string) string {
	if message == "" {
		return reason
	}
	return reason + ": " + message
}

// problems lists the pods of a rollout and says what is wrong with them. Where a
// pod does not even start, its last warning tells why.
func (i *Installer) problems(ctx context.Context, namespace string, selector *metav1.LabelSelector) ([]problem, error) {
	pods, err := i.pods(ctx, namespace, selector)
	if err != nil {
		return nil, err
	}
	found := problems(pods)
	for n, p := range found {
		if !p.starting {
			continue
		}
		events, err := i.kube.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{
			FieldSelector: fields.Set{"involvedObject.name": p.pod, "type": corev1.EventTypeWarning}.String(),
		})
		if err != nil || len(events.Items) == 0 {
			continue // being created is all that is known
		}
		last := slices.MaxFunc(events.Items, func(a, b corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
		found[n].text, found[n].young = describe(last.Reason, last.Message), false
	}
	return found, nil
}

func (i *Installer) pods(ctx context.Context, namespace string, selector *metav1.LabelSelector) ([]corev1.Pod, error) {
	list, err := i.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(selector)})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// logTail is how many lines of a log an error shows.
const logTail = 8

// logs returns the last lines of a container that does not work, "" when there
// are none to be had.
func (i *Installer) logs(ctx context.Context, namespace string, p problem) string {
	tail := int64(logTail)
	read := func(previous bool) ([]byte, error) {
		stream, err := i.kube.CoreV1().Pods(namespace).GetLogs(p.pod, &corev1.PodLogOptions{
			Container: p.container, TailLines: &tail, Previous: previous,
		}).Stream(ctx)
		if err != nil {
			return nil, err
		}
		defer stream.Close()
		return io.ReadAll(io.LimitReader(stream, 16<<10))
	}
	text, err := read(p.previous)
	if apierrors.IsBadRequest(err) && p.previous {
		text, err = read(false)
	}
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(text), "\n")
}
