package local

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	api "github.com/ambit-mesh/ambit/apis/workload"
)

// document is the YAML of App. B.2. Its names are those of the config dump, so
// that what a running ztunnel prints can be loaded into another.
type document struct {
	Workloads []workloadYAML `yaml:"workloads"`
	Services  []serviceYAML  `yaml:"services"`
	Policies  []policyYAML   `yaml:"policies"`
}

type workloadYAML struct {
	UID                   string             `yaml:"uid"`
	Name                  string             `yaml:"name"`
	Namespace             string             `yaml:"namespace"`
	WorkloadIPs           []string           `yaml:"workloadIps"`
	Hostname              string             `yaml:"hostname"`
	Network               string             `yaml:"network"`
	Protocol              string             `yaml:"protocol"`
	NetworkMode           string             `yaml:"networkMode"`
	TrustDomain           string             `yaml:"trustDomain"`
	ServiceAccount        string             `yaml:"serviceAccount"`
	WorkloadName          string             `yaml:"workloadName"`
	WorkloadType          string             `yaml:"workloadType"`
	CanonicalName         string             `yaml:"canonicalName"`
	CanonicalRevision     string             `yaml:"canonicalRevision"`
	Node                  string             `yaml:"node"`
	NativeTunnel          bool               `yaml:"nativeTunnel"`
	ClusterID             string             `yaml:"clusterId"`
	Status                string             `yaml:"status"`
	Capacity              *uint32            `yaml:"capacity"`
	AuthorizationPolicies []string           `yaml:"authorizationPolicies"`
	Services              map[string]portMap `yaml:"services"` // required, may be empty
	Locality              *localityYAML      `yaml:"locality"`
	Waypoint              *gatewayYAML       `yaml:"waypoint"`
	NetworkGateway        *gatewayYAML       `yaml:"networkGateway"`
	ApplicationTunnel     *appTunnelYAML     `yaml:"applicationTunnel"`
}

type localityYAML struct {
	Region  string `yaml:"region"`
	Zone    string `yaml:"zone"`
	Subzone string `yaml:"subzone"`
}

type gatewayYAML struct {
	Destination   string `yaml:"destination"` // "namespace/hostname" or "network/ip"
	HBONEMTLSPort uint16 `yaml:"hboneMtlsPort"`
}

type appTunnelYAML struct {
	Protocol string `yaml:"protocol"`
	Port     uint16 `yaml:"port"`
}

type serviceYAML struct {
	Name              string         `yaml:"name"`
	Namespace         string         `yaml:"namespace"`
	Hostname          string         `yaml:"hostname"`
	VIPs              []string       `yaml:"vips"`
	CIDRs             []cidrYAML     `yaml:"cidrVips"`
	Ports             portMap        `yaml:"ports"`
	Endpoints         map[string]any `yaml:"endpoints"` // in dumps; workloads say it
	SubjectAltNames   []string       `yaml:"subjectAltNames"`
	Waypoint          *gatewayYAML   `yaml:"waypoint"`
	WeightedWaypoints []weightedYAML `yaml:"weightedWaypoints"`
	LoadBalancer      *balanceYAML   `yaml:"loadBalancer"`
	IPFamilies        string         `yaml:"ipFamilies"`
	Canonical         bool           `yaml:"canonical"`
	Visibility        string         `yaml:"visibility"`
}

type cidrYAML struct {
	Network string `yaml:"network"`
	CIDR    string `yaml:"cidr"`
}

type weightedYAML struct {
	Destination gatewayYAML `yaml:"destination"`
	Weight      uint32      `yaml:"weight"`
}

type balanceYAML struct {
	RoutingPreferences []string `yaml:"routingPreferences"`
	Mode               string   `yaml:"mode"`
	HealthPolicy       string   `yaml:"healthPolicy"`
}

// portMap is {80: 8080}; the keys may be quoted, as JSON has them.
type portMap map[uint16]uint16

// UnmarshalYAML implements [yaml.Unmarshaler].
func (p *portMap) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		*p = portMap{}
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: ports are not a map such as {80: 8080}", n.Line)
	}
	out := portMap{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		var pair [2]uint16
		for j := range pair {
			v, err := strconv.ParseUint(n.Content[i+j].Value, 10, 16)
			if err != nil {
				return fmt.Errorf("line %d: %q is not a port", n.Content[i+j].Line, n.Content[i+j].Value)
			}
			pair[j] = uint16(v)
		}
		if _, twice := out[pair[0]]; twice {
			return fmt.Errorf("line %d: port %d is there twice", n.Content[i].Line, pair[0])
		}
		out[pair[0]] = pair[1]
	}
	*p = out
	return nil
}

func (p portMap) message() []*api.Port {
	out := make([]*api.Port, 0, len(p))
	for service, target := range p {
		out = append(out, &api.Port{ServicePort: uint32(service), TargetPort: uint32(target)})
	}
	sortPorts(out)
	return out
}

// message returns nil for a reference that is absent.
func (g *gatewayYAML) message() (*api.GatewayAddress, error) {
	if g == nil {
		return nil, nil // absent is a valid value of the field
	}
	out := &api.GatewayAddress{HboneMtlsPort: uint32(g.HBONEMTLSPort)}
	first, rest, ok := strings.Cut(g.Destination, "/")
	if !ok || rest == "" {
		return nil, fmt.Errorf("destination %q is neither namespace/hostname nor network/ip", g.Destination)
	}
	if ip, err := netip.ParseAddr(rest); err == nil {
		out.Destination = &api.GatewayAddress_Address{Address: &api.NetworkAddress{Network: first, Address: ip.AsSlice()}}
		return out, nil
	}
	out.Destination = &api.GatewayAddress_Hostname{Hostname: &api.NamespacedHostname{Namespace: first, Hostname: rest}}
	return out, nil
}

// choose maps a name of the document to a value; the empty name is the first.
func choose[T any](field, name string, names []string, values []T) (T, error) {
	if name == "" {
		return values[0], nil
	}
	for i, n := range names {
		if n == name {
			return values[i], nil
		}
	}
	var none T
	return none, fmt.Errorf("%s %q is none of %s", field, name, strings.Join(names, ", "))
}

var errNoServices = errors.New("no services: say services: {} if there are none")
