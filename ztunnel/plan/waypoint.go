package plan

import (
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// pickWaypoint chooses one of a service's waypoints in proportion to their
// weights; without weights it is the only one. It may return nil for a service
// that has none.
func pickWaypoint(svc *workload.Service, random func(uint64) uint64) *workload.Gateway {
	var total uint64
	for _, w := range svc.Weighted {
		total += uint64(w.Weight)
	}
	if total == 0 {
		return svc.Waypoint
	}
	n := random(total)
	for i := range svc.Weighted {
		w := uint64(svc.Weighted[i].Weight)
		if n < w {
			return &svc.Weighted[i].Gateway
		}
		n -= w
	}
	return svc.Waypoint
}

// resolveWaypoint returns an endpoint of a waypoint, and the service that it was
// chosen from, if any. The waypoint's own waypoint is not followed.
func (q *Request) resolveWaypoint(s *workload.Snapshot, gw *workload.Gateway) (hop, *workload.Service, error) {
	var svc *workload.Service
	var w *workload.Workload
	dialled := q.Target.Addr()
	if gw.ByAddress() {
		dialled = gw.Address.IP
		svc = s.ServiceByVIP(gw.Address.Network, dialled, q.Source.Namespace)
		w = s.ByIP(gw.Address.Network, dialled)
	} else {
		svc = s.Service(gw.Host)
		w = s.WorkloadByHostname(gw.Host)
	}
	switch {
	case svc != nil:
		to, err := q.balance(s, svc, gw.Port, dialled, true)
		if err != nil {
			return hop{}, nil, problem(WaypointUnavailable, "waypoint %s: %s", gw, err.Detail)
		}
		return to, svc, nil
	case w != nil:
		ip, resolve, ok := chooseIP(w, nil, dialled)
		if !ok {
			return hop{}, nil, problem(WaypointUnavailable, "waypoint %s has no address", gw)
		}
		return hop{workload: w, addr: netip.AddrPortFrom(ip, gw.Port), resolve: resolve}, nil, nil
	}
	return hop{}, nil, problem(WaypointUnavailable, "waypoint %s is not known", gw)
}

// isFrom reports whether the source is the waypoint itself; identity and address
// must both be its, so that a pod with the same account does not get around it.
func (q *Request) isFrom(s *workload.Snapshot, gw *workload.Gateway) bool {
	return anyBehind(s, gw, func(w *workload.Workload) bool {
		return w.Identity == q.Source.Identity && slices.Contains(w.Addresses, q.SourceIP)
	})
}

// anyBehind reports whether a workload that a gateway reference stands for fits.
// Visibility is ignored.
func anyBehind(s *workload.Snapshot, gw *workload.Gateway, fits func(*workload.Workload) bool) bool {
	var services []*workload.Service
	var w *workload.Workload
	if gw.ByAddress() {
		services = s.ServicesAt(gw.Address.Network, gw.Address.IP)
		w = s.ByIP(gw.Address.Network, gw.Address.IP)
	} else {
		if svc := s.Service(gw.Host); svc != nil {
			services = append(services, svc)
		}
		w = s.WorkloadByHostname(gw.Host)
	}
	for _, svc := range services {
		for _, e := range s.Endpoints(svc.Key) {
			if fits(e.Workload) {
				return true
			}
		}
	}
	return w != nil && fits(w)
}
