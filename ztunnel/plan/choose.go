package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// Of the endpoints that fit best, two are drawn in proportion to their capacity,
// and the one with fewer connections for its capacity is chosen ("the power of
// two choices"): as even as asking all, at the cost of asking two.
//
// Where there are many, endpoints are drawn at random until two are usable,
// instead of reading the list: one is accepted with a chance of its capacity to
// that of the heaviest, which draws in proportion exactly. They are drawn from
// the group that fits best by locality (groups.go). Else, or when luck fails, the
// list is read.

const (
	manyEndpoints = 16 // from here on it pays to draw without reading the list
	draws         = 32 // for one endpoint
)

// pick returns the endpoint to use, nil when there is none. byLocality is the
// groups by locality, best first; nil where that makes no difference, or where
// there are few endpoints.
func (c *choice) pick(endpoints []workload.Endpoint, byLocality [][]int32) *workload.Endpoint {
	if len(endpoints) >= manyEndpoints && !c.ranked() {
		if a := c.draw(endpoints, nil); a != nil {
			return c.lighter(a, c.draw(endpoints, nil))
		}
	}
	for _, group := range byLocality {
		if a := c.draw(endpoints, group); a != nil {
			return c.lighter(a, c.draw(endpoints, group))
		}
		if slices.ContainsFunc(group, func(i int32) bool { return c.free(&endpoints[i]) }) {
			break // a few are usable, which were not drawn
		}
	}
	return c.read(endpoints)
}

// read is pick without luck. Each endpoint is ranked once: what is known of
// refusals may change meanwhile.
func (c *choice) read(endpoints []workload.Endpoint) *workload.Endpoint {
	var few [64]int32
	fit := few[:0] // the indexes of those of the best class
	best, total := class{}, uint64(0)
	for i := range endpoints {
		r, ok := c.rank(&endpoints[i])
		if !ok {
			continue
		}
		if len(fit) == 0 || best.below(r) {
			best, total, fit = r, 0, fit[:0]
		}
		if r == best {
			total += uint64(endpoints[i].Workload.Capacity)
			fit = append(fit, int32(i))
		}
	}
	if total == 0 {
		return nil
	}
	a := nth(endpoints, fit, c.q.Rand(total), nil)
	rest := total - uint64(a.Workload.Capacity)
	if c.q.Load == nil || rest == 0 {
		return a
	}
	return c.lighter(a, nth(endpoints, fit, c.q.Rand(rest), a))
}

// ranked reports whether usable endpoints of the service differ in how well they
// fit.
func (c *choice) ranked() bool {
	b := &c.svc.Balance
	return (b.Mode == workload.Strict || b.Mode == workload.Failover) && len(b.Preferences) > 0
}

// draw returns a random endpoint that may be used without reserve, nil if it
// met none. group holds the indexes to draw from; nil stands for all.
func (c *choice) draw(endpoints []workload.Endpoint, group []int32) *workload.Endpoint {
	n := uint64(len(endpoints))
	if group != nil {
		n = uint64(len(group))
	}
	for range draws {
		i := c.q.Rand(n)
		if group != nil {
			i = uint64(group[i])
		}
		e := &endpoints[i]
		if c.heaviest > 1 && c.q.Rand(c.heaviest) >= uint64(e.Workload.Capacity) {
			continue
		}
		if c.free(e) {
			return e
		}
	}
	return nil
}

// free reports whether an endpoint may be used without reserve.
func (c *choice) free(e *workload.Endpoint) bool {
	return c.unusable(e) == "" && !c.tried(e) && !c.refused(e)
}

// lighter returns the one of two that has fewer connections for its capacity, a
// if they are equal. b may be nil.
func (c *choice) lighter(a, b *workload.Endpoint) *workload.Endpoint {
	if b == nil || a == b || c.q.Load == nil {
		return a
	}
	loadA, loadB := uint64(max(0, c.q.Load(a.Workload.UID))), uint64(max(0, c.q.Load(b.Workload.UID)))
	if loadB*uint64(a.Workload.Capacity) < loadA*uint64(b.Workload.Capacity) {
		return b
	}
	return a
}

// nth returns the endpoint that n falls to when each of those at some indexes
// takes as many numbers as it has capacity. One of them may be left out.
func nth(endpoints []workload.Endpoint, at []int32, n uint64, except *workload.Endpoint) *workload.Endpoint {
	for _, i := range at {
		e := &endpoints[i]
		if e == except {
			continue
		}
		w := uint64(e.Workload.Capacity)
		if n < w {
			return e
		}
		n -= w
	}
	return nil // n is not below the sum
}

// another reports whether a usable endpoint besides one has not been tried.
func (c *choice) another(endpoints []workload.Endpoint, than *workload.Endpoint) bool {
	for i := range endpoints {
		if e := &endpoints[i]; e != than && !c.tried(e) && c.unusable(e) == "" {
			return true
		}
	}
	return false
}

// reserve is why an endpoint is better not used.
type reserve uint8

const (
	none    reserve = iota
	refused         // connections, just now
	tried           // for this connection
)

// class is how well an endpoint fits.
type class struct {
	reserve  reserve
	locality int
}

func (a class) below(b class) bool {
	return a.reserve > b.reserve || (a.reserve == b.reserve && a.locality < b.locality)
}

// rank returns how well an endpoint fits and whether it may be used at all.
func (c *choice) rank(e *workload.Endpoint) (class, bool) {
	if c.unusable(e) != "" {
		return class{}, false
	}
	var r class
	if c.ranked() {
		matched, boost := locality(&c.svc.Balance, c.q.Source, e.Workload)
		r.locality = matched + boost
	}
	switch {
	case c.tried(e):
		r.reserve = tried
	case c.refused(e):
		r.reserve = refused
	}
	return r, true
}

func (c *choice) tried(e *workload.Endpoint) bool { return slices.Contains(c.q.Tried, e.Workload.UID) }

func (c *choice) refused(e *workload.Endpoint) bool {
	if c.q.Refused == nil {
		return false
	}
	port, _ := c.target(e)
	return c.q.Refused(e.Workload.UID, port)
}

// summarize says how many of known endpoints cannot be used, by reason.
func summarize(known int, counts map[string]int) string {
	text := fmt.Sprintf("%d known", known)
	var reasons []string
	for why, n := range counts {
		reasons = append(reasons, fmt.Sprintf("%d %s", n, why))
	}
	if len(reasons) == 0 {
		return text
	}
	slices.Sort(reasons)
	return text + ": " + strings.Join(reasons, ", ")
}
