package model

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// ServicePort is one port of a Service. UDP ports are left out of the model.
type ServicePort struct {
	Name string
	Port uint32
	// TargetPort is 0 when TargetName names a port of each pod.
	TargetPort uint32
	TargetName string
	Protocol   L7Protocol
}

// Service is a Kubernetes Service as its author wrote it; what it inherits or
// is bound to is in BoundService.
type Service struct {
	Name     Name
	Hostname string
	Age      Age
	// Addresses are the cluster IPs, none for a headless service.
	Addresses []netip.Addr
	// Families are "IPv4" and "IPv6" in the order of the spec.
	Families            []string
	Ports               []ServicePort
	Selector            map[string]string
	Labels              map[string]string
	Annotations         map[string]string
	PublishNotReady     bool
	InternalLocal       bool
	TrafficDistribution string
}

// Key is the service's resource name and its key in Workload.Services:
// "namespace/hostname".
func (s Service) Key() string { return s.Name.Namespace + "/" + s.Hostname }

// Headless reports whether s has no virtual address.
func (s Service) Headless() bool { return len(s.Addresses) == 0 }

// Preference says which endpoints of a service a client takes.
type Preference int

// The preferences, spec/control-plane.md §2.9.
const (
	PreferAny      Preference = iota
	PreferZone                // failover: network, region, zone
	PreferNode                // failover: network, region, zone, subzone, node
	PreferSameNode            // strict: the client's node or none
)

// BoundService is a Service with everything that depends on other objects.
type BoundService struct {
	Service
	Binding    Binding
	Preference Preference
}

// NewService reads a Kubernetes Service. It reports false for an ExternalName,
// which is only a DNS alias: traffic matches on what the alias points at.
func NewService(s *corev1.Service, clusterDomain string) (Service, bool) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return Service{}, false
	}
	name := Name{Namespace: s.Namespace, Name: s.Name}
	out := Service{
		Name:            name,
		Hostname:        L7Hostname(s.Namespace, s.Name, clusterDomain),
		Age:             Age{Created: s.CreationTimestamp.Time, Name: name},
		Addresses:       clusterIPs(s),
		Selector:        s.Spec.Selector,
		Labels:          s.Labels,
		Annotations:     s.Annotations,
		PublishNotReady: s.Spec.PublishNotReadyAddresses,
	}
	for _, family := range s.Spec.IPFamilies {
		out.Families = append(out.Families, string(family))
	}
	if policy := s.Spec.InternalTrafficPolicy; policy != nil {
		out.InternalLocal = *policy == corev1.ServiceInternalTrafficPolicyLocal
	}
	if distribution := s.Spec.TrafficDistribution; distribution != nil {
		out.TrafficDistribution = *distribution
	}
	for _, port := range s.Spec.Ports {
		if port.Protocol == corev1.ProtocolTCP || port.Protocol == "" {
			out.Ports = append(out.Ports, newServicePort(port))
		}
	}
	return out, true
}

func clusterIPs(s *corev1.Service) []netip.Addr {
	texts := s.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{s.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil { // "" and "None" are no addresses
			out = append(out, addr.Unmap())
		}
	}
	return out
}

func newServicePort(port corev1.ServicePort) ServicePort {
	out := ServicePort{
		Name:       port.Name,
		Port:       portNumber(port.Port),
		TargetPort: portNumber(port.Port),
		Protocol:   L7ProtocolOf(port),
	}
	switch {
	case port.TargetPort.Type == intstr.String && port.TargetPort.StrVal != "":
		out.TargetPort, out.TargetName = 0, port.TargetPort.StrVal
	case port.TargetPort.Type == intstr.Int && port.TargetPort.IntVal != 0:
		out.TargetPort = portNumber(port.TargetPort.IntVal)
	}
	return out
}

// portNumber converts a validated port; anything else becomes 0, no port.
func portNumber(port int32) uint32 {
	if port < 1 || port > 65535 {
		return 0
	}
	return uint32(port)
}

// ManagedWaypoint reports whether labels mark the Service of a waypoint or an
// east-west gateway, which can never have a waypoint itself.
func ManagedWaypoint(labels map[string]string) bool {
	managed := labels[mesh.LabelGatewayManaged]
	return managed == mesh.ManagedMeshController || managed == "istio.io-eastwest-controller"
}
