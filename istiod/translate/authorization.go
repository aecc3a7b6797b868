package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	istioapi "istio.io/api/security/v1beta1"

	securityapi "github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// PolicyResult is what an AuthorizationPolicy comes to at ztunnel, and the
// condition ZtunnelAccepted that tells its author, spec/control-plane.md §1.4.
type PolicyResult struct {
	// Message is nil when nothing is sent.
	Message *securityapi.Authorization
	// Reason is empty for a policy that is not ztunnel's.
	Reason   string
	Accepted bool
	Text     string
}

// The reasons of the condition ZtunnelAccepted.
const (
	ReasonAccepted         = "Accepted"
	ReasonUnsupportedValue = "UnsupportedValue"
	ReasonInvalid          = "Invalid"
)

// enforcedAtL4 reports whether ztunnel is sent the policy.
func enforcedAtL4(p model.Policy) bool {
	action := p.Spec.GetAction()
	return len(p.Targets) == 0 && !p.DryRun &&
		(action == istioapi.AuthorizationPolicy_ALLOW || action == istioapi.AuthorizationPolicy_DENY)
}

// Authorization translates a policy, spec/control-plane.md §2.8. What ztunnel
// cannot check never lets more through without a word: an ALLOW rule with such
// a part is left out, a DENY rule applies without that part. A DENY rule of
// which nothing is left denies nothing, as in Istio, and the text says so.
func Authorization(p model.Policy, rootNamespace string) PolicyResult {
	if len(p.Targets) > 0 {
		return PolicyResult{}
	}
	refused := func(text string) PolicyResult {
		return PolicyResult{Reason: ReasonUnsupportedValue, Text: text}
	}
	if p.DryRun {
		return refused("ztunnel does not support the annotation istio.io/dry-run: the policy has no effect")
	}
	out := &securityapi.Authorization{Name: p.Name.Name, Namespace: p.Name.Namespace}
	switch p.Spec.GetAction() {
	case istioapi.AuthorizationPolicy_ALLOW:
		out.Action = securityapi.Action_ALLOW
	case istioapi.AuthorizationPolicy_DENY:
		out.Action = securityapi.Action_DENY
	case istioapi.AuthorizationPolicy_AUDIT, istioapi.AuthorizationPolicy_CUSTOM:
		return refused(fmt.Sprintf("ztunnel does not support the action %s: the policy has no effect", p.Spec.GetAction()))
	default:
		return refused(fmt.Sprintf("unknown action %d: the policy has no effect", p.Spec.GetAction()))
	}
	switch {
	case len(p.Selector) > 0:
		out.Scope = securityapi.Scope_WORKLOAD_SELECTOR
	case p.Name.Namespace == rootNamespace:
		out.Scope = securityapi.Scope_GLOBAL
	default:
		out.Scope = securityapi.Scope_NAMESPACE
	}
	reader := policyReader{allow: out.Action == securityapi.Action_ALLOW, namespace: p.Name.Namespace, lost: map[string]bool{}}
	for i, rule := range p.Spec.GetRules() {
		out.Rules = append(out.Rules, reader.rules(i, rule)...)
	}
	if p.Unreadable {
		return PolicyResult{Message: out, Reason: ReasonInvalid, Text: "istiod cannot read the policy: everything is denied where it applies"}
	}
	return PolicyResult{Message: out, Reason: reader.reason(), Accepted: true, Text: reader.text()}
}

// policyReader translates the rules of one policy and remembers what of them
// ztunnel cannot check.
type policyReader struct {
	allow     bool
	namespace string
	lost      map[string]bool // attributes, or attribute and value
	idle      []int           // indexes of rules that match nothing
}

func (r *policyReader) reason() string {
	if len(r.lost) > 0 {
		return ReasonUnsupportedValue
	}
	return ReasonAccepted
}

func (r *policyReader) text() string {
	if len(r.lost) == 0 {
		return "attached to ztunnel" + r.idleText()
	}
	names := strings.Join(slices.Sorted(maps.Keys(r.lost)), ", ")
	if r.allow {
		return "ztunnel does not support " + names + ": rules with them are left out, so that less is allowed"
	}
	return "ztunnel does not support " + names + ": rules apply without them, so that more is denied" + r.idleText()
}

// idleText names the rules that match no connection.
func (r *policyReader) idleText() string {
	effect := "denies"
	if r.allow {
		effect = "allows"
	}
	var text strings.Builder
	for _, i := range r.idle {
		fmt.Fprintf(&text, "; rules[%d] has nothing that ztunnel can check and %s nothing there", i, effect)
	}
	return text.String()
}

// rules translates one rule. It is several when sources cannot be said
// together; the result is none when the rule is left out.
func (r *policyReader) rules(index int, rule *istioapi.Rule) []*securityapi.Rule {
	lostBefore := len(r.lost)
	lost := false // in this rule, also where another rule lost the same
	note := func(what string) { r.lost[what], lost = true, true }

	var common []*securityapi.Clause
	if to := rule.GetTo(); len(to) > 0 {
		var matches []*securityapi.Match
		for _, operation := range to {
			matches = append(matches, operationMatch(operation.GetOperation(), note))
		}
		common = append(common, clause(nonEmpty(matches)...))
	}
	for _, condition := range rule.GetWhen() {
		match := &securityapi.Match{}
		readCondition(match, condition, r.namespace, note)
		common = append(common, clause(nonEmpty([]*securityapi.Match{match})...))
	}
	from := r.sources(rule.GetFrom(), note)
	if r.allow && (lost || len(r.lost) > lostBefore) {
		return nil
	}
	var out []*securityapi.Rule
	for _, source := range from {
		clauses := slices.Concat(common, source)
		if !slices.ContainsFunc(clauses, func(c *securityapi.Clause) bool { return len(c.GetMatches()) == 0 }) {
			out = append(out, &securityapi.Rule{Clauses: clauses})
		}
	}
	if len(out) == 0 {
		r.idle = append(r.idle, index)
	}
	return out
}

// sources returns the alternatives that from stands for, each as the clauses
// that must hold. Sources that name both a trust domain and something else
// about the principal take two clauses, because the values of one attribute
// are alternatives.
func (r *policyReader) sources(from []*istioapi.Rule_From, note func(string)) [][]*securityapi.Clause {
	if len(from) == 0 {
		return [][]*securityapi.Clause{nil}
	}
	var together []*securityapi.Match
	var out [][]*securityapi.Clause
	for _, f := range from {
		match := &securityapi.Match{}
		readSource(match, f.GetSource(), r.namespace, note)
		domains := trustDomains(f.GetSource().GetTrustDomains(), "trustDomains", note)
		if len(domains) > 0 && len(match.GetPrincipals()) > 0 {
			out = append(out, []*securityapi.Clause{clause(match), clause(&securityapi.Match{Principals: domains})})
			continue
		}
		match.Principals = append(match.Principals, domains...)
		together = append(together, match)
	}
	if len(together) > 0 {
		out = append([][]*securityapi.Clause{{clause(nonEmpty(together)...)}}, out...)
	}
	return out
}

// nonEmpty leaves out matches that name nothing: they never match.
func nonEmpty(matches []*securityapi.Match) []*securityapi.Match {
	return slices.DeleteFunc(matches, func(m *securityapi.Match) bool {
		return len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
			len(m.SourceIps)+len(m.NotSourceIps)+len(m.DestinationIps)+len(m.NotDestinationIps)+
			len(m.DestinationPorts)+len(m.NotDestinationPorts)+len(m.ServiceAccounts)+len(m.NotServiceAccounts) == 0
	})
}
