// Package workload holds what istiod told us about the mesh: workloads by
// address, services by virtual address and hostname, the endpoints of each
// service, and authorization policies. It owns the reading of these resources
// from the wire and their indexes. It fetches nothing (package xds does) and
// decides nothing (packages plan and rbac do).
//
// A Store is written by the xDS client and read by everyone. Readers take a
// Snapshot, which is immutable and consistent: everything of one xDS response
// is in it or nothing. All of the package is safe for concurrent use.
// Rules: spec/ztunnel.md §2.4, §2.5.1, §4.4 and App. A.
package workload

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// Protocol is how a workload expects connections.
type Protocol uint8

// The protocols.
const (
	TCP   Protocol = iota
	HBONE          // mTLS tunnels to its port 15008
)

// String returns the name as in the config dump.
func (p Protocol) String() string {
	if p == HBONE {
		return "HBONE"
	}
	return "TCP"
}

// Workload is one addressable instance, usually a pod. Immutable.
type Workload struct {
	UID             string // primary key and resource name
	Name, Namespace string
	Addresses       []netip.Addr
	Network         string // "" is the default network
	Hostname        string // resolved by DNS when there are no addresses
	Protocol        Protocol
	NativeTunnel    bool // terminates HBONE itself
	HostNetwork     bool // shares the node's address: never found by IP
	Healthy         bool
	Capacity        uint32 // relative weight; 0 means never chosen
	Identity        spiffe.ID
	Waypoint        *Gateway // for connections to the workload's own address
	NetworkGateway  *Gateway // how to reach it from another network
	Node            string

	CanonicalName, CanonicalRevision string // telemetry
	WorkloadName, WorkloadType       string
	ClusterID                        string
	Locality                         Locality

	// Policies names every policy that applies beyond those of its namespace and
	// the global ones, as "namespace/name".
	Policies []string
	// Services lists the services that the workload is an endpoint of, sorted.
	Services []Membership
	// AppTunnel is set when the workload wants tunnels delivered in its own way.
	AppTunnel *AppTunnel

	self *[1]spiffe.ID // Identity, shared by all that have it
}

// Self returns the workload's identity as a list. Read only.
func (w *Workload) Self() []spiffe.ID {
	if w.self == nil {
		return []spiffe.ID{w.Identity}
	}
	return w.self[:]
}

// Locality is where a workload runs.
type Locality struct{ Region, Zone, Subzone string }

// Membership is a workload's part in one service.
type Membership struct {
	Service ServiceKey
	Ports   []Port
}

// AppTunnel is how a workload (a sandwiched waypoint) takes tunnelled bytes.
type AppTunnel struct {
	Proxy bool   // wants a PROXY protocol header
	Port  uint16 // 0: the port that was asked for
}

// ServiceKey identifies a service: "namespace/hostname" on the wire.
type ServiceKey struct{ Namespace, Hostname string }

// String returns "namespace/hostname".
func (k ServiceKey) String() string { return k.Namespace + "/" + k.Hostname }

// parseServiceKey splits at the only slash.
func parseServiceKey(s string) (ServiceKey, bool) {
	ns, host, ok := strings.Cut(s, "/")
	return ServiceKey{ns, host}, ok && !strings.Contains(host, "/")
}

// NetworkAddress is an address on one network.
type NetworkAddress struct {
	Network string
	IP      netip.Addr
}

// String returns "network/ip", with a leading slash for the default network.
func (a NetworkAddress) String() string { return a.Network + "/" + a.IP.String() }

// Gateway refers to a waypoint or network gateway, by address or by hostname.
type Gateway struct {
	Address NetworkAddress // valid IP: by address
	Host    ServiceKey     // else by hostname
	Port    uint16         // of HBONE
}

// ByAddress reports which of the two references is set.
func (g *Gateway) ByAddress() bool { return g.Address.IP.IsValid() }

// String returns "network/ip" or "namespace/hostname".
func (g *Gateway) String() string {
	if g.ByAddress() {
		return g.Address.String()
	}
	return g.Host.String()
}

// Port maps a service port to the port that serves it; Target 0 means that each
// endpoint defines its own.
type Port struct{ Service, Target uint16 }

// Service is a set of endpoints under common names and addresses. Immutable;
// its endpoints are Snapshot.Endpoints.
type Service struct {
	Name      string
	Key       ServiceKey
	VIPs      []NetworkAddress
	CIDRs     []NetworkPrefix
	Ports     []Port      // sorted by Service
	Peers     []spiffe.ID // accepted besides the endpoint's own identity
	Canonical bool        // preferred among services that share a name or address
	Private   bool        // seen from its own namespace only
	Waypoint  *Gateway
	Weighted  []WeightedWaypoint
	Balance   Balance
	Families  Families

	peers []string // as sent, for the dump
}

// NetworkPrefix is a range of virtual addresses on one network.
type NetworkPrefix struct {
	Network string
	Prefix  netip.Prefix
}

// WeightedWaypoint is one of several waypoints of a service.
type WeightedWaypoint struct {
	Gateway Gateway
	Weight  uint32
}

// HasWaypoint reports whether connections to the service must pass one.
func (s *Service) HasWaypoint() bool {
	return s.Waypoint != nil || slices.ContainsFunc(s.Weighted, func(w WeightedWaypoint) bool { return w.Weight > 0 })
}

// Port returns the mapping of a service port.
func (s *Service) Port(port uint16) (Port, bool) { return findPort(s.Ports, port) }

func findPort(ports []Port, port uint16) (Port, bool) {
	for _, p := range ports {
		if p.Service == port {
			return p, true
		}
	}
	return Port{}, false
}

// Mode is how an endpoint is chosen.
type Mode uint8

// The modes, spec/ztunnel.md §2.5.2.
const (
	Standard    Mode = iota // any
	Strict                  // only those that match every preference
	Failover                // those that match most preferences in order
	Passthrough             // none: the address that was dialled
)

// String returns the name as in the config dump.
func (m Mode) String() string { return [...]string{"Standard", "Strict", "Failover", "Passthrough"}[m] }

// Scope is one thing that a source and an endpoint may have in common.
type Scope uint8

// The scopes.
const (
	Region Scope = iota
	Zone
	Subzone
	Node
	Cluster
	Network
)

// String returns the name as in the config dump.
func (s Scope) String() string {
	return [...]string{"Region", "Zone", "Subzone", "Node", "Cluster", "Network"}[s]
}

// Balance says how a service's endpoints are chosen.
type Balance struct {
	Mode        Mode
	Preferences []Scope
	AllowAll    bool // unhealthy endpoints too
}

// Families is which address families a service uses.
type Families uint8

// The families; AnyFamily is no restriction.
const (
	AnyFamily Families = iota
	IPv4Only
	IPv6Only
	DualStack
)

// Allows reports whether an address is of the families.
func (f Families) Allows(ip netip.Addr) bool {
	switch f {
	case IPv4Only:
		return ip.Is4()
	case IPv6Only:
		return ip.Is6()
	case AnyFamily, DualStack:
	}
	return true
}

// Endpoint is a workload's part in one service.
type Endpoint struct {
	Workload *Workload
	Ports    []Port // overrides of the service's target ports
}

// Port returns the endpoint's own mapping of a service port.
func (e *Endpoint) Port(port uint16) (uint16, bool) {
	p, ok := findPort(e.Ports, port)
	return p.Target, ok && p.Target != 0
}
