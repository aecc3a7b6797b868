package plan

import (
	"cmp"
	"maps"
	"slices"

	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// grouping is the endpoints of a service in groups of the same locality as seen
// from one place, best first. It depends on nothing but its key, and is kept in
// the memo beside the version of the endpoints that it was made of: the sources
// of one node are all in one place.
type grouping struct {
	service *workload.Service
	from    place
	groups  [][]int32 // indexes
}

// place is what the scopes compare.
type place struct {
	locality               workload.Locality
	node, cluster, network string
}

func placeOf(w *workload.Workload) place {
	return place{w.Locality, w.Node, w.ClusterID, w.Network}
}

// groups returns the groups as seen from a source. Where a service is to be
// served strictly, those that do not match are left out.
func groups(memo *workload.Memo, svc *workload.Service, source *workload.Workload, endpoints []workload.Endpoint) [][]int32 {
	from := placeOf(source)
	if g, ok := memo.Get().(*grouping); ok && g.service == svc && g.from == from {
		return g.groups
	}
	byRank := map[int][]int32{}
	for i := range endpoints {
		matched, boost := locality(&svc.Balance, source, endpoints[i].Workload)
		if svc.Balance.Mode == workload.Strict && matched != len(svc.Balance.Preferences) {
			continue
		}
		byRank[matched+boost] = append(byRank[matched+boost], int32(i))
	}
	g := &grouping{service: svc, from: from}
	for _, rank := range slices.SortedFunc(maps.Keys(byRank), func(a, b int) int { return cmp.Compare(b, a) }) {
		g.groups = append(g.groups, byRank[rank])
	}
	memo.Keep(g)
	return g.groups
}
