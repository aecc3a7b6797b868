package workload

import (
	"slices"
	"strings"
)

// NameQuery is a client's look-up of a hostname, as package dns makes it.
type NameQuery struct {
	Namespace string // the client's
	Preferred string // the namespace that wins where none is better; may be empty
	// HeadlessSuffix is what the hostnames end in whose services count without a virtual
	// address: ".svc.cluster.local".
	HeadlessSuffix string
}

// Named returns the service that the client means by a hostname, or nil. Of those that
// the client sees it is its own namespace's, else the canonical one, else that of the
// preferred namespace, else the first. A service without an exact virtual address counts
// only where the hostname is Kubernetes' own, spec/ztunnel.md §7.2.
func (s *Snapshot) Named(hostname string, q NameQuery) *Service {
	var best *Service
	rank := -1
	for _, c := range s.byHost.at(hostname) {
		if !c.visible(q.Namespace) || (len(c.VIPs) == 0 && !strings.HasSuffix(hostname, q.HeadlessSuffix)) {
			continue
		}
		if r := q.rank(c); r > rank {
			best, rank = c, r
		}
	}
	return best
}

func (q *NameQuery) rank(s *Service) int {
	switch {
	case s.Key.Namespace == q.Namespace:
		return 3
	case s.Canonical:
		return 2
	case q.Preferred != "" && s.Key.Namespace == q.Preferred:
		return 1
	}
	return 0
}

// StatefulPod returns the endpoint that a StatefulSet names, "web-0" of a service without
// virtual addresses, or nil. The message of a workload does not say StatefulSet: its pods
// are those whose name is the set's and an ordinal.
func (s *Snapshot) StatefulPod(svc *Service, name string) *Endpoint {
	i := strings.LastIndexByte(name, '-')
	if len(svc.VIPs) > 0 || i < 0 || !ordinal(name[i+1:]) {
		return nil
	}
	all := s.Endpoints(svc.Key)
	for j := range all {
		w := all[j].Workload
		if w.Name == name && w.WorkloadName == name[:i] && w.Namespace == svc.Key.Namespace {
			return &all[j]
		}
	}
	return nil
}

func ordinal(s string) bool {
	return s != "" && !slices.ContainsFunc([]byte(s), func(b byte) bool { return b < '0' || b > '9' })
}
