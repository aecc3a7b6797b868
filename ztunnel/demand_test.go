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
// for what it returns.
func demandTest(t *testing.T, test func(t *testing.T, d *demand, a *asked, wanted func(ip string) <-chan error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := &asked{}
		d := &demand{client: a, store: workload.NewStore("", ""), timeout: demandTimeout}
		test(t, d, a, func(ip string) <-chan error {
			done := make(chan error, 1)
			go func() { done <- d.Address(t.Context(), "net", netip.MustParseAddr(ip)) }()
			synctest.Wait()
			return done
		})
	})
}

// over reports whether a demand has returned, without an error.
func over(done <-chan error) bool {
	synctest.Wait()
	select {
	case err := <-done:
		return err == nil
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
	demandTest(t, func(t *testing.T, d *demand, a *asked, wanted func(string) <-chan error) {
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
	demandTest(t, func(t *testing.T, d *demand, a *asked, wanted func(string) <-chan error) {
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

// TestDemandTimeout: no answer holds a connection for a while only, and is an
// error, unlike the answer that there is nothing. An answer that comes late counts
// for later connections.
func TestDemandTimeout(t *testing.T) {
	demandTest(t, func(t *testing.T, d *demand, a *asked, wanted func(string) <-chan error) {
		t.Helper()
		done := wanted("10.0.0.3")
		time.Sleep(demandTimeout - time.Millisecond)
		synctest.Wait()
		if len(done) > 0 {
			t.Error("returned early")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if len(done) == 0 {
			t.Fatal("waits longer than its time")
		}
		if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without an answer: %v", err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		cancel(gone)
		if err := d.Address(ctx, "net", netip.MustParseAddr("10.0.0.4")); !errors.Is(err, gone) {
			t.Errorf("when the connection is gone: %v", err)
		}
		d.apply(xds.Update{Removed: []string{"net/10.0.0.3"}})
		if !over(wanted("10.0.0.3")) {
			t.Error("a late answer does not count")
		}
		if !slices.Equal(d.unanswered, []string{"net/10.0.0.4"}) {
			t.Errorf("unanswered: %v", d.unanswered)
		}
		for i := range maxAbsent + 10 {
			_ = d.Address(ctx, "net", netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
		}
		if len(d.unanswered) != maxAbsent || len(a.names) > maxAbsent+2 {
			t.Errorf("%d unanswered and %d subscribed, want at most %d", len(d.unanswered), len(a.names), maxAbsent)
		}
	})
}

// TestDemandGatewayTimeout: without its waypoint the destination is known, and it
// is for the plan to say what cannot be reached.
func TestDemandGatewayTimeout(t *testing.T) {
	demandTest(t, func(t *testing.T, d *demand, a *asked, wanted func(string) <-chan error) {
		t.Helper()
		deliver(t, d, workloadtest.Resource(t, &api.Service{
			Name: "s", Namespace: "ns", Hostname: "s.test", Addresses: []*api.NetworkAddress{{Network: "net", Address: []byte{10, 0, 0, 1}}},
			Waypoint: workloadtest.ByHostname("ns", "waypoint.test"),
		}))
		done := wanted("10.0.0.1")
		time.Sleep(demandTimeout + time.Millisecond)
		if !over(done) || a.String() != "[ns/waypoint.test]" {
			t.Errorf("an error or no return; asked for %s", a)
		}
	})
}
