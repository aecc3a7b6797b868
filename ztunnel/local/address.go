package local

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/wrapperspb"

	api "github.com/ambit-mesh/ambit/apis/workload"
)

func sortPorts(ports []*api.Port) {
	slices.SortFunc(ports, func(a, b *api.Port) int { return cmp.Compare(a.GetServicePort(), b.GetServicePort()) })
}

func (w *workloadYAML) message() (*api.Workload, error) {
	if w.Services == nil {
		return nil, errNoServices
	}
	m := &api.Workload{
		Uid: w.UID, Name: w.Name, Namespace: w.Namespace, Hostname: w.Hostname, Network: w.Network, TrustDomain: w.TrustDomain,
		ServiceAccount: w.ServiceAccount, WorkloadName: w.WorkloadName, CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Node: w.Node, NativeTunnel: w.NativeTunnel, ClusterId: w.ClusterID, AuthorizationPolicies: w.AuthorizationPolicies,
		Services: map[string]*api.PortList{},
	}
	for _, text := range w.WorkloadIPs {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("workloadIps: %w", err)
		}
		m.Addresses = append(m.Addresses, ip.AsSlice())
	}
	for key, ports := range w.Services {
		m.Services[key] = &api.PortList{Ports: ports.message()}
	}
	if w.Capacity != nil {
		m.Capacity = wrapperspb.UInt32(*w.Capacity)
	}
	if l := w.Locality; l != nil {
		m.Locality = &api.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	var errs [7]error
	m.Waypoint, errs[0] = w.Waypoint.message()
	m.NetworkGateway, errs[1] = w.NetworkGateway.message()
	m.ApplicationTunnel, errs[2] = w.ApplicationTunnel.message()
	m.TunnelProtocol, errs[3] = choose("protocol", w.Protocol, []string{"TCP", "HBONE"}, []api.TunnelProtocol{api.TunnelProtocol_NONE, api.TunnelProtocol_HBONE})
	m.NetworkMode, errs[4] = choose("networkMode", w.NetworkMode, []string{"Standard", "HostNetwork"}, []api.NetworkMode{api.NetworkMode_STANDARD, api.NetworkMode_HOST_NETWORK})
	m.Status, errs[5] = choose("status", w.Status, []string{"Healthy", "Unhealthy"}, []api.WorkloadStatus{api.WorkloadStatus_HEALTHY, api.WorkloadStatus_UNHEALTHY})
	m.WorkloadType, errs[6] = choose("workloadType", strings.ToLower(w.WorkloadType), []string{"deployment", "cronjob", "pod", "job"},
		[]api.WorkloadType{api.WorkloadType_DEPLOYMENT, api.WorkloadType_CRONJOB, api.WorkloadType_POD, api.WorkloadType_JOB})
	return m, errors.Join(errs[:]...)
}

func (t *appTunnelYAML) message() (*api.ApplicationTunnel, error) {
	if t == nil {
		return nil, nil // absent is a valid value of the field
	}
	protocol, err := choose("applicationTunnel protocol", t.Protocol, []string{"NONE", "PROXY"},
		[]api.ApplicationTunnel_Protocol{api.ApplicationTunnel_NONE, api.ApplicationTunnel_PROXY})
	return &api.ApplicationTunnel{Protocol: protocol, Port: uint32(t.Port)}, err
}

func (s *serviceYAML) message() (*api.Service, error) {
	if len(s.Endpoints) > 0 {
		return nil, errors.New("endpoints are not set here: the services of each workload name them")
	}
	m := &api.Service{
		Name: s.Name, Namespace: s.Namespace, Hostname: s.Hostname, Ports: s.Ports.message(), SubjectAltNames: s.SubjectAltNames, Canonical: s.Canonical,
	}
	var errs [5]error
	m.Addresses, errs[0] = s.addresses()
	m.Waypoint, errs[1] = s.Waypoint.message()
	m.LoadBalancing, errs[2] = s.LoadBalancer.message()
	m.IpFamilies, errs[3] = choose("ipFamilies", s.IPFamilies, []string{"", "IPv4", "IPv6", "Dual"},
		[]api.IPFamilies{api.IPFamilies_AUTOMATIC, api.IPFamilies_IPV4_ONLY, api.IPFamilies_IPV6_ONLY, api.IPFamilies_DUAL})
	m.Visibility, errs[4] = choose("visibility", s.Visibility, []string{"Public", "Namespace"}, []api.Service_Visibility{api.Service_PUBLIC, api.Service_NAMESPACE})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for i, w := range s.WeightedWaypoints {
		g, err := w.Destination.message()
		if err != nil {
			return nil, fmt.Errorf("weightedWaypoints %d: %w", i, err)
		}
		m.WeightedWaypoints = append(m.WeightedWaypoints, &api.WeightedWaypoint{Destination: g, Weight: w.Weight})
	}
	return m, nil
}

// addresses reads "network/ip" and ranges.
func (s *serviceYAML) addresses() ([]*api.NetworkAddress, error) {
	var out []*api.NetworkAddress
	for _, text := range s.VIPs {
		network, ip, ok := strings.Cut(text, "/")
		addr, err := netip.ParseAddr(ip)
		if !ok || err != nil {
			return nil, fmt.Errorf("vips: %q is not network/ip (of the default network: /ip)", text)
		}
		out = append(out, &api.NetworkAddress{Network: network, Address: addr.AsSlice()})
	}
	for _, c := range s.CIDRs {
		prefix, err := netip.ParsePrefix(c.CIDR)
		if err != nil {
			return nil, fmt.Errorf("cidrVips: %w", err)
		}
		out = append(out, &api.NetworkAddress{Network: c.Network, Address: prefix.Addr().AsSlice(), Length: new(uint32(prefix.Bits()))})
	}
	return out, nil
}

func (b *balanceYAML) message() (*api.LoadBalancing, error) {
	if b == nil {
		return nil, nil // absent is a valid value of the field
	}
	m := &api.LoadBalancing{}
	var errs [2]error
	m.Mode, errs[0] = choose("loadBalancer mode", b.Mode, []string{"Standard", "Strict", "Failover", "Passthrough"}, []api.LoadBalancing_Mode{
		api.LoadBalancing_UNSPECIFIED_MODE, api.LoadBalancing_STRICT, api.LoadBalancing_FAILOVER, api.LoadBalancing_PASSTHROUGH,
	})
	m.HealthPolicy, errs[1] = choose("loadBalancer healthPolicy", b.HealthPolicy, []string{"OnlyHealthy", "AllowAll"},
		[]api.LoadBalancing_HealthPolicy{api.LoadBalancing_ONLY_HEALTHY, api.LoadBalancing_ALLOW_ALL})
	for _, p := range b.RoutingPreferences {
		scope, err := choose("routing preference", p, []string{"-", "Region", "Zone", "Subzone", "Node", "Cluster", "Network"}, []api.LoadBalancing_Scope{
			api.LoadBalancing_UNSPECIFIED_SCOPE, api.LoadBalancing_REGION, api.LoadBalancing_ZONE, api.LoadBalancing_SUBZONE,
			api.LoadBalancing_NODE, api.LoadBalancing_CLUSTER, api.LoadBalancing_NETWORK,
		})
		if err != nil || scope == api.LoadBalancing_UNSPECIFIED_SCOPE {
			return nil, fmt.Errorf("routing preference %q is none of Region, Zone, Subzone, Node, Cluster, Network", p)
		}
		m.RoutingPreference = append(m.RoutingPreference, scope)
	}
	return m, errors.Join(errs[:]...)
}
