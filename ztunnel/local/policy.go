package local

import (
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/apis/security"
)

type policyYAML struct {
	Name      string          `yaml:"name"`
	Namespace string          `yaml:"namespace"`
	Scope     string          `yaml:"scope"`
	Action    string          `yaml:"action"`
	Rules     [][][]matchYAML `yaml:"rules"`
	DryRun    *bool           `yaml:"dryRun"` // required
}

type matchYAML struct {
	Namespaces          []stringMatchYAML    `yaml:"namespaces"`
	NotNamespaces       []stringMatchYAML    `yaml:"notNamespaces"`
	Principals          []stringMatchYAML    `yaml:"principals"`
	NotPrincipals       []stringMatchYAML    `yaml:"notPrincipals"`
	ServiceAccounts     []serviceAccountYAML `yaml:"serviceAccounts"`
	NotServiceAccounts  []serviceAccountYAML `yaml:"notServiceAccounts"`
	SourceIPs           []string             `yaml:"sourceIps"`
	NotSourceIPs        []string             `yaml:"notSourceIps"`
	DestinationIPs      []string             `yaml:"destinationIps"`
	NotDestinationIPs   []string             `yaml:"notDestinationIps"`
	DestinationPorts    []uint16             `yaml:"destinationPorts"`
	NotDestinationPorts []uint16             `yaml:"notDestinationPorts"`
}

type serviceAccountYAML struct {
	Namespace      string `yaml:"namespace"`
	ServiceAccount string `yaml:"serviceAccount"`
}

// stringMatchYAML is {Exact: x}, {Prefix: x}, {Suffix: x} or {Presence: []}.
type stringMatchYAML struct {
	Exact    *string `yaml:"Exact"`
	Prefix   *string `yaml:"Prefix"`
	Suffix   *string `yaml:"Suffix"`
	Presence *[]any  `yaml:"Presence"`
}

// message refuses everything that ztunnel would have to read as "matches
// nothing": in a DENY policy that would let through what it names.
func (p *policyYAML) message() (*security.Authorization, error) {
	if p.Name == "" || p.Namespace == "" {
		return nil, errors.New("no name or no namespace")
	}
	if p.DryRun == nil {
		return nil, errors.New("no dryRun: say dryRun: false")
	}
	m := &security.Authorization{Name: p.Name, Namespace: p.Namespace, DryRun: *p.DryRun}
	if p.Scope == "" || p.Action == "" {
		return nil, errors.New("no scope or no action")
	}
	var errs [2]error
	m.Scope, errs[0] = choose("scope", p.Scope, []string{"Global", "Namespace", "WorkloadSelector"},
		[]security.Scope{security.Scope_GLOBAL, security.Scope_NAMESPACE, security.Scope_WORKLOAD_SELECTOR})
	m.Action, errs[1] = choose("action", p.Action, []string{"Allow", "Deny"}, []security.Action{security.Action_ALLOW, security.Action_DENY})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for i, clauses := range p.Rules {
		rule := &security.Rule{}
		for j, matches := range clauses {
			clause := &security.Clause{}
			for k := range matches {
				match, err := matches[k].message()
				if err != nil {
					return nil, fmt.Errorf("rules[%d][%d][%d]: %w", i, j, k, err)
				}
				clause.Matches = append(clause.Matches, match)
			}
			rule.Clauses = append(rule.Clauses, clause)
		}
		m.Rules = append(m.Rules, rule)
	}
	return m, nil
}

func (y *matchYAML) message() (*security.Match, error) {
	m := &security.Match{
		DestinationPorts: ports(y.DestinationPorts), NotDestinationPorts: ports(y.NotDestinationPorts),
		ServiceAccounts: accounts(y.ServiceAccounts), NotServiceAccounts: accounts(y.NotServiceAccounts),
	}
	for _, f := range []struct {
		name string
		from []stringMatchYAML
		to   *[]*security.StringMatch
	}{
		{"namespaces", y.Namespaces, &m.Namespaces},
		{"notNamespaces", y.NotNamespaces, &m.NotNamespaces},
		{"principals", y.Principals, &m.Principals},
		{"notPrincipals", y.NotPrincipals, &m.NotPrincipals},
	} {
		for _, s := range f.from {
			match, err := s.message()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
			*f.to = append(*f.to, match)
		}
	}
	for _, f := range []struct {
		name string
		from []string
		to   *[]*security.Address
	}{
		{"sourceIps", y.SourceIPs, &m.SourceIps},
		{"notSourceIps", y.NotSourceIPs, &m.NotSourceIps},
		{"destinationIps", y.DestinationIPs, &m.DestinationIps},
		{"notDestinationIps", y.NotDestinationIPs, &m.NotDestinationIps},
	} {
		for _, text := range f.from {
			prefix, err := parsePrefix(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
			*f.to = append(*f.to, &security.Address{Address: prefix.Addr().AsSlice(), Length: uint32(prefix.Bits())})
		}
	}
	return m, nil
}

// parsePrefix reads "10.0.0.0/8", or a single address.
func parsePrefix(text string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

func (s stringMatchYAML) message() (*security.StringMatch, error) {
	var out []*security.StringMatch
	if s.Exact != nil {
		out = append(out, &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: *s.Exact}})
	}
	if s.Prefix != nil {
		out = append(out, &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: *s.Prefix}})
	}
	if s.Suffix != nil {
		out = append(out, &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: *s.Suffix}})
	}
	if s.Presence != nil {
		out = append(out, &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}})
	}
	if len(out) != 1 {
		return nil, errors.New("a match is one of {Exact: x}, {Prefix: x}, {Suffix: x}, {Presence: []}")
	}
	return out[0], nil
}

func ports(in []uint16) []uint32 {
	var out []uint32
	for _, p := range in {
		out = append(out, uint32(p))
	}
	return out
}

func accounts(in []serviceAccountYAML) []*security.ServiceAccountMatch {
	var out []*security.ServiceAccountMatch
	for _, a := range in {
		out = append(out, &security.ServiceAccountMatch{Namespace: a.Namespace, ServiceAccount: a.ServiceAccount})
	}
	return out
}
