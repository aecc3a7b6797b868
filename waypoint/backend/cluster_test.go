package backend

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

func newCluster(t *testing.T, specs ...Spec) *Cluster {
	t.Helper()
	c := NewPool(Config{}).NewCluster("outbound|80||a", "a", "")
	c.Update(specs)
	return c
}

func plain(port uint16, weight uint32) Spec {
	return Spec{Addr: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port), Weight: weight, Healthy: true}
}

func seeded() func() uint64 {
	r := rand.New(rand.NewPCG(3, 4))
	return r.Uint64
}

func count(c *Cluster, n int, tried ...*Endpoint) map[uint16]int {
	random, got := seeded(), map[uint16]int{}
	for range n {
		got[c.Choose(random, tried).Addr.Port()]++
	}
	return got
}

func TestChooseNone(t *testing.T) {
	unhealthy := plain(1, 1)
	unhealthy.Healthy = false
	nameless := plain(2, 1)
	nameless.HBONE = true
	if e := newCluster(t, unhealthy, nameless).Choose(seeded(), nil); e != nil {
		t.Errorf("chose %v", e.Addr)
	}
}

func TestChooseAvoidsTheLoadedAndTheBroken(t *testing.T) {
	c := newCluster(t, plain(1, 1), plain(2, 1))
	c.Endpoints()[0].Begin()
	if got := count(c, 1000); got[2] < 700 {
		t.Errorf("with one request running on 1: %v", got)
	}
	c.Endpoints()[0].End()
	c.Endpoints()[0].failed.Store(time.Now().UnixNano())
	if got := count(c, 1000); got[2] < 700 {
		t.Errorf("with 1 unreachable: %v", got)
	}
}

func TestChooseByWeight(t *testing.T) {
	c := newCluster(t, plain(1, 1), plain(2, 3))
	c.Configure(true, 0)
	if got := count(c, 4000); got[2] < 2850 || got[2] > 3150 {
		t.Errorf("weights 1 and 3: %v of 4000", got)
	}
}

func TestChooseAnotherThanTried(t *testing.T) {
	c := newCluster(t, plain(1, 1), plain(2, 1), plain(3, 1))
	e := c.Endpoints()
	if got := count(c, 100, e[0], e[2]); got[2] != 100 {
		t.Errorf("only 2 was not tried: %v", got)
	}
	if got := count(c, 100, e...); len(got) < 2 {
		t.Errorf("all tried: %v", got)
	}
}

// TestUpdateKeepsEndpoints: state belongs to the endpoint, not to a version of
// the configuration; another identity is another endpoint.
func TestUpdateKeepsEndpoints(t *testing.T) {
	id := func(name string) []spiffe.ID {
		v, err := spiffe.New("td", "ns", name)
		if err != nil {
			t.Fatal(err)
		}
		return []spiffe.ID{v}
	}
	spec := plain(1, 1)
	spec.HBONE, spec.IDs = true, id("a")
	c := newCluster(t, spec)
	before := c.Endpoints()[0]
	spec.Weight = 5
	c.Update([]Spec{spec, plain(2, 1)})
	if c.Endpoints()[0] != before {
		t.Error("another weight made another endpoint")
	}
	spec.IDs = id("b")
	c.Update([]Spec{spec})
	if c.Endpoints()[0] == before || !before.closed {
		t.Error("an endpoint kept its connections under another identity")
	}
	if c.Endpoints()[0].ID() != id("b")[0] {
		t.Errorf("identity %v", c.Endpoints()[0].ID())
	}
	c.Update(nil)
	if n := len(c.pool.all()); n != 0 {
		t.Errorf("%d endpoints left", n)
	}
}
