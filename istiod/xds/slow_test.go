package xds_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/xds"
	"github.com/ambit-mesh/ambit/istiod/xds/xdstest"
)

func TestLargeSetsAreSplit(t *testing.T) {
	r := newRig(t)
	body := strings.Repeat("x", 10_000)
	var set []xds.Resource
	for i := range 1000 {
		set = append(set, address(fmt.Sprintf("pod-%04d", i), body))
	}
	set = append(set, address("huge", strings.Repeat("x", 2_000_000)))
	r.store.Update(set, nil)
	z := r.ztunnel()
	z.Subscribe(mesh.TypeAddress)
	got := map[string]bool{}
	for len(got) < len(set) {
		response := z.Next()
		size := 0
		for _, one := range response.GetResources() {
			got[one.GetName()] = true
			size += len(one.GetResource().GetValue())
		}
		if size > 1<<20 && len(response.GetResources()) > 1 {
			t.Errorf("a response of %d resources has %d bytes", len(response.GetResources()), size)
		}
	}
	quiet(t, "each once", z)
}

// A proxy that never reads holds up neither the store nor the others.
func TestStalledStream(t *testing.T) {
	r := newRig(t)
	stalled := xdstest.Stalled(t, r.conn, xdstest.Node("ztunnel", "istio-system", "stalled"))
	stalled.Subscribe(mesh.TypeAddress)
	z := r.ztunnel()
	z.Subscribe(mesh.TypeAddress)
	z.Next()
	body := strings.Repeat("x", 100_000)
	for i := range 300 { // 30 MB, far more than any window
		r.store.Update([]xds.Resource{address("a", fmt.Sprint(i, body)), address("b", fmt.Sprint(i, body))}, nil)
		want(t, "the other goes on", z.Next(), mesh.TypeAddress, []string{"a", "b"}, nil)
	}
	pending := func() (n int) {
		for _, s := range r.server.Debug().([]xds.StreamStatus) {
			if strings.Contains(s.Node, "stalled") {
				n = s.Types[0].Pending
			}
		}
		return n
	}
	if got := pending(); got != 2 {
		t.Errorf("the stalled stream has %d names queued, want the 2 that changed", got)
	}
}

func TestSendTimeout(t *testing.T) {
	r := newRig(t, func(c *xds.Config) { c.SendTimeout = 50 * time.Millisecond })
	stalled := xdstest.Stalled(t, r.conn, xdstest.Node("ztunnel", "istio-system", "stalled"))
	body := strings.Repeat("x", 1_000_000) // gRPC itself holds one message
	r.store.Update([]xds.Resource{address("a", body), address("b", body), address("c", body)}, nil)
	stalled.Subscribe(mesh.TypeAddress)
	eventually(t, "the stream is ended and counted", func() bool {
		return len(r.server.Debug().([]xds.StreamStatus)) == 0 && r.metric("pilot_xds_write_timeout") == 1
	})
}
