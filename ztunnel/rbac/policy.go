package rbac

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// Action says what a matching policy does.
type Action uint8

// The actions that exist at L4.
const (
	Allow Action = iota
	Deny
)

// String returns the name as in the config dump.
func (a Action) String() string {
	if a == Deny {
		return "Deny"
	}
	return "Allow"
}

// Scope says to which workloads a policy applies.
type Scope uint8

// The scopes. A policy of ScopeSelector applies only to workloads that name it.
const (
	ScopeGlobal Scope = iota
	ScopeNamespace
	ScopeSelector
)

// String returns the name as in the config dump.
func (s Scope) String() string {
	switch s {
	case ScopeNamespace:
		return "Namespace"
	case ScopeSelector:
		return "WorkloadSelector"
	case ScopeGlobal:
	}
	return "Global"
}

// Policy is one authorization policy: it matches when any of its rules does.
// Immutable once parsed.
type Policy struct {
	Namespace, Name string
	Scope           Scope
	Action          Action
	DryRun          bool
	Rules           []Rule
	// Invalid says why the policy could not be read. Such a policy refuses every
	// connection in its scope: what it would have refused is not known.
	Invalid string

	key string // set by Parse, so that a verdict costs no memory
}

// Key returns "namespace/name", the name by which workloads refer to it.
func (p *Policy) Key() string {
	if p.key != "" {
		return p.key
	}
	return p.Namespace + "/" + p.Name
}

// Rule matches when all of its clauses do; without clauses it always matches.
type Rule []Clause

// Clause matches when any of its matches does; without matches it is true.
type Clause []Match

// Match holds attributes that must all fit. Within one attribute the positive
// list must be empty or hit, the negative list must not be hit.
type Match struct {
	Namespaces, NotNamespaces           []StringMatch
	Principals, NotPrincipals           []StringMatch
	ServiceAccounts, NotServiceAccounts []ServiceAccount
	SourceIPs, NotSourceIPs             []netip.Prefix
	DestinationIPs, NotDestinationIPs   []netip.Prefix
	DestinationPorts                    []uint16
	NotDestinationPorts                 []uint16

	// unreadable is set when an entry of the match could not be understood (an
	// address of wrong length, a string match of an unknown kind). Such a match
	// errs to the safe side: in an ALLOW policy it never matches, in a DENY
	// policy the list with the entry counts as fitting.
	unreadable attribute
}

// attribute is a set of the lists of a Match.
type attribute uint16

const (
	namespaces attribute = 1 << iota
	principals
	sourceIPs
	destinationIPs
	negative // an entry of one of the negative lists
)

// MatchKind is how a StringMatch compares.
type MatchKind uint8

// The kinds of string match.
const (
	Exact MatchKind = iota
	Prefix
	Suffix
	Presence // not empty
)

// StringMatch compares one string.
type StringMatch struct {
	Kind  MatchKind
	Value string
}

func (m StringMatch) match(s string) bool {
	switch m.Kind {
	case Exact:
		return s == m.Value
	case Prefix:
		return strings.HasPrefix(s, m.Value)
	case Suffix:
		return strings.HasSuffix(s, m.Value)
	case Presence:
		return s != ""
	}
	return false
}

// matchBytes is match for what is not a string: converting it would cost memory
// for every connection.
func (m StringMatch) matchBytes(b []byte) bool {
	n := len(m.Value)
	switch m.Kind {
	case Exact:
		return string(b) == m.Value
	case Prefix:
		return len(b) >= n && string(b[:n]) == m.Value
	case Suffix:
		return len(b) >= n && string(b[len(b)-n:]) == m.Value
	case Presence:
		return len(b) > 0
	}
	return false
}

// ServiceAccount names an account in any trust domain.
type ServiceAccount struct{ Namespace, Name string }

// subject is a Conn with what every match would derive from it again.
type subject struct {
	Conn
	namespace, account string
	principal          []byte // without "spiffe://"
	known              bool
}

// newSubject returns the subject of c. The principal is put into buffer, if it
// has the room: a caller's array costs no memory.
func newSubject(c Conn, buffer []byte) subject {
	c.Source = c.Source.Unmap()
	c.Destination = netip.AddrPortFrom(c.Destination.Addr().Unmap(), c.Destination.Port())
	s := subject{Conn: c, known: !c.Identity.IsZero(), namespace: c.Identity.Namespace(), account: c.Identity.ServiceAccount()}
	if s.known {
		s.principal = appendPrincipal(buffer[:0], c.Identity)
	}
	return s
}

// appendPrincipal is spiffe.ID.Principal for a buffer.
func appendPrincipal(b []byte, id spiffe.ID) []byte {
	b = append(append(b, id.TrustDomain()...), "/ns/"...)
	b = append(append(b, id.Namespace()...), "/sa/"...)
	return append(b, id.ServiceAccount()...)
}

// match returns the index of the first rule that matches.
func (p *Policy) match(c *subject) (int, bool) {
	for i, r := range p.Rules {
		if r.match(p.Action, c) {
			return i, true
		}
	}
	return 0, false
}

func (r Rule) match(a Action, c *subject) bool {
	for _, clause := range r {
		if !clause.match(a, c) {
			return false
		}
	}
	return true
}

func (cl Clause) match(a Action, c *subject) bool {
	if len(cl) == 0 {
		return true
	}
	for i := range cl {
		if cl[i].match(a, c) {
			return true
		}
	}
	return false
}

func (m *Match) match(a Action, c *subject) bool {
	if m.empty() || (m.unreadable != 0 && a == Allow) {
		return false
	}
	return fits(m.Namespaces, m.NotNamespaces, m.unreadable&namespaces != 0, func(s StringMatch) bool { return s.match(c.namespace) }) &&
		fits(m.Principals, m.NotPrincipals, m.unreadable&principals != 0, func(s StringMatch) bool { return c.known && s.matchBytes(c.principal) }) &&
		fits(m.ServiceAccounts, m.NotServiceAccounts, false, c.isAccount) &&
		fits(m.SourceIPs, m.NotSourceIPs, m.unreadable&sourceIPs != 0, c.isFrom) &&
		fits(m.DestinationIPs, m.NotDestinationIPs, m.unreadable&destinationIPs != 0, c.isTo) &&
		fits(m.DestinationPorts, m.NotDestinationPorts, false, func(p uint16) bool { return p == c.Destination.Port() })
}

func (c *subject) isAccount(s ServiceAccount) bool {
	return c.known && s.Namespace == c.namespace && s.Name == c.account
}

func (c *subject) isFrom(p netip.Prefix) bool { return p.Contains(c.Source) }

func (c *subject) isTo(p netip.Prefix) bool { return p.Contains(c.Destination.Addr()) }

// fits reports whether one attribute of a match accepts a connection. With
// unreadable entries in its positive list, that list counts as hit.
func fits[T any](positive, negative []T, unreadable bool, hit func(T) bool) bool {
	if len(positive) > 0 && !unreadable && !slices.ContainsFunc(positive, hit) {
		return false
	}
	return !slices.ContainsFunc(negative, hit)
}

// empty reports whether the match names no attribute; such a match is skipped.
func (m *Match) empty() bool {
	return m.unreadable == 0 &&
		len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
			len(m.ServiceAccounts)+len(m.NotServiceAccounts)+len(m.SourceIPs)+len(m.NotSourceIPs)+
			len(m.DestinationIPs)+len(m.NotDestinationIPs)+len(m.DestinationPorts)+len(m.NotDestinationPorts) == 0
}
