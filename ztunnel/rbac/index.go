package rbac

import (
	"net/netip"
	"slices"
)

// index finds the rules that a connection may match without reading the others.
// A rule needs all of its clauses; so it is enough to find it by one of them,
// and that one by each of its matches, of which it needs any. A match is found
// by one attribute whose positive list names values. What cannot be found so is
// read for every connection.
type index struct {
	policies []*Policy // by key
	always   []place

	principals   texts
	accounts     map[ServiceAccount][]place
	namespaces   texts
	sources      ranges
	destinations ranges
	ports        map[uint16][]place
}

// place is a rule: policy and rule are indexes. Lists of places are ascending.
type place struct{ policy, rule int32 }

func (a place) before(b place) bool {
	return a.policy < b.policy || a.policy == b.policy && a.rule < b.rule
}

// nowhere comes after every place.
var nowhere = place{1<<31 - 1, 0}

// newIndex returns an index of policies, which are sorted by key. The index of
// none is nil.
func newIndex(policies []*Policy) *index {
	if len(policies) == 0 {
		return nil
	}
	x := &index{policies: policies}
	for i, p := range policies {
		for j, r := range p.Rules {
			x.add(place{int32(i), int32(j)}, p.Action, r)
		}
	}
	x.principals.finish()
	x.namespaces.finish()
	x.sources.finish()
	x.destinations.finish()
	return x
}

func (x *index) len() int { return len(x.list()) }

// list returns the policies by key.
func (x *index) list() []*Policy {
	if x == nil {
		return nil
	}
	return x.policies
}

// add puts a rule where the best of its clauses is found: the one whose worst
// match is found by the attribute that says most.
func (x *index) add(at place, a Action, r Rule) {
	best, cost := -1, unfound
	for i, clause := range r {
		if len(clause) == 0 {
			continue // true for all
		}
		worst := never
		for j := range clause {
			worst = max(worst, clause[j].foundBy(a))
		}
		if best < 0 || worst < cost {
			best, cost = i, worst
		}
	}
	if best < 0 || cost == unfound {
		x.always = append(x.always, at)
		return
	}
	for i := range r[best] {
		m := &r[best][i]
		x.enter(at, m, m.foundBy(a))
	}
}

// key is the attribute by which a match is found, in the order of how much it
// says.
type key uint8

const (
	never key = iota // the match fits nothing and needs no place
	byPrincipal
	byAccount
	byNamespace
	bySource
	byDestination
	byPort
	unfound // by no attribute
)

// foundBy returns the attribute by which a match is found.
func (m *Match) foundBy(a Action) key {
	named := func(list []StringMatch) bool {
		return len(list) > 0 && !slices.ContainsFunc(list, func(s StringMatch) bool { return s.Kind == Presence })
	}
	switch {
	case m.empty() || (m.unreadable != 0 && a == Allow):
		return never
	case named(m.Principals) && m.unreadable&principals == 0:
		return byPrincipal
	case len(m.ServiceAccounts) > 0:
		return byAccount
	case named(m.Namespaces) && m.unreadable&namespaces == 0:
		return byNamespace
	case len(m.SourceIPs) > 0 && m.unreadable&sourceIPs == 0:
		return bySource
	case len(m.DestinationIPs) > 0 && m.unreadable&destinationIPs == 0:
		return byDestination
	case len(m.DestinationPorts) > 0:
		return byPort
	}
	return unfound
}

func (x *index) enter(at place, m *Match, by key) {
	switch by {
	case byPrincipal:
		x.principals.add(m.Principals, at)
	case byAccount:
		for _, s := range m.ServiceAccounts {
			put(&x.accounts, s, at)
		}
	case byNamespace:
		x.namespaces.add(m.Namespaces, at)
	case bySource:
		x.sources.add(m.SourceIPs, at)
	case byDestination:
		x.destinations.add(m.DestinationIPs, at)
	case byPort:
		for _, port := range m.DestinationPorts {
			put(&x.ports, port, at)
		}
	case never, unfound:
	}
}

// appendPlace adds a place that is not before the last one.
func appendPlace(list []place, at place) []place {
	if n := len(list); n > 0 && list[n-1] == at {
		return list
	}
	return append(list, at)
}

// candidates iterates over the lists of places that may match a connection.
func (x *index) candidates(c *subject, yield func([]place) bool) {
	if !yield(x.always) || !yield(x.ports[c.Destination.Port()]) {
		return
	}
	if c.known && (!x.principals.lookUp(c.principal, yield) || !yield(x.accounts[ServiceAccount{c.namespace, c.account}])) {
		return
	}
	var room [64]byte // a namespace's name is not longer
	if !x.namespaces.lookUp(append(room[:0], c.namespace...), yield) {
		return
	}
	_ = x.sources.lookUp(c.Source, yield) && x.destinations.lookUp(c.Destination.Addr(), yield)
}

// first returns the first policy that matches, of those that are not gone.
func (x *index) first(c *subject, gone map[*Policy]struct{}) (*Policy, int) {
	if x == nil {
		return nil, 0
	}
	best := nowhere
	x.candidates(c, func(list []place) bool {
		for _, at := range list {
			if !at.before(best) {
				break
			}
			if x.match(at, c, gone) {
				best = at
				break
			}
		}
		return true
	})
	if best == nowhere {
		return nil, 0
	}
	return x.policies[best.policy], int(best.rule)
}

func (x *index) match(at place, c *subject, gone map[*Policy]struct{}) bool {
	p := x.policies[at.policy]
	if !p.Rules[at.rule].match(p.Action, c) {
		return false
	}
	_, dropped := gone[p]
	return !dropped
}

// all appends every policy that matches, with its first rule.
func (x *index) all(c *subject, gone map[*Policy]struct{}, found []Finding) []Finding {
	if x == nil {
		return found
	}
	var at []place
	x.candidates(c, func(list []place) bool {
		for _, p := range list {
			if x.match(p, c, gone) {
				at = append(at, p)
			}
		}
		return true
	})
	slices.SortFunc(at, func(a, b place) int {
		if a.before(b) {
			return -1
		}
		return 1
	})
	for i, p := range at {
		if i == 0 || at[i-1].policy != p.policy {
			policy := x.policies[p.policy]
			found = append(found, Finding{Policy: policy.Key(), Rule: int(p.rule), Action: policy.Action})
		}
	}
	return found
}

// texts finds the string matches that a text fits, none of which is Presence.
type texts struct {
	exact, prefixes, suffixes    map[string][]place
	prefixLengths, suffixLengths []int // ascending
}

func (t *texts) add(list []StringMatch, at place) {
	for _, m := range list {
		switch m.Kind {
		case Prefix:
			put(&t.prefixes, m.Value, at)
		case Suffix:
			put(&t.suffixes, m.Value, at)
		case Exact:
			put(&t.exact, m.Value, at)
		case Presence:
		}
	}
}

func put[K comparable](m *map[K][]place, key K, at place) {
	if *m == nil {
		*m = map[K][]place{}
	}
	(*m)[key] = appendPlace((*m)[key], at)
}

func (t *texts) finish() {
	t.prefixLengths, t.suffixLengths = lengths(t.prefixes), lengths(t.suffixes)
}

func lengths(m map[string][]place) []int {
	var out []int
	for text := range m {
		out = append(out, len(text))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (t *texts) lookUp(b []byte, yield func([]place) bool) bool {
	if !yield(t.exact[string(b)]) {
		return false
	}
	for _, n := range t.prefixLengths {
		if n > len(b) {
			break
		}
		if !yield(t.prefixes[string(b[:n])]) {
			return false
		}
	}
	for _, n := range t.suffixLengths {
		if n > len(b) {
			break
		}
		if !yield(t.suffixes[string(b[len(b)-n:])]) {
			return false
		}
	}
	return true
}

// ranges finds the prefixes that contain an address.
type ranges struct {
	prefixes map[netip.Prefix][]place
	v4, v6   []int // lengths, ascending
}

func (r *ranges) add(list []netip.Prefix, at place) {
	for _, p := range list {
		put(&r.prefixes, p, at)
	}
}

func (r *ranges) finish() {
	for p := range r.prefixes {
		if p.Addr().Is4() {
			r.v4 = append(r.v4, p.Bits())
		} else {
			r.v6 = append(r.v6, p.Bits())
		}
	}
	slices.Sort(r.v4)
	slices.Sort(r.v6)
	r.v4, r.v6 = slices.Compact(r.v4), slices.Compact(r.v6)
}

func (r *ranges) lookUp(ip netip.Addr, yield func([]place) bool) bool {
	bits := r.v6
	if ip.Is4() {
		bits = r.v4
	}
	for _, n := range bits {
		p, err := ip.WithZone("").Prefix(n)
		if err == nil && !yield(r.prefixes[p]) {
			return false
		}
	}
	return true
}
