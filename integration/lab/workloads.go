package lab

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// workload is what wants pods: a Deployment, a DaemonSet, or a Pod of the
// user's.
type workload struct {
	kind      string
	name      types.NamespacedName
	uid       types.UID
	replicas  int // of a Deployment
	template  corev1.PodTemplateSpec
	revision  string // changes with the template
	podLabels map[string]string
}

// key identifies the workload among all.
func (w workload) key() string { return w.kind + " " + w.name.String() }

func deploymentWorkload(d *appsv1.Deployment) workload {
	w := newWorkload("Deployment", d.ObjectMeta, d.Spec.Template)
	w.replicas = 1
	if d.Spec.Replicas != nil {
		w.replicas = int(*d.Spec.Replicas)
	}
	w.podLabels[appsv1.DefaultDeploymentUniqueLabelKey] = w.revision
	return w
}

func daemonSetWorkload(d *appsv1.DaemonSet) workload {
	w := newWorkload("DaemonSet", d.ObjectMeta, d.Spec.Template)
	w.podLabels[appsv1.ControllerRevisionHashLabelKey] = w.revision
	w.podLabels[appsv1.DeprecatedTemplateGeneration] = "1"
	return w
}

func podWorkload(p *corev1.Pod) workload {
	meta := metav1.ObjectMeta{Labels: p.Labels, Annotations: p.Annotations}
	w := newWorkload("Pod", p.ObjectMeta, corev1.PodTemplateSpec{ObjectMeta: meta, Spec: p.Spec})
	w.replicas = 1
	return w
}

func newWorkload(kind string, m metav1.ObjectMeta, template corev1.PodTemplateSpec) workload {
	name := namespacedName(m)
	w := workload{
		kind: kind, name: name, template: template,
		uid:       types.UID(cmp.Or(string(m.UID), derivedUID(kind, name.Namespace, name.Name))),
		podLabels: map[string]string{},
	}
	text, _ := json.Marshal(template) // typed; cannot fail
	w.revision = shortHash(string(text))
	maps.Copy(w.podLabels, template.Labels)
	return w
}

// owner is the reference in the metadata of the workload's pods.
func (w workload) owner() *metav1.OwnerReference {
	ref := &metav1.OwnerReference{
		APIVersion: "apps/v1", Kind: w.kind, Name: w.name.Name, UID: w.uid,
		Controller: new(true), BlockOwnerDeletion: new(true),
	}
	switch w.kind {
	case "Pod":
		return nil
	case "Deployment": // a cluster has a ReplicaSet for each revision in between
		ref.Kind, ref.Name = "ReplicaSet", w.name.Name+"-"+w.revision
		ref.UID = types.UID(derivedUID("ReplicaSet", w.name.Namespace, ref.Name))
	}
	return ref
}

// podName is the name for a new pod.
func (w workload) podName() string {
	switch w.kind {
	case "Pod":
		return w.name.Name
	case "Deployment":
		return w.name.Name + "-" + w.revision + "-" + randomLetters()
	default:
		return w.name.Name + "-" + randomLetters()
	}
}

func randomLetters() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return nameLetters(binary.NativeEndian.Uint64(b[:]), 5)
}

// standing is what a workload needs to know of one of its pods.
type standing struct {
	name     string
	node     string
	revision string
	ready    bool
	leaving  bool
	created  time.Time
}

// steps is what to do next for a workload.
type steps struct {
	create []string // node of each new pod, "" = anywhere
	remove []string // names
}

// planReplicas brings a Deployment or a Pod to its number of replicas. A new
// revision is started beside the old one, which goes once as many new pods are
// ready; a single Pod's name can be used again only after the old one has gone.
func planReplicas(w workload, pods []standing) steps {
	var current, old []standing
	leaving := false
	for _, p := range pods {
		switch {
		case p.leaving:
			leaving = true
		case p.revision == w.revision:
			current = append(current, p)
		default:
			old = append(old, p)
		}
	}
	var s steps
	if w.kind == "Pod" {
		for _, p := range old {
			s.remove = append(s.remove, p.name)
		}
		if leaving || len(old) > 0 || len(current) > 0 {
			return s
		}
	}
	for range w.replicas - len(current) {
		s.create = append(s.create, w.template.Spec.NodeName)
	}
	// Too many: those that are not ready go first, then the newest.
	slices.SortFunc(current, func(a, b standing) int {
		return cmp.Or(compareBool(a.ready, b.ready), b.created.Compare(a.created), cmp.Compare(a.name, b.name))
	})
	ready := 0
	for i, p := range current {
		if i < len(current)-w.replicas {
			s.remove = append(s.remove, p.name)
		} else if p.ready {
			ready++
		}
	}
	if ready >= w.replicas {
		for _, p := range old {
			s.remove = append(s.remove, p.name)
		}
	}
	return s
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// planDaemons brings a DaemonSet to one pod for each node. The pods may hold
// ports of their node, so an old one goes before its successor comes; one node
// at a time, as its default strategy says.
func planDaemons(w workload, pods []standing, nodes []string) steps {
	var s steps
	replacing := false
	for _, node := range nodes {
		at := slices.IndexFunc(pods, func(p standing) bool { return p.node == node })
		if at < 0 {
			s.create = append(s.create, node)
			replacing = true
			continue
		}
		replacing = replacing || !pods[at].ready || pods[at].leaving
	}
	for _, p := range pods {
		if p.leaving || p.revision == w.revision {
			continue
		}
		if !p.ready || !replacing {
			s.remove = append(s.remove, p.name)
			replacing = true
		}
	}
	return s
}
