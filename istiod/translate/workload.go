package translate

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/types/known/wrapperspb"

	workloadapi "github.com/ambit-mesh/ambit/apis/workload"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// PodContext is everything besides a pod itself that its workload follows from.
// Lists may hold more than what concerns the pod; the functions here select.
type PodContext struct {
	Mesh      model.Mesh
	Namespace model.Namespace
	Node      model.Node
	Services  []model.Service // of the pod's namespace
	// Members are what EndpointSlices say of the pod: they count for Services
	// without a selector.
	Members  []model.Member
	Waypoint func(model.Name) (model.Waypoint, bool)
	Policies []model.Policy // of the pod's and of the root namespace
	// MutualTLS are the PeerAuthentications of the pod's and of the root
	// namespace.
	MutualTLS []model.PeerAuthentication
}

// PodWorkload resolves a pod. It reports false for a pod that is no workload:
// without an address, or ended for good, spec/control-plane.md §2.2.
func PodWorkload(p model.Pod, in PodContext) (model.Workload, bool) {
	if p.Terminal() || len(p.Addresses) == 0 {
		return model.Workload{}, false
	}
	w := model.Workload{
		UID:               in.Mesh.ClusterID + "//Pod/" + p.Name.Namespace + "/" + p.Name.Name,
		Name:              p.Name,
		Addresses:         p.Addresses,
		Network:           in.Mesh.Network,
		ClusterID:         in.Mesh.ClusterID,
		TrustDomain:       in.Mesh.TrustDomain,
		ServiceAccount:    p.ServiceAccount,
		Node:              p.Node,
		Locality:          in.Node.Locality,
		Labels:            p.Labels,
		HostNetwork:       p.HostNetwork,
		Healthy:           p.Healthy,
		CanonicalName:     p.CanonicalName,
		CanonicalRevision: p.CanonicalRevision,
		Owner:             p.Owner,
		Services:          podServices(p, in.Services, in.Members),
	}
	w.WaypointInstance = isWaypointInstance(p, in.Waypoint)
	switch {
	case p.NativeTunnel || w.WaypointInstance:
		w.Tunnel, w.NativeTunnel = model.TunnelHBONE, true
	case p.Redirected:
		w.Tunnel = model.TunnelHBONE
	}
	if !w.WaypointInstance && !model.ManagedWaypoint(p.Labels) {
		w.Binding = Bind(p.Labels, in.Namespace, mesh.WaypointForWorkload, in.Waypoint)
	}
	w.Policies = workloadPolicies(p.Name.Namespace, p.Labels, in)
	return w, true
}

// isWaypointInstance reports whether the pod belongs to a waypoint Gateway of
// its namespace. Such a pod terminates HBONE itself, ready or not.
func isWaypointInstance(p model.Pod, lookup func(model.Name) (model.Waypoint, bool)) bool {
	gateway := p.Labels[mesh.LabelGatewayName]
	if gateway == "" {
		return false
	}
	w, ok := lookup(model.Name{Namespace: p.Name.Namespace, Name: gateway})
	return ok && w.Class == mesh.WaypointGatewayClass
}

// podServices applies spec/control-plane.md §2.4: a Service has a pod by its
// selector or, without one, by an EndpointSlice that names the pod.
func podServices(p model.Pod, services []model.Service, members []model.Member) map[string][]model.PortPair {
	out := map[string][]model.PortPair{}
	for _, s := range services {
		if s.Name.Namespace != p.Name.Namespace {
			continue
		}
		if len(s.Selector) > 0 {
			if model.Selects(s.Selector, p.Labels) {
				out[s.Key()] = podPorts(p, s)
			}
			continue
		}
		for _, member := range members {
			samePod := member.Pod == p.Name && (member.PodUID == "" || member.PodUID == p.UID)
			if member.Service == s.Name && samePod {
				out[s.Key()] = podPorts(p, s)
			}
		}
	}
	return out
}

// podPorts resolves named target ports; a name that the pod does not have
// leaves the port out.
func podPorts(p model.Pod, s model.Service) []model.PortPair {
	var out []model.PortPair
	for _, port := range s.Ports {
		target := port.TargetPort
		if port.TargetName != "" {
			target = p.Ports[port.TargetName]
		}
		if target != 0 {
			out = append(out, model.PortPair{Service: port.Port, Target: target})
		}
	}
	return out
}

// EndpointContext is what a workload from an EndpointSlice follows from.
type EndpointContext struct {
	Mesh    model.Mesh
	Service model.Service
}

// EndpointWorkloads returns the members of a slice that are no pods,
// spec/control-plane.md §2.3. Clients know nothing about them but the address,
// so that they have no identity, policy, waypoint or place.
func EndpointWorkloads(e model.Endpoints, in EndpointContext) []model.Workload {
	var out []model.Workload
	seen := map[netip.Addr]bool{}
	for _, endpoint := range e.Endpoints {
		if endpoint.Pod.Name != "" {
			continue
		}
		for _, address := range endpoint.Addresses {
			if seen[address] {
				continue
			}
			seen[address] = true
			out = append(out, model.Workload{
				UID: in.Mesh.ClusterID + "/discovery.k8s.io/EndpointSlice/" + e.Name.Namespace + "/" + e.Name.Name + "/" +
					address.String(),
				Name:        e.Name,
				Addresses:   []netip.Addr{address},
				Network:     in.Mesh.Network,
				ClusterID:   in.Mesh.ClusterID,
				TrustDomain: in.Mesh.TrustDomain,
				Node:        endpoint.Node,
				HostNetwork: true, // never found by address: the address may be anybody's
				Healthy:     endpoint.Ready,
				Services:    map[string][]model.PortPair{in.Service.Key(): slicePorts(e, in.Service)},
			})
		}
	}
	return out
}

func slicePorts(e model.Endpoints, s model.Service) []model.PortPair {
	var out []model.PortPair
	for _, port := range s.Ports {
		if target := e.Ports[port.Name]; target != 0 {
			out = append(out, model.PortPair{Service: port.Port, Target: target})
		}
	}
	return out
}

// WorkloadAddress returns the message of a workload. Values that the wire has
// a default for are left out: trust domain cluster.local.
func WorkloadAddress(w model.Workload) *workloadapi.Address {
	out := &workloadapi.Workload{
		Uid:                   w.UID,
		Name:                  w.Name.Name,
		Namespace:             w.Name.Namespace,
		Network:               w.Network,
		Hostname:              w.Hostname,
		ServiceAccount:        w.ServiceAccount,
		Node:                  w.Node,
		CanonicalName:         w.CanonicalName,
		CanonicalRevision:     w.CanonicalRevision,
		WorkloadType:          workloadapi.WorkloadType_POD,
		WorkloadName:          w.Owner,
		NativeTunnel:          w.NativeTunnel,
		AuthorizationPolicies: w.Policies,
		ClusterId:             w.ClusterID,
		Waypoint:              gatewayAddress(w.Binding.Waypoint, w.Network),
		Services:              map[string]*workloadapi.PortList{},
	}
	for _, address := range w.Addresses {
		out.Addresses = append(out.Addresses, address.AsSlice())
	}
	if w.TrustDomain != mesh.DefaultTrustDomain {
		out.TrustDomain = w.TrustDomain
	}
	if w.Tunnel == model.TunnelHBONE {
		out.TunnelProtocol = workloadapi.TunnelProtocol_HBONE
	}
	if !w.Healthy {
		out.Status = workloadapi.WorkloadStatus_UNHEALTHY
	}
	if w.HostNetwork {
		out.NetworkMode = workloadapi.NetworkMode_HOST_NETWORK
	}
	if w.Locality != (model.Locality{}) {
		out.Locality = &workloadapi.Locality{Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone}
	}
	if w.Capacity > 0 {
		out.Capacity = wrapperspb.UInt32(w.Capacity)
	}
	for key, pairs := range w.Services {
		list := &workloadapi.PortList{}
		for _, pair := range pairs {
			list.Ports = append(list.Ports, &workloadapi.Port{ServicePort: pair.Service, TargetPort: pair.Target})
		}
		out.Services[key] = list
	}
	return &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: out}}
}

// WorkloadAliases returns the names, besides its uid, under which a workload
// can be asked for: "network/ip". An address of the host network is shared by
// many and names none of them.
func WorkloadAliases(w model.Workload) []string {
	if w.HostNetwork {
		return nil
	}
	return addressAliases(w.Network, w.Addresses)
}

func addressAliases(network string, addresses []netip.Addr) []string {
	out := make([]string, 0, len(addresses))
	for _, address := range addresses {
		out = append(out, network+"/"+address.String())
	}
	return out
}

// gatewayAddress says how to reach a waypoint; nil stays nil.
func gatewayAddress(w *model.Waypoint, network string) *workloadapi.GatewayAddress {
	if w == nil {
		return nil
	}
	out := &workloadapi.GatewayAddress{HboneMtlsPort: mesh.PortHBONE}
	if w.Hostname != "" {
		out.Destination = &workloadapi.GatewayAddress_Hostname{Hostname: &workloadapi.NamespacedHostname{
			Namespace: w.Name.Namespace, Hostname: w.Hostname,
		}}
		return out
	}
	out.Destination = &workloadapi.GatewayAddress_Address{Address: &workloadapi.NetworkAddress{
		Network: network, Address: w.Address.AsSlice(),
	}}
	return out
}

// workloadPolicies returns the names of the policies that a workload has to be
// told by name: those that select by labels, and what mutual TLS turns into.
func workloadPolicies(namespace string, labels map[string]string, in PodContext) []string {
	names := map[string]bool{}
	for _, policy := range in.Policies {
		concerns := policy.Name.Namespace == namespace || policy.Name.Namespace == in.Mesh.RootNamespace
		if concerns && len(policy.Selector) > 0 && model.Selects(policy.Selector, labels) && enforcedAtL4(policy) {
			names[policy.Key()] = true
		}
	}
	if name := mutualTLSPolicy(namespace, labels, in.MutualTLS, in.Mesh.RootNamespace); name != "" {
		names[name] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func oldest(list []model.PeerAuthentication) (model.PeerAuthentication, bool) {
	if len(list) == 0 {
		return model.PeerAuthentication{}, false
	}
	return slices.MinFunc(list, func(a, b model.PeerAuthentication) int {
		return cmp.Or(a.Age.Created.Compare(b.Age.Created), cmp.Compare(a.Name.String(), b.Name.String()))
	}), true
}
