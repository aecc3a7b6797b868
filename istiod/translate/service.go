package translate

import (
	"strings"

	workloadapi "github.com/ambit-mesh/ambit/apis/workload"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// BindService resolves what a service inherits and which waypoint it has.
func BindService(s model.Service, namespace model.Namespace, lookup func(model.Name) (model.Waypoint, bool)) model.BoundService {
	out := model.BoundService{Service: s, Preference: preference(s, namespace)}
	if !model.ManagedWaypoint(s.Labels) {
		out.Binding = Bind(s.Labels, namespace, mesh.WaypointForService, lookup)
	}
	if w := out.Binding.Waypoint; w != nil && w.Service == s.Name {
		out.Binding = model.Binding{} // the user's own Service of the waypoint: it is not behind itself
	}
	return out
}

// preference applies spec/control-plane.md §2.9: internalTrafficPolicy, then
// the first of field, annotation and the namespace's annotation that is set.
func preference(s model.Service, namespace model.Namespace) model.Preference {
	if s.InternalLocal {
		return model.PreferSameNode
	}
	value := s.TrafficDistribution
	if value == "" {
		value = s.Annotations[mesh.AnnotationTrafficDistribution]
	}
	if value == "" {
		value = namespace.Annotations[mesh.AnnotationTrafficDistribution]
	}
	switch strings.ToLower(value) {
	case "preferclose", "prefersamezone":
		return model.PreferZone
	case "prefersamenode":
		return model.PreferNode
	}
	return model.PreferAny
}

// ServiceAddress returns the message of a service.
func ServiceAddress(s model.BoundService, m model.Mesh) *workloadapi.Address {
	out := &workloadapi.Service{
		Name:          s.Name.Name,
		Namespace:     s.Name.Namespace,
		Hostname:      s.Hostname,
		Waypoint:      gatewayAddress(s.Binding.Waypoint, m.Network),
		LoadBalancing: loadBalancing(s),
		IpFamilies:    ipFamilies(s.Families),
		Canonical:     true,
	}
	for _, address := range s.Addresses {
		out.Addresses = append(out.Addresses, &workloadapi.NetworkAddress{Network: m.Network, Address: address.AsSlice()})
	}
	for _, port := range s.Ports {
		out.Ports = append(out.Ports, &workloadapi.Port{
			ServicePort: port.Port, TargetPort: port.TargetPort, AppProtocol: appProtocol(port.Protocol),
		})
	}
	return &workloadapi.Address{Type: &workloadapi.Address_Service{Service: out}}
}

// ServiceAliases returns the names, besides its key, under which a service can
// be asked for.
func ServiceAliases(s model.BoundService, m model.Mesh) []string {
	return addressAliases(m.Network, s.Addresses)
}

func ipFamilies(families []string) workloadapi.IPFamilies {
	switch {
	case len(families) == 2:
		return workloadapi.IPFamilies_DUAL
	case len(families) == 1 && families[0] == "IPv4":
		return workloadapi.IPFamilies_IPV4_ONLY
	case len(families) == 1 && families[0] == "IPv6":
		return workloadapi.IPFamilies_IPV6_ONLY
	}
	return workloadapi.IPFamilies_AUTOMATIC
}

func appProtocol(p model.L7Protocol) workloadapi.AppProtocol {
	switch p {
	case model.L7HTTP:
		return workloadapi.AppProtocol_HTTP11
	case model.L7HTTP2:
		return workloadapi.AppProtocol_HTTP2
	case model.L7GRPC:
		return workloadapi.AppProtocol_GRPC
	case model.L7TCP:
		return workloadapi.AppProtocol_TCP
	case model.L7TLS:
		return workloadapi.AppProtocol_TLS
	case model.L7Undeclared, model.L7UDP:
	}
	return workloadapi.AppProtocol_UNKNOWN
}

// loadBalancing is nil for a service whose healthy endpoints are all alike.
func loadBalancing(s model.BoundService) *workloadapi.LoadBalancing {
	const (
		network = workloadapi.LoadBalancing_NETWORK
		region  = workloadapi.LoadBalancing_REGION
		zone    = workloadapi.LoadBalancing_ZONE
		subzone = workloadapi.LoadBalancing_SUBZONE
		node    = workloadapi.LoadBalancing_NODE
	)
	out := &workloadapi.LoadBalancing{}
	switch s.Preference {
	case model.PreferSameNode:
		out.Mode, out.RoutingPreference = workloadapi.LoadBalancing_STRICT, []workloadapi.LoadBalancing_Scope{node}
	case model.PreferZone:
		out.Mode, out.RoutingPreference = workloadapi.LoadBalancing_FAILOVER,
			[]workloadapi.LoadBalancing_Scope{network, region, zone}
	case model.PreferNode:
		out.Mode, out.RoutingPreference = workloadapi.LoadBalancing_FAILOVER,
			[]workloadapi.LoadBalancing_Scope{network, region, zone, subzone, node}
	case model.PreferAny:
		if !s.PublishNotReady {
			return nil
		}
	}
	if s.PublishNotReady {
		out.HealthPolicy = workloadapi.LoadBalancing_ALLOW_ALL
	}
	return out
}
