package rbac

import "slices"

// Policies is what connections to one workload are judged by: the policies of
// its scopes and those that it names. The zero value holds none. A value that
// costs nothing to make; immutable once made.
type Policies struct {
	Global, Namespace *Set // may be nil

	// The first of the named policies have their place here, so that to gather
	// them for a connection costs no memory.
	few  [4]*Policy
	more []*Policy
}

// Of returns policies without regard to their scope.
func Of(list ...*Policy) Policies { return Policies{Global: NewSet(list...)} }

// Name adds a policy that the workload names.
func (p *Policies) Name(policy *Policy) {
	for i := range p.few {
		if p.few[i] == nil {
			p.few[i] = policy
			return
		}
	}
	p.more = append(p.more, policy)
}

// named iterates over the named policies.
func (p *Policies) named(yield func(*Policy) bool) {
	for _, policy := range p.few {
		if policy == nil || !yield(policy) {
			return
		}
	}
	for _, policy := range p.more {
		if !yield(policy) {
			return
		}
	}
}

// Empty reports whether there is no policy.
func (p *Policies) Empty() bool {
	return p.Global.Len() == 0 && p.Namespace.Len() == 0 && p.few[0] == nil
}

// Same reports whether the policies are those of o, so that a verdict by the
// ones stands for the others. A policy that was sent again is another.
func (p *Policies) Same(o *Policies) bool {
	return p.Global == o.Global && p.Namespace == o.Namespace && p.few == o.few && slices.Equal(p.more, o.more)
}

// All iterates over every policy: global, of the namespace, named.
func (p *Policies) All(yield func(*Policy) bool) {
	for _, set := range [...]*Set{p.Global, p.Namespace} {
		for policy := range set.All {
			if !yield(policy) {
				return
			}
		}
	}
	p.named(yield)
}

// kind is one of the four groups in which policies are evaluated.
type kind struct {
	action Action
	dryRun bool
}

func kindOf(p *Policy) kind { return kind{p.Action, p.DryRun} }

// index numbers the kinds.
func (k kind) index() int {
	if k.dryRun {
		return 2 + int(k.action)
	}
	return int(k.action)
}

// count returns how many policies are of a kind.
func (p *Policies) count(k kind) int {
	n := p.Global.count(k) + p.Namespace.count(k)
	for policy := range p.named {
		if kindOf(policy) == k {
			n++
		}
	}
	return n
}

// first returns the first policy of a kind that matches, and its rule; nil when
// none does.
func (p *Policies) first(k kind, c *subject) (*Policy, int) {
	for _, set := range [...]*Set{p.Global, p.Namespace} {
		if policy, rule := set.first(k, c); policy != nil {
			return policy, rule
		}
	}
	for policy := range p.named {
		if kindOf(policy) != k {
			continue
		}
		if rule, ok := policy.match(c); ok {
			return policy, rule
		}
	}
	return nil, 0
}

// all appends every policy of a kind that matches.
func (p *Policies) all(k kind, c *subject, found []Finding) []Finding {
	found = p.Namespace.all(k, c, p.Global.all(k, c, found))
	for policy := range p.named {
		if kindOf(policy) != k {
			continue
		}
		if rule, ok := policy.match(c); ok {
			found = append(found, Finding{Policy: policy.Key(), Rule: rule, Action: k.action})
		}
	}
	return found
}

// unreadable returns a policy that could not be read and is enforced, or nil.
func (p *Policies) unreadable() *Policy {
	for _, set := range [...]*Set{p.Global, p.Namespace} {
		if set != nil && len(set.invalid) > 0 {
			return set.invalid[0]
		}
	}
	for policy := range p.named {
		if policy.Invalid != "" && !policy.DryRun {
			return policy
		}
	}
	return nil
}
