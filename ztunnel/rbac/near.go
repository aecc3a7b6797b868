package rbac

import (
	"cmp"
	"math/bits"
	"slices"
	"strings"
)

// How many ALLOW policies a refusal names, and how many rules are read for that:
// it must not cost a refused connection more than a few tens of microseconds.
const (
	nearest   = 3
	nearRules = 1000
)

// closest returns the ALLOW policies of which least would have to be different
// for one to match, closest first.
func (p *Policies) closest(c *subject) []Near {
	type scored struct {
		Near
		unmet int
	}
	var found []scored
	left := nearRules
	for policy := range p.All {
		if kindOf(policy) != (kind{Allow, false}) {
			continue
		}
		if left -= max(1, len(policy.Rules)); left < 0 {
			break
		}
		rule, unmet := policy.nearest(c)
		n := scored{Near{policy.Key(), rule, unmet.String()}, bits.OnesCount16(uint16(unmet))}
		if rule < 0 {
			n.unmet = 1 << 16 // it can match nothing
		}
		i, _ := slices.BinarySearchFunc(found, n, func(a, b scored) int {
			return cmp.Or(cmp.Compare(a.unmet, b.unmet), cmp.Compare(a.Policy, b.Policy))
		})
		if i < nearest {
			found = slices.Insert(found, i, n)
			found = found[:min(len(found), nearest)]
		}
	}
	out := make([]Near, len(found))
	for i, n := range found {
		out[i] = n.Near
	}
	return out
}

// lists is a set of the lists of a Match.
type lists uint16

var listNames = [...]string{
	"namespaces", "notNamespaces", "principals", "notPrincipals", "serviceAccounts", "notServiceAccounts",
	"sourceIps", "notSourceIps", "destinationIps", "notDestinationIps", "destinationPorts", "notDestinationPorts", "unreadable entry",
}

const unreadableEntry lists = 1 << 12

// String returns the names as in the config dump.
func (l lists) String() string {
	if l == 0 {
		return "no rules"
	}
	var names []string
	for i, name := range listNames {
		if l&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// nearest returns the rule of which least does not fit, and what; -1 without
// rules.
func (p *Policy) nearest(c *subject) (rule int, unmet lists) {
	rule = -1
	for i, r := range p.Rules {
		var missed lists
		for _, clause := range r {
			missed |= clause.missed(c)
		}
		if rule < 0 || bits.OnesCount16(uint16(missed)) < bits.OnesCount16(uint16(unmet)) {
			rule, unmet = i, missed
		}
	}
	return rule, unmet
}

// missed returns what does not fit of the match that fits best.
func (cl Clause) missed(c *subject) (least lists) {
	for i := range cl {
		m := cl[i].missed(c)
		if i == 0 || bits.OnesCount16(uint16(m)) < bits.OnesCount16(uint16(least)) {
			least = m
		}
	}
	return least
}

// missed returns the lists of a match of an ALLOW policy that do not fit.
func (m *Match) missed(c *subject) (out lists) {
	if m.unreadable != 0 || m.empty() {
		out = unreadableEntry
	}
	note := func(i int, missed bool) {
		if missed {
			out |= 1 << i
		}
	}
	namespace := func(s StringMatch) bool { return s.match(c.namespace) }
	principal := func(s StringMatch) bool { return c.known && s.matchBytes(c.principal) }
	note(0, len(m.Namespaces) > 0 && !slices.ContainsFunc(m.Namespaces, namespace))
	note(1, slices.ContainsFunc(m.NotNamespaces, namespace))
	note(2, len(m.Principals) > 0 && !slices.ContainsFunc(m.Principals, principal))
	note(3, slices.ContainsFunc(m.NotPrincipals, principal))
	note(4, len(m.ServiceAccounts) > 0 && !slices.ContainsFunc(m.ServiceAccounts, c.isAccount))
	note(5, slices.ContainsFunc(m.NotServiceAccounts, c.isAccount))
	note(6, len(m.SourceIPs) > 0 && !slices.ContainsFunc(m.SourceIPs, c.isFrom))
	note(7, slices.ContainsFunc(m.NotSourceIPs, c.isFrom))
	note(8, len(m.DestinationIPs) > 0 && !slices.ContainsFunc(m.DestinationIPs, c.isTo))
	note(9, slices.ContainsFunc(m.NotDestinationIPs, c.isTo))
	note(10, len(m.DestinationPorts) > 0 && !slices.Contains(m.DestinationPorts, c.Destination.Port()))
	note(11, slices.Contains(m.NotDestinationPorts, c.Destination.Port()))
	return out
}
