package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// What the mesh answers to a name that it knows, spec/ztunnel.md §7.1. Pure but for the
// order of addresses, which is by chance.

// familyAllowed says whether the service has addresses of the family that is asked for.
func familyAllowed(m match, kind uint16, ipv4Only bool) bool {
	if kind == typeAAAA {
		return !ipv4Only && m.service.Families != workload.IPv4Only
	}
	return m.service.Families != workload.IPv6Only
}

// addresses are what the name means to a client: virtual addresses on its network, or the
// endpoints of a service that has none.
func addresses(s *workload.Snapshot, m match, kind uint16, client *workload.Workload) []netip.Addr {
	var out []netip.Addr
	wanted := func(a netip.Addr) bool { return a.Is4() == (kind == typeA) }
	switch {
	case m.pod != nil:
		if usable(m.service, m.pod, client) {
			out = firstAddress(out, m.pod.Workload, wanted)
		}
	case len(m.service.VIPs) > 0:
		for _, vip := range m.service.VIPs {
			if vip.Network == client.Network && wanted(vip.IP) {
				out = append(out, vip.IP)
			}
		}
		rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	default:
		out = headless(s, m.service, client, wanted)
	}
	return out
}

// headless lists the endpoints' addresses, those first that the service prefers for this
// client: who uses the first only then stays near.
func headless(s *workload.Snapshot, svc *workload.Service, client *workload.Workload, wanted func(netip.Addr) bool) []netip.Addr {
	all := s.Endpoints(svc.Key)
	ranks := make([][]netip.Addr, len(svc.Balance.Preferences)+1)
	for i := range all {
		if !usable(svc, &all[i], client) {
			continue
		}
		w := all[i].Workload
		r := shared(svc.Balance.Preferences, w, client)
		ranks[r] = firstAddress(ranks[r], w, wanted)
	}
	var out []netip.Addr
	for _, same := range slices.Backward(ranks) {
		rand.Shuffle(len(same), func(i, j int) { same[i], same[j] = same[j], same[i] })
		out = append(out, same...)
	}
	return out
}

// usable says whether the client could connect to the endpoint: an address means nothing
// on another network.
func usable(svc *workload.Service, e *workload.Endpoint, client *workload.Workload) bool {
	return (e.Workload.Healthy || svc.Balance.AllowAll) && e.Workload.Network == client.Network
}

func firstAddress(out []netip.Addr, w *workload.Workload, wanted func(netip.Addr) bool) []netip.Addr {
	if i := slices.IndexFunc(w.Addresses, wanted); i >= 0 {
		out = append(out, w.Addresses[i])
	}
	return out
}

// shared counts the preferences, in order, in which two workloads are the same.
func shared(preferences []workload.Scope, a, b *workload.Workload) int {
	for i, p := range preferences {
		if !same(p, a, b) {
			return i
		}
	}
	return len(preferences)
}

func same(scope workload.Scope, a, b *workload.Workload) bool {
	switch scope {
	case workload.Region:
		return a.Locality.Region == b.Locality.Region
	case workload.Zone:
		return a.Locality.Zone == b.Locality.Zone
	case workload.Subzone:
		return a.Locality.Subzone == b.Locality.Subzone
	case workload.Node:
		return a.Node == b.Node
	case workload.Cluster:
		return a.ClusterID == b.ClusterID
	case workload.Network:
		return a.Network == b.Network
	}
	return false
}
