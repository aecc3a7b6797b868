package xds_test

import (
	"fmt"
	"sync"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/xds"
	"github.com/ambit-mesh/ambit/istiod/xds/xdstest"
)

// BenchmarkUpdate is the cost of one changed resource among 10,000 for whoever
// changes it, with 100 proxies that take everything:
//
//	go test -run '^$' -bench Update ./istiod/xds
func BenchmarkUpdate(b *testing.B) {
	r := newRig(b)
	const resources, streams = 10_000, 100
	set := make([]xds.Resource, 0, resources)
	for i := range resources {
		set = append(set, address(fmt.Sprintf("Kubernetes//Pod/shop/pod-%05d", i), fmt.Sprintf("%0300d", i), fmt.Sprintf("/10.0.%d.%d", i/256, i%256)))
	}
	r.store.Update(set, nil)
	var readers sync.WaitGroup
	b.Cleanup(readers.Wait)
	for i := range streams {
		// All on one connection: the cost of its TCP twin is not the store's.
		z := xdstest.Connect(b, r.conn, xdstest.Node("ztunnel", "istio-system", fmt.Sprintf("z%d", i)))
		z.Subscribe(mesh.TypeAddress)
		for got := 0; got < resources; {
			got += len(z.Next().GetResources())
		}
		readers.Go(z.Drain)
	}
	one := set[:1]
	versions := []*anypb.Any{
		{TypeUrl: mesh.TypeAddress, Value: []byte("even")}, {TypeUrl: mesh.TypeAddress, Value: []byte("odd")},
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		one[0].Body = versions[i%2]
		r.store.Update(one, nil)
		i++
	}
}
