package dns

import (
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// Which service a name means, spec/ztunnel.md §7.2. Names here are in lower case, without
// the dot at the end. Pure.

// namer turns the names that one pod asks for into services.
type namer struct {
	query   workload.NameQuery
	domain  string   // of the cluster, "cluster.local"
	search  []string // domains that the pod's resolver library may have appended
	cluster string   // ".svc." + domain
}

func newNamer(cfg *Config) *namer {
	domain := strings.ToLower(strings.Trim(cfg.ClusterDomain, "."))
	n := &namer{domain: domain, cluster: ".svc." + domain, search: cfg.Search}
	n.query = workload.NameQuery{Namespace: cfg.Pod.Namespace, Preferred: cfg.PreferredNamespace, HeadlessSuffix: n.cluster}
	if n.search == nil {
		n.search = []string{cfg.Pod.Namespace + n.cluster, "svc." + domain, domain}
	}
	return n
}

// match is what a name means.
type match struct {
	service *workload.Service
	pod     *workload.Endpoint // of the service, when the name is the pod's own
	// alias is how many bytes of the name are what is left without a search domain, when
	// the answer says so by a CNAME; else 0.
	alias int
}

// find returns what the mesh knows by a name; the zero match when it does not. The name
// itself comes first, then what it may be short for, then the same without each search
// domain.
func (n *namer) find(s *workload.Snapshot, name string) match {
	if m := n.expand(s, name); m.service != nil {
		return m
	}
	for _, domain := range n.search {
		stripped, ok := strings.CutSuffix(name, "."+domain)
		if !ok || stripped == "" || domain == "" {
			continue
		}
		if m := n.expand(s, stripped); m.service != nil {
			if !strings.HasPrefix(m.service.Key.Hostname, "*") {
				m.alias = len(stripped)
			}
			return m
		}
	}
	return match{}
}

// expand looks for the name and for what it may be short for.
func (n *namer) expand(s *workload.Snapshot, name string) match {
	if m := n.exact(s, name); m.service != nil {
		return m
	}
	for _, long := range n.expansions(name) {
		if m := n.exact(s, long); m.service != nil {
			return m
		}
	}
	return match{}
}

// expansions are the names of Kubernetes Services that a shorter name may mean.
func (n *namer) expansions(name string) []string {
	labels := strings.SplitN(name, ".", 5)
	switch len(labels) {
	case 1:
		return []string{name + "." + n.query.Namespace + n.cluster}
	case 2:
		return []string{name + n.cluster, name + "." + n.query.Namespace + n.cluster}
	case 3:
		if labels[2] == "svc" {
			return []string{name + "." + n.domain, name + n.cluster}
		}
		return []string{name + n.cluster}
	case 4:
		if labels[3] == "svc" {
			return []string{name + "." + n.domain}
		}
	}
	return nil
}

// exact looks for one name: a service's, a pod's, or one that a wildcard covers.
func (n *namer) exact(s *workload.Snapshot, name string) match {
	if svc := s.Named(name, n.query); svc != nil {
		return match{service: svc}
	}
	first, rest, more := strings.Cut(name, ".")
	if more && strings.HasSuffix(rest, n.cluster) {
		if svc := s.Named(rest, n.query); svc != nil {
			if pod := s.StatefulPod(svc, first); pod != nil {
				return match{service: svc, pod: pod}
			}
		}
	}
	for more {
		if svc := s.Named("*."+rest, n.query); svc != nil {
			return match{service: svc}
		}
		_, rest, more = strings.Cut(rest, ".")
	}
	return match{}
}
