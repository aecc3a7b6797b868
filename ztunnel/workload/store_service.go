package workload

import (
	"cmp"
	"slices"

	"github.com/ambit-mesh/ambit/ztunnel/rbac"
)

// setService adds a service or puts it where its predecessor was, so that an
// update does not change which of several services came first.
func (u *update) setService(svc *Service) {
	old := u.s.services.at(svc.Key)
	u.s.services.set(u.b, svc.Key, svc)
	replace(u.b, &u.s.byHost, svc.Key.Hostname, old, svc)
	for _, vip := range svc.VIPs {
		replace(u.b, &u.s.vips, vip, old, svc)
	}
	if old != nil {
		for _, vip := range old.VIPs {
			if !slices.Contains(svc.VIPs, vip) {
				drop(u.b, &u.s.vips, vip, old)
			}
		}
		u.dropRanges(old)
	}
	for _, c := range svc.CIDRs {
		list := u.s.cidrs.at(c.Network)
		u.s.cidrs.set(u.b, c.Network, append(slices.Clone(list), cidrVIP{c.Prefix, svc}))
	}
}

// replace puts svc in the place of old in a list, or at its end.
func replace[K comparable](b *batch, m *index[K, []*Service], key K, old, svc *Service) {
	list := slices.Clone(m.at(key))
	if i := slices.Index(list, old); old != nil && i >= 0 {
		list[i] = svc
	} else {
		list = append(list, svc)
	}
	m.set(b, key, list)
}

func (u *update) removeService(svc *Service) {
	u.s.services.remove(u.b, svc.Key)
	drop(u.b, &u.s.byHost, svc.Key.Hostname, svc)
	for _, vip := range svc.VIPs {
		drop(u.b, &u.s.vips, vip, svc)
	}
	u.dropRanges(svc)
}

func (u *update) dropRanges(svc *Service) {
	for _, c := range svc.CIDRs {
		list := slices.DeleteFunc(slices.Clone(u.s.cidrs.at(c.Network)), func(v cidrVIP) bool { return v.service == svc })
		if len(list) == 0 {
			u.s.cidrs.remove(u.b, c.Network)
			continue
		}
		u.s.cidrs.set(u.b, c.Network, list)
	}
}

func (u *update) setPolicy(p *rbac.Policy) {
	u.removePolicy(p.Key()) // its scope may have been another
	u.s.policies.set(u.b, p.Key(), p)
	switch p.Scope {
	case rbac.ScopeGlobal:
		u.s.global = insertPolicy(u.s.global, p)
	case rbac.ScopeNamespace:
		u.s.namespaced.set(u.b, p.Namespace, insertPolicy(u.s.namespaced.at(p.Namespace), p))
	case rbac.ScopeSelector:
	}
}

func insertPolicy(list []*rbac.Policy, p *rbac.Policy) []*rbac.Policy {
	i, _ := slices.BinarySearchFunc(list, p, func(a, b *rbac.Policy) int { return cmp.Compare(a.Key(), b.Key()) })
	return slices.Insert(slices.Clone(list), i, p)
}

func (u *update) removePolicy(key string) {
	p := u.s.policies.at(key)
	if p == nil {
		return
	}
	u.s.policies.remove(u.b, key)
	switch p.Scope {
	case rbac.ScopeGlobal:
		u.s.global = slices.DeleteFunc(slices.Clone(u.s.global), func(o *rbac.Policy) bool { return o == p })
	case rbac.ScopeNamespace:
		drop(u.b, &u.s.namespaced, p.Namespace, p)
	case rbac.ScopeSelector:
	}
}
