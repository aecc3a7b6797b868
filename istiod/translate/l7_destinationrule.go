package translate

import (
	"cmp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// SubsetInputs is what the subsets of a service may depend on.
type SubsetInputs struct {
	ClusterDomain     string
	RootNamespace     string
	WaypointNamespace string // of the Gateway that the clusters are for; empty = the service's

	// DestinationRules may hold more than those that name the service; order
	// does not matter.
	DestinationRules []*networkingv1.DestinationRule
}

// DestinationRuleHost returns the hostname, perhaps with a leading "*", that
// the DestinationRule is about.
func DestinationRuleHost(rule *networkingv1.DestinationRule, clusterDomain string) string {
	return model.ResolveHost(rule.Spec.Host, rule.Namespace, clusterDomain)
}

// Subsets returns the subsets of a service in order of their names. They come
// from the DestinationRules of the first of these namespaces that has any for
// the service: the waypoint's, the service's, the root namespace; there from
// those with the most specific host, united, the oldest first where two define
// the same name, spec/control-plane.md §4.8 and §5.3.
func Subsets(svc model.Service, in SubsetInputs) []Subset {
	waypoint := cmp.Or(in.WaypointNamespace, svc.Name.Namespace)
	var rules []*networkingv1.DestinationRule
	for _, namespace := range []string{waypoint, svc.Name.Namespace, in.RootNamespace} {
		if rules = in.rulesFor(svc.Hostname, namespace, waypoint); len(rules) > 0 {
			break
		}
	}
	var out []Subset
	for _, rule := range rules {
		for _, subset := range rule.Spec.Subsets {
			named := func(s Subset) bool { return s.Name == subset.GetName() }
			if validSubset(subset.GetName()) && !slices.ContainsFunc(out, named) {
				out = append(out, Subset{Name: subset.Name, Labels: subset.Labels})
			}
		}
	}
	slices.SortFunc(out, func(a, b Subset) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// rulesFor returns the rules of the namespace with the most specific host that
// the hostname matches, oldest first.
func (in SubsetInputs) rulesFor(hostname, namespace, waypoint string) []*networkingv1.DestinationRule {
	var out []*networkingv1.DestinationRule
	best := ""
	for _, rule := range in.DestinationRules {
		host := DestinationRuleHost(rule, in.ClusterDomain)
		if rule.Namespace != namespace || rule.Spec.WorkloadSelector != nil || !model.HostMatches(host, hostname) {
			continue
		}
		if _, visible := exportClass(rule.Spec.ExportTo, namespace, waypoint); !visible {
			continue
		}
		switch c := compareHosts(host, best); {
		case c > 0:
			best, out = host, []*networkingv1.DestinationRule{rule}
		case c == 0:
			out = append(out, rule)
		}
	}
	slices.SortFunc(out, func(a, b *networkingv1.DestinationRule) int { return compareObjects(a, b) })
	return out
}

// validSubset reports whether the name can be part of a cluster's.
func validSubset(name string) bool { return len(validation.IsDNS1123Label(name)) == 0 }

// compareHosts is positive when a, which matches the same hostname as b, is
// the more specific of the two. Everything is more specific than "".
func compareHosts(a, b string) int {
	exact := func(host string) bool { return host != "" && !strings.HasPrefix(host, "*") }
	return cmp.Or(-compareBool(exact(a), exact(b)), cmp.Compare(len(a), len(b)))
}

// DestinationRuleNotices returns what of the DestinationRule has no effect.
func DestinationRuleNotices(rule *networkingv1.DestinationRule) []model.Notice {
	n := ruleNotices{object: manifest.Key{
		Group: "networking.istio.io", Kind: "DestinationRule", Namespace: rule.Namespace, Name: rule.Name,
	}}
	if rule.Spec.WorkloadSelector != nil {
		n.add("spec.workloadSelector", "rules for the clients of single workloads are not supported: the rule has no effect")
	}
	n.policy("spec.trafficPolicy", rule.Spec.TrafficPolicy)
	seen := map[string]bool{}
	for i, subset := range rule.Spec.Subsets {
		n.policy(at("spec.subsets", i)+".trafficPolicy", subset.GetTrafficPolicy())
		if !validSubset(subset.GetName()) {
			n.add(at("spec.subsets", i)+".name", "not a name of lower case letters, digits and dashes: the subset is left out")
		}
		if seen[subset.GetName()] {
			n.add(at("spec.subsets", i)+".name", "a subset of this name is defined before")
		}
		seen[subset.GetName()] = true
	}
	return model.MergeNotices(n.list)
}

type ruleNotices struct {
	object manifest.Key
	list   []model.Notice
}

func (n *ruleNotices) add(field, message string) {
	n.list = append(n.list, model.Notice{Object: n.object, Field: field, Message: message})
}

func (n *ruleNotices) policy(field string, p *networking.TrafficPolicy) {
	for _, part := range []struct {
		name string
		set  bool
	}{
		{"loadBalancer", p.GetLoadBalancer() != nil},
		{"connectionPool", p.GetConnectionPool() != nil},
		{"outlierDetection", p.GetOutlierDetection() != nil},
		{"tls", p.GetTls() != nil && !meshTLS(p.GetTls())},
		{"portLevelSettings", len(p.GetPortLevelSettings()) > 0},
		{"tunnel", p.GetTunnel() != nil},
		{"proxyProtocol", p.GetProxyProtocol() != nil},
		{"retryBudget", p.GetRetryBudget() != nil},
	} {
		if part.set {
			n.add(field+"."+part.name, "not supported yet")
		}
	}
}

// meshTLS reports whether the settings ask for what the mesh does anyway.
func meshTLS(t *networking.ClientTLSSettings) bool {
	return t.GetMode() == networking.ClientTLSSettings_ISTIO_MUTUAL
}
