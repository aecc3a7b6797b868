package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/apis/mesh"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/xds"
)

// asked is an xds.Client that notes what it is asked for.
type asked struct {
	mu    sync.Mutex
	names []string
}

func (a *asked) Subscribe(url string, names ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names = append(a.names, names...)
	if url != mesh.TypeAddress {
		a.names = append(a.names, url)
	}
}

func (a *asked) Unsubscribe(_ string, names ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names = slices.DeleteFunc(a.names, func(name string) bool { return slices.Contains(names, name) })
}

func (a *asked) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Sprint(a.names)
}

// demandTest runs a test in a bubble. wanted starts a demand and returns a channel
// that is closed when it returns.
func demandTest(t *testing.T, test func(t *testing.T, d *demand, a *asked, wanted func(ip string) <-chan struct{})) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := &asked{}
		d := &demand{client: a, store: workload.NewStore("", ""), timeout: demandTimeout}
		test(t, d, a, func(ip string) <-chan struct{} {
			done := make(chan struct{})
			go func() {
				d.Address(t.Context(), "net", netip.MustParseAddr(ip))
				close(done)
			}()
			synctest.Wait()
			return done
		})
	})
}

func over(done <-chan struct{}) bool {
	synctest.Wait()
	select {
	case <-done:
		return true
	default:
		return false
	}
}

func deliver(t *testing.T, d *demand, resources ...*discoveryv3.Resource) {
	t.Helper()
	if refused := d.apply(xds.Update{Resources: resources}); len(refused) > 0 {
		t.Fatalf("refused: %v", refused)
	}
}

// TestDemandGateways: an answer under another name than that asked for counts,
// and a service's waypoint is asked for, too.
func TestDemandGateways(t *testing.T) {
	demandTest(t, func(t *testing.T, d *demand, a *asked, wanted func(string) <-chan struct{}) {
		t.Helper()
		done := wanted("10.0.0.1")
		if over(done) || a.String() != "[net/10.0.0.1]" {
			t.Fatalf("returned at once, or asked for %s", a)
		}
		deliver(t, d, workloadtest.Resource(t, &api.Service{
			Name: "s", Namespace: "ns", Hostname: "s.test", Addresses: []*api.NetworkAddress{{Network: "net", Address: []byte{10, 0, 0, 1}}},
			Waypoint: &api.GatewayAddress{
				Destination:   &api.GatewayAddress_Hostname{Hostname: &api.NamespacedHostname{Namespace: "ns", Hostname: "waypoint.test"}},
				HboneMtlsPort: 15008,
			},
		}))
		if over(done) || a.String() != "[net/10.0.0.1 ns/waypoint.test]" {
			t.Fatalf("returned without the waypoint, or asked for %s", a)
		}
		deliver(t, d, workloadtest.Resource(t, &api.Service{Name: "waypoint", Namespace: "ns", Hostname: "waypoint.test"}))
		if !over(done) {
			t.Error("does not return when all is known")
		}
		if !over(wanted("10.0.0.1")) || a.String() != "[net/10.0.0.1 ns/waypoint.test]" {
			t.Errorf("what is known is asked for again: %s", a)
		}
	})
}

// TestDemandAbsent: what istiod does not know returns at once, from then on
// without asking, until istiod says otherwise.
func TestDemandAbsent(t *testing.T) {
	demandTest(t, func(t *testing.T, d *demand, a *asked, wanted func(string) <-chan struct{}) {
		t.Helper()
		done := wanted("10.0.0.2")
		d.apply(xds.Update{Removed: []string{"net/10.0.0.2"}})
		if !over(done) || !over(wanted("10.0.0.2")) {
			t.Error("waits for what istiod does not know")
		}
		w := workloadtest.Resource(t, &api.Workload{Uid: "u", Name: "u", Namespace: "ns", Network: "net", Addresses: [][]byte{{10, 0, 0, 2}}})
		w.Aliases = []string{"net/10.0.0.2"}
		deliver(t, d, w)
		if !over(wanted("10.0.0.2")) || len(d.absent) != 0 {
			t.Errorf("after it has come: absent %v", d.absent)
		}
		var many []string
		for i := range maxAbsent + 10 {
			many = append(many, fmt.Sprint(i))
		}
		d.client.Subscribe(mesh.TypeAddress, many...)
		d.note(xds.Update{Removed: many})
		if len(d.absent) != maxAbsent || len(a.names) > maxAbsent+3 {
			t.Errorf("%d absent and %d subscribed, want at most %d", len(d.absent), len(a.names), maxAbsent)
		}
	})
}

// TestDemandTimeout: no answer holds a connection for a while only.
func TestDemandTimeout(t *testing.T) {
	demandTest(t, func(t *testing.T, d *demand, _ *asked, wanted func(string) <-chan struct{}) {
		t.Helper()
		done := wanted("10.0.0.3")
		time.Sleep(demandTimeout - time.Millisecond)
		if over(done) {
			t.Error("returned early")
		}
		time.Sleep(2 * time.Millisecond)
		if !over(done) {
			t.Error("waits longer than its time")
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("gone"))
		d.Address(ctx, "net", netip.MustParseAddr("10.0.0.4")) // returns
	})
}
