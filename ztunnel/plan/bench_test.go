package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

// BenchmarkOutbound is one plan of each kind:
// go test -bench Outbound ./ztunnel/plan
func BenchmarkOutbound(b *testing.B) {
	s := workloadtest.Snapshot(b, pod("me", me), pod("b", "10.0.0.2", in("s")), service("s", "10.96.0.1"),
		pod("plain", "10.0.0.3", plaintext), service("w", "10.96.0.2", by(workloadtest.ByHostname("ns", "wp"+domain))), waypointService("wp", ""), pod("wp", "10.0.0.9", in("wp")))
	for _, bm := range []struct{ name, target string }{
		{"unknown", "192.0.2.1:80"}, {"tcp", "10.0.0.3:80"}, {"hbone", "10.0.0.2:80"}, {"service", "10.96.0.1:80"}, {"waypoint", "10.96.0.2:80"},
	} {
		b.Run(bm.name, func(b *testing.B) {
			q := request(s, bm.target)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Outbound(s, q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestPlanMemory: a plan costs the text of its authority and nothing else.
func TestPlanMemory(t *testing.T) {
	all := append(crowd(200, nil), pod("me", me), pod("plain", "10.0.0.3", plaintext), pod("b", "10.0.0.2"),
		service("l", "10.96.0.3", balance(api.LoadBalancing_FAILOVER, api.LoadBalancing_REGION)), pod("c", "10.0.0.4", in("l")))
	s := workloadtest.Snapshot(t, all...)
	tally := NewTally(time.Now)
	for target, want := range map[string]float64{"192.0.2.1:80": 0, "10.0.0.3:80": 0, "10.0.0.2:80": 1, "10.96.0.1:80": 1, "10.96.0.3:80": 1} {
		q := request(s, target)
		q.Load, q.Refused = tally.Load, tally.Refused
		if got := testing.AllocsPerRun(100, func() {
			if _, err := Outbound(s, q); err != nil {
				t.Error(err)
			}
		}); got > want {
			t.Errorf("%s: %v allocations, want %v", target, got, want)
		}
	}
}

// BenchmarkBalance is the choice of one endpoint among many, with the counts of
// a Tally: any, by locality where a third fits best, and where two of three are
// not healthy. go test -bench Balance ./ztunnel/plan
func BenchmarkBalance(b *testing.B) {
	locality := balance(api.LoadBalancing_FAILOVER, api.LoadBalancing_NETWORK, api.LoadBalancing_REGION, api.LoadBalancing_ZONE)
	for _, kind := range []string{"basic", "locality", "unhealthy"} {
		for _, n := range []int{10, 1000, 10_000} {
			b.Run(fmt.Sprintf("%s-%d", kind, n), func(b *testing.B) {
				mesh := crowd(n, func(i int, w *api.Workload) {
					w.Locality = &api.Locality{Region: "eu-central-1", Zone: fmt.Sprintf("eu-central-1%c", 'a'+i%3)}
					if kind == "unhealthy" && i%3 > 0 {
						w.Status = api.WorkloadStatus_UNHEALTHY
					}
				})
				if kind == "locality" {
					svc, ok := mesh[0].(*api.Service)
					if !ok {
						b.Fatal("crowd does not begin with the service")
					}
					locality(svc)
				}
				s := workloadtest.Snapshot(b, append([]proto.Message{pod("me", me, local("eu-central-1", "eu-central-1b"))}, mesh...)...)
				q := request(s, "10.96.0.1:80")
				tally := NewTally(time.Now)
				q.Load, q.Refused, q.Rand = tally.Load, tally.Refused, rand.Uint64N
				svc := s.ServiceByVIP("", netip.MustParseAddr("10.96.0.1"), "ns")
				b.ReportAllocs()
				for b.Loop() {
					if _, err := q.balance(s, svc, 80, q.Target.Addr(), false); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkInbound is the check of one CONNECT.
func BenchmarkInbound(b *testing.B) {
	s := workloadtest.Snapshot(b, pod("me", me, in("s")), service("s", "10.96.0.1"))
	for _, authority := range []string{me + ":80", "s" + domain + ":80"} {
		b.Run(authority, func(b *testing.B) {
			a := Arrival{Local: s.WorkloadByInfo("me", "ns", "me"), Connected: netip.MustParseAddrPort(me + ":15008"), Authority: authority}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Inbound(s, a); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
