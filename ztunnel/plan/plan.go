// Package plan decides where a connection goes. Outbound answers for a
// connection that a pod of ours opens, Inbound for a tunnel that arrives at
// one. Both are pure functions over a snapshot: no I/O, no clock, and chance
// only from the random source that the caller passes. What has been seen of
// endpoints (how many connections each has, which have just refused one) is the
// caller's to know and to pass as functions; a Tally is such a record, kept
// outside of the snapshot. Package proxy carries the plans out; whether a
// connection may pass is package rbac's question.
//
//	plan.go      the decision                balance.go  which endpoint
//	waypoint.go  waypoints and gateways      choose.go   which of many, fast
//	inbound.go   where in the pod            tally.go    the record
//
// Rules: spec/ztunnel.md §2.2–2.6 and §3.3–3.5.
package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"

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
	NotSupported                       // by the wire: only services are reached on other networks
	GatewayUnavailable                 // must pass a network gateway, and there is none
)

// Error is the problem with its detail.
type Error struct {
	Problem Problem
	Detail  string
	// Unknown names what the snapshot would have to know, as a resource of xDS:
	// "network/ip" or "namespace/hostname". It is for a client on demand to ask
	// for before the plan is asked again; empty when that would not help.
	Unknown string
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
	Reserved uint16             // one more port of ztunnel's own; 0: none
	// Tried holds the uids of endpoints that this connection has been tried at
	// (Plan.Tries); they are chosen only when there is no other.
	Tried []string
	// Load returns how many connections are open to a workload: of two drawn by
	// weight, the one with less for its weight is chosen. Nil: the first.
	Load func(uid string) int
	// Refused reports whether an endpoint has just refused connections to a port
	// of its own; such a one is chosen only when there is no other. Nil: none has.
	Refused func(uid string, port uint16) bool
	// Rand returns a number in [0, n); nil is the process's random source.
	Rand func(n uint64) uint64
}

// Plan is where an outbound connection goes.
type Plan struct {
	Protocol workload.Protocol
	NextHop  netip.AddrPort // whom we dial
	// Resolve is a hostname whose address takes the place of NextHop's, which is
	// then not valid: look it up, then go on with At.
	Resolve   string
	Authority string      // of the CONNECT; empty for TCP
	Peers     []spiffe.ID // any of which must answer; empty for TCP. Read only
	// Inner is set for a service on another network: the next hop is a gateway,
	// and inside the tunnel to it is another, which the gateway cannot read.
	Inner *Inner
	// Workload is the next hop; nil when it is unknown to the mesh.
	Workload *workload.Workload
	// Remote is the workload behind the gateway, nil without Inner.
	Remote *workload.Workload
	// Service is what the application asked for, nil unless it dialled one.
	Service *workload.Service
	// Waypoint is set when the next hop is one, or the one behind the gateway.
	Waypoint bool
	// Retriable is set when another endpoint may take the place of this one.
	Retriable bool

	port uint16 // of the workload, where the authority is its address
}

// Inner is the second tunnel of a connection to another network: a TLS
// connection of its own inside the outer stream, with one CONNECT.
type Inner struct {
	Authority string
	Peers     []spiffe.ID // any of which must answer
}

// At returns the plan of which Resolve has been looked up.
func (p Plan) At(ip netip.Addr) Plan {
	p.NextHop, p.Resolve = netip.AddrPortFrom(ip, p.NextHop.Port()), ""
	if p.port != 0 {
		p.Authority = netip.AddrPortFrom(ip, p.port).String()
	}
	return p
}

// Endpoint returns whom the plan chose, as Request.Load and Request.Refused are
// asked for it: a workload's uid and its own port. The uid is empty when the next
// hop is unknown to the mesh.
func (p *Plan) Endpoint() (uid string, port uint16) {
	switch {
	case p.Workload == nil:
		return "", 0
	case p.port != 0:
		return p.Workload.UID, p.port
	}
	return p.Workload.UID, p.NextHop.Port()
}

// Tries appends what the plan chose to the uids of those that were tried.
func (p *Plan) Tries(tried []string) []string {
	for _, w := range [...]*workload.Workload{p.Workload, p.Remote} {
		if w != nil && !slices.Contains(tried, w.UID) {
			tried = append(tried, w.UID)
		}
	}
	return tried
}

// reserved reports whether a port is one of ztunnel's own in the pod; to connect
// there would loop (spec/ztunnel.md §1.3).
func reserved(port, extra uint16) bool {
	return port == mesh.PortOutbound || port == mesh.PortInboundPlain || port == mesh.PortHBONE || (extra != 0 && port == extra)
}

// Outbound returns where a connection goes. The error is an *Error.
func Outbound(s *workload.Snapshot, q Request) (Plan, error) {
	if q.Rand == nil {
		q.Rand = rand.Uint64N
	}
	ip := q.Target.Addr()
	if ip.IsLoopback() && reserved(q.Target.Port(), q.Reserved) {
		return Plan{}, problem(SelfCall, "%s is a port of ztunnel", q.Target)
	}
	// What was dialled: a workload's own address before a virtual one.
	addressed := s.ByIP(q.Network, ip)
	svc := s.ServiceByVIP(q.Network, ip, q.Source.Namespace)
	if addressed == nil && svc != nil && svc.HasWaypoint() && !q.isWaypointOf(s, svc) {
		if gw := pickWaypoint(svc, q.Rand); gw != nil {
			return q.throughWaypoint(s, gw, svc)
		}
	}
	// Who serves it: the service before the workload.
	if svc != nil && svc.Balance.Mode != workload.Passthrough {
		to, err := q.balance(s, svc, q.Target.Port(), ip, false)
		if err != nil {
			return Plan{}, err
		}
		if addressed != nil { // dialled by its own address, served as a service
			return q.toWorkload(s, to, svc)
		}
		return q.direct(s, to, svc)
	}
	if addressed == nil { // unknown, or a passthrough service
		return Plan{NextHop: q.Target, Service: svc}, nil
	}
	return q.toWorkload(s, hop{workload: addressed, addr: q.Target}, nil)
}

// toWorkload plans a connection to a workload's own address: through that
// workload's waypoint, if it has one. svc is what it was chosen for, if any.
func (q *Request) toWorkload(s *workload.Snapshot, to hop, svc *workload.Service) (Plan, error) {
	if gw := to.workload.Waypoint; gw != nil && to.workload.Network == q.Source.Network && !q.isFrom(s, gw) {
		return q.throughWaypoint(s, gw, nil)
	}
	return q.direct(s, to, svc)
}

// direct plans a connection to an endpoint itself.
func (q *Request) direct(s *workload.Snapshot, to hop, svc *workload.Service) (Plan, error) {
	w := to.workload
	if w.Network != q.Source.Network {
		return q.throughGateway(s, to, svc)
	}
	p := Plan{NextHop: to.addr, Resolve: to.resolve, Workload: w, Service: svc, Retriable: to.others}
	if w.Protocol != workload.HBONE {
		return p, nil
	}
	p.Protocol = workload.HBONE
	p.NextHop = netip.AddrPortFrom(to.addr.Addr(), mesh.PortHBONE)
	p.Peers = peers(w, svc)
	p.port = to.addr.Port()
	if to.resolve == "" {
		p.Authority = to.addr.String()
	}
	return p, nil
}

// peers returns who may answer for a workload that serves svc.
func peers(w *workload.Workload, svc *workload.Service) []spiffe.ID {
	switch {
	case svc == nil || len(svc.Peers) == 0:
		return w.Self()
	case slices.Contains(svc.Peers, w.Identity):
		return svc.Peers
	}
	return append(slices.Clip(svc.Peers), w.Identity)
}

// throughWaypoint plans a tunnel to a waypoint, which learns from the authority
// what was dialled. It never falls back to anything else. svc is nil when a
// workload was dialled.
func (q *Request) throughWaypoint(s *workload.Snapshot, gw *workload.Gateway, svc *workload.Service) (Plan, error) {
	to, owner, err := q.resolve(s, gw, true)
	if err != nil {
		return Plan{}, &Error{WaypointUnavailable, "waypoint " + gw.String() + " " + err.Detail, err.Unknown}
	}
	if to.workload.Network != q.Source.Network {
		p, err := q.throughGateway(s, to, svc)
		p.Waypoint = true
		return p, err
	}
	return Plan{
		Protocol: workload.HBONE, NextHop: to.addr, Resolve: to.resolve, Authority: q.Target.String(), Peers: peers(to.workload, owner),
		Workload: to.workload, Service: svc, Waypoint: true, Retriable: to.others,
	}, nil
}

// throughGateway plans a connection to a workload on another network (spec
// §2.5.5): a tunnel to that network's gateway, and in it one to whoever serves
// svc there. Both name the service, not an address, which would mean nothing
// there.
func (q *Request) throughGateway(s *workload.Snapshot, to hop, svc *workload.Service) (Plan, error) {
	remote := to.workload
	gw := remote.NetworkGateway
	switch {
	case svc == nil:
		return Plan{}, problem(NotSupported, "%s leads to workload %s on network %q; on another network only services can be reached", q.Target, remote.UID, remote.Network)
	case gw == nil:
		return Plan{}, problem(GatewayUnavailable, "service %s: workload %s is on network %q and names no gateway", svc.Key, remote.UID, remote.Network)
	case len(svc.Peers) == 0:
		return Plan{}, problem(GatewayUnavailable, "service %s names no identity that may answer for it on network %q", svc.Key, remote.Network)
	}
	outer, owner, err := q.resolve(s, gw, false)
	if err != nil {
		return Plan{}, &Error{GatewayUnavailable, fmt.Sprintf("gateway %s of network %q %s", gw, remote.Network, err.Detail), err.Unknown}
	}
	authority := svc.Key.Hostname + ":" + strconv.Itoa(int(q.Target.Port()))
	return Plan{
		Protocol: workload.HBONE, NextHop: outer.addr, Resolve: outer.resolve, Authority: authority, Peers: peers(outer.workload, owner),
		Inner: &Inner{Authority: authority, Peers: svc.Peers}, Workload: outer.workload, Remote: remote, Service: svc,
		Retriable: to.others || outer.others,
	}, nil
}
