package plan

import (
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// Arrival is a CONNECT that reached a pod of ours.
type Arrival struct {
	Local     *workload.Workload // the pod, never nil
	Connected netip.AddrPort     // the address that the peer connected to
	Authority string
	Network   string // ours
	Reserved  uint16 // one more port of ztunnel's own; 0: none
}

// Delivery is where an accepted CONNECT goes.
type Delivery struct {
	Target netip.AddrPort
	// Service is the one that the authority names; nil when it is an address.
	Service *workload.Service
	// Proxy is set when the application wants a PROXY protocol header before the
	// first byte. It is for ProxyTarget, what the tunnel was opened for, which is
	// the application's to judge.
	Proxy       bool
	ProxyTarget netip.AddrPort
}

// Inbound checks that an arrival is meant for the pod, so that nobody uses
// ztunnel as a relay, and says where in the pod it goes. The error is an *Error.
func Inbound(s *workload.Snapshot, a Arrival) (Delivery, error) {
	host, port, addr, err := splitAuthority(a.Authority)
	if err != nil {
		return Delivery{}, err
	}
	tunnel := a.Local.AppTunnel
	var d Delivery
	asked := netip.AddrPortFrom(addr, port)
	if addr.IsValid() {
		if !a.accepts(s, addr) {
			return Delivery{}, problem(IPMismatch, "%s != %s", a.Connected.Addr(), addr)
		}
	} else {
		svc := s.ServiceByHostname(host, a.Local.Namespace)
		if svc == nil {
			return Delivery{}, problem(UnknownDestination, "hostname %q is not known", host)
		}
		asked = netip.AddrPortFrom(virtualAddress(svc, a.Network), port)
		target, ok := servedPort(s, svc, a.Local, port)
		if !ok && (tunnel == nil || tunnel.Port == 0) { // a tunnel's port stands for all
			return Delivery{}, problem(UnknownDestination, "service %s does not map port %d", svc.Key, port)
		}
		d.Service, port = svc, target
	}
	if tunnel != nil {
		if tunnel.Port != 0 {
			port = tunnel.Port
		}
		if d.Proxy = tunnel.Proxy; d.Proxy {
			if !asked.Addr().IsValid() {
				return Delivery{}, problem(UnknownDestination, "service %s has no virtual address to tell the application", d.Service.Key)
			}
			d.ProxyTarget = asked
		}
	}
	if reserved(port, a.Reserved) {
		return Delivery{}, problem(SelfCall, "%d is a port of ztunnel", port)
	}
	d.Target = netip.AddrPortFrom(a.Connected.Addr().Unmap(), port)
	return d, nil
}

// virtualAddress returns the address that stands for a service: on our network
// if it has one there, of IPv4 if there is a choice. It is not valid for a
// service without.
func virtualAddress(svc *workload.Service, network string) netip.Addr {
	var best workload.NetworkAddress
	better := func(v workload.NetworkAddress) bool {
		if ours := v.Network == network; ours != (best.Network == network) {
			return ours
		}
		return v.IP.Is4() && !best.IP.Is4()
	}
	for _, v := range svc.VIPs {
		if !best.IP.IsValid() || better(v) {
			best = v
		}
	}
	return best.IP
}

// splitAuthority reads ip:port (addr is valid) or host:port.
func splitAuthority(authority string) (host string, port uint16, addr netip.Addr, err error) {
	if ap, err := netip.ParseAddrPort(authority); err == nil && ap.Port() != 0 {
		return "", ap.Port(), ap.Addr().Unmap(), nil
	}
	host, text, err := net.SplitHostPort(authority)
	if err != nil || host == "" {
		return "", 0, addr, problem(BadAuthority, "authority %q is not host:port", authority)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, addr, problem(BadAuthority, "authority %q has no valid port", authority)
	}
	return host, uint16(n), addr, nil
}

// accepts reports whether a tunnel for addr may end at the pod: it is the pod's
// own address, the pod wants tunnels for anyone, or it is the waypoint of what
// is at addr (spec/ztunnel.md §3.3).
func (a *Arrival) accepts(s *workload.Snapshot, addr netip.Addr) bool {
	if addr == a.Connected.Addr().Unmap() || a.Local.AppTunnel != nil {
		return true
	}
	us := func(w *workload.Workload) bool { return w.UID == a.Local.UID }
	for _, svc := range s.ServicesAt(a.Network, addr) {
		for gw := range waypoints(svc) {
			if anyBehind(s, gw, us) {
				return true
			}
		}
	}
	w := s.ByIP(a.Network, addr)
	return w != nil && w.Waypoint != nil && anyBehind(s, w.Waypoint, us)
}

// servedPort returns the port on which local serves a port of svc.
func servedPort(s *workload.Snapshot, svc *workload.Service, local *workload.Workload, port uint16) (uint16, bool) {
	if e, ok := s.Endpoint(svc.Key, local.UID); ok {
		if own, ok := e.Port(port); ok {
			return own, true
		}
	}
	mapping, ok := svc.Port(port)
	return mapping.Target, ok && mapping.Target != 0
}

// Passthrough checks the target of a plaintext connection that was captured on
// its way into the pod. extra is one more port of ztunnel's own, 0 for none. The
// error is an *Error.
func Passthrough(target netip.AddrPort, extra uint16) error {
	if reserved(target.Port(), extra) {
		return problem(SelfCall, "%s is a port of ztunnel", target)
	}
	return nil
}

// ServiceOf guesses for telemetry which service a connection to a port of local
// was meant for: the one that the peer says it asked for, when local is part of
// it or it was resolved from the authority; else the first that maps to port.
// The peer's word chooses among the pod's own services and cannot add one.
func ServiceOf(s *workload.Snapshot, local *workload.Workload, port uint16, said string, resolved *workload.Service) *workload.Service {
	if resolved != nil && (said == "" || said == resolved.Key.Hostname) {
		return resolved
	}
	var first *workload.Service
	for _, m := range local.Services {
		svc := s.Service(m.Service)
		if svc == nil {
			continue
		}
		if said != "" && svc.Key.Hostname == said {
			return svc
		}
		serves := slices.ContainsFunc(m.Ports, func(p workload.Port) bool { return p.Target == port }) ||
			slices.ContainsFunc(svc.Ports, func(p workload.Port) bool { return p.Target == port })
		if first == nil && serves {
			first = svc
		}
	}
	return first
}
