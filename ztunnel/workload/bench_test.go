package workload_test

import (
	"fmt"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

func many(n int, services func(i int) []string) []proto.Message {
	var all []proto.Message
	for i := range n {
		all = append(all, pod(fmt.Sprintf("p%06d", i), fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), in(services(i)...)))
	}
	return all
}

func one(int) []string { return []string{"ns/s.example"} }

// BenchmarkUpdate is one response with 4,000 endpoints, which are all of one
// service, of one each, or of none; the time is that of the whole response.
// go test -bench Update ./ztunnel/workload
func BenchmarkUpdate(b *testing.B) {
	const n = 4000
	for _, bm := range []struct {
		name     string
		services func(i int) []string
	}{
		{"shared-service", one},
		{"distinct-services", func(i int) []string { return []string{fmt.Sprintf("ns/s%d.example", i)} }},
		{"no-service", func(int) []string { return nil }},
	} {
		b.Run(bm.name, func(b *testing.B) {
			var resources []*discoveryv3.Resource
			for _, m := range many(n, bm.services) {
				resources = append(resources, workloadtest.Resource(b, m))
			}
			store := workload.NewStore("n1", "")
			b.ReportAllocs()
			for b.Loop() {
				if rejected := store.ApplyAddresses(resources, nil); len(rejected) > 0 {
					b.Fatal(rejected)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/endpoint")
		})
	}
}

// BenchmarkChangeOne is one pod's change among n, all of one service.
func BenchmarkChangeOne(b *testing.B) {
	for _, n := range []int{100, 4000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			store := workload.NewStore("n1", "")
			all := many(n, one)
			workloadtest.Apply(b, store, all...)
			change := []*discoveryv3.Resource{workloadtest.Resource(b, all[n/2])}
			b.ReportAllocs()
			for b.Loop() {
				store.ApplyAddresses(change, nil)
			}
		})
	}
}

// BenchmarkPoliciesFor gathers what a connection is judged by, where a workload
// names two of 10,000 policies.
func BenchmarkPoliciesFor(b *testing.B) {
	var all []proto.Message
	for i := range 10_000 {
		all = append(all, policy("ns", fmt.Sprintf("p%d", i), security.Scope(i%3), security.Action_DENY, fmt.Sprintf("account-%d", i)))
	}
	w := pod("a", "10.0.0.1")
	w.AuthorizationPolicies = []string{"ns/p2", "ns/p5"}
	s := workloadtest.Snapshot(b, append(all, w)...)
	a := s.WorkloadByInfo("a", "ns", "sa")
	b.ReportAllocs()
	for b.Loop() {
		if policies, missing := s.PoliciesFor(a); policies.Empty() || len(missing) > 0 {
			b.Fatal(missing)
		}
	}
}
