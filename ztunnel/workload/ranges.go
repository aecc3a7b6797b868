package workload

import (
	"iter"
	"net/netip"
	"slices"
)

// rangeLengths counts, for one network, the ranges of virtual addresses by their
// length: the ranges around an address are found by asking for each length, of
// which there are few, where there may be thousands of ranges. Immutable.
type rangeLengths struct{ v4, v6 []lengthCount } // longest first

type lengthCount struct{ bits, ranges int }

func (l *rangeLengths) of(ip netip.Addr) []lengthCount {
	switch {
	case l == nil:
		return nil
	case ip.Is4():
		return l.v4
	}
	return l.v6
}

// with returns a version with n more ranges of the length of p; nil when none is
// left.
func (l *rangeLengths) with(p netip.Prefix, n int) *rangeLengths {
	out := rangeLengths{}
	if l != nil {
		out = *l
	}
	list := &out.v6
	if p.Addr().Is4() {
		list = &out.v4
	}
	*list = slices.Clone(*list)
	i, found := slices.BinarySearchFunc(*list, p.Bits(), func(c lengthCount, bits int) int { return bits - c.bits })
	if !found {
		*list = slices.Insert(*list, i, lengthCount{bits: p.Bits()})
	}
	if (*list)[i].ranges += n; (*list)[i].ranges == 0 {
		*list = slices.Delete(*list, i, i+1)
	}
	if len(out.v4)+len(out.v6) == 0 {
		return nil
	}
	return &out
}

// rangesAround iterates over the prefixes that contain an address and may be
// ranges of services, longest first.
func (s *Snapshot) rangesAround(network string, ip netip.Addr) iter.Seq[NetworkPrefix] {
	return func(yield func(NetworkPrefix) bool) {
		for _, l := range s.lengths.at(network).of(ip) {
			p, err := ip.WithZone("").Prefix(l.bits)
			if err == nil && !yield(NetworkPrefix{network, p}) {
				return
			}
		}
	}
}

// setRange adds a service to a range, or puts it where its predecessor was.
func (u *update) setRange(c NetworkPrefix, old, svc *Service) {
	if len(u.s.ranges.at(c)) == 0 {
		u.countRange(c, 1)
	}
	replace(u.b, &u.s.ranges, c, old, svc)
}

func (u *update) dropRange(c NetworkPrefix, svc *Service) {
	drop(u.b, &u.s.ranges, c, svc)
	if len(u.s.ranges.at(c)) == 0 {
		u.countRange(c, -1)
	}
}

func (u *update) countRange(c NetworkPrefix, n int) {
	if l := u.s.lengths.at(c.Network).with(c.Prefix, n); l != nil {
		u.s.lengths.set(u.b, c.Network, l)
	} else {
		u.s.lengths.remove(u.b, c.Network)
	}
}
