package cni

import (
	"context"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

func TestOpenPodNS(t *testing.T) {
	p, other := netnstest.NewPod(t), netnstest.NewPod(t)
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for _, tc := range []struct {
		name, path string
		ips        []netip.Addr
		want       string // of the error
	}{
		{"its own", p.Path, []netip.Addr{p.Addr}, ""},
		{"one address of two", p.Path, []netip.Addr{netip.MustParseAddr("10.244.0.9"), p.Addr}, ""},
		{"another pod's", other.Path, []netip.Addr{p.Addr}, "none of the addresses"},
		{"the host's", "/proc/self/ns/net", []netip.Addr{netnstest.NodeAddr}, "is the host's"},
		{"no addresses", p.Path, nil, "none of the addresses"},
		{"another kind", "/proc/self/ns/pid", []netip.Addr{p.Addr}, "not a network namespace"},
		{"no namespace", file, []netip.Addr{p.Addr}, "not a network namespace"},
		{"nothing", "", []netip.Addr{p.Addr}, "no such file"},
	} {
		ns, err := openPodNS(tc.path, tc.ips)
		if err == nil {
			must(t, ns.Close())
		}
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
}

// TestClusterPathIsAnothers: a process number that a record names has come again.
func TestClusterPathIsAnothers(t *testing.T) {
	c, p, z := enrolled(t)
	other := netnstest.NewPod(t)
	for name, path := range map[string]string{"another pod's": other.Path, "the host's": "/proc/self/ns/net"} {
		z.end()
		c.stop()
		rec, err := p.record()
		must(t, err)
		rec.NetNS = path
		must(t, records{dir: filepath.Join(c.runDir(), "pods")}.save(rec))
		c.start(true)
		z = c.ztunnel()
		z.eventuallyHas(added(p))
		if !z.spaces[p.uid].Same(p.NS) {
			t.Errorf("%s: ztunnel got %s, want the pod's own", name, z.spaces[p.uid])
		}
	}
}

func TestAddOfAnothersNamespace(t *testing.T) {
	b := newBed(t)
	b.addTimeout = 50 * time.Millisecond
	b.namespace("shop", "")
	p, other := b.pod("web"), netnstest.NewPod(t)
	b.start()
	z := b.ztunnel()
	z.want("connect", "snapshot")
	in := func(path string) *pod {
		changed := *p
		changed.Pod = &netnstest.Pod{Path: path, NS: p.NS, Addr: p.Addr}
		return &changed
	}
	b.eventually("ADD of a pod that is none of our business", func() bool { return in(other.Path).add() == nil })
	b.namespace("shop", "ambient")
	for _, path := range []string{other.Path, "/proc/self/ns/net"} {
		b.eventually("ADD is refused", func() bool { return in(path).add() != nil })
		if err := in(path).add(); err == nil || !strings.Contains(err.Error(), "network namespace") {
			t.Errorf("ADD with %s: got %v, want that it is not the pod's", path, err)
		}
	}
	b.eventually("ADD with its own", func() bool { return p.add() == nil })
	z.want("its own", added(p))
	if err := in(other.Path).add(); err == nil || !p.captured() {
		t.Errorf("ADD with another's namespace: %v, captured %v; want an error, and what is known to stay", err, p.captured())
	}
}

// stale is a pod whose status still has the address that p's sandbox has got.
func (c *cluster) stale(p *pod) *pod {
	c.t.Helper()
	s := &pod{Pod: p.Pod, b: c.bed, uid: "uid-stale", name: "stale"}
	c.node.name("cni-"+p.name, p.Pod)
	c.setPod(s, true, nil)
	return s
}

func TestClusterStaleAddressFindsNothing(t *testing.T) {
	for _, mode := range []string{"ambient", mesh.DataplaneModeNone} {
		c := newCluster(t)
		c.clock = newClock()
		c.api.namespace("shop", "ambient")
		c.start(true)
		z := c.ztunnel()
		p := c.pod("web", false)
		c.setPod(p, false, map[string]any{"labels": map[string]any{mesh.LabelDataplaneMode: mode}})
		c.eventually("ADD", func() bool { return p.add() == nil })
		s := c.stale(p)
		c.eventually("the search ends", func() bool { return c.clock.pending() > 0 })
		if z.has(added(s)) || p.captured() != (mode == "ambient") {
			t.Errorf("%s: the namespace of one pod was given to another", mode)
		}
		c.stop()
	}
}

func TestClusterStaleAddressIsCorrected(t *testing.T) {
	for _, mode := range []string{"ambient", mesh.DataplaneModeNone} {
		c := newCluster(t)
		c.clock = newClock()
		c.api.namespace("shop", "ambient")
		c.start(true)
		z := c.ztunnel()
		p := c.pod("web", false)
		s := c.stale(p) // before ADD comes
		z.eventuallyHas(added(s))
		c.annotated(s, "the address is all there is", mesh.RedirectionEnabled)
		c.setPod(p, false, map[string]any{"labels": map[string]any{mesh.LabelDataplaneMode: mode}})
		c.eventually("ADD", func() bool { return p.add() == nil })
		z.eventuallyHas("del " + s.uid)
		c.eventually(mode+": the pod is as it is labelled", func() bool {
			c.clock.advance(drainDelay)
			rec, err := p.record()
			must(t, err)
			want := mode == "ambient"
			return rec.Enrolled == want && p.captured() == want && z.has(added(p)) == want
		})
		c.stop()
	}
}

// TestFindIsUnambiguous: two pods say that an address is theirs.
func TestFindIsUnambiguous(t *testing.T) {
	n := newFakeNode(t)
	p := netnstest.NewPod(t)
	n.name("cni-1", p)
	if found := n.find(podWith(uuid(0), p), podWith(uuid(1), p)); len(found) != 0 {
		t.Errorf("found %v, want nothing", found)
	}
}

// TestProbesOfAPodThatGoesMeanwhile: nothing stays exempt.
func TestProbesOfAPodThatGoesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var exempt []netip.Addr
		begin, goOn := make(chan struct{}, 2), make(chan struct{}, 2)
		a := New(Config{Log: testLog(t), Exempt: func(addrs []netip.Addr) error {
			begin <- struct{}{}
			<-goOn
			exempt = addrs
			return nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		a.ctx, a.isSynced = ctx, true
		go a.own(ctx)
		a.post(func() { a.exempt(a.entry("u"), []netip.Addr{netnstest.NodeAddr}) })
		<-begin
		a.post(func() { a.entries["u"].close() })
		goOn <- struct{}{}
		goOn <- struct{}{}
		synctest.Wait()
		cancel()
		synctest.Wait()
		if len(exempt)+len(a.probes.pods)+len(a.entries) > 0 {
			t.Errorf("exempt %v, probes of %v, entries %v; want none of a pod that has gone", exempt, a.probes.pods, a.entries)
		}
	})
}

func TestHealthAsksTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := New(Config{})
		health := func() int {
			w := newRecorder()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/healthz", nil)
			must(t, err)
			a.Health().ServeHTTP(w, req)
			return w.code
		}
		if got := health(); got != http.StatusServiceUnavailable {
			t.Errorf("nobody answers: got %d", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go a.own(ctx)
		if got := health(); got != http.StatusOK {
			t.Errorf("the owner answers: got %d", got)
		}
		stuck := make(chan struct{})
		a.post(func() { <-stuck })
		if got := health(); got != http.StatusServiceUnavailable {
			t.Errorf("the owner is stuck: got %d", got)
		}
		close(stuck)
		cancel()
	})
}

// TestClusterNamespaceComesLater: labels of a namespace that is not known yet cannot say
// that the pod is outside the mesh.
func TestClusterNamespaceComesLater(t *testing.T) {
	c := newCluster(t)
	c.addTimeout = 50 * time.Millisecond
	c.start(true)
	z := c.ztunnel()
	z.want("connect", "snapshot")
	p := c.pod("web", false)
	if err := p.add(); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Fatalf("ADD before the namespace is known: got %v, want to wait", err)
	}
	c.api.namespace("shop", "ambient")
	z.want("the namespace is known", added(p))
}
