package workload_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

// inMesh is pod n of a large mesh as istiod describes it: 100 namespaces of ten
// services of ten and more pods, which share what pods of a Deployment share.
func inMesh(n, generation int) *api.Workload {
	namespace := fmt.Sprintf("namespace-%02d", n%100)
	deployment := fmt.Sprintf("service-%d", n/100%10)
	name := fmt.Sprintf("%s-7d4b9c6f5d-%05x", deployment, n)
	return &api.Workload{
		Uid: "Kubernetes//Pod/" + namespace + "/" + name, Name: name, Namespace: namespace, Network: "network-1",
		Addresses:      [][]byte{{10, byte(n >> 16), byte(n >> 8), byte(n)}},
		TunnelProtocol: api.TunnelProtocol_HBONE, TrustDomain: "cluster.local", ServiceAccount: deployment, Node: fmt.Sprintf("node-%04d.eu-central-1.example", n%1000),
		CanonicalName: deployment, CanonicalRevision: fmt.Sprintf("v%d", generation), WorkloadName: deployment, ClusterId: "Kubernetes",
		Locality:              &api.Locality{Region: "eu-central-1", Zone: fmt.Sprintf("eu-central-1%c", 'a'+n%3)},
		AuthorizationPolicies: []string{"istio-system/istio_converted_static_strict"},
		Services: map[string]*api.PortList{
			namespace + "/" + deployment + "." + namespace + ".svc.cluster.local": {Ports: []*api.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 9090, TargetPort: 9090}}},
		},
	}
}

// TestMemoryPerWorkload holds the memory of 100,000 known workloads to a budget,
// after they have arrived and again after every tenth has been changed alone,
// which must not lose what they share. 2026-11-23: about 730 bytes
// each time, 1135 when nothing was shared.
func TestMemoryPerWorkload(t *testing.T) {
	const n, budget = 100_000, 800
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	apply := func(s *workload.Store, from, to, generation int) {
		resources := make([]*discoveryv3.Resource, 0, to-from)
		for i := from; i < to; i++ {
			resources = append(resources, workloadtest.Resource(t, inMesh(i, generation)))
		}
		for name, err := range s.ApplyAddresses(resources, nil) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	before := heap()
	store := workload.NewStore("node-0001.eu-central-1.example", "Kubernetes")
	for i := 0; i < n; i += 1000 {
		apply(store, i, i+1000, 1)
	}
	arrived := (heap() - before) / n
	for i := 7; i < n; i += 10 {
		apply(store, i, i+1, 2)
	}
	changed := (heap() - before) / n
	t.Logf("%d bytes per workload, %d after changes", arrived, changed)
	if arrived > budget || changed > budget {
		t.Errorf("%d bytes per workload, %d after changes, want ≤ %d", arrived, changed, budget)
	}
	if w := store.Snapshot().ByIP("network-1", netip.MustParseAddr("10.0.0.7")); w == nil || w.CanonicalRevision != "v2" {
		t.Errorf("workload %v", w)
	}
	runtime.KeepAlive(store)
}
