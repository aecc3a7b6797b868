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
	others   bool   // there was a choice
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
	c := choice{q: q, svc: svc, port: port, mapping: mapping, defined: defined, waypoint: waypoint}
	e := c.pick(endpoints)
	if e == nil {
		return hop{}, problem(NoHealthyEndpoint, "service %s has no healthy endpoint for port %d (%d known)", svc.Key, port, len(endpoints))
	}
	target, ok := c.target(e)
	ip, resolve, found := chooseIP(e.Workload, svc, dialled)
	switch {
	case !ok:
		return hop{}, problem(NoHealthyEndpoint, "service %s: endpoint %s does not map port %d", svc.Key, e.Workload.UID, port)
	case !found && e.Workload.Network == q.Source.Network:
		return hop{}, problem(NoHealthyEndpoint, "service %s: endpoint %s has no address", svc.Key, e.Workload.UID)
	}
	return hop{workload: e.Workload, addr: netip.AddrPortFrom(ip, target), resolve: resolve, others: c.eligible > 1}, nil
}

// choice is the selection of one endpoint, spec/ztunnel.md §2.5.1–2.5.2.
type choice struct {
	q        *Request
	svc      *workload.Service
	port     uint16
	mapping  workload.Port
	defined  bool // the service defines the port
	waypoint bool

	eligible int // found by the last pick
}

// pick chooses by weight among the eligible endpoints of the best rank. It reads
// the list twice instead of building one.
func (c *choice) pick(endpoints []workload.Endpoint) *workload.Endpoint {
	best, total := -1, uint64(0)
	c.eligible = 0
	for i := range endpoints {
		e := &endpoints[i]
		rank, ok := c.rank(e)
		if !ok {
			continue
		}
		c.eligible++
		if rank > best {
			best, total = rank, 0
		}
		if rank == best {
			total += uint64(e.Workload.Capacity)
		}
	}
	if total == 0 {
		return nil
	}
	n := c.q.Rand(total)
	for i := range endpoints {
		e := &endpoints[i]
		if rank, ok := c.rank(e); !ok || rank != best {
			continue
		}
		if w := uint64(e.Workload.Capacity); n < w {
			return e
		} else {
			n -= w
		}
	}
	return nil
}

// rank returns how well an endpoint fits and whether it may be used at all. One
// to be avoided ranks below every other.
func (c *choice) rank(e *workload.Endpoint) (int, bool) {
	w := e.Workload
	if !w.Healthy && !c.svc.Balance.AllowAll {
		return 0, false
	}
	if len(w.Addresses) == 0 && w.Hostname == "" && (w.Network == c.q.Source.Network || w.NetworkGateway == nil) {
		return 0, false
	}
	if c.waypoint {
		if !c.defined && w.AppTunnel == nil {
			return 0, false
		}
	} else if _, own := e.Port(c.port); !own && c.mapping.Target == 0 {
		return 0, false
	}
	b := &c.svc.Balance
	rank := 1
	if b.Mode == workload.Strict || b.Mode == workload.Failover {
		matched, boost := c.locality(w)
		if b.Mode == workload.Strict && matched != len(b.Preferences) {
			return 0, false
		}
		rank += matched + boost
	}
	if w.UID == c.q.Avoid {
		rank = 0
	}
	return rank, true
}

// locality returns how many preferences match in order, and the extra rank of a
// matching network where that is the first preference: it is then preferred, not
// required, and its mismatch does not end the count.
func (c *choice) locality(w *workload.Workload) (matched, boost int) {
	prefs := c.svc.Balance.Preferences
	for i, p := range prefs {
		same := sameScope(p, c.q.Source, w)
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
	if own, ok := e.Port(c.port); ok {
		return own, true
	}
	if c.mapping.Target != 0 {
		return c.mapping.Target, true
	}
	if t := e.Workload.AppTunnel; t != nil && t.Port != 0 {
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
