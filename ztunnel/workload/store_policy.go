package workload

import (
	"slices"

	"github.com/ambit-mesh/ambit/ztunnel/rbac"
)

// policyScope is where a policy applies by itself: in a namespace, or
// everywhere.
type policyScope struct {
	namespace string
	global    bool
}

// policyChange is what a batch does to the policies of one scope.
type policyChange struct{ removed, added []*rbac.Policy }

// scopeOf returns where a policy applies; ok is false for one that applies only
// to workloads that name it.
func scopeOf(p *rbac.Policy) (scope policyScope, ok bool) {
	switch p.Scope {
	case rbac.ScopeGlobal:
		return policyScope{global: true}, true
	case rbac.ScopeNamespace:
		return policyScope{namespace: p.Namespace}, true
	case rbac.ScopeSelector:
	}
	return policyScope{}, false
}

func (u *update) policyChange(scope policyScope) *policyChange {
	c := u.policies[scope]
	if c == nil {
		c = &policyChange{}
		u.policies[scope] = c
	}
	return c
}

func (u *update) setPolicy(p *rbac.Policy) {
	u.removePolicy(p.Key()) // its scope may have been another
	u.s.policies.set(u.b, p.Key(), p)
	if scope, ok := scopeOf(p); ok {
		c := u.policyChange(scope)
		c.added = append(c.added, p)
	}
}

func (u *update) removePolicy(key string) {
	p := u.s.policies.at(key)
	if p == nil {
		return
	}
	u.s.policies.remove(u.b, key)
	scope, ok := scopeOf(p)
	if !ok {
		return
	}
	c := u.policyChange(scope)
	if i := slices.Index(c.added, p); i >= 0 { // of this batch itself
		c.added = slices.Delete(c.added, i, i+1)
		return
	}
	c.removed = append(c.removed, p)
}

// finishPolicies makes the new version of each scope that has changed. Of the
// others the version stays the same, by which live connections see that they
// need not be judged again.
func (u *update) finishPolicies() {
	for scope, c := range u.policies {
		if len(c.removed)+len(c.added) == 0 {
			continue
		}
		if scope.global {
			u.s.global = u.s.global.Edit(c.removed, c.added)
			continue
		}
		set := u.s.namespaced.at(scope.namespace).Edit(c.removed, c.added)
		if set.Len() == 0 {
			u.s.namespaced.remove(u.b, scope.namespace)
			continue
		}
		u.s.namespaced.set(u.b, scope.namespace, set)
	}
}
