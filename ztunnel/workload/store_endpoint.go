package workload

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
)

// endpointList is the endpoints of one service.
type endpointList struct {
	all      []Endpoint // by workload uid
	heaviest uint32     // no endpoint has more capacity
	memo     *Memo      // nil: not worth it
}

// memoFrom is how many endpoints a service must have for a Memo.
const memoFrom = 64

// Memo is a place beside one version of a service's endpoints where a reader
// keeps what it has derived from that version, so as not to derive it again.
type Memo struct{ value atomic.Pointer[any] }

// Get returns what was kept last, nil at first.
func (m *Memo) Get() any {
	if v := m.value.Load(); v != nil {
		return *v
	}
	return nil
}

// Keep replaces what is kept.
func (m *Memo) Keep(v any) { m.value.Store(&v) }

// stage notes that a workload joins a service, or with nil that it leaves.
func (u *update) stage(key ServiceKey, uid string, e *Endpoint) {
	changes := u.endpoints[key]
	if changes == nil {
		changes = map[string]*Endpoint{}
		u.endpoints[key] = changes
	}
	changes[uid] = e
}

// finish merges the changes that were collected and returns the new version.
func (u *update) finish() *Snapshot {
	u.finishPolicies()
	for key, changes := range u.endpoints {
		list := merge(u.s.endpoints.at(key), changes)
		if len(list.all) == 0 {
			u.s.endpoints.remove(u.b, key)
			continue
		}
		u.s.endpoints.set(u.b, key, list)
	}
	s := u.s
	return &s
}

// merge returns a sorted list with changes applied. What lies between two
// changes is copied as a whole.
func merge(old endpointList, changes map[string]*Endpoint) endpointList {
	out := endpointList{all: make([]Endpoint, 0, len(old.all)+len(changes)), heaviest: old.heaviest}
	rest, heaviestLeft := old.all, false
	for _, uid := range slices.Sorted(maps.Keys(changes)) {
		i, found := slices.BinarySearchFunc(rest, uid, func(e Endpoint, uid string) int { return cmp.Compare(e.Workload.UID, uid) })
		out.all = append(out.all, rest[:i]...)
		if rest = rest[i:]; found {
			heaviestLeft = heaviestLeft || rest[0].Workload.Capacity == old.heaviest
			rest = rest[1:]
		}
		if e := changes[uid]; e != nil {
			out.all = append(out.all, *e)
			out.heaviest = max(out.heaviest, e.Workload.Capacity)
		}
	}
	out.all = append(out.all, rest...)
	if heaviestLeft && out.heaviest == old.heaviest && out.heaviest > 1 {
		out.heaviest = 0
		for i := range out.all {
			out.heaviest = max(out.heaviest, out.all[i].Workload.Capacity)
		}
	}
	if len(out.all) >= memoFrom {
		out.memo = &Memo{}
	}
	return out
}
