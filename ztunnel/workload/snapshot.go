package workload

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/rbac"
)

// Snapshot is one consistent version of everything that istiod told us.
// Immutable; the zero Snapshot knows nothing.
type Snapshot struct {
	node          string
	policyVersion uint64

	workloads index[string, *Workload]           // by uid
	addresses index[NetworkAddress, []*Workload] // best first
	hostnames index[ServiceKey, []*Workload]     // workloads known by hostname
	local     index[Info, []*Workload]           // on our node
	endpoints index[ServiceKey, []Endpoint]      // by uid; of services not known yet, too

	services index[ServiceKey, *Service]
	byHost   index[string, []*Service]         // in order of arrival
	vips     index[NetworkAddress, []*Service] // in order of arrival
	cidrs    index[string, []cidrVIP]          // by network

	policies   index[string, *rbac.Policy] // by "namespace/name"
	namespaced index[string, []*rbac.Policy]
	global     []*rbac.Policy
}

// Info is how the node agent names a pod.
type Info struct{ Name, Namespace, ServiceAccount string }

type cidrVIP struct {
	prefix  netip.Prefix
	service *Service
}

// PolicyVersion changes when any policy does.
func (s *Snapshot) PolicyVersion() uint64 { return s.policyVersion }

// Workload returns a workload by uid, or nil.
func (s *Snapshot) Workload(uid string) *Workload { return s.workloads.at(uid) }

// WorkloadByInfo returns the workload on our node that the node agent calls so,
// or nil. It is never looked up by address, which a pod could claim.
func (s *Snapshot) WorkloadByInfo(name, namespace, serviceAccount string) *Workload {
	if ws := s.local.at(Info{name, namespace, serviceAccount}); len(ws) > 0 {
		return ws[0]
	}
	return nil
}

// Local iterates over the workloads of our node, in no particular order.
func (s *Snapshot) Local() iter.Seq[*Workload] {
	return func(yield func(*Workload) bool) {
		for _, ws := range s.local.all() {
			for _, w := range ws {
				if !yield(w) {
					return
				}
			}
		}
	}
}

// LocalIdentities returns the identities of the workloads of our node that take
// part in HBONE.
func (s *Snapshot) LocalIdentities() map[spiffe.ID]bool {
	ids := map[spiffe.ID]bool{}
	for w := range s.Local() {
		if w.Protocol == HBONE || w.NativeTunnel {
			ids[w.Identity] = true
		}
	}
	return ids
}

// ByIP returns the workload at an address, or nil. Of several, pods and those
// that speak HBONE come first.
func (s *Snapshot) ByIP(network string, ip netip.Addr) *Workload {
	if ws := s.addresses.at(NetworkAddress{network, ip}); len(ws) > 0 {
		return ws[0]
	}
	return nil
}

// WorkloadByHostname returns the workload known by a hostname, or nil.
func (s *Snapshot) WorkloadByHostname(key ServiceKey) *Workload {
	if ws := s.hostnames.at(key); len(ws) > 0 {
		return ws[0]
	}
	return nil
}

// Service returns a service by namespace and hostname, or nil.
func (s *Snapshot) Service(key ServiceKey) *Service { return s.services.at(key) }

// ServiceByHostname returns the service of any namespace that a client in
// namespace means by hostname: its own namespace's, else the canonical one,
// else the first; nil when it sees none.
func (s *Snapshot) ServiceByHostname(hostname, namespace string) *Service {
	return prefer(s.byHost.at(hostname), namespace)
}

// ServiceByVIP returns the service that a client in namespace reaches at an
// address, or nil. Exact addresses come before ranges.
func (s *Snapshot) ServiceByVIP(network string, ip netip.Addr, namespace string) *Service {
	if svc := prefer(s.vips.at(NetworkAddress{network, ip}), namespace); svc != nil {
		return svc
	}
	var best cidrVIP
	for _, c := range s.cidrs.at(network) {
		if c.prefix.Contains(ip) && c.service.visible(namespace) && (best.service == nil || c.better(best, namespace)) {
			best = c
		}
	}
	return best.service
}

// better orders ranges: own namespace, longer prefix, canonical; the one that
// came first wins a tie.
func (c cidrVIP) better(o cidrVIP, namespace string) bool {
	if a, b := c.service.Key.Namespace == namespace, o.service.Key.Namespace == namespace; a != b {
		return a
	}
	if a, b := c.prefix.Bits(), o.prefix.Bits(); a != b {
		return a > b
	}
	return c.service.Canonical && !o.service.Canonical
}

// ServicesAt returns every service at an address, seen by the client or not, in
// order of arrival; ranges only when no service has the exact address. Read only.
func (s *Snapshot) ServicesAt(network string, ip netip.Addr) []*Service {
	if exact := s.vips.at(NetworkAddress{network, ip}); len(exact) > 0 {
		return exact
	}
	var out []*Service
	for _, c := range s.cidrs.at(network) {
		if c.prefix.Contains(ip) {
			out = append(out, c.service)
		}
	}
	return out
}

func (s *Service) visible(namespace string) bool { return !s.Private || s.Key.Namespace == namespace }

func prefer(candidates []*Service, namespace string) *Service {
	var best *Service
	for _, c := range candidates {
		switch {
		case !c.visible(namespace):
		case c.Key.Namespace == namespace:
			return c
		case best == nil || (c.Canonical && !best.Canonical):
			best = c
		}
	}
	return best
}

// Endpoints returns the endpoints of a service, healthy or not, sorted by
// workload uid. Read only. Which of them may be used is package plan's
// decision, so that a changed health policy takes effect at once.
func (s *Snapshot) Endpoints(key ServiceKey) []Endpoint { return s.endpoints.at(key) }

// Endpoint returns one workload's part in a service.
func (s *Snapshot) Endpoint(key ServiceKey, uid string) (Endpoint, bool) {
	all := s.endpoints.at(key)
	i, ok := slices.BinarySearchFunc(all, uid, func(e Endpoint, uid string) int { return cmp.Compare(e.Workload.UID, uid) })
	if !ok {
		return Endpoint{}, false
	}
	return all[i], true
}

// PoliciesFor returns the policies that apply to connections to a workload, and
// the names of those that the workload refers to and we do not have (yet): with
// any missing, an "allowed" is not to be trusted. Read only.
func (s *Snapshot) PoliciesFor(w *Workload) (policies []*rbac.Policy, missing []string) {
	own := s.namespaced.at(w.Namespace)
	switch {
	case len(own) == 0:
		policies = s.global
	case len(s.global) == 0:
		policies = own
	default:
		policies = append(slices.Clone(s.global), own...)
	}
	if len(w.Policies) == 0 {
		return policies, nil
	}
	policies = slices.Clip(policies)
	for _, name := range w.Policies {
		p := s.policies.at(name)
		switch {
		case p == nil:
			missing = append(missing, name)
		case !slices.Contains(policies, p):
			policies = append(policies, p)
		}
	}
	return policies, missing
}

// Policy returns a policy by "namespace/name", or nil.
func (s *Snapshot) Policy(key string) *rbac.Policy { return s.policies.at(key) }
