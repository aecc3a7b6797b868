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
	node, cluster string
	policyVersion uint64

	workloads index[string, *Workload]           // by uid
	addresses index[NetworkAddress, []*Workload] // best first
	hostnames index[ServiceKey, []*Workload]     // workloads known by hostname
	local     index[Info, []*Workload]           // on our node
	endpoints index[ServiceKey, endpointList]    // of services not known yet, too

	services index[ServiceKey, *Service]
	byHost   index[string, []*Service]         // in order of arrival
	vips     index[NetworkAddress, []*Service] // in order of arrival
	ranges   index[NetworkPrefix, []*Service]  // in order of arrival
	lengths  index[string, *rangeLengths]      // of ranges, by network

	policies   index[string, *rbac.Policy] // by "namespace/name"
	namespaced index[string, *rbac.Set]    // those of scope NAMESPACE
	global     *rbac.Set
}

// Info is how the node agent names a pod.
type Info struct{ Name, Namespace, ServiceAccount string }

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
	var best *Service
	for prefix := range s.rangesAround(network, ip) {
		svc := prefer(s.ranges.at(prefix), namespace)
		if svc != nil && svc.Key.Namespace == namespace {
			return svc // a shorter range of the client's own namespace comes before a longer one of another
		}
		if best == nil {
			best = svc
		}
	}
	return best
}

// ServicesAt returns every service at an address, seen by the client or not, in
// order of arrival; ranges, the longest first, only when no service has the
// exact address. Read only.
func (s *Snapshot) ServicesAt(network string, ip netip.Addr) []*Service {
	if exact := s.vips.at(NetworkAddress{network, ip}); len(exact) > 0 {
		return exact
	}
	var out []*Service
	for prefix := range s.rangesAround(network, ip) {
		out = append(out, s.ranges.at(prefix)...)
	}
	return out
}

func (s *Service) visible(namespace string) bool { return !s.Private || s.Key.Namespace == namespace }

// prefer returns the candidate that a client in namespace means: of its own
// namespace, else canonical, else the first.
func prefer(candidates []*Service, namespace string) *Service {
	var best *Service
	for _, c := range candidates {
		switch {
		case !c.visible(namespace):
		case best == nil:
			best = c
		case (c.Key.Namespace == namespace) != (best.Key.Namespace == namespace):
			if c.Key.Namespace == namespace {
				best = c
			}
		case c.Canonical && !best.Canonical:
			best = c
		}
	}
	return best
}

// Endpoints returns the endpoints of a service, healthy or not, sorted by
// workload uid. Read only. Which of them may be used is package plan's
// decision, so that a changed health policy takes effect at once.
func (s *Snapshot) Endpoints(key ServiceKey) []Endpoint { return s.endpoints.at(key).all }

// Heaviest returns a capacity that no endpoint of a service exceeds.
func (s *Snapshot) Heaviest(key ServiceKey) uint32 { return s.endpoints.at(key).heaviest }

// Memo returns the place beside the endpoints of a service for what is derived
// from them; nil where there are so few that it is not worth it.
func (s *Snapshot) Memo(key ServiceKey) *Memo { return s.endpoints.at(key).memo }

// Endpoint returns one workload's part in a service.
func (s *Snapshot) Endpoint(key ServiceKey, uid string) (Endpoint, bool) {
	all := s.endpoints.at(key).all
	i, ok := slices.BinarySearchFunc(all, uid, func(e Endpoint, uid string) int { return cmp.Compare(e.Workload.UID, uid) })
	if !ok {
		return Endpoint{}, false
	}
	return all[i], true
}

// PoliciesFor returns the policies that apply to connections to a workload, and
// the names of those that the workload refers to and we do not have (yet): with
// any missing, an "allowed" is not to be trusted. Whether a later version would
// judge otherwise, its policies say: rbac.Policies.Same.
func (s *Snapshot) PoliciesFor(w *Workload) (policies rbac.Policies, missing []string) {
	policies = rbac.Policies{Global: s.global, Namespace: s.namespaced.at(w.Namespace)}
	for _, name := range w.Policies {
		p := s.policies.at(name)
		switch {
		case p == nil:
			missing = append(missing, name)
		case p.Scope == rbac.ScopeGlobal, p.Scope == rbac.ScopeNamespace && p.Namespace == w.Namespace:
			// it applies anyway
		default:
			policies.Name(p)
		}
	}
	return policies, missing
}

// Policy returns a policy by "namespace/name", or nil.
func (s *Snapshot) Policy(key string) *rbac.Policy { return s.policies.at(key) }
