package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

// shares opens n connections and returns how many go to each account.
func shares(t *testing.T, n int, target string, edit func(*Request), mesh ...proto.Message) map[string]int {
	t.Helper()
	s := workloadtest.Snapshot(t, append(mesh, pod("me", me, local("r1", "z1")))...)
	got := map[string]int{}
	for range n {
		q := request(s, target)
		if edit != nil {
			edit(&q)
		}
		p, err := Outbound(s, q)
		if err != nil {
			got[err.Error()]++
			continue
		}
		got[p.Workload.Name]++
	}
	return got
}

func local(region, zone string) func(*api.Workload) {
	return func(w *api.Workload) { w.Locality = &api.Locality{Region: region, Zone: zone} }
}

func capacity(n uint32) func(*api.Workload) {
	return func(w *api.Workload) { w.Capacity = wrapperspb.UInt32(n) }
}

func balance(mode api.LoadBalancing_Mode, scopes ...api.LoadBalancing_Scope) func(*api.Service) {
	return func(s *api.Service) { s.LoadBalancing = &api.LoadBalancing{Mode: mode, RoutingPreference: scopes} }
}

func TestBalance(t *testing.T) {
	const region, zone, network = api.LoadBalancing_REGION, api.LoadBalancing_ZONE, api.LoadBalancing_NETWORK
	near, sameRegion, far := pod("near", "10.0.0.2", in("s"), local("r1", "z1")), pod("region", "10.0.0.3", in("s"), local("r1", "z2")), pod("far", "10.0.0.4", in("s"), local("r2", "z1"))
	for _, tc := range []struct {
		name string
		mesh []proto.Message
		want string // all go here
	}{
		{"failover: best first", []proto.Message{service("s", "10.96.0.1", balance(api.LoadBalancing_FAILOVER, network, region, zone)), near, sameRegion, far}, "near"},
		{"failover: next best", []proto.Message{service("s", "10.96.0.1", balance(api.LoadBalancing_FAILOVER, region, zone)), sameRegion, far}, "region"},
		{"failover: anyone", []proto.Message{service("s", "10.96.0.1", balance(api.LoadBalancing_FAILOVER, region, zone)), far}, "far"},
		{"failover: a mismatch ends the count", []proto.Message{service("s", "10.96.0.1", balance(api.LoadBalancing_FAILOVER, zone, region)), far, sameRegion}, "far"},
		{"strict", []proto.Message{service("s", "10.96.0.1", balance(api.LoadBalancing_STRICT, region, zone)), near, sameRegion, far}, "near"},
		{
			"strict: nobody",
			[]proto.Message{service("s", "10.96.0.1", balance(api.LoadBalancing_STRICT, region, zone)), sameRegion, far},
			"service ns/s.ns.svc.cluster.local has no healthy endpoint for port 80 (2 known: 2 not where the service must be served)",
		},
		{"network is preferred to locality", []proto.Message{
			service("s", "10.96.0.1", balance(api.LoadBalancing_FAILOVER, network, region, zone)), far,
			pod("other-network", "10.0.0.5", in("s"), local("r1", "z1"), func(w *api.Workload) { w.Network = "n2" }),
		}, "far"},
		{"capacity 0 is never chosen", []proto.Message{service("s", "10.96.0.1"), near, pod("none", "10.0.0.6", in("s"), capacity(0))}, "near"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := shares(t, 50, "10.96.0.1:80", nil, tc.mesh...); got[tc.want] != 50 {
				t.Errorf("got %v, want all at %s", got, tc.want)
			}
		})
	}
}

func TestBalanceByCapacity(t *testing.T) {
	const n = 10_000
	got := shares(t, n, "10.96.0.1:80", nil, service("s", "10.96.0.1"), pod("a", "10.0.0.2", in("s"), capacity(3)), pod("b", "10.0.0.3", in("s")))
	if share := float64(got["a"]) / n; share < 0.70 || share > 0.80 {
		t.Errorf("a has %.2f of the connections, want 0.75", share)
	}
}

func TestTried(t *testing.T) {
	mesh := []proto.Message{service("s", "10.96.0.1"), pod("a", "10.0.0.2", in("s")), pod("b", "10.0.0.3", in("s"))}
	avoid := func(q *Request) { q.Tried = []string{"c//Pod/ns/a"} }
	if got := shares(t, 50, "10.96.0.1:80", avoid, mesh...); got["b"] != 50 {
		t.Errorf("with a choice: %v", got)
	}
	if got := shares(t, 50, "10.96.0.1:80", avoid, mesh[:2]...); got["a"] != 50 {
		t.Errorf("without a choice: %v", got)
	}
}

func TestWeightedWaypoints(t *testing.T) {
	const n = 10_000
	svc := service("s", "10.96.0.1", by(workloadtest.ByAddress("10.0.0.8")), func(s *api.Service) {
		s.WeightedWaypoints = []*api.WeightedWaypoint{
			{Destination: workloadtest.ByAddress("10.0.0.8"), Weight: 75},
			{Destination: workloadtest.ByAddress("10.0.0.9"), Weight: 25},
			{Destination: workloadtest.ByAddress("10.0.0.10"), Weight: 0},
		}
	})
	got := shares(t, n, "10.96.0.1:80", nil, svc, pod("w8", "10.0.0.8"), pod("w9", "10.0.0.9"), pod("w10", "10.0.0.10"))
	if share := float64(got["w8"]) / n; share < 0.70 || share > 0.80 || got["w8"]+got["w9"] != n {
		t.Errorf("shares %v, want 75 to 25", got)
	}
}

// crowd is n endpoints of service s, more than are read one by one.
func crowd(n int, edit func(i int, w *api.Workload)) []proto.Message {
	all := []proto.Message{service("s", "10.96.0.1")}
	for i := range n {
		w := pod(fmt.Sprintf("p%05d", i), fmt.Sprintf("10.1.%d.%d", i>>8, i&255), in("s"))
		if edit != nil {
			edit(i, w)
		}
		all = append(all, w)
	}
	return all
}

func TestCapacityOfMany(t *testing.T) {
	const n = 20_000
	got := shares(t, n, "10.96.0.1:80", nil, crowd(50, func(i int, w *api.Workload) { w.Capacity = wrapperspb.UInt32(uint32(i % 5)) })...)
	for i := range 50 {
		name := fmt.Sprintf("p%05d", i)
		want := float64(i%5) / 100
		if share := float64(got[name]) / n; share < want*0.7 || share > want*1.3 {
			t.Errorf("%s has %.3f of the connections, want %.3f", name, share, want)
		}
	}
}

func TestFewUsableOfMany(t *testing.T) {
	for _, usable := range []int{0, 1, 2, 3} {
		got := shares(t, 200, "10.96.0.1:80", nil, crowd(300, func(i int, w *api.Workload) {
			if i%100 != 0 || i/100 >= usable {
				w.Status = api.WorkloadStatus_UNHEALTHY
			}
		})...)
		if len(got) != max(1, usable) {
			t.Errorf("%d usable: %v", usable, got)
		}
	}
}

// TestLeastLoaded opens connections that stay: with the count of them known, no
// endpoint gets far ahead of another; and by capacity where that differs.
func TestLeastLoaded(t *testing.T) {
	for _, tc := range []struct {
		name             string
		endpoints, conns int
		capacity         func(i int) uint32
		within           int // of the fair share
	}{
		{"two", 2, 1000, func(int) uint32 { return 1 }, 2},
		{"few", 5, 1000, func(int) uint32 { return 1 }, 8},
		{"many", 100, 10_000, func(int) uint32 { return 1 }, 8},
		{"few of different capacity", 4, 1000, func(i int) uint32 { return uint32(1 + i) }, 12},
		{"many of different capacity", 40, 10_000, func(i int) uint32 { return uint32(1 + i%4) }, 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := workloadtest.Snapshot(t, append(crowd(tc.endpoints, func(i int, w *api.Workload) { w.Capacity = wrapperspb.UInt32(tc.capacity(i)) }), pod("me", me))...)
			live, total := map[string]int{}, 0
			for i := range tc.endpoints {
				total += int(tc.capacity(i))
			}
			q := request(s, "10.96.0.1:80")
			q.Load = func(uid string) int { return live[uid] }
			for range tc.conns {
				p, err := Outbound(s, q)
				if err != nil {
					t.Fatal(err)
				}
				uid, _ := p.Endpoint()
				live[uid]++
			}
			for i := range tc.endpoints {
				uid := fmt.Sprintf("c//Pod/ns/p%05d", i)
				fair := tc.conns * int(tc.capacity(i)) / total
				if d := live[uid] - fair; d > tc.within || d < -tc.within {
					t.Errorf("%s has %d connections, want %d ± %d", uid, live[uid], fair, tc.within)
				}
			}
		})
	}
}

func TestRefusedEndpointsAreAvoided(t *testing.T) {
	const region = api.LoadBalancing_REGION
	near, near2, far := pod("near", "10.0.0.2", in("s"), local("r1", "z1")), pod("near2", "10.0.0.3", in("s"), local("r1", "z1")), pod("far", "10.0.0.4", in("s"), local("r2", "z1"))
	failover := service("s", "10.96.0.1", balance(api.LoadBalancing_FAILOVER, region))
	for _, tc := range []struct {
		name    string
		mesh    []proto.Message
		refused []string
		tried   []string
		want    []string
	}{
		{"nobody", []proto.Message{failover, near, near2, far}, nil, nil, []string{"near", "near2"}},
		{"one of the near", []proto.Message{failover, near, near2, far}, []string{"near"}, nil, []string{"near2"}},
		{"all of the near", []proto.Message{failover, near, near2, far}, []string{"near", "near2"}, nil, []string{"far"}},
		{"all", []proto.Message{failover, near, near2, far}, []string{"near", "near2", "far"}, nil, []string{"near", "near2"}},
		{"strict stays strict", []proto.Message{service("s", "10.96.0.1", balance(api.LoadBalancing_STRICT, region)), near, far}, []string{"near"}, nil, []string{"near"}},
		{"rather one that refused another than one that was tried", []proto.Message{failover, near, near2}, []string{"near"}, []string{"near2"}, []string{"near"}},
		{"everything tried", []proto.Message{failover, near, near2}, nil, []string{"near", "near2"}, []string{"near", "near2"}},
		{"of many", crowd(40, nil), []string{"p00001", "p00002"}, []string{"p00003"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := shares(t, 200, "10.96.0.1:80", func(q *Request) {
				for _, name := range tc.tried {
					q.Tried = append(q.Tried, "c//Pod/ns/"+name)
				}
				q.Refused = func(uid string, port uint16) bool {
					if port != 8080 {
						t.Errorf("asked for port %d", port)
					}
					return slices.Contains(tc.refused, strings.TrimPrefix(uid, "c//Pod/ns/"))
				}
			}, tc.mesh...)
			if tc.want == nil {
				for _, name := range append(tc.refused, tc.tried...) {
					if got[name] > 0 {
						t.Errorf("%s was chosen %d times", name, got[name])
					}
				}
				return
			}
			if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, tc.want) {
				t.Errorf("chosen %v, want %v", got, tc.want)
			}
		})
	}
}

// TestRefusedMeanwhile: endpoints begin and cease to be avoided while one is
// chosen, since other connections fail and work then. Each is asked about once.
func TestRefusedMeanwhile(t *testing.T) {
	for _, n := range []int{2, 3, manyEndpoints - 1} {
		s := workloadtest.Snapshot(t, append(crowd(n, nil), pod("me", me))...)
		for after := range 2*n + 1 {
			for _, refused := range []bool{true, false} {
				q := request(s, "10.96.0.1:80")
				asked := map[string]int{}
				calls := 0
				q.Refused = func(uid string, _ uint16) bool {
					asked[uid]++
					calls++
					return (calls > after) == refused
				}
				q.Rand = func(n uint64) uint64 { return n - 1 }
				q.Load = func(string) int { return 0 }
				if _, err := Outbound(s, q); err != nil {
					t.Fatal(err)
				}
				for uid, times := range asked {
					if times != 1 {
						t.Errorf("%d endpoints: asked about %s %d times", n, uid, times)
					}
				}
			}
		}
	}
}

func TestRetriable(t *testing.T) {
	unhealthy := func(w *api.Workload) { w.Status = api.WorkloadStatus_UNHEALTHY }
	for _, tc := range []struct {
		name  string
		mesh  []proto.Message
		tried []string
		want  bool
	}{
		{"only one", []proto.Message{pod("a", "10.0.0.2", in("s"))}, nil, false},
		{"two", []proto.Message{pod("a", "10.0.0.2", in("s")), pod("b", "10.0.0.3", in("s"))}, nil, true},
		{"the other was tried", []proto.Message{pod("a", "10.0.0.2", in("s")), pod("b", "10.0.0.3", in("s"))}, []string{"c//Pod/ns/b"}, false},
		{"the other is not healthy", []proto.Message{pod("a", "10.0.0.2", in("s")), pod("b", "10.0.0.3", in("s"), unhealthy)}, nil, false},
		{"the other has no capacity", []proto.Message{pod("a", "10.0.0.2", in("s")), pod("b", "10.0.0.3", in("s"), capacity(0))}, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := workloadtest.Snapshot(t, append(tc.mesh, pod("me", me), service("s", "10.96.0.1"))...)
			q := request(s, "10.96.0.1:80")
			q.Tried = tc.tried
			p, err := Outbound(s, q)
			if err != nil || p.Retriable != tc.want {
				t.Errorf("retriable %v, want %v (%v)", p.Retriable, tc.want, err)
			}
		})
	}
}

// TestManyAgainstReading chooses among many endpoints of random properties, and
// compares the chosen with those of the best class as found by reading the list.
func TestManyAgainstReading(t *testing.T) {
	modes := []api.LoadBalancing_Mode{api.LoadBalancing_UNSPECIFIED_MODE, api.LoadBalancing_STRICT, api.LoadBalancing_FAILOVER}
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		word := func(n int) string { return string(rune('a' + r.IntN(n))) }
		mesh := crowd(20+r.IntN(120), func(_ int, w *api.Workload) {
			w.Locality = &api.Locality{Region: word(3), Zone: word(2)}
			w.Capacity = wrapperspb.UInt32(uint32(r.IntN(3)))
			if seed%4 == 0 || r.IntN(2) == 0 {
				w.Status = api.WorkloadStatus(r.IntN(2))
			}
		})
		svc, _ := mesh[0].(*api.Service)
		balance(modes[seed%3], api.LoadBalancing_REGION, api.LoadBalancing_ZONE)(svc)
		s := workloadtest.Snapshot(t, append(mesh, pod("me", me, local(word(3), word(2))))...)
		q := request(s, "10.96.0.1:80")
		refused := func(uid string) bool { return seed%5 == 0 && uid[len(uid)-1]%2 == 0 }
		q.Refused = func(uid string, _ uint16) bool { return refused(uid) }
		q.Tried = []string{"c//Pod/ns/p00000", "c//Pod/ns/p00001", "c//Pod/ns/p00002"}

		key := workload.ServiceKey{Namespace: "ns", Hostname: "s" + domain}
		c := choice{q: &q, svc: s.Service(key), port: 80, defined: true, dialled: q.Target.Addr()}
		c.mapping, _ = c.svc.Port(80)
		var best class
		want := map[string]bool{}
		for _, e := range s.Endpoints(key) {
			rank, ok := c.rank(&e)
			switch {
			case !ok || (len(want) > 0 && rank.below(best)):
				continue
			case best != rank:
				want = map[string]bool{}
			}
			best = rank
			want[e.Workload.UID] = true
		}
		got := map[string]bool{}
		for range 400 {
			p, err := Outbound(s, q)
			if err != nil {
				break
			}
			got[p.Workload.UID] = true
		}
		for uid := range got {
			if !want[uid] {
				t.Errorf("seed %d: %s is chosen, which is not among the best %v", seed, uid, want)
			}
		}
		if len(got) < len(want)*2/3 {
			t.Errorf("seed %d: %d of %d are chosen", seed, len(got), len(want))
		}
	}
}

// TestHealthPolicyTakesEffectAtOnce changes it without sending the workloads
// again: endpoints that were left out return (spec §12.2, defect 2).
func TestHealthPolicyTakesEffectAtOnce(t *testing.T) {
	store := workload.NewStore("", "")
	workloadtest.Apply(t, store, pod("me", me), service("s", "10.96.0.1"), pod("b", "10.0.0.2", in("s"), func(w *api.Workload) { w.Status = api.WorkloadStatus_UNHEALTHY }))
	for _, all := range []bool{false, true, false} {
		workloadtest.Apply(t, store, service("s", "10.96.0.1", func(s *api.Service) {
			if all {
				s.LoadBalancing = &api.LoadBalancing{HealthPolicy: api.LoadBalancing_ALLOW_ALL}
			}
		}))
		s := store.Snapshot()
		if _, err := Outbound(s, request(s, "10.96.0.1:80")); (err == nil) != all {
			t.Errorf("all endpoints allowed: %v, error %v", all, err)
		}
	}
}

// TestEndpointsOfARange changes the endpoints of a service that has a range of
// addresses, without sending it again (spec §12.2, defect 1).
func TestEndpointsOfARange(t *testing.T) {
	store := workload.NewStore("", "")
	bits := uint32(24)
	workloadtest.Apply(t, store, pod("me", me), service("s", "", func(s *api.Service) {
		s.Addresses = []*api.NetworkAddress{{Address: workloadtest.IP("10.96.0.0"), Length: &bits}}
	}))
	for _, ip := range []string{"10.0.0.2", "10.0.0.3", "10.0.0.4"} {
		workloadtest.Apply(t, store, pod("b", ip, in("s")))
		s := store.Snapshot()
		p, err := Outbound(s, request(s, "10.96.0.77:80"))
		if err != nil || p.NextHop.Addr().String() != ip {
			t.Errorf("next hop %s, want %s (%v)", p.NextHop, ip, err)
		}
	}
}
