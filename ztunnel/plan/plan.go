// Package plan decides where a connection goes. Outbound answers for a
// connection that a pod of ours opens, Inbound for a tunnel that arrives at
// one. Both are pure functions over a snapshot: no I/O, no clock, and chance
// only from the random source that the caller passes. Package proxy carries the
// plans out; whether a connection may pass is package rbac's question.
// Rules: spec/ztunnel.md §2.2–2.5 and §3.3–3.4.
package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// Problem says why there is no plan.
type Problem uint8

// The problems.
const (
	SelfCall            Problem = iota // a port of ztunnel's own
	BadAuthority                       // does not parse
	IPMismatch                         // not the address that was connected to
	UnknownDestination                 // no such service or port
	NoHealthyEndpoint                  // nobody serves it
	WaypointUnavailable                // must pass a waypoint, and there is none
	NotSupported                       // not by this version
)

// Error is the problem with its detail.
type Error struct {
	Problem Problem
	Detail  string
}

// Error returns the detail.
func (e *Error) Error() string { return e.Detail }

func problem(p Problem, format string, args ...any) *Error {
	return &Error{Problem: p, Detail: fmt.Sprintf(format, args...)}
}

// Request is a connection that a pod of ours opens.
type Request struct {
	Source   *workload.Workload // the pod, never nil
	SourceIP netip.Addr         // the address that it connects from
	Target   netip.AddrPort     // the address that it connects to
	Network  string             // ours
	// Avoid is the uid of an endpoint that has just failed; it is chosen only when
	// there is no other.
	Avoid string
	// Rand returns a number in [0, n); nil is the process's random source.
	Rand func(n uint64) uint64
}

// Plan is where an outbound connection goes.
type Plan struct {
	Protocol workload.Protocol
	NextHop  netip.AddrPort // whom we dial
	// Resolve is a hostname whose address takes the place of NextHop's, which is
	// then not valid; its port stays.
	Resolve   string
	Authority string      // of the CONNECT; empty for TCP
	Peers     []spiffe.ID // any of which must answer; empty for TCP
	// Workload is the next hop; nil when it is unknown to the mesh.
	Workload *workload.Workload
	// Service is what the application asked for, nil unless it dialled one.
	Service *workload.Service
	// Waypoint is set when the next hop is one.
	Waypoint bool
	// Retriable is set when another endpoint may take the place of this one.
	Retriable bool
}

// reserved reports whether a port is one of ztunnel's own in the pod; to connect
// there would loop (spec/ztunnel.md §1.3).
func reserved(port uint16) bool {
	return port == mesh.PortOutbound || port == mesh.PortInboundPlain || port == mesh.PortHBONE
}

// Outbound returns where a connection goes. The error is an *Error.
func Outbound(s *workload.Snapshot, q Request) (Plan, error) {
	if q.Rand == nil {
		q.Rand = rand.Uint64N
	}
	ip := q.Target.Addr()
	if ip.IsLoopback() && reserved(q.Target.Port()) {
		return Plan{}, problem(SelfCall, "%s is a port of ztunnel", q.Target)
	}
	// What was dialled: a workload's own address before a virtual one.
	addressed := s.ByIP(q.Network, ip)
	svc := s.ServiceByVIP(q.Network, ip, q.Source.Namespace)
	if addressed == nil && svc != nil && svc.HasWaypoint() {
		if gw := pickWaypoint(svc, q.Rand); gw != nil && !q.isFrom(s, gw) {
			return q.throughWaypoint(s, gw, svc)
		}
	}
	// Who serves it: the service before the workload.
	if svc != nil && svc.Balance.Mode != workload.Passthrough {
		hop, err := q.balance(s, svc, q.Target.Port(), ip, false)
		if err != nil {
			return Plan{}, err
		}
		if addressed != nil { // dialled by its own address, served as a service
			return q.toWorkload(s, hop, addressed)
		}
		return q.direct(hop, svc)
	}
	if addressed == nil { // unknown, or a passthrough service
		return Plan{NextHop: q.Target, Service: svc}, nil
	}
	return q.toWorkload(s, hop{workload: addressed, addr: q.Target}, addressed)
}

// toWorkload plans a connection to a workload's own address: through that
// workload's waypoint, if it has one.
func (q *Request) toWorkload(s *workload.Snapshot, to hop, addressed *workload.Workload) (Plan, error) {
	if to.workload.Network != q.Source.Network {
		return Plan{}, problem(NotSupported, "%s is on network %q; connections to other networks are not supported yet", q.Target, to.workload.Network)
	}
	if gw := to.workload.Waypoint; gw != nil && addressed != nil && !q.isFrom(s, gw) {
		return q.throughWaypoint(s, gw, nil)
	}
	return q.direct(to, nil)
}

// direct plans a connection to an endpoint itself.
func (q *Request) direct(to hop, svc *workload.Service) (Plan, error) {
	w := to.workload
	if w.Network != q.Source.Network {
		return Plan{}, problem(NotSupported, "%s is served on network %q; connections to other networks are not supported yet", q.Target, w.Network)
	}
	p := Plan{NextHop: to.addr, Resolve: to.resolve, Workload: w, Service: svc, Retriable: to.others}
	if w.Protocol != workload.HBONE {
		return p, nil
	}
	if to.resolve != "" {
		return Plan{}, problem(NotSupported, "workload %s speaks HBONE and has a hostname only", w.UID)
	}
	p.Protocol = workload.HBONE
	p.Authority = to.addr.String()
	p.NextHop = netip.AddrPortFrom(to.addr.Addr(), mesh.PortHBONE)
	p.Peers = peers(w, svc)
	return p, nil
}

// peers returns who may answer for a workload that serves svc.
func peers(w *workload.Workload, svc *workload.Service) []spiffe.ID {
	if svc == nil || len(svc.Peers) == 0 {
		return []spiffe.ID{w.Identity}
	}
	ids := slices.Clone(svc.Peers)
	if !slices.Contains(ids, w.Identity) {
		ids = append(ids, w.Identity)
	}
	return ids
}

// throughWaypoint plans a tunnel to a waypoint, which learns from the authority
// what was dialled. It never falls back to anything else.
func (q *Request) throughWaypoint(s *workload.Snapshot, gw *workload.Gateway, svc *workload.Service) (Plan, error) {
	to, owner, err := q.resolveWaypoint(s, gw)
	if err != nil {
		return Plan{}, err
	}
	if to.workload.Network != q.Source.Network {
		return Plan{}, problem(NotSupported, "waypoint %s is on network %q; connections to other networks are not supported yet", gw, to.workload.Network)
	}
	if to.resolve != "" {
		return Plan{}, problem(WaypointUnavailable, "waypoint %s has no address", gw)
	}
	return Plan{
		Protocol: workload.HBONE, NextHop: to.addr, Authority: q.Target.String(), Peers: peers(to.workload, owner),
		Workload: to.workload, Service: svc, Waypoint: true, Retriable: to.others,
	}, nil
}
