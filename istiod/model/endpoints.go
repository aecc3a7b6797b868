package model

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Endpoints is one EndpointSlice.
type Endpoints struct {
	Name Name
	// Service is the Service that the slice belongs to.
	Service   Name
	Endpoints []Endpoint
	// Ports maps port names to numbers; TCP only.
	Ports map[string]uint32
}

// Endpoint is one member of an EndpointSlice.
type Endpoint struct {
	Addresses []netip.Addr
	Ready     bool
	Node      string
	// Pod is zero when the endpoint is no pod.
	Pod    Name
	PodUID string
}

// Key is the slice's key in collections.
func (e Endpoints) Key() string { return e.Name.String() }

// Ready reports whether any endpoint is ready.
func (e Endpoints) Ready() bool {
	for _, endpoint := range e.Endpoints {
		if endpoint.Ready {
			return true
		}
	}
	return false
}

// NewEndpoints reads an EndpointSlice. It reports false for a slice that
// belongs to no Service or names hosts by DNS.
func NewEndpoints(s *discoveryv1.EndpointSlice) (Endpoints, bool) {
	service := s.Labels[discoveryv1.LabelServiceName]
	if service == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return Endpoints{}, false
	}
	out := Endpoints{
		Name:    Name{Namespace: s.Namespace, Name: s.Name},
		Service: Name{Namespace: s.Namespace, Name: service},
		Ports:   map[string]uint32{},
	}
	for _, port := range s.Ports {
		tcp := port.Protocol == nil || *port.Protocol == corev1.ProtocolTCP
		if tcp && port.Port != nil {
			name := ""
			if port.Name != nil {
				name = *port.Name
			}
			out.Ports[name] = portNumber(*port.Port)
		}
	}
	for _, endpoint := range s.Endpoints {
		out.Endpoints = append(out.Endpoints, newEndpoint(endpoint, s.Namespace))
	}
	return out, true
}

func newEndpoint(e discoveryv1.Endpoint, namespace string) Endpoint {
	out := Endpoint{Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
	for _, text := range e.Addresses {
		if addr, err := netip.ParseAddr(text); err == nil {
			out.Addresses = append(out.Addresses, addr.Unmap())
		}
	}
	if e.NodeName != nil {
		out.Node = *e.NodeName
	}
	if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" {
		out.Pod = Name{Namespace: ref.Namespace, Name: ref.Name}
		if out.Pod.Namespace == "" {
			out.Pod.Namespace = namespace
		}
		out.PodUID = string(ref.UID)
	}
	return out
}

// Member says that a slice names a pod as an endpoint of a Service.
type Member struct {
	Slice   Name
	Service Name
	Pod     Name
	PodUID  string // "" when the slice does not say
}

// Key is the member's key in collections.
func (m Member) Key() string { return m.Slice.String() + " " + m.Pod.String() }

// Members returns the pods that the slice names.
func (e Endpoints) Members() []Member {
	var out []Member
	for _, endpoint := range e.Endpoints {
		if endpoint.Pod.Name != "" {
			out = append(out, Member{Slice: e.Name, Service: e.Service, Pod: endpoint.Pod, PodUID: endpoint.PodUID})
		}
	}
	return out
}
