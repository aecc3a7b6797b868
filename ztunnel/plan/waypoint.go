package plan

import (
	"iter"
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

// waypoints iterates over every waypoint that a service names, those of weight 0
// included: a connection that was sent there before its weight was taken away
// is on its way still.
func waypoints(svc *workload.Service) iter.Seq[*workload.Gateway] {
	return func(yield func(*workload.Gateway) bool) {
		if svc.Waypoint != nil && !yield(svc.Waypoint) {
			return
		}
		for i := range svc.Weighted {
			if !yield(&svc.Weighted[i].Gateway) {
				return
			}
		}
	}
}

// resolve returns an endpoint of a waypoint or network gateway, and the service
// that it was chosen from, if any. Its own waypoint is not followed. The detail
// of the error goes on where "waypoint x" ends.
func (q *Request) resolve(s *workload.Snapshot, gw *workload.Gateway, waypoint bool) (hop, *workload.Service, *Error) {
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
		to, err := q.balance(s, svc, gw.Port, dialled, waypoint)
		if err != nil {
			return hop{}, nil, problem(err.Problem, "cannot be reached: %s", err.Detail)
		}
		return to, svc, nil
	case w != nil:
		ip, resolve, ok := chooseIP(w, nil, dialled)
		if !ok {
			return hop{}, nil, problem(NoHealthyEndpoint, "has no address")
		}
		return hop{workload: w, addr: netip.AddrPortFrom(ip, gw.Port), resolve: resolve}, nil, nil
	}
	return hop{}, nil, &Error{UnknownDestination, "is not known", gw.String()}
}

// isWaypointOf reports whether the source is a waypoint of svc itself.
func (q *Request) isWaypointOf(s *workload.Snapshot, svc *workload.Service) bool {
	for gw := range waypoints(svc) {
		if q.isFrom(s, gw) {
			return true
		}
	}
	return false
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
	if !gw.ByAddress() {
		w := s.WorkloadByHostname(gw.Host)
		return (w != nil && fits(w)) || anyEndpoint(s, gw.Host, fits)
	}
	if w := s.ByIP(gw.Address.Network, gw.Address.IP); w != nil && fits(w) {
		return true
	}
	for _, svc := range s.ServicesAt(gw.Address.Network, gw.Address.IP) {
		if anyEndpoint(s, svc.Key, fits) {
			return true
		}
	}
	return false
}

func anyEndpoint(s *workload.Snapshot, key workload.ServiceKey, fits func(*workload.Workload) bool) bool {
	for _, e := range s.Endpoints(key) {
		if fits(e.Workload) {
			return true
		}
	}
	return false
}
