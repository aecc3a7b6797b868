package cni

import (
	"context"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/klog/v2"
)

// Wanted says whether the agent's DaemonSet is there to stay, and selects this node.
//
// When the API server cannot be asked, what it has said before counts: who removes the
// agent removes its permissions with it, often before its pods have ended (Helm deletes
// roles and service accounts right after DaemonSets), but a watch that is open goes on,
// and has told of the DaemonSet's end. That permissions are gone proves nothing by
// itself: so are those of a pod that is deleted by force.
func (k *Kubernetes) Wanted(ctx context.Context) (bool, error) {
	if ns, ok, _ := k.namespaces.GetStore().GetByKey(k.daemonSet.Namespace); ok && ns.(*metav1.PartialObjectMetadata).DeletionTimestamp != nil {
		return false, nil // where pods may go before what made them
	}
	var set appsv1.DaemonSet
	err := k.apps.Get().Namespace(k.daemonSet.Namespace).Resource("daemonsets").Name(k.daemonSet.Name).Do(ctx).Into(&set)
	switch {
	case apierrors.IsNotFound(err), err != nil && k.sawRemoval(), err == nil && set.DeletionTimestamp != nil:
		return false, nil
	case err != nil:
		return false, err
	}
	var node corev1.Node
	err = k.core.Get().Resource("nodes").Name(k.node).Do(ctx).Into(&node)
	if apierrors.IsNotFound(err) {
		return true, nil // the kubelet may register it again
	}
	if err != nil {
		return false, err
	}
	return selects(&set.Spec.Template.Spec, &node)
}

// sawRemoval says whether the last that was seen of the DaemonSet was its end.
func (k *Kubernetes) sawRemoval() bool {
	if !k.daemonSets.HasSynced() {
		return false
	}
	set, ok, _ := k.daemonSets.GetStore().GetByKey(k.daemonSet.String())
	return !ok || set.(*appsv1.DaemonSet).DeletionTimestamp != nil
}

// selects says whether a DaemonSet makes a pod by the template on the node: so decides
// its controller,
// https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/#how-daemon-pods-are-scheduled.
func selects(template *corev1.PodSpec, node *corev1.Node) (bool, error) {
	if template.NodeName != "" && template.NodeName != node.Name {
		return false, nil
	}
	if !labels.SelectorFromSet(template.NodeSelector).Matches(labels.Set(node.Labels)) || !tolerates(template.Tolerations, node.Spec.Taints) {
		return false, nil
	}
	if a := template.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		return matchesAny(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms, node)
	}
	return true, nil
}

// tolerates says whether no taint keeps the pod away. A DaemonSet's pods tolerate what
// Kubernetes says of the state of a node.
func tolerates(tolerations []corev1.Toleration, taints []corev1.Taint) bool {
	for _, taint := range taints {
		if taint.Effect == corev1.TaintEffectPreferNoSchedule || strings.HasPrefix(taint.Key, "node.kubernetes.io/") {
			continue
		}
		if !slices.ContainsFunc(tolerations, func(t corev1.Toleration) bool { return t.ToleratesTaint(klog.Background(), &taint, true) }) {
			return false
		}
	}
	return true
}

func matchesAny(terms []corev1.NodeSelectorTerm, node *corev1.Node) (bool, error) {
	for _, term := range terms {
		byLabel, err := matchesAll(term.MatchExpressions, node.Labels)
		if err != nil {
			return false, err
		}
		byField, err := matchesAll(term.MatchFields, map[string]string{metav1.ObjectNameField: node.Name})
		if err != nil {
			return false, err
		}
		if byLabel && byField && len(term.MatchExpressions)+len(term.MatchFields) > 0 { // an empty one matches nothing
			return true, nil
		}
	}
	return false, nil
}

// operators of node selectors by the names that label selectors have for them.
var operators = map[corev1.NodeSelectorOperator]selection.Operator{
	corev1.NodeSelectorOpIn: selection.In, corev1.NodeSelectorOpNotIn: selection.NotIn,
	corev1.NodeSelectorOpExists: selection.Exists, corev1.NodeSelectorOpDoesNotExist: selection.DoesNotExist,
	corev1.NodeSelectorOpGt: selection.GreaterThan, corev1.NodeSelectorOpLt: selection.LessThan,
}

func matchesAll(requirements []corev1.NodeSelectorRequirement, values labels.Set) (bool, error) {
	for _, r := range requirements {
		requirement, err := labels.NewRequirement(r.Key, operators[r.Operator], r.Values)
		if err != nil {
			return false, err
		}
		if !requirement.Matches(values) {
			return false, nil
		}
	}
	return true, nil
}
