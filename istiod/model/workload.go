package model

import (
	"net/netip"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// Pod is what the mesh reads of a Kubernetes Pod. Everything else that a
// kubelet writes, such as heartbeats and restart counts, is left out, so that
// it causes no work.
type Pod struct {
	Name           Name
	UID            string
	ServiceAccount string
	Node           string
	Phase          corev1.PodPhase
	Addresses      []netip.Addr
	HostNetwork    bool
	// Healthy means ready and not terminating.
	Healthy bool
	Labels  map[string]string
	// Redirected means that the node agent has captured the pod.
	Redirected bool
	// NativeTunnel means that the pod says of itself that it speaks HBONE.
	NativeTunnel bool
	// Ports maps the names of TCP container ports to their numbers.
	Ports map[string]uint32
	// Owner is the telemetry name of what the pod belongs to.
	Owner             string
	CanonicalName     string
	CanonicalRevision string
}

// Key is the pod's key in collections.
func (p Pod) Key() string { return p.Name.String() }

// Terminal reports whether the pod has ended for good.
func (p Pod) Terminal() bool {
	return p.Phase == corev1.PodSucceeded || p.Phase == corev1.PodFailed
}

// NewPod reads a Kubernetes Pod.
func NewPod(p *corev1.Pod) Pod {
	out := Pod{
		Name:           Name{Namespace: p.Namespace, Name: p.Name},
		UID:            string(p.UID),
		ServiceAccount: p.Spec.ServiceAccountName,
		Node:           p.Spec.NodeName,
		Phase:          p.Status.Phase,
		Addresses:      podAddresses(p),
		HostNetwork:    p.Spec.HostNetwork,
		Healthy:        p.DeletionTimestamp == nil && podReady(p),
		Labels:         p.Labels,
		Redirected:     p.Annotations[mesh.AnnotationRedirection] == mesh.RedirectionEnabled,
		NativeTunnel:   speaksHTTPTunnel(p.Labels[mesh.LabelTunnel]),
		Ports:          containerPorts(p),
		Owner:          ownerName(p),
	}
	if out.ServiceAccount == "" {
		out.ServiceAccount = "default"
	}
	out.CanonicalName = firstLabel(p.Labels, out.Owner, mesh.LabelCanonicalName, "app.kubernetes.io/name", "app")
	out.CanonicalRevision = firstLabel(p.Labels, "latest", mesh.LabelCanonicalRevision, "app.kubernetes.io/version", "version")
	return out
}

func podAddresses(p *corev1.Pod) []netip.Addr {
	texts := make([]string, 0, 2)
	for _, ip := range p.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if len(texts) == 0 {
		texts = append(texts, p.Status.PodIP)
	}
	var out []netip.Addr
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil {
			out = append(out, addr.Unmap())
		}
	}
	return out
}

func podReady(p *corev1.Pod) bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func speaksHTTPTunnel(value string) bool {
	for word := range strings.SplitSeq(value, ",") {
		if strings.TrimSpace(word) == mesh.TunnelHTTP {
			return true
		}
	}
	return false
}

// containerPorts collects the named TCP ports of the regular containers, then
// of native sidecars (init containers that restart always). The first wins.
func containerPorts(p *corev1.Pod) map[string]uint32 {
	containers := append([]corev1.Container(nil), p.Spec.Containers...)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	out := map[string]uint32{}
	for _, c := range containers {
		for _, port := range c.Ports {
			tcp := port.Protocol == corev1.ProtocolTCP || port.Protocol == ""
			if _, taken := out[port.Name]; tcp && port.Name != "" && !taken {
				out[port.Name] = portNumber(port.ContainerPort)
			}
		}
	}
	return out
}

func firstLabel(labels map[string]string, otherwise string, names ...string) string {
	for _, name := range names {
		if value := labels[name]; value != "" {
			return value
		}
	}
	return otherwise
}

var cronJobRun = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// ownerName is the telemetry workload name, spec/control-plane.md §2.5.
func ownerName(p *corev1.Pod) string {
	if name := p.Labels[mesh.LabelWorkloadName]; name != "" {
		return name
	}
	owner := metav1.GetControllerOf(p)
	if owner == nil {
		return p.Name
	}
	switch owner.Kind {
	case "ReplicaSet":
		for _, label := range []string{"pod-template-hash", "rollouts-pod-template-hash"} {
			if hash := p.Labels[label]; hash != "" {
				if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
					return name
				}
			}
		}
	case "Job":
		if run := cronJobRun.FindStringSubmatch(owner.Name); run != nil {
			return run[1]
		}
	case "ReplicationController":
		if config := p.Annotations["openshift.io/deployment-config.name"]; config != "" {
			return config
		}
	}
	return owner.Name
}

// Tunnel is how a workload is reached.
type Tunnel int

// The tunnels.
const (
	TunnelNone Tunnel = iota
	TunnelHBONE
)

// PortPair maps a port of a service to the port of one workload.
type PortPair struct{ Service, Target uint32 }

// Workload is one instance, resolved against everything that it depends on:
// its services, its waypoint, its policies.
type Workload struct {
	UID            string
	Name           Name
	Addresses      []netip.Addr
	Hostname       string // resolved by the client when there are no Addresses
	Network        string
	ClusterID      string
	TrustDomain    string
	ServiceAccount string // "" for an endpoint without identity
	Node           string
	Locality       Locality
	Labels         map[string]string
	HostNetwork    bool
	Healthy        bool
	Tunnel         Tunnel
	NativeTunnel   bool
	// WaypointInstance means that the workload is a pod of a waypoint Gateway.
	WaypointInstance  bool
	CanonicalName     string
	CanonicalRevision string
	Owner             string
	// Services is keyed by Service.Key, "namespace/hostname".
	Services map[string][]PortPair
	// Policies are the "namespace/name" of the selector-scoped and converted
	// policies that apply, sorted.
	Policies []string
	Binding  Binding
	Capacity uint32 // 0: not weighted
}

// Target returns the port of the workload behind a port of a service.
func (w Workload) Target(service string, port uint32) (uint32, bool) {
	for _, pair := range w.Services[service] {
		if pair.Service == port {
			return pair.Target, true
		}
	}
	return 0, false
}

// Identity returns the workload's SPIFFE id, "" when it has none.
func (w Workload) Identity() string {
	if w.ServiceAccount == "" {
		return ""
	}
	return "spiffe://" + w.TrustDomain + "/ns/" + w.Name.Namespace + "/sa/" + w.ServiceAccount
}
