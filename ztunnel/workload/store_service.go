package workload

import "slices"

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
		for _, c := range old.CIDRs {
			if !slices.Contains(svc.CIDRs, c) {
				u.dropRange(c, old)
			}
		}
	}
	for _, c := range svc.CIDRs {
		u.setRange(c, old, svc)
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
	for _, c := range svc.CIDRs {
		u.dropRange(c, svc)
	}
}
