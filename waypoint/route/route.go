// Package route decides which rule of a service answers a request. It is pure:
// tables are compiled once from configuration, never change, and asking one
// reads no clock, no socket and no configuration. What changes is a Sequence,
// which a rule only carries: its caller moves it and passes the point in. A regular expression is run
// only where the configuration has one. Safe for concurrent use.
//
// The vocabulary is that of Envoy's RouteMatch, which is what istiod sends.
package route

import (
	"math/bits"
	"sort"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/filter"
)

// Table is the routes of one service port in the order in which they are tried.
type Table struct {
	Name  string
	Rules []*Rule
}

// Rule says which requests it is for and what becomes of them. Exactly one of
// Targets, Redirect and Direct is set.
type Rule struct {
	Name     string
	Match    Match
	Targets  *Targets
	Turn     *Sequence // for Targets; nil when there is only one
	Redirect *filter.Redirect
	Direct   *Direct

	Rewrite  filter.Rewrite
	Missing  int           // status when the cluster is not known; 0 is 503
	Timeout  time.Duration // of the whole response; 0 means none
	Retry    Retry
	Request  filter.Header // changes to the request's header
	Response filter.Header // changes to the response's header
}

// Direct is a response that the waypoint gives itself.
type Direct struct {
	Status int
	Body   string
}

// Match is the conditions of a rule; all must hold. The zero Match holds always.
type Match struct {
	Path   Path
	Fields []FieldMatch
	Query  []QueryMatch
}

// Find returns the first rule that matches, or nil.
func (t *Table) Find(r *codec.Request) *Rule {
	path := r.PathOnly()
	for _, rule := range t.Rules {
		if rule.Match.matches(r, path) {
			return rule
		}
	}
	return nil
}

func (m *Match) matches(r *codec.Request, path string) bool {
	if !m.Path.matches(path) {
		return false
	}
	for i := range m.Fields {
		if !m.Fields[i].matches(r) {
			return false
		}
	}
	for i := range m.Query {
		if !m.Query[i].matches(r.Query()) {
			return false
		}
	}
	return true
}

// Target is a cluster with its share of a rule's requests.
type Target struct {
	Cluster  string
	Weight   uint32
	Host     string // replaces the authority; empty leaves it
	Request  filter.Header
	Response filter.Header
}

// Targets is a weighted choice of clusters.
type Targets struct {
	list  []Target
	upTo  []uint64 // running sums of the weights
	total uint64
}

// NewTargets returns a choice. Weights must not all be zero.
func NewTargets(list ...Target) *Targets {
	t := &Targets{list: list, upTo: make([]uint64, len(list))}
	for i, target := range list {
		t.total += uint64(target.Weight)
		t.upTo[i] = t.total
	}
	return t
}

// All returns every target; a nil choice has none.
func (t *Targets) All() []Target {
	if t == nil {
		return nil
	}
	return t.list
}

// Pick chooses a target by a point of the circle that Sequence walks: each
// target has an arc of it, as long as its weight.
func (t *Targets) Pick(point uint64) *Target {
	if len(t.list) == 1 || t.total == 0 {
		return &t.list[0]
	}
	n, _ := bits.Mul64(point, t.total)
	return &t.list[sort.Search(len(t.upTo), func(i int) bool { return t.upTo[i] > n })]
}

// goldenStep is 2^64 divided by the golden ratio, and odd. Of all steps around
// a circle this one spreads its points most evenly, whatever their number.
const goldenStep = 0x9e3779b97f4a7c15

// Sequence spreads the requests of one weighted choice: whoever asks next gets
// the next point of an even walk around a circle of 2^64. Unlike independent
// random numbers it keeps the number of requests to each target within a few of
// its share at any time, and unlike a cycle it does not fall into step with
// requests that alternate. A nil Sequence stays at 0.
type Sequence struct{ at atomic.Uint64 }

// NewSequence returns a Sequence that starts at a point, which should be random
// so that proxies which get the same routes at once do not move in step.
func NewSequence(start uint64) *Sequence {
	s := &Sequence{}
	s.at.Store(start)
	return s
}

// Next returns the next point.
func (s *Sequence) Next() uint64 {
	if s == nil {
		return 0
	}
	return s.at.Add(goldenStep)
}
