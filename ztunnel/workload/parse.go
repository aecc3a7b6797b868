package workload

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	api "github.com/ambit-mesh/ambit/apis/workload"
)

// unmarshal reads the bytes of an istio.workload.Address; exactly one of the
// results is set.
func unmarshal(data []byte, shared *sharing) (*Workload, *Service, error) {
	var a api.Address
	if err := proto.Unmarshal(data, &a); err != nil {
		return nil, nil, err
	}
	switch t := a.GetType().(type) {
	case *api.Address_Workload:
		w, err := parseWorkload(t.Workload, shared)
		return w, nil, err
	case *api.Address_Service:
		s, err := parseService(t.Service)
		return nil, s, err
	}
	return nil, nil, errors.New("address is neither workload nor service")
}

func parseWorkload(m *api.Workload, shared *sharing) (*Workload, error) {
	w := &Workload{
		UID: m.GetUid(), Name: m.GetName(), Namespace: m.GetNamespace(), Network: m.GetNetwork(), Hostname: m.GetHostname(),
		NativeTunnel: m.GetNativeTunnel(), Node: m.GetNode(), CanonicalName: m.GetCanonicalName(), CanonicalRevision: m.GetCanonicalRevision(),
		WorkloadName: m.GetWorkloadName(), WorkloadType: workloadType(m.GetWorkloadType()), ClusterID: cmp.Or(m.GetClusterId(), mesh.DefaultClusterID),
		Locality: Locality{m.GetLocality().GetRegion(), m.GetLocality().GetZone(), m.GetLocality().GetSubzone()},
		Policies: m.GetAuthorizationPolicies(), Capacity: 1,
	}
	if w.UID == "" {
		return nil, errors.New("workload has no uid")
	}
	if c := m.GetCapacity(); c != nil {
		w.Capacity = c.GetValue()
	}
	var err error
	trustDomain, account := cmp.Or(m.GetTrustDomain(), mesh.DefaultTrustDomain), cmp.Or(m.GetServiceAccount(), "default")
	w.Namespace = shared.text(w.Namespace)
	if w.Identity, err = spiffe.New(shared.text(trustDomain), w.Namespace, shared.text(account)); err != nil {
		return nil, err
	}
	w.Addresses = make([]netip.Addr, 0, len(m.GetAddresses()))
	for _, raw := range m.GetAddresses() {
		ip, ok := netip.AddrFromSlice(raw)
		if !ok {
			return nil, fmt.Errorf("address of %d bytes", len(raw))
		}
		w.Addresses = append(w.Addresses, ip.Unmap())
	}
	if err := w.parseEnums(m); err != nil {
		return nil, err
	}
	if w.Services, err = parseMemberships(m.GetServices()); err != nil {
		return nil, err
	}
	if w.Waypoint, err = parseGateway(m.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	if w.NetworkGateway, err = parseGateway(m.GetNetworkGateway()); err != nil {
		return nil, fmt.Errorf("network gateway: %w", err)
	}
	shared.share(w)
	return w, nil
}

func (w *Workload) parseEnums(m *api.Workload) error {
	switch m.GetTunnelProtocol() {
	case api.TunnelProtocol_NONE:
	case api.TunnelProtocol_HBONE:
		w.Protocol = HBONE
	case api.TunnelProtocol_LEGACY_ISTIO_MTLS:
		return errors.New("tunnel protocol LEGACY_ISTIO_MTLS is not supported")
	default:
		return fmt.Errorf("unknown tunnel protocol %d", m.GetTunnelProtocol())
	}
	switch m.GetStatus() {
	case api.WorkloadStatus_HEALTHY:
		w.Healthy = true
	case api.WorkloadStatus_UNHEALTHY:
	default:
		return fmt.Errorf("unknown status %d", m.GetStatus())
	}
	switch m.GetNetworkMode() {
	case api.NetworkMode_STANDARD:
	case api.NetworkMode_HOST_NETWORK:
		w.HostNetwork = true
	default:
		return fmt.Errorf("unknown network mode %d", m.GetNetworkMode())
	}
	t := m.GetApplicationTunnel()
	if t == nil {
		return nil
	}
	port, err := parsePort(t.GetPort())
	if err != nil {
		return fmt.Errorf("application tunnel: %w", err)
	}
	w.AppTunnel = &AppTunnel{Port: port}
	switch t.GetProtocol() {
	case api.ApplicationTunnel_NONE:
	case api.ApplicationTunnel_PROXY:
		w.AppTunnel.Proxy = true
	default:
		return fmt.Errorf("unknown application tunnel protocol %d", t.GetProtocol())
	}
	return nil
}

func workloadType(t api.WorkloadType) string {
	switch t {
	case api.WorkloadType_CRONJOB:
		return "cronjob"
	case api.WorkloadType_POD:
		return "pod"
	case api.WorkloadType_JOB:
		return "job"
	case api.WorkloadType_DEPLOYMENT:
	}
	return "deployment"
}

func parseMemberships(in map[string]*api.PortList) ([]Membership, error) {
	out := make([]Membership, 0, len(in))
	for name, ports := range in {
		key, ok := parseServiceKey(name)
		if !ok {
			return nil, fmt.Errorf("service key %q is not namespace/hostname", name)
		}
		list, err := parsePorts(ports.GetPorts())
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", key, err)
		}
		out = append(out, Membership{Service: key, Ports: list})
	}
	slices.SortFunc(out, func(a, b Membership) int { return compareKeys(a.Service, b.Service) })
	return out, nil
}

func compareKeys(a, b ServiceKey) int {
	return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.Namespace, b.Namespace))
}

func parsePorts(in []*api.Port) ([]Port, error) {
	out := make([]Port, 0, len(in))
	for _, p := range in {
		service, err := parsePort(p.GetServicePort())
		if err != nil {
			return nil, err
		}
		target, err := parsePort(p.GetTargetPort())
		if err != nil {
			return nil, err
		}
		out = append(out, Port{Service: service, Target: target})
	}
	slices.SortFunc(out, func(a, b Port) int { return cmp.Compare(a.Service, b.Service) })
	return out, nil
}

func parsePort(p uint32) (uint16, error) {
	if p > 0xffff {
		return 0, fmt.Errorf("port %d is beyond 65535", p)
	}
	return uint16(p), nil
}

func parseGateway(g *api.GatewayAddress) (*Gateway, error) {
	if g == nil {
		return nil, nil // absent is a valid value of the field
	}
	port, err := parsePort(g.GetHboneMtlsPort())
	if err != nil {
		return nil, err
	}
	out := &Gateway{Port: port}
	switch d := g.GetDestination().(type) {
	case *api.GatewayAddress_Address:
		ip, ok := netip.AddrFromSlice(d.Address.GetAddress())
		if !ok {
			return nil, fmt.Errorf("address of %d bytes", len(d.Address.GetAddress()))
		}
		out.Address = NetworkAddress{d.Address.GetNetwork(), ip.Unmap()}
	case *api.GatewayAddress_Hostname:
		out.Host = ServiceKey{d.Hostname.GetNamespace(), d.Hostname.GetHostname()}
	default:
		return nil, errors.New("no destination")
	}
	return out, nil
}

func parseService(m *api.Service) (*Service, error) {
	s := &Service{
		Name: m.GetName(), Key: ServiceKey{m.GetNamespace(), m.GetHostname()},
		Canonical: m.GetCanonical(), Private: m.GetVisibility() == api.Service_NAMESPACE, peers: m.GetSubjectAltNames(),
	}
	if s.Key.Namespace == "" || s.Key.Hostname == "" {
		return nil, errors.New("service has no namespace or no hostname")
	}
	for _, name := range s.peers {
		// What is not a SPIFFE id can match no certificate (spec §2.5.5).
		if id, err := spiffe.Parse(name); err == nil {
			s.Peers = append(s.Peers, id)
		}
	}
	var err error
	if s.Ports, err = parsePorts(m.GetPorts()); err != nil {
		return nil, err
	}
	if err := s.parseAddresses(m.GetAddresses()); err != nil {
		return nil, err
	}
	if s.Waypoint, err = parseGateway(m.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	for i, w := range m.GetWeightedWaypoints() {
		g, err := parseGateway(w.GetDestination())
		if err == nil && g == nil {
			err = errors.New("no destination")
		}
		if err != nil {
			return nil, fmt.Errorf("weighted waypoint %d: %w", i, err)
		}
		s.Weighted = append(s.Weighted, WeightedWaypoint{Gateway: *g, Weight: w.GetWeight()})
	}
	if s.Balance, err = parseBalance(m.GetLoadBalancing()); err != nil {
		return nil, err
	}
	switch m.GetIpFamilies() {
	case api.IPFamilies_AUTOMATIC:
	case api.IPFamilies_IPV4_ONLY:
		s.Families = IPv4Only
	case api.IPFamilies_IPV6_ONLY:
		s.Families = IPv6Only
	case api.IPFamilies_DUAL:
		s.Families = DualStack
	default:
		return nil, fmt.Errorf("unknown ip families %d", m.GetIpFamilies())
	}
	return s, nil
}

// parseAddresses reads virtual addresses. One that is given twice counts once.
func (s *Service) parseAddresses(in []*api.NetworkAddress) error {
	seen := make(map[NetworkPrefix]bool, len(in))
	for _, a := range in {
		ip, ok := netip.AddrFromSlice(a.GetAddress())
		if !ok {
			return fmt.Errorf("virtual address of %d bytes", len(a.GetAddress()))
		}
		bits := uint32(ip.BitLen())
		if a.Length != nil {
			bits = a.GetLength()
		}
		if mapped := ip.Unmap(); mapped != ip {
			ip = mapped
			if bits >= 96 { // of the 128 of the form it came in
				bits -= 96
			}
		}
		if bits > uint32(ip.BitLen()) {
			return fmt.Errorf("virtual address %s: prefix of %d bits is too long", ip, bits)
		}
		c := NetworkPrefix{a.GetNetwork(), netip.PrefixFrom(ip, int(bits)).Masked()}
		switch {
		case seen[c]:
		case c.Prefix.IsSingleIP():
			s.VIPs = append(s.VIPs, NetworkAddress{c.Network, ip})
		default:
			s.CIDRs = append(s.CIDRs, c)
		}
		seen[c] = true
	}
	return nil
}

func parseBalance(m *api.LoadBalancing) (Balance, error) {
	var b Balance
	switch m.GetMode() {
	case api.LoadBalancing_UNSPECIFIED_MODE:
	case api.LoadBalancing_STRICT:
		b.Mode = Strict
	case api.LoadBalancing_FAILOVER:
		b.Mode = Failover
	case api.LoadBalancing_PASSTHROUGH:
		b.Mode = Passthrough
	default:
		return b, fmt.Errorf("unknown load balancing mode %d", m.GetMode())
	}
	switch m.GetHealthPolicy() {
	case api.LoadBalancing_ONLY_HEALTHY:
	case api.LoadBalancing_ALLOW_ALL:
		b.AllowAll = true
	default:
		return b, fmt.Errorf("unknown health policy %d", m.GetHealthPolicy())
	}
	for _, p := range m.GetRoutingPreference() {
		if p < api.LoadBalancing_REGION || p > api.LoadBalancing_NETWORK {
			return b, fmt.Errorf("unknown routing preference %d", p)
		}
		b.Preferences = append(b.Preferences, Scope(p-api.LoadBalancing_REGION))
	}
	return b, nil
}
