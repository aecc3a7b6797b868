package source

import (
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// reduce takes from an object of an API server, in place, what nobody reads:
// istiod holds every Pod of the cluster, and most of a Pod says how to run it.
// It may be called twice.
func reduce(o any) (any, error) {
	meta, ok := o.(metav1.Object)
	if !ok {
		return o, nil
	}
	meta.SetManagedFields(nil)
	if annotations := meta.GetAnnotations(); annotations[corev1.LastAppliedConfigAnnotation] != "" {
		annotations = maps.Clone(annotations)
		delete(annotations, corev1.LastAppliedConfigAnnotation)
		meta.SetAnnotations(annotations)
	}
	switch o := o.(type) {
	case *corev1.Pod:
		reducePod(o)
	case *corev1.Node:
		o.Spec, o.Status = corev1.NodeSpec{}, corev1.NodeStatus{}
	case *corev1.ConfigMap:
		reduceConfigMap(o)
	case *appsv1.Deployment:
		// A user's is asked for its name only, one of ours is compared.
		if o.Labels[mesh.LabelGatewayManaged] == "" {
			o.Spec, o.Status = appsv1.DeploymentSpec{}, appsv1.DeploymentStatus{}
		}
	case *corev1.ServiceAccount:
		o.Secrets, o.ImagePullSecrets = nil, nil
	}
	return o, nil
}

// reducePod keeps what model.NewPod reads, besides the metadata.
func reducePod(p *corev1.Pod) {
	p.Spec = corev1.PodSpec{
		ServiceAccountName: p.Spec.ServiceAccountName,
		NodeName:           p.Spec.NodeName,
		HostNetwork:        p.Spec.HostNetwork,
		Containers:         reduceContainers(p.Spec.Containers),
		InitContainers:     reduceContainers(p.Spec.InitContainers),
	}
	status := corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			status.Conditions = append(status.Conditions, corev1.PodCondition{Type: c.Type, Status: c.Status})
		}
	}
	p.Status = status
}

func reduceContainers(list []corev1.Container) []corev1.Container {
	if len(list) == 0 {
		return nil
	}
	out := make([]corev1.Container, len(list))
	for i := range list {
		out[i] = corev1.Container{Name: list[i].Name, Ports: list[i].Ports, RestartPolicy: list[i].RestartPolicy}
	}
	return out
}

// configKeys are the keys of ConfigMaps that mean something to istiod in one
// place or another: MeshConfig, the root certificate, overlays of waypoints.
var configKeys = []string{
	mesh.MeshConfigKey, "meshNetworks", mesh.RootCertFile,
	"deployment", "service", "serviceAccount", "horizontalPodAutoscaler", "podDisruptionBudget",
}

// reduceConfigMap keeps the names of all keys, since an overlay with one that is
// unknown is an error, and the values of those in configKeys. Which ConfigMap a
// Gateway will name tomorrow is not known; that its values are few is.
func reduceConfigMap(c *corev1.ConfigMap) {
	for key := range c.Data {
		if !slices.Contains(configKeys, key) {
			c.Data[key] = ""
		}
	}
	c.BinaryData = nil
}
