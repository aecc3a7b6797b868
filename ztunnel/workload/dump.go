package workload

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"

	"github.com/ambit-mesh/ambit/ztunnel/rbac"
)

// Dump is a snapshot as the config dump shows it, spec/ztunnel.md App. B.1.
type Dump struct {
	Workloads      []*Workload                        `json:"workloads"`
	Services       []ServiceDump                      `json:"services"`
	Policies       []*rbac.Policy                     `json:"policies"`
	StagedServices map[string]map[string]EndpointDump `json:"stagedServices"`
}

// ServiceDump is a service with its endpoints.
type ServiceDump struct {
	Name              string                  `json:"name"`
	Namespace         string                  `json:"namespace"`
	Hostname          string                  `json:"hostname"`
	VIPs              []string                `json:"vips"`
	CIDRs             []cidrJSON              `json:"cidrVips,omitempty"`
	Ports             map[string]uint16       `json:"ports"`
	Endpoints         map[string]EndpointDump `json:"endpoints"`
	SubjectAltNames   []string                `json:"subjectAltNames,omitempty"`
	Waypoint          *gatewayJSON            `json:"waypoint,omitempty"`
	WeightedWaypoints []weightedJSON          `json:"weightedWaypoints,omitempty"`
	LoadBalancer      *balanceJSON            `json:"loadBalancer,omitempty"`
	IPFamilies        string                  `json:"ipFamilies,omitempty"`
	Canonical         bool                    `json:"canonical"`
	Visibility        string                  `json:"visibility"`
}

// EndpointDump is one endpoint of a service.
type EndpointDump struct {
	WorkloadUID string            `json:"workloadUid"`
	Port        map[string]uint16 `json:"port"`
	Status      string            `json:"status"`
}

type cidrJSON struct {
	Network string `json:"network"`
	CIDR    string `json:"cidr"`
}

type gatewayJSON struct {
	Destination   string `json:"destination"`
	HBONEMTLSPort uint16 `json:"hboneMtlsPort"`
}

type weightedJSON struct {
	Destination gatewayJSON `json:"destination"`
	Weight      uint32      `json:"weight"`
}

type balanceJSON struct {
	RoutingPreferences []string `json:"routingPreferences,omitempty"`
	Mode               string   `json:"mode"`
	HealthPolicy       string   `json:"healthPolicy"`
}

type localityJSON struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Subzone string `json:"subzone,omitempty"`
}

type appTunnelJSON struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
}

// Dump returns everything in the snapshot, sorted.
func (s *Snapshot) Dump() Dump {
	d := Dump{Workloads: []*Workload{}, Services: []ServiceDump{}, Policies: []*rbac.Policy{}, StagedServices: map[string]map[string]EndpointDump{}}
	for _, w := range s.workloads.all() {
		d.Workloads = append(d.Workloads, w)
	}
	slices.SortFunc(d.Workloads, func(a, b *Workload) int { return cmp.Compare(a.UID, b.UID) })
	for _, svc := range s.services.all() {
		d.Services = append(d.Services, svc.dump(s.endpoints.at(svc.Key).all))
	}
	slices.SortFunc(d.Services, func(a, b ServiceDump) int {
		return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.Namespace, b.Namespace))
	})
	for _, p := range s.policies.all() {
		d.Policies = append(d.Policies, p)
	}
	slices.SortFunc(d.Policies, func(a, b *rbac.Policy) int { return cmp.Compare(a.Key(), b.Key()) })
	for key, endpoints := range s.endpoints.all() {
		if s.services.at(key) == nil {
			d.StagedServices[key.String()] = dumpEndpoints(endpoints.all, true)
		}
	}
	return d
}

func (s *Service) dump(endpoints []Endpoint) ServiceDump {
	d := ServiceDump{
		Name: s.Name, Namespace: s.Key.Namespace, Hostname: s.Key.Hostname, VIPs: []string{}, Ports: dumpPorts(s.Ports),
		Endpoints: dumpEndpoints(endpoints, s.Balance.AllowAll), SubjectAltNames: s.peers, Waypoint: s.Waypoint.dump(),
		IPFamilies: [...]string{"", "IPv4", "IPv6", "Dual"}[s.Families], Canonical: s.Canonical, Visibility: "Public",
	}
	for _, v := range s.VIPs {
		d.VIPs = append(d.VIPs, v.String())
	}
	for _, c := range s.CIDRs {
		d.CIDRs = append(d.CIDRs, cidrJSON{c.Network, c.Prefix.String()})
	}
	for _, w := range s.Weighted {
		d.WeightedWaypoints = append(d.WeightedWaypoints, weightedJSON{*w.Gateway.dump(), w.Weight})
	}
	if s.Private {
		d.Visibility = "Namespace"
	}
	if b := s.Balance; b.Mode != Standard || b.AllowAll || len(b.Preferences) > 0 {
		d.LoadBalancer = &balanceJSON{Mode: b.Mode.String(), HealthPolicy: "OnlyHealthy"}
		if b.AllowAll {
			d.LoadBalancer.HealthPolicy = "AllowAll"
		}
		for _, p := range b.Preferences {
			d.LoadBalancer.RoutingPreferences = append(d.LoadBalancer.RoutingPreferences, p.String())
		}
	}
	return d
}

func (g *Gateway) dump() *gatewayJSON {
	if g == nil {
		return nil
	}
	return &gatewayJSON{Destination: g.String(), HBONEMTLSPort: g.Port}
}

func dumpPorts(ports []Port) map[string]uint16 {
	out := make(map[string]uint16, len(ports))
	for _, p := range ports {
		out[strconv.Itoa(int(p.Service))] = p.Target
	}
	return out
}

func dumpEndpoints(endpoints []Endpoint, all bool) map[string]EndpointDump {
	out := make(map[string]EndpointDump, len(endpoints))
	for _, e := range endpoints {
		if all || e.Workload.Healthy {
			out[e.Workload.UID] = EndpointDump{e.Workload.UID, dumpPorts(e.Ports), e.Workload.status()}
		}
	}
	return out
}

func (w *Workload) status() string {
	if w.Healthy {
		return "Healthy"
	}
	return "Unhealthy"
}

// MarshalJSON writes the workload as the config dump shows it.
func (w *Workload) MarshalJSON() ([]byte, error) {
	out := struct {
		UID                   string         `json:"uid"`
		Name                  string         `json:"name"`
		Namespace             string         `json:"namespace"`
		WorkloadIPs           []netip.Addr   `json:"workloadIps"`
		Hostname              string         `json:"hostname,omitempty"`
		Network               string         `json:"network,omitempty"`
		Protocol              string         `json:"protocol"`
		NetworkMode           string         `json:"networkMode"`
		TrustDomain           string         `json:"trustDomain,omitempty"`
		ServiceAccount        string         `json:"serviceAccount,omitempty"`
		WorkloadName          string         `json:"workloadName,omitempty"`
		WorkloadType          string         `json:"workloadType,omitempty"`
		CanonicalName         string         `json:"canonicalName,omitempty"`
		CanonicalRevision     string         `json:"canonicalRevision,omitempty"`
		Node                  string         `json:"node,omitempty"`
		NativeTunnel          bool           `json:"nativeTunnel,omitempty"`
		ClusterID             string         `json:"clusterId,omitempty"`
		Status                string         `json:"status"`
		Capacity              uint32         `json:"capacity"`
		AuthorizationPolicies []string       `json:"authorizationPolicies,omitempty"`
		Services              []string       `json:"services,omitempty"`
		Locality              *localityJSON  `json:"locality,omitempty"`
		Waypoint              *gatewayJSON   `json:"waypoint,omitempty"`
		NetworkGateway        *gatewayJSON   `json:"networkGateway,omitempty"`
		ApplicationTunnel     *appTunnelJSON `json:"applicationTunnel,omitempty"`
	}{
		UID: w.UID, Name: w.Name, Namespace: w.Namespace, WorkloadIPs: append([]netip.Addr{}, w.Addresses...), Hostname: w.Hostname, Network: w.Network,
		Protocol: w.Protocol.String(), NetworkMode: "Standard", TrustDomain: w.Identity.TrustDomain(), ServiceAccount: w.Identity.ServiceAccount(),
		WorkloadName: w.WorkloadName, WorkloadType: w.WorkloadType, CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Node: w.Node, NativeTunnel: w.NativeTunnel, ClusterID: w.ClusterID, Status: w.status(), Capacity: w.Capacity,
		AuthorizationPolicies: w.Policies, Waypoint: w.Waypoint.dump(), NetworkGateway: w.NetworkGateway.dump(),
	}
	if w.HostNetwork {
		out.NetworkMode = "HostNetwork"
	}
	for _, m := range w.Services {
		out.Services = append(out.Services, m.Service.String())
	}
	if w.Locality != (Locality{}) {
		out.Locality = &localityJSON{w.Locality.Region, w.Locality.Zone, w.Locality.Subzone}
	}
	if t := w.AppTunnel; t != nil {
		out.ApplicationTunnel = &appTunnelJSON{Protocol: "NONE", Port: t.Port}
		if t.Proxy {
			out.ApplicationTunnel.Protocol = "PROXY"
		}
	}
	return json.Marshal(out)
}
