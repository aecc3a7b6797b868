package model

import (
	"net/netip"
	"strings"
)

// L7Endpoint is one address of one service port, as a waypoint sees it.
type L7Endpoint struct {
	Address     netip.Addr
	Port        uint32 // the target port
	Ready       bool
	Labels      map[string]string // of the workload; subsets select by them
	Protocol    string            // mesh.EndpointProtocolHBONE or mesh.EndpointProtocolTCP
	SPIFFEIDs   []string          // any one of them may answer
	WorkloadUID string
	Weight      uint32 // 0 means 1
}

// ResolveHost returns the hostname that a host field of an Istio object in the
// namespace means: a name without a dot is a service of that namespace,
// spec/control-plane.md §5.1.
func ResolveHost(host, namespace, clusterDomain string) string {
	host = strings.ToLower(host)
	if host == "" || strings.ContainsAny(host, ".*") {
		return host
	}
	return L7Hostname(namespace, host, clusterDomain)
}

// HostMatches reports whether hostname is the one that pattern is, or one that
// it stands for when it begins with "*".
func HostMatches(pattern, hostname string) bool {
	if suffix, wild := strings.CutPrefix(pattern, "*"); wild {
		return len(hostname) > len(suffix) && strings.HasSuffix(hostname, suffix)
	}
	return pattern == hostname
}
