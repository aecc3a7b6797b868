package rbac

import (
	"cmp"
	"maps"
	"slices"
)

// Set is a version of all policies of one scope: of the mesh, or of one
// namespace. Immutable. A nil Set is empty.
//
// Policies are found by what they ask for (index.go). To build that index takes
// as long as reading every policy, so what a change adds is kept in a small index
// beside the large one, until enough has gathered.
type Set struct {
	tables  [4]table  // by kind
	invalid []*Policy // enforced and not readable, by key
}

// NewSet returns a set of policies, which have different keys.
func NewSet(policies ...*Policy) *Set { return (*Set)(nil).Edit(nil, policies) }

// Edit returns a version without removed, which are of the set, and with added.
func (s *Set) Edit(removed, added []*Policy) *Set {
	var out Set
	if s != nil {
		out = *s
	}
	var without, with [4][]*Policy
	for _, p := range removed {
		i := kindOf(p).index()
		without[i] = append(without[i], p)
		out.invalid = slices.DeleteFunc(slices.Clone(out.invalid), func(o *Policy) bool { return o == p })
	}
	for _, p := range added {
		i := kindOf(p).index()
		with[i] = append(with[i], p)
		if p.Invalid != "" && !p.DryRun {
			out.invalid = insert(out.invalid, p)
		}
	}
	for i := range out.tables {
		if len(without[i])+len(with[i]) > 0 {
			out.tables[i] = out.tables[i].edit(without[i], with[i])
		}
	}
	return &out
}

// Len returns the number of policies.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	n := 0
	for i := range s.tables {
		n += s.tables[i].len()
	}
	return n
}

// All iterates over the policies by kind, within one by key.
func (s *Set) All(yield func(*Policy) bool) {
	if s == nil {
		return
	}
	for i := range s.tables {
		for _, p := range s.tables[i].policies() {
			if !yield(p) {
				return
			}
		}
	}
}

func (s *Set) count(k kind) int {
	if s == nil {
		return 0
	}
	return s.tables[k.index()].len()
}

func (s *Set) first(k kind, c *subject) (*Policy, int) {
	if s == nil {
		return nil, 0
	}
	return s.tables[k.index()].first(c)
}

func (s *Set) all(k kind, c *subject, found []Finding) []Finding {
	if s == nil {
		return found
	}
	return s.tables[k.index()].all(c, found)
}

// table is the policies of one kind.
type table struct {
	base  *index               // nil: none
	gone  map[*Policy]struct{} // those of base that do not count any more
	extra *index               // of those that base does not have; nil: none
}

// spare is how many changes are kept beside an index of n policies: more where
// a new index costs more.
func spare(n int) int { return 8 + n/64 }

func (t table) len() int { return t.base.len() + t.extra.len() - len(t.gone) }

func (t table) edit(removed, added []*Policy) table {
	gone, copied := t.gone, false
	extra := slices.Clone(t.extra.list())
	for _, p := range removed {
		if i := slices.Index(extra, p); i >= 0 {
			extra = slices.Delete(extra, i, i+1)
			continue
		}
		if !copied {
			gone, copied = maps.Clone(gone), true
			if gone == nil {
				gone = map[*Policy]struct{}{}
			}
		}
		gone[p] = struct{}{}
	}
	extra = append(extra, added...)
	slices.SortFunc(extra, compare)
	if len(gone)+len(extra) > spare(t.base.len()) {
		return table{base: newIndex(join(t.base, gone, extra))}
	}
	return table{base: t.base, gone: gone, extra: newIndex(extra)}
}

// policies returns all that count, by key.
func (t table) policies() []*Policy { return join(t.base, t.gone, t.extra.list()) }

func join(base *index, gone map[*Policy]struct{}, extra []*Policy) []*Policy {
	out := make([]*Policy, 0, base.len()+len(extra))
	for _, p := range base.list() {
		if _, dropped := gone[p]; !dropped {
			out = append(out, p)
		}
	}
	out = append(out, extra...)
	slices.SortFunc(out, compare)
	return out
}

// first returns the first policy by key that matches.
func (t table) first(c *subject) (*Policy, int) {
	p, rule := t.base.first(c, t.gone)
	q, other := t.extra.first(c, nil)
	if p == nil || (q != nil && compare(q, p) < 0) {
		return q, other
	}
	return p, rule
}

// all appends the policies that match, by key.
func (t table) all(c *subject, found []Finding) []Finding {
	start := len(found)
	found = t.extra.all(c, nil, t.base.all(c, t.gone, found))
	slices.SortFunc(found[start:], func(a, b Finding) int { return cmp.Compare(a.Policy, b.Policy) })
	return found
}

func compare(a, b *Policy) int { return cmp.Compare(a.Key(), b.Key()) }

func insert(list []*Policy, p *Policy) []*Policy {
	i, _ := slices.BinarySearchFunc(list, p, compare)
	return slices.Insert(slices.Clone(list), i, p)
}
