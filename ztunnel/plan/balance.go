package plan

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// hop is a chosen endpoint with its address and port.
type hop struct {
	workload *workload.Workload
	addr     netip.AddrPort
	resolve  string // hostname in place of addr's address
	others   bool   // there is another choice
}

// balance chooses an endpoint of svc for one of its ports. dialled decides the
// address family. For a waypoint, a workload with an application tunnel serves
// every port.
func (q *Request) balance(s *workload.Snapshot, svc *workload.Service, port uint16, dialled netip.Addr, waypoint bool) (hop, *Error) {
	mapping, defined := svc.Port(port)
	if !defined && !waypoint {
		return hop{}, problem(NoHealthyEndpoint, "service %s has no port %d", svc.Key, port)
	}
	endpoints := s.Endpoints(svc.Key)
	c := choice{
		q: q, svc: svc, port: port, mapping: mapping, defined: defined, waypoint: waypoint, dialled: dialled,
		heaviest: uint64(s.Heaviest(svc.Key)),
	}
	var byLocality [][]int32
	if memo := s.Memo(svc.Key); memo != nil && c.ranked() {
		byLocality = groups(memo, svc, q.Source, endpoints)
	}
	e := c.pick(endpoints, byLocality)
	if e == nil {
		return hop{}, problem(NoHealthyEndpoint, "service %s has no healthy endpoint for port %d (%s)", svc.Key, port, c.census(endpoints))
	}
	target, _ := c.target(e)
	ip, resolve, _ := chooseIP(e.Workload, svc, dialled)
	return hop{workload: e.Workload, addr: netip.AddrPortFrom(ip, target), resolve: resolve, others: c.another(endpoints, e)}, nil
}

// choice is the selection of one endpoint, spec/ztunnel.md §2.5.1–2.5.3.
type choice struct {
	q        *Request
	svc      *workload.Service
	port     uint16
	mapping  workload.Port
	defined  bool // the service defines the port
	waypoint bool
	dialled  netip.Addr
	heaviest uint64 // no endpoint has more capacity
}

// unusable says why an endpoint cannot be chosen at all; empty: it can.
func (c *choice) unusable(e *workload.Endpoint) string {
	w := e.Workload
	switch {
	case !w.Healthy && !c.svc.Balance.AllowAll:
		return "not healthy"
	case w.Capacity == 0:
		return "without capacity"
	}
	if _, ok := c.target(e); !ok {
		return "without the port"
	}
	remote := w.Network != c.q.Source.Network && w.NetworkGateway != nil
	if len(w.Addresses) == 0 && w.Hostname == "" {
		if !remote {
			return "without an address"
		}
	} else if _, _, ok := chooseIP(w, c.svc, c.dialled); !ok && !remote {
		return "without an address of the service's families"
	}
	if b := &c.svc.Balance; b.Mode == workload.Strict {
		if matched, _ := locality(b, c.q.Source, w); matched != len(b.Preferences) {
			return "not where the service must be served"
		}
	}
	return ""
}

// census says why none of many endpoints can be chosen.
func (c *choice) census(endpoints []workload.Endpoint) string {
	counts := map[string]int{}
	for i := range endpoints {
		counts[c.unusable(&endpoints[i])]++
	}
	return summarize(len(endpoints), counts)
}

// locality returns how many preferences match in order, and the extra rank of a
// matching network where that is the first preference: it is then preferred, not
// required, and its mismatch does not end the count.
func locality(b *workload.Balance, source, w *workload.Workload) (matched, boost int) {
	prefs := b.Preferences
	for i, p := range prefs {
		same := sameScope(p, source, w)
		switch {
		case same && i == 0 && p == workload.Network:
			matched, boost = 1, len(prefs)-1
		case same:
			matched++
		case i == 0 && p == workload.Network:
		default:
			return matched, boost
		}
	}
	return matched, boost
}

func sameScope(p workload.Scope, a, b *workload.Workload) bool {
	switch p {
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

// target returns the port to dial: the endpoint's own, else the service's, else
// for an application tunnel the one asked for.
func (c *choice) target(e *workload.Endpoint) (uint16, bool) {
	if own, ok := e.Port(c.port); ok && (c.defined || c.waypoint && e.Workload.AppTunnel != nil) {
		return own, true
	}
	if c.mapping.Target != 0 {
		return c.mapping.Target, true
	}
	if t := e.Workload.AppTunnel; c.waypoint && t != nil && t.Port != 0 {
		return c.port, true
	}
	return 0, false
}

// chooseIP returns the address of w to dial: the dialled one if it is w's, else
// the first of that family, else the first that the service's families allow;
// else the hostname to resolve. svc may be nil.
func chooseIP(w *workload.Workload, svc *workload.Service, dialled netip.Addr) (ip netip.Addr, resolve string, ok bool) {
	if slices.Contains(w.Addresses, dialled) {
		return dialled, "", true
	}
	for _, a := range w.Addresses {
		if svc != nil && !svc.Families.Allows(a) {
			continue
		}
		if a.Is4() == dialled.Is4() {
			return a, "", true
		}
		if !ip.IsValid() {
			ip = a
		}
	}
	if ip.IsValid() {
		return ip, "", true
	}
	return ip, w.Hostname, w.Hostname != ""
}
