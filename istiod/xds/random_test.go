package xds_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/xds"
	"github.com/ambit-mesh/ambit/istiod/xds/xdstest"
)

// model is what a proxy holds: what it was sent and accepted.
type model map[string]map[string]string // type → name → version

func (m model) apply(r *discoveryv3.DeltaDiscoveryResponse) {
	for _, name := range r.GetRemovedResources() {
		delete(m[r.GetTypeUrl()], name)
	}
	for _, one := range r.GetResources() {
		m[r.GetTypeUrl()][one.GetName()] = one.GetVersion()
	}
}

// TestRandom changes the store at random while proxies connect, disconnect and
// resume; once all is quiet each of them must hold exactly its part of the store.
func TestRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	r := newRig(t)
	types := []string{cluster, endpoint, mesh.TypeAddress, mesh.TypeAuthorization}
	scopes := [][]string{nil, {"wp1"}, {"wp2"}, {"wp1", "wp2"}}
	who := []string{"", "wp1", "wp2"}
	held := make([]model, len(who))
	live := make([]*xdstest.Delta, len(who))
	connect := func(i int) {
		if who[i] == "" {
			live[i] = r.ztunnel()
		} else {
			live[i] = r.waypoint(who[i])
		}
		for _, typeURL := range types {
			live[i].Resume(typeURL, held[i][typeURL])
		}
	}
	for i := range who {
		held[i] = model{}
		for _, typeURL := range types {
			held[i][typeURL] = map[string]string{}
		}
		connect(i)
	}
	for range 600 {
		var set []xds.Resource
		var removed []xds.Ref
		for range 1 + random.IntN(5) {
			typeURL, name := types[random.IntN(len(types))], fmt.Sprintf("r%d", random.IntN(20))
			if random.IntN(3) == 0 {
				removed = append(removed, xds.Ref{TypeURL: typeURL, Name: name})
			} else {
				set = append(set, resource(typeURL, name, fmt.Sprint(random.IntN(4)), scopes[random.IntN(len(scopes))]...))
			}
		}
		r.store.Update(set, removed)
		i := random.IntN(len(who))
		switch random.IntN(20) {
		case 0:
			live[i].Close() // what was under way is lost
			connect(i)
		case 1, 2, 3, 4, 5, 6, 7:
			if response, ok := live[i].Poll(time.Millisecond); ok {
				held[i].apply(response)
				live[i].Ack(response)
			}
		}
	}
	for i, name := range who {
		expected := model{}
		for _, typeURL := range types {
			expected[typeURL] = map[string]string{}
			for _, one := range r.store.Resources(typeURL) {
				if one.Scopes == nil || slices.Contains(one.Scopes, name) {
					expected[typeURL][one.Name] = one.Version
				}
			}
		}
		marker := "type.googleapis.com/test.Marker"
		live[i].Subscribe(marker, "end")
		for {
			response := live[i].Next()
			if response.GetTypeUrl() == marker {
				break
			}
			held[i].apply(response)
		}
		// The marker sorts after all other types of its turn, but removals of
		// clusters follow it.
		for !cmp.Equal(expected, held[i]) {
			response, ok := live[i].Poll(5 * time.Second)
			if !ok {
				t.Fatalf("proxy %q differs from the store (-store +proxy):\n%s", name, cmp.Diff(expected, held[i]))
			}
			held[i].apply(response)
		}
	}
}

// TestRandomOnDemand does the same with a proxy that asks for names and aliases
// only, while aliases move between resources.
func TestRandomOnDemand(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t)
	scopes := [][]string{nil, {"wp"}, {"other"}}
	held := model{mesh.TypeAddress: {}}
	asked := map[string]struct{}{}
	var live *xdstest.Delta
	connect := func() {
		live = r.waypoint("wp")
		for name := range held[mesh.TypeAddress] {
			asked[name] = struct{}{} // what is held is asked for from then on
		}
		subscribe := []string{"*"}
		for key := range asked {
			subscribe = append(subscribe, key)
		}
		live.Send(&discoveryv3.DeltaDiscoveryRequest{
			TypeUrl: mesh.TypeAddress, ResourceNamesSubscribe: subscribe, ResourceNamesUnsubscribe: []string{"*"},
			InitialResourceVersions: held[mesh.TypeAddress],
		})
	}
	connect()
	for range 600 {
		name := fmt.Sprintf("pod-%d", random.IntN(12))
		if random.IntN(4) == 0 {
			r.store.Update(nil, []xds.Ref{{TypeURL: mesh.TypeAddress, Name: name}})
		} else {
			one := address(name, fmt.Sprint(random.IntN(3)), fmt.Sprintf("/10.0.0.%d", random.IntN(8)), fmt.Sprintf("/fd00::%d", random.IntN(8)))
			one.Scopes = scopes[random.IntN(len(scopes))]
			r.store.Update([]xds.Resource{one}, nil)
		}
		switch random.IntN(15) {
		case 0:
			live.Close()
			connect()
		case 1, 2:
			key := []string{"pod-%d", "/10.0.0.%d", "/fd00::%d"}[random.IntN(3)]
			key = fmt.Sprintf(key, random.IntN(6))
			asked[key] = struct{}{}
			live.Subscribe(mesh.TypeAddress, key)
		case 3, 4, 5, 6:
			if response, ok := live.Poll(time.Millisecond); ok {
				held.apply(response)
				live.Ack(response)
			}
		}
	}
	expected := model{mesh.TypeAddress: {}}
	for _, one := range r.store.Resources(mesh.TypeAddress) {
		visible := one.Scopes == nil || slices.Contains(one.Scopes, "wp")
		for _, key := range append([]string{one.Name}, one.Aliases...) {
			if _, ok := asked[key]; ok && visible {
				expected[mesh.TypeAddress][one.Name] = one.Version
			}
		}
	}
	for !cmp.Equal(expected, held) {
		response, ok := live.Poll(5 * time.Second)
		if !ok {
			t.Fatalf("the proxy differs from what it asked for (-store +proxy):\n%s", cmp.Diff(expected, held))
		}
		held.apply(response)
	}
}
