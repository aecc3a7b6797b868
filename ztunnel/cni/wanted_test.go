package cni

import (
	"net/http"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestSelects(t *testing.T) {
	node := func(taints ...corev1.Taint) *corev1.Node {
		return &corev1.Node{Name: "n1", Labels: map[string]string{"disk": "ssd", "cores": "8"}, Spec: corev1.NodeSpec{Taints: taints}}
	}
	affinity := func(terms ...corev1.NodeSelectorTerm) corev1.PodSpec {
		return corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms},
		}}}
	}
	label := func(key string, op corev1.NodeSelectorOperator, values ...string) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: op, Values: values}}}
	}
	name := func(op corev1.NodeSelectorOperator, value string) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: op, Values: []string{value}}}}
	}
	both := label("disk", corev1.NodeSelectorOpIn, "ssd")
	both.MatchFields = name(corev1.NodeSelectorOpIn, "n2").MatchFields
	dedicated := corev1.Taint{Key: "dedicated", Value: "db", Effect: corev1.TaintEffectNoSchedule}
	for _, tc := range []struct {
		name     string
		template corev1.PodSpec
		node     *corev1.Node
		want     bool
	}{
		{"no condition", corev1.PodSpec{}, node(), true},
		{"this node", corev1.PodSpec{NodeName: "n1"}, node(), true},
		{"another node", corev1.PodSpec{NodeName: "n2"}, node(), false},
		{"selector", corev1.PodSpec{NodeSelector: map[string]string{"disk": "ssd"}}, node(), true},
		{"selector, another value", corev1.PodSpec{NodeSelector: map[string]string{"disk": "ssd", "cores": "4"}}, node(), false},
		{"preferences only", corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{}}}, node(), true},
		{"in", affinity(label("disk", corev1.NodeSelectorOpIn, "hdd", "ssd")), node(), true},
		{"not in", affinity(label("disk", corev1.NodeSelectorOpNotIn, "ssd")), node(), false},
		{"not in, without the label", affinity(label("gpu", corev1.NodeSelectorOpNotIn, "a")), node(), true},
		{"exists", affinity(label("gpu", corev1.NodeSelectorOpExists)), node(), false},
		{"does not exist", affinity(label("gpu", corev1.NodeSelectorOpDoesNotExist)), node(), true},
		{"greater", affinity(label("cores", corev1.NodeSelectorOpGt, "4")), node(), true},
		{"less", affinity(label("cores", corev1.NodeSelectorOpLt, "4")), node(), false},
		{"one of two terms", affinity(label("gpu", corev1.NodeSelectorOpExists), name(corev1.NodeSelectorOpIn, "n1")), node(), true},
		{"name", affinity(name(corev1.NodeSelectorOpNotIn, "n1")), node(), false},
		{"all of a term", affinity(both), node(), false},
		{"no terms", affinity(), node(), false},
		{"an empty term", affinity(corev1.NodeSelectorTerm{}), node(), false},
		{"taint", corev1.PodSpec{}, node(dedicated), false},
		{"taint, tolerated", corev1.PodSpec{Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}}, node(dedicated), true},
		{"taint of another value", corev1.PodSpec{Tolerations: []corev1.Toleration{{Key: "dedicated", Value: "web"}}}, node(dedicated), false},
		{"mere preference", corev1.PodSpec{}, node(corev1.Taint{Key: "a", Effect: corev1.TaintEffectPreferNoSchedule}), true},
		{"drained, not ready", corev1.PodSpec{}, node(
			corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule},
			corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute}), true},
	} {
		got, err := selects(&tc.template, tc.node)
		if err != nil || got != tc.want {
			t.Errorf("%s: got %v, %v, want %v", tc.name, got, err, tc.want)
		}
	}
	odd := affinity(label("disk", "Resembles", "ssd"))
	if got, err := selects(&odd, node()); err == nil {
		t.Errorf("an operator of tomorrow: got %v, want that it cannot be said", got)
	}
}

// TestClusterWanted: what is not known is an error, and no answer.
func TestClusterWanted(t *testing.T) {
	c := newCluster(t)
	c.start(true)
	for _, tc := range []struct {
		name   string
		node   map[string]any
		refuse int
		want   bool
	}{
		{name: "there", node: object("v1", "Node", map[string]any{"name": "n1"}), want: true},
		{name: "node not registered", want: true},
		{name: "refused", refuse: http.StatusUnauthorized},
	} {
		c.api.set(nodePath, tc.node)
		c.api.refuseWith(tc.refuse)
		if got, err := c.ask(t.Context()); got != tc.want || (err == nil) != (tc.refuse == 0) {
			t.Errorf("%s: got %v, %v, want %v", tc.name, got, err, tc.want)
		}
	}
}
