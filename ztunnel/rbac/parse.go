package rbac

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/apis/security"
)

// Unmarshal reads the bytes of an istio.security.Authorization.
func Unmarshal(data []byte) (*Policy, error) {
	var a security.Authorization
	if err := proto.Unmarshal(data, &a); err != nil {
		return nil, fmt.Errorf("authorization policy: %w", err)
	}
	return Parse(&a)
}

// Unreadable stands for a policy that Unmarshal has refused for a reason: it
// denies everything in its scope. name is that of the resource,
// "namespace/name"; without such a name there is nothing to stand for, and nil
// is returned. The scope is the policy's own if it can be read. If not, it is
// the namespace: that a policy of the root namespace was meant for all
// namespaces cannot be known. Workloads that name the policy meet it anyway.
func Unreadable(name string, data []byte, reason error) *Policy {
	namespace, own, ok := strings.Cut(name, "/")
	if !ok || namespace == "" || own == "" {
		return nil
	}
	p := &Policy{Namespace: namespace, Name: own, Scope: ScopeNamespace, Action: Deny, Invalid: reason.Error()}
	var a security.Authorization
	if proto.Unmarshal(data, &a) != nil {
		return p
	}
	if scope, ok := parseScope(a.GetScope()); ok {
		p.Scope = scope
	}
	p.DryRun = a.GetDryRun()
	return p
}

// Parse converts a policy from the wire. An action or scope that we do not know
// is an error; an entry inside a match that we do not understand is not, and
// errs to the safe side (see Match).
func Parse(a *security.Authorization) (*Policy, error) {
	p := &Policy{Namespace: a.GetNamespace(), Name: a.GetName(), DryRun: a.GetDryRun()}
	if p.Name == "" {
		return nil, errors.New("authorization policy has no name")
	}
	p.key = p.Key()
	switch a.GetAction() {
	case security.Action_ALLOW:
		p.Action = Allow
	case security.Action_DENY:
		p.Action = Deny
	default:
		return nil, fmt.Errorf("unknown action %d", a.GetAction())
	}
	var ok bool
	if p.Scope, ok = parseScope(a.GetScope()); !ok {
		return nil, fmt.Errorf("unknown scope %d", a.GetScope())
	}
	for _, r := range a.GetRules() {
		rule := make(Rule, 0, len(r.GetClauses()))
		for _, cl := range r.GetClauses() {
			clause := make(Clause, 0, len(cl.GetMatches()))
			for _, m := range cl.GetMatches() {
				clause = append(clause, parseMatch(m))
			}
			rule = append(rule, clause)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p, nil
}

func parseScope(s security.Scope) (Scope, bool) {
	switch s {
	case security.Scope_GLOBAL:
		return ScopeGlobal, true
	case security.Scope_NAMESPACE:
		return ScopeNamespace, true
	case security.Scope_WORKLOAD_SELECTOR:
		return ScopeSelector, true
	}
	return 0, false
}

func parseMatch(m *security.Match) Match {
	var out Match
	out.Namespaces = out.strings(m.GetNamespaces(), namespaces)
	out.NotNamespaces = out.strings(m.GetNotNamespaces(), negative)
	out.Principals = out.strings(m.GetPrincipals(), principals)
	out.NotPrincipals = out.strings(m.GetNotPrincipals(), negative)
	out.SourceIPs = out.prefixes(m.GetSourceIps(), sourceIPs)
	out.NotSourceIPs = out.prefixes(m.GetNotSourceIps(), negative)
	out.DestinationIPs = out.prefixes(m.GetDestinationIps(), destinationIPs)
	out.NotDestinationIPs = out.prefixes(m.GetNotDestinationIps(), negative)
	out.DestinationPorts = ports(m.GetDestinationPorts())
	out.NotDestinationPorts = ports(m.GetNotDestinationPorts())
	out.ServiceAccounts = accounts(m.GetServiceAccounts())
	out.NotServiceAccounts = accounts(m.GetNotServiceAccounts())
	return out
}

func (m *Match) strings(in []*security.StringMatch, kind attribute) []StringMatch {
	var out []StringMatch
	for _, s := range in {
		switch t := s.GetMatchType().(type) {
		case *security.StringMatch_Exact:
			out = append(out, StringMatch{Exact, t.Exact})
		case *security.StringMatch_Prefix:
			out = append(out, StringMatch{Prefix, t.Prefix})
		case *security.StringMatch_Suffix:
			out = append(out, StringMatch{Suffix, t.Suffix})
		case *security.StringMatch_Presence:
			out = append(out, StringMatch{Kind: Presence})
		default:
			m.unreadable |= kind
		}
	}
	return out
}

func (m *Match) prefixes(in []*security.Address, kind attribute) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range in {
		ip, ok := netip.AddrFromSlice(a.GetAddress())
		bits := a.GetLength()
		if mapped := ip.Unmap(); mapped != ip && bits >= 96 {
			ip, bits = mapped, bits-96
		}
		if !ok || bits > uint32(ip.BitLen()) {
			m.unreadable |= kind
			continue
		}
		out = append(out, netip.PrefixFrom(ip, int(bits)).Masked())
	}
	return out
}

// ports keeps what fits 16 bits. A port beyond can match no connection; it stays
// as a port 0, so that a list of only such ports does not read as "any port".
func ports(in []uint32) []uint16 {
	var out []uint16
	for _, p := range in {
		if p > 0xffff {
			p = 0
		}
		out = append(out, uint16(p))
	}
	return out
}

func accounts(in []*security.ServiceAccountMatch) []ServiceAccount {
	var out []ServiceAccount
	for _, s := range in {
		out = append(out, ServiceAccount{Namespace: s.GetNamespace(), Name: s.GetServiceAccount()})
	}
	return out
}
