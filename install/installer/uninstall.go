package installer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	release "helm.sh/helm/v4/pkg/release/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// UninstallOptions say what else goes, and who agrees.
type UninstallOptions struct {
	// Purge removes the definitions of Istio's kinds, and of the Gateway API's if
	// ambitctl has installed them, and with them all objects of these kinds.
	Purge bool
	// Confirm is asked with what will be done; false leaves everything as it is.
	Confirm func(plan []string) (bool, error)
}

// removal is the order in which parts go.
var removal = []string{"cni", "ztunnel", "istiod", "base"}

// ErrDeclined says that Confirm did not agree.
var ErrDeclined = errors.New("nothing has been changed")

// Uninstall takes the mesh out of the cluster, whoever has installed it of our
// charts:
//
//  1. the node agents, which release their pods and clean up their nodes: their
//     account keeps its permissions and ztunnel serves until they have ended
//  2. ztunnel, which has no pods left
//  3. istiod, so that nothing is written again that is removed next
//  4. what istiod has made: waypoints, root certificates, its lease, its key; and
//     what an agent could not take back
//  5. the definitions, with Purge
//  6. the namespace, if ambitctl has made it and nothing of others is in it
func (i *Installer) Uninstall(ctx context.Context, options UninstallOptions) error {
	if err := i.reach(ctx); err != nil {
		return err
	}
	found, err := i.survey(ctx, options.Purge)
	if err != nil {
		return err
	}
	plan := found.plan()
	if len(plan) == 0 {
		i.say("there is nothing to uninstall")
		return nil
	}
	if options.Confirm != nil {
		switch agreed, err := options.Confirm(plan); {
		case err != nil:
			return err
		case !agreed:
			return ErrDeclined
		}
	}
	if err := i.releases(ctx, found.releases); err != nil { // 1. to 3.
		return err
	}
	if err := i.clean(ctx, found.releases); err != nil { // 4.
		return err
	}
	if err := i.delete(ctx, "definitions", found.definitions); err != nil { // 5.
		return err
	}
	if found.namespace != "" { // 6.
		if err := i.deleteNamespace(ctx); err != nil {
			return err
		}
	}
	i.say("uninstalled")
	return nil
}

// remains is what of the mesh is in a cluster.
type remains struct {
	releases    map[string]*release.Release // by chart
	left        []*unstructured.Unstructured
	definitions []*unstructured.Unstructured
	marked      []metav1.ObjectMeta // pods
	namespace   string              // if ambitctl has made it
}

// survey looks for all that an uninstall removes.
func (i *Installer) survey(ctx context.Context, purge bool) (found remains, err error) {
	if found.releases, err = i.installed(ctx); err != nil {
		return remains{}, err
	}
	if found.left, err = i.leftovers(ctx, found.releases); err != nil {
		return remains{}, err
	}
	if purge {
		if found.definitions, err = i.purgeable(ctx, found.releases); err != nil {
			return remains{}, err
		}
	}
	if found.marked, err = i.marked(ctx); err != nil {
		return remains{}, err
	}
	mine, err := i.ourNamespace(ctx)
	if mine {
		found.namespace = i.cfg.Namespace
	}
	return found, err
}

// plan says what will be removed.
func (m remains) plan() []string {
	var out []string
	for _, chart := range append(slices.Clone(removal), umbrella) {
		if rel := m.releases[chart]; rel != nil {
			out = append(out, fmt.Sprintf("release %s in %s", rel.Name, rel.Namespace))
		}
	}
	kinds := map[string]int{}
	for _, o := range m.left {
		kinds[o.GetKind()]++
	}
	for _, kind := range leftoverKinds() {
		if kinds[kind] > 0 {
			out = append(out, fmt.Sprintf("%d %s that istiod has made", kinds[kind], kind))
		}
	}
	if len(m.marked) > 0 {
		out = append(out, fmt.Sprintf("annotation %s of %d pods", mesh.AnnotationRedirection, len(m.marked)))
	}
	if len(m.definitions) > 0 {
		out = append(out, fmt.Sprintf("%d definitions, and every object of these kinds", len(m.definitions)))
	}
	if m.namespace != "" {
		out = append(out, "namespace "+m.namespace+", unless something of others is in it")
	}
	return out
}

// clean removes what istiod has made, which may be more than before it ended,
// and what agents have left at pods.
func (i *Installer) clean(ctx context.Context, present map[string]*release.Release) error {
	left, err := i.leftovers(ctx, present)
	if err != nil {
		return err
	}
	if err := i.delete(ctx, "what istiod has made", left); err != nil {
		return err
	}
	pods, err := i.marked(ctx)
	if err != nil {
		return err
	}
	return i.unmark(ctx, pods)
}

// releases stops the parts in the order in which they may go, and removes their
// releases; the one release of all goes when all have been stopped.
func (i *Installer) releases(ctx context.Context, present map[string]*release.Release) error {
	for _, part := range removal {
		for _, chart := range []string{part, umbrella} {
			if r := present[chart]; r != nil {
				if err := i.stop(ctx, part, r); err != nil {
					return err
				}
			}
		}
		if err := i.removeRelease(present[part]); err != nil {
			return err
		}
	}
	return i.removeRelease(present[umbrella])
}

// removeRelease uninstalls a release; nil is none.
func (i *Installer) removeRelease(r *release.Release) error {
	if r == nil {
		return nil
	}
	cfg, err := i.helm(r.Namespace)
	if err != nil {
		return err
	}
	if err := i.remove(cfg, r.Name); err != nil {
		return fmt.Errorf("release %s: %w", r.Name, err)
	}
	i.say("release %s: uninstalled", r.Name)
	return nil
}

// workloads are what each part runs.
var workloads = map[string]workload{
	"istiod":  {kind: kindDeployment, name: "istiod"},
	"cni":     {kind: kindDaemonSet, name: "ambit-cni"},
	"ztunnel": {kind: kindDaemonSet, name: "ztunnel"},
}

// stop deletes a part's workload, if it is the release's, and waits until its
// pods have ended.
func (i *Installer) stop(ctx context.Context, part string, r *release.Release) error {
	w, ok := workloads[part]
	if !ok {
		return nil
	}
	w.namespace = r.Namespace
	o := &unstructured.Unstructured{}
	o.SetAPIVersion("apps/v1")
	o.SetKind(w.kind)
	o.SetNamespace(w.namespace)
	client, err := i.client(o)
	if err != nil {
		return err
	}
	there, err := client.Get(ctx, w.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", w.kind, w.name, err)
	}
	if ownerOf(there) != (owner{r.Namespace, r.Name}) {
		return nil
	}
	// Background: the object is gone before its pods, by which an agent knows that
	// it is not merely replaced.
	background := metav1.DeletePropagationBackground
	err = client.Delete(ctx, w.name, metav1.DeleteOptions{PropagationPolicy: &background})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("%s %s: %w", w.kind, w.name, err)
	}
	selector, err := selectorOf(there)
	if err != nil {
		return err
	}
	var lost []corev1.Pod
	err = i.wait(ctx, w.name, func(ctx context.Context) (bool, []string, error) {
		pods, err := i.pods(ctx, w.namespace, selector)
		if err != nil || len(pods) == 0 {
			return err == nil, nil, err
		}
		dead, err := i.deadNodes(ctx)
		if err != nil {
			return false, nil, err
		}
		pods, lost = splitPods(pods, dead)
		return len(pods) == 0, []string{ending(pods)}, nil
	})
	if err != nil {
		return err
	}
	i.say("%s: ended", w.name)
	if len(lost) > 0 {
		i.say("  warning: not on %s, which do not answer: what %s did there stays", join(nodesOf(lost)), w.name)
	}
	return nil
}

func ending(pods []corev1.Pod) string {
	text := fmt.Sprintf("%d pods are ending", len(pods))
	if nodes := nodesOf(pods); len(nodes) > 0 {
		text += " on " + join(nodes)
	}
	return text
}

// deadNodes are the nodes whose kubelet does not answer.
func (i *Installer) deadNodes(ctx context.Context) (map[string]bool, error) {
	nodes, err := i.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, n := range nodes.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown {
				out[n.Name] = true
			}
		}
	}
	return out, nil
}

// splitPods parts pods that will end from those that cannot, because their node
// is dead.
func splitPods(pods []corev1.Pod, dead map[string]bool) (ending, lost []corev1.Pod) {
	for _, p := range pods {
		if dead[p.Spec.NodeName] {
			lost = append(lost, p)
		} else {
			ending = append(ending, p)
		}
	}
	return ending, lost
}

func selectorOf(o *unstructured.Unstructured) (*metav1.LabelSelector, error) {
	labels, _, err := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels")
	if err != nil || len(labels) == 0 {
		return nil, fmt.Errorf("%s %s: spec.selector.matchLabels is not what our charts say", o.GetKind(), o.GetName())
	}
	return &metav1.LabelSelector{MatchLabels: labels}, nil
}

func nodesOf(pods []corev1.Pod) []string {
	var out []string
	for _, p := range pods {
		if p.Spec.NodeName != "" {
			out = append(out, p.Spec.NodeName)
		}
	}
	slices.Sort(out)
	if out = slices.Compact(out); len(out) > 5 {
		out = append(out[:5], "others")
	}
	return out
}
