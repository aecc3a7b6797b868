package backend

import (
	"net/netip"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// Cluster is a set of endpoints among which requests are spread. The set
// changes under it; a Cluster is never replaced while its name lives.
type Cluster struct {
	Name    string
	Service string // hostname
	Subset  string

	pool    *Pool
	random  atomic.Bool  // endpoints are chosen at random, not by load
	connect atomic.Int64 // limit of connecting, nanoseconds
	set     atomic.Pointer[set]
}

type set struct {
	endpoints []*Endpoint
	weights   []uint32
	upTo      []uint64 // running sums; nil when all weights are equal
	total     uint64
}

// Spec is one endpoint as configuration has it.
type Spec struct {
	Addr     netip.AddrPort
	HBONE    bool
	IDs      []spiffe.ID
	Workload string
	Weight   uint32 // 0 counts as 1
	Healthy  bool
}

// NewCluster returns a cluster without endpoints.
func (p *Pool) NewCluster(name, service, subset string) *Cluster {
	c := &Cluster{Name: name, Service: service, Subset: subset, pool: p}
	c.set.Store(&set{})
	return c
}

// Configure sets how endpoints are chosen and how long connecting to one may
// take; zero is 10 s.
func (c *Cluster) Configure(random bool, connect time.Duration) {
	c.random.Store(random)
	c.connect.Store(int64(connect))
}

// ConnectTimeout returns how long connecting to an endpoint may take.
func (c *Cluster) ConnectTimeout() time.Duration { return time.Duration(c.connect.Load()) }

// Update replaces the endpoints. Left out are those that are not healthy, and
// tunnels to an endpoint without an identity to expect.
func (c *Cluster) Update(specs []Spec) {
	next := &set{}
	equal := true
	for _, s := range specs {
		if !s.Healthy || s.HBONE && len(s.IDs) == 0 {
			continue
		}
		k := Key{Addr: s.Addr, Service: c.Service}
		if s.HBONE {
			ids := slices.Clone(s.IDs)
			slices.SortFunc(ids, func(a, b spiffe.ID) int { return strings.Compare(a.String(), b.String()) })
			k.IDs = joinIDs(ids)
		}
		weight := max(s.Weight, 1)
		next.total += uint64(weight)
		next.endpoints = append(next.endpoints, c.pool.acquire(k, s.Workload))
		next.weights = append(next.weights, weight)
		next.upTo = append(next.upTo, next.total)
		equal = equal && weight == next.weights[0]
	}
	if equal {
		next.upTo = nil
	}
	for _, e := range c.set.Swap(next).endpoints {
		c.pool.release(e)
	}
}

// Endpoints returns the current endpoints.
func (c *Cluster) Endpoints() []*Endpoint { return c.set.Load().endpoints }

// Choose returns the less loaded of two endpoints picked at random, avoiding
// those in tried when there are others; nil when the cluster has none.
func (c *Cluster) Choose(random func() uint64, tried []*Endpoint) *Endpoint {
	s := c.set.Load()
	switch len(s.endpoints) {
	case 0:
		return nil
	case 1:
		return s.endpoints[0]
	}
	a := s.pick(random(), tried)
	if c.random.Load() {
		return s.endpoints[a]
	}
	b := s.pick(random(), tried)
	now := time.Now().UnixNano()
	if s.load(b, now) < s.load(a, now) {
		a = b
	}
	return s.endpoints[a]
}

// pick returns the index of an endpoint by weight. When it was tried the next
// one that was not takes its place.
func (s *set) pick(random uint64, tried []*Endpoint) int {
	i := int(random % uint64(len(s.endpoints)))
	if s.upTo != nil {
		n := random % s.total
		i = sort.Search(len(s.upTo), func(i int) bool { return s.upTo[i] > n })
	}
	if len(tried) == 0 {
		return i
	}
	for step := range s.endpoints {
		j := (i + step) % len(s.endpoints)
		if !slices.Contains(tried, s.endpoints[j]) {
			return j
		}
	}
	return i
}

// load is running requests per weight. An endpoint that could not be reached a
// moment ago counts as very loaded: it has few requests because it is broken.
func (s *set) load(i int, now int64) float64 {
	e := s.endpoints[i]
	n := float64(e.running.Load()+1) / float64(s.weights[i])
	if failed := e.failed.Load(); failed != 0 && now-failed < int64(avoidAfter) {
		n += 1e9
	}
	return n
}
