package translate

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	istioapi "istio.io/api/security/v1beta1"

	securityapi "github.com/ambit-mesh/ambit/apis/security"
)

// This file translates single attributes. Every function is given note, which
// it calls with the name of what cannot be translated: an attribute of L7, or
// a value that does not parse.

func operationMatch(o *istioapi.Operation, note func(string)) *securityapi.Match {
	unsupported(note, map[string]int{
		"hosts": len(o.GetHosts()), "notHosts": len(o.GetNotHosts()),
		"methods": len(o.GetMethods()), "notMethods": len(o.GetNotMethods()),
		"paths": len(o.GetPaths()), "notPaths": len(o.GetNotPaths()),
	})
	return &securityapi.Match{
		DestinationPorts:    ports(o.GetPorts(), "ports", note),
		NotDestinationPorts: ports(o.GetNotPorts(), "notPorts", note),
	}
}

// readSource fills in everything of a source but its trustDomains.
func readSource(m *securityapi.Match, s *istioapi.Source, namespace string, note func(string)) {
	unsupported(note, map[string]int{
		"requestPrincipals": len(s.GetRequestPrincipals()), "notRequestPrincipals": len(s.GetNotRequestPrincipals()),
		"remoteIpBlocks": len(s.GetRemoteIpBlocks()), "notRemoteIpBlocks": len(s.GetNotRemoteIpBlocks()),
	})
	m.Principals = principals(s.GetPrincipals())
	m.NotPrincipals = append(principals(s.GetNotPrincipals()), trustDomains(s.GetNotTrustDomains(), "notTrustDomains", note)...)
	m.Namespaces = l4Strings(s.GetNamespaces())
	m.NotNamespaces = l4Strings(s.GetNotNamespaces())
	m.ServiceAccounts = serviceAccounts(s.GetServiceAccounts(), namespace)
	m.NotServiceAccounts = serviceAccounts(s.GetNotServiceAccounts(), namespace)
	m.SourceIps = addresses(s.GetIpBlocks(), "ipBlocks", note)
	m.NotSourceIps = addresses(s.GetNotIpBlocks(), "notIpBlocks", note)
}

func readCondition(m *securityapi.Match, c *istioapi.Condition, namespace string, note func(string)) {
	is, not := c.GetValues(), c.GetNotValues()
	switch key := c.GetKey(); key {
	case "source.ip":
		m.SourceIps, m.NotSourceIps = addresses(is, key, note), addresses(not, key, note)
	case "source.namespace":
		m.Namespaces, m.NotNamespaces = l4Strings(is), l4Strings(not)
	case "source.principal":
		m.Principals, m.NotPrincipals = principals(is), principals(not)
	case "source.trustDomain":
		m.Principals, m.NotPrincipals = trustDomains(is, key, note), trustDomains(not, key, note)
	case "source.serviceAccount":
		m.ServiceAccounts, m.NotServiceAccounts = serviceAccounts(is, namespace), serviceAccounts(not, namespace)
	case "destination.ip":
		m.DestinationIps, m.NotDestinationIps = addresses(is, key, note), addresses(not, key, note)
	case "destination.port":
		m.DestinationPorts, m.NotDestinationPorts = ports(is, key, note), ports(not, key, note)
	default:
		note("when " + key)
	}
}

func unsupported(note func(string), attributes map[string]int) {
	for name, values := range attributes {
		if values > 0 {
			note(name)
		}
	}
}

func l4Strings(values []string) []*securityapi.StringMatch {
	var out []*securityapi.StringMatch
	for _, value := range values {
		out = append(out, l4String(value))
	}
	return out
}

// principals accepts the form with a scheme too, which Istio's documents do
// not ask for but people write.
func principals(values []string) []*securityapi.StringMatch {
	var out []*securityapi.StringMatch
	for _, value := range values {
		out = append(out, l4String(strings.TrimPrefix(value, "spiffe://")))
	}
	return out
}

func l4String(value string) *securityapi.StringMatch {
	if value == "*" {
		return anyString()
	}
	if suffix, ok := strings.CutPrefix(value, "*"); ok {
		return &securityapi.StringMatch{MatchType: &securityapi.StringMatch_Suffix{Suffix: suffix}}
	}
	if prefix, ok := strings.CutSuffix(value, "*"); ok {
		return l4Prefix(prefix)
	}
	return &securityapi.StringMatch{MatchType: &securityapi.StringMatch_Exact{Exact: value}}
}

func l4Prefix(prefix string) *securityapi.StringMatch {
	return &securityapi.StringMatch{MatchType: &securityapi.StringMatch_Prefix{Prefix: prefix}}
}

// trustDomains says "of this trust domain" about principals, which begin with
// it and a slash. A leading * cannot be said so; then the whole attribute is
// given up, because the values left over would match less than was asked for.
func trustDomains(values []string, what string, note func(string)) []*securityapi.StringMatch {
	var out []*securityapi.StringMatch
	for _, value := range values {
		switch {
		case value == "*":
			out = append(out, anyString())
		case strings.HasPrefix(value, "*"):
			note(fmt.Sprintf("%s %q", what, value))
			return nil
		case strings.HasSuffix(value, "*"):
			out = append(out, l4Prefix(strings.TrimSuffix(value, "*")))
		default:
			out = append(out, l4Prefix(value+"/"))
		}
	}
	return out
}

func serviceAccounts(values []string, namespace string) []*securityapi.ServiceAccountMatch {
	var out []*securityapi.ServiceAccountMatch
	for _, value := range values {
		match := &securityapi.ServiceAccountMatch{Namespace: namespace, ServiceAccount: value}
		if other, account, ok := strings.Cut(value, "/"); ok {
			match.Namespace, match.ServiceAccount = other, account
		}
		out = append(out, match)
	}
	return out
}

func ports(values []string, what string, note func(string)) []uint32 {
	var out []uint32
	for _, value := range values {
		port, err := strconv.ParseUint(value, 10, 16)
		if err != nil || port == 0 {
			note(fmt.Sprintf("%s %q", what, value))
			continue
		}
		out = append(out, uint32(port))
	}
	return out
}

func addresses(values []string, what string, note func(string)) []*securityapi.Address {
	var out []*securityapi.Address
	for _, value := range values {
		prefix, err := netip.ParsePrefix(value)
		if err != nil {
			address, addressErr := netip.ParseAddr(value)
			if addressErr != nil {
				note(fmt.Sprintf("%s %q", what, value))
				continue
			}
			prefix = netip.PrefixFrom(address, address.BitLen())
		}
		prefix = prefix.Masked()
		out = append(out, &securityapi.Address{
			Address: prefix.Addr().AsSlice(),
			Length:  uint32(prefix.Bits()),
		})
	}
	return out
}
