package cni

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables" //nolint:depguard // the test looks at what is left on the node

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// hostRules says whether the table of probes is on the node.
func (c *cluster) hostRules() bool {
	c.t.Helper()
	conn, err := nftables.New()
	must(c.t, err)
	tables, err := conn.ListTables()
	must(c.t, err)
	for _, table := range tables {
		if table.Name == "ambit-host" {
			return true
		}
	}
	return false
}

// stopWithClock ends the agent while its timers run.
func (c *cluster) stopWithClock() {
	c.t.Helper()
	done := make(chan struct{})
	stop := c.stop
	go func() {
		defer close(done)
		stop()
	}()
	c.eventually("the agent ends", func() bool {
		c.clock.advance(drainDelay)
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
}

// enrolled is a node with an enrolled pod and its ztunnel.
func enrolled(t *testing.T) (*cluster, *pod, *ztunnel) {
	t.Helper()
	c := newCluster(t)
	c.clock = newClock()
	c.api.namespace("shop", "ambient")
	p := c.pod("web", true)
	c.start(true)
	z := c.ztunnel()
	c.annotated(p, "enrolled", mesh.RedirectionEnabled)
	z.eventuallyHas(added(p))
	c.first = p
	return c, p, z
}

func (z *ztunnel) eventuallyHas(event string) {
	z.b.t.Helper()
	z.b.eventually(event, func() bool { return z.has(event) })
}

// wantClean checks that the node is as it was before the agent.
func (c *cluster) wantClean(p *pod) {
	c.t.Helper()
	if p.captured() || p.migrate() != "0" {
		c.t.Error("the pod is still redirected")
	}
	if c.hostRules() {
		c.t.Error("host rules are left")
	}
	if data, err := os.ReadFile(filepath.Join(c.conf, "10-lab.conflist")); err != nil || strings.Contains(string(data), "ambit") {
		c.t.Errorf("network configuration: %s, %v", data, err)
	}
	for _, dir := range []string{c.bin, c.runDir(), filepath.Dir(c.zdsPath())} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			c.t.Errorf("left in %s: %v, %v", dir, entries, err)
		}
	}
}

func TestClusterRestartChangesNothing(t *testing.T) {
	c, p, z := enrolled(t)
	// A pod that is deleted by force has no valid token any more: 401.
	for _, refuse := range []int{0, http.StatusServiceUnavailable, http.StatusForbidden, http.StatusUnauthorized} {
		c.api.refuseWith(refuse)
		z.end()
		c.stop()
		c.api.refuseWith(0)
		if !p.captured() || !c.chained() || !c.hostRules() || c.probed(p) != mesh.ProbeSourceIPv4 {
			t.Errorf("status %d: want everything as it was while the agent is away", refuse)
		}
		if err := p.add(); err == nil {
			t.Errorf("status %d: ADD succeeds without an agent", refuse)
		}
		c.start(true)
		z = c.ztunnel()
		z.eventuallyHas(added(p)) // in the snapshot, or when its namespace is found again
		if c.probed(p) != mesh.ProbeSourceIPv4 {
			t.Errorf("status %d: probes do not pass after the restart", refuse)
		}
	}
}

func TestClusterRecordsLost(t *testing.T) {
	c, p, z := enrolled(t)
	left := c.pod("left", true)
	z.eventuallyHas(added(left))
	c.annotated(left, "enrolled", mesh.RedirectionEnabled)
	z.end()
	c.stop()
	must(t, os.RemoveAll(c.runDir()))
	c.setPod(left, true, map[string]any{
		"labels":      map[string]any{mesh.LabelDataplaneMode: mesh.DataplaneModeNone},
		"annotations": map[string]any{mesh.AnnotationRedirection: mesh.RedirectionEnabled},
	})
	c.start(true)
	z = c.ztunnel()
	z.eventuallyHas(added(p))
	if !p.captured() {
		t.Error("not captured after the run directory was lost")
	}
	c.annotated(left, "its label went while the agent was away", "")
	if left.captured() {
		t.Error("captured without a label and without a record")
	}
}

func TestClusterRemoval(t *testing.T) {
	ending := map[string]any{"deletionTimestamp": "2026-11-23T10:00:00Z"}
	for _, tc := range []struct {
		name   string
		change func(*cluster)
		refuse int    // what the API server answers when the change has been seen
		keeps  string // the annotation
	}{
		{name: "DaemonSet gone", change: func(c *cluster) { c.api.set(daemonSetPath, nil) }},
		{name: "DaemonSet being deleted", change: func(c *cluster) { c.api.daemonSet(ending, nil) }},
		{name: "namespace being deleted", change: func(c *cluster) {
			c.api.set(namespacePath("istio-system"), map[string]any{"metadata": map[string]any{
				"name": "istio-system", "deletionTimestamp": "2026-11-23T10:00:00Z",
			}})
		}},
		{name: "node not selected any more", change: func(c *cluster) {
			c.api.daemonSet(map[string]any{}, map[string]any{"nodeSelector": map[string]any{"disk": "ssd"}})
		}},
		{name: "permissions gone after the DaemonSet", change: func(c *cluster) {
			c.api.set(daemonSetPath, nil)
		}, refuse: http.StatusForbidden, keeps: mesh.RedirectionEnabled},
		{name: "service account gone, the DaemonSet being deleted", change: func(c *cluster) {
			c.api.daemonSet(ending, nil)
		}, refuse: http.StatusUnauthorized, keeps: mesh.RedirectionEnabled},
		{name: "API server away after the DaemonSet", change: func(c *cluster) {
			c.api.set(daemonSetPath, nil)
		}, refuse: http.StatusServiceUnavailable, keeps: mesh.RedirectionEnabled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, p, z := enrolled(t)
			if tc.refuse == 0 {
				tc.change(c)
				c.eventually("the change is seen", func() bool {
					wanted, err := c.ask(t.Context())
					return err == nil && !wanted
				})
			} else {
				// Refused first, so that only the watch can tell.
				c.api.refuseWith(http.StatusForbidden)
				tc.change(c)
				c.eventually("the watch tells", func() bool {
					wanted, err := c.ask(t.Context())
					return err == nil && !wanted
				})
				c.api.refuseWith(tc.refuse)
			}
			c.stopWithClock()
			c.wantClean(p)
			if got := c.api.annotation(podPath("web"), mesh.AnnotationRedirection); got != tc.keeps {
				t.Errorf("annotation: got %q, want %q", got, tc.keeps)
			}
			z.eventuallyHas("del " + p.uid)
		})
	}
}

func TestClusterRemovalWithoutZtunnel(t *testing.T) {
	c, p, z := enrolled(t)
	z.end()
	c.api.set(daemonSetPath, nil)
	c.stopWithClock()
	c.wantClean(p)
}

// TestPurge is what is done for an agent that was killed: its records are all there is.
func TestPurge(t *testing.T) {
	c, p, z := enrolled(t)
	named := c.pod("named", false)
	named.mustAdd()
	c.annotated(named, "enrolled", mesh.RedirectionEnabled)
	defer p.open()() // does not keep the rules
	z.end()
	c.stop()
	for _, name := range []string{"killed.json.new", "broken.json"} {
		must(t, os.WriteFile(filepath.Join(c.runDir(), "pods", name), []byte("{"), 0o600))
	}
	must(t, Purge(t.Context(), testLog(t), c.runDir(), c.zdsPath(), c.node.proc, c.node.finder().Find))
	must(t, (&redirect.Host{}).Remove())
	if p.captured() || named.captured() {
		t.Error("a pod is still redirected")
	}
	if entries, err := os.ReadDir(c.runDir()); err != nil || len(entries) != 0 {
		t.Errorf("left in the run directory: %v, %v", entries, err)
	}
	must(t, Purge(t.Context(), testLog(t), c.runDir(), c.zdsPath(), c.node.proc, nil)) // again
}
