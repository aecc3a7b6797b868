package cni

import (
	"context"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/cni/installer"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// cluster is a node of a Kubernetes cluster: an agent with an API server, on a node with
// a CNI configuration, a /proc and host rules.
type cluster struct {
	*bed
	api  *apiServer
	ask  func(context.Context) (wanted bool, err error) // the running agent's
	node *fakeNode
	conf string // directory
	bin  string // directory

	first *pod // of enrolled
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	b := newBed(t)
	c := &cluster{bed: b, api: newAPIServer(t), node: newFakeNode(t), conf: filepath.Join(b.dir, "net.d"), bin: filepath.Join(b.dir, "bin")}
	must(t, os.MkdirAll(c.conf, 0o755))
	must(t, os.WriteFile(filepath.Join(c.conf, "10-lab.conflist"), []byte(`{"name":"lab","plugins":[{"type":"ptp"}]}`), 0o600))
	must(t, os.WriteFile(filepath.Join(b.dir, "program"), []byte("program"), 0o600))
	c.api.set(nodePath, object("v1", "Node", map[string]any{"name": "n1", "labels": map[string]any{"kubernetes.io/os": "linux"}}))
	c.api.daemonSet(map[string]any{}, nil)
	t.Cleanup(func() {
		if c.stop != nil {
			c.api.refuseWith(http.StatusServiceUnavailable)
			c.stop()
		}
		must(t, (&redirect.Host{}).Remove())
	})
	return c
}

// start runs an agent and waits until it is ready, unless wait is false.
func (c *cluster) start(wait bool) *Agent {
	c.t.Helper()
	log := testLog(c.t)
	source, err := NewKubernetes(log, "n1", ownDaemonSet, c.api.config())
	must(c.t, err)
	c.ask = source.Wanted
	host := &redirect.Host{}
	var plugin *installer.Installer
	cfg := Config{
		Source: source, Annotate: source.Annotate,
		Exempt: host.Exempt, Find: c.node.finder().Find, ProcDir: c.node.proc,
		Installed:  func() bool { return plugin.Installed() },
		Scope:      Scope{SystemNamespace: "istio-system", ExcludedNamespaces: []string{"kube-system"}},
		RunDir:     c.runDir(),
		ZDSSocket:  c.zdsPath(),
		Log:        log,
		AddTimeout: c.addTimeout,
	}
	if c.clock != nil {
		cfg.AfterFunc = c.clock.afterFunc
	}
	agent := New(cfg)
	plugin = installer.New(installer.Config{
		BinDir: c.bin, ConfDir: c.conf, Program: filepath.Join(c.dir, "program"),
		Entry: installer.Entry{RunDir: c.runDir()}, Log: log, Result: agent.Installing(),
	})
	all := Cluster{
		Agent: agent, Installer: plugin, Host: host, Log: log, AskFor: 700 * time.Millisecond,
		Wanted: source.Wanted,
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- all.Run(ctx) }()
	c.stop = func() {
		cancel()
		c.stop = nil
		if err := <-done; err != nil {
			c.t.Errorf("agent: %v", err)
		}
	}
	if wait {
		c.eventually("the agent is ready", func() bool { return c.get(agent, "/readyz") == http.StatusOK })
	}
	return agent
}

func (c *cluster) get(agent *Agent, path string) int {
	w := newRecorder()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, path, nil)
	must(c.t, err)
	agent.Health().ServeHTTP(w, req)
	return w.code
}

type recorder struct {
	header http.Header
	code   int
}

func newRecorder() *recorder { return &recorder{header: http.Header{}, code: http.StatusOK} }

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) WriteHeader(code int)        { r.code = code }

// pod makes a namespace and the API server's object; the pod runs when it has addresses.
func (c *cluster) pod(name string, running bool) *pod {
	c.t.Helper()
	p := &pod{Pod: netnstest.NewPod(c.t), b: c.bed, uid: "uid-" + name, name: name}
	if running { // before the API server says so
		c.node.process("/kubepods/pod"+p.uid+"/c", p.Path)
	}
	c.setPod(p, running, nil)
	return p
}

func (c *cluster) setPod(p *pod, running bool, meta map[string]any) {
	c.t.Helper()
	if meta == nil {
		meta = map[string]any{}
	}
	meta["name"], meta["namespace"] = p.name, "shop"
	if meta["uid"] == nil {
		meta["uid"] = p.uid
	}
	status := map[string]any{"phase": "Pending"}
	if running {
		status = map[string]any{"phase": "Running", "podIPs": []any{map[string]any{"ip": p.Addr.String()}}}
	}
	c.api.set(podPath(p.name), map[string]any{
		"metadata": meta, "spec": map[string]any{"nodeName": "n1", "serviceAccountName": "cart"}, "status": status,
	})
}

func (c *cluster) annotated(p *pod, what, value string) {
	c.t.Helper()
	c.eventually(what+": annotation "+value, func() bool {
		return c.api.annotation(podPath(p.name), mesh.AnnotationRedirection) == value
	})
}

// probed says from where the pod sees a probe of the node, or that it does not see it.
func (c *cluster) probed(p *pod) string {
	c.t.Helper()
	ln, err := p.NS.Listen(netip.MustParseAddrPort("[::]:8080"), netns.ListenOptions{})
	must(c.t, err)
	defer func() { _ = ln.Close() }()
	conn, err := (*netns.NS)(nil).Dial(c.t.Context(), netip.AddrPortFrom(p.Addr, 8080), netns.DialOptions{})
	if err != nil {
		return "refused"
	}
	defer func() { _ = conn.Close() }()
	accepted, err := ln.AcceptTCP()
	must(c.t, err)
	defer func() { _ = accepted.Close() }()
	host, _, _ := strings.Cut(accepted.RemoteAddr().String(), ":")
	return host
}

func (c *cluster) chained() bool {
	data, err := os.ReadFile(filepath.Join(c.conf, "10-lab.conflist"))
	return err == nil && strings.Contains(string(data), "ambit-cni")
}

func TestClusterEnrolsNewPods(t *testing.T) {
	c := newCluster(t)
	c.api.namespace("shop", "ambient")
	c.start(true)
	if !c.chained() {
		t.Error("ready, but the plugin is not in the network configuration")
	}
	z := c.ztunnel()
	z.want("connect", "snapshot")
	p := c.pod("web", false)
	p.mustAdd()
	z.want("ADD", added(p))
	if !p.captured() {
		t.Error("not captured when ADD returns")
	}
	c.annotated(p, "after ADD", mesh.RedirectionEnabled)
	// The container runtime told 10.244.0.9; the address comes with the status.
	c.setPod(p, true, map[string]any{"annotations": map[string]any{mesh.AnnotationRedirection: "enabled"}})
	c.eventually("probes pass", func() bool { return c.probed(p) == mesh.ProbeSourceIPv4 })
	c.api.set(podPath("web"), nil)
	z.want("pod deleted", "del "+p.uid)
	c.api.mu.Lock()
	defer c.api.mu.Unlock()
	if !slices.Contains(c.api.watches, "/api/v1/pods?spec.nodeName=n1") {
		t.Errorf("watches: %q, want pods of this node only", c.api.watches)
	}
}

func TestClusterLabelsLive(t *testing.T) {
	c := newCluster(t)
	c.clock = newClock()
	c.api.namespace("shop", "")
	running, ownNet := c.pod("running", true), c.pod("host", true)
	c.api.set(podPath("host"), map[string]any{
		"metadata": map[string]any{"name": "host", "namespace": "shop", "uid": ownNet.uid},
		"spec":     map[string]any{"nodeName": "n1", "hostNetwork": true},
		"status":   map[string]any{"phase": "Running", "podIPs": []any{map[string]any{"ip": ownNet.Addr.String()}}},
	})
	c.start(true)
	z := c.ztunnel()
	z.want("connect", "snapshot")
	if got := c.probed(running); got != netnstest.NodeAddr.String() {
		t.Errorf("probe of a pod outside the mesh: from %s, want %s", got, netnstest.NodeAddr)
	}
	for range 2 {
		c.api.namespace("shop", "ambient")
		z.want("namespace labelled: the pod is found", added(running))
		c.annotated(running, "namespace labelled", mesh.RedirectionEnabled)
		if !running.captured() {
			t.Error("not captured after its namespace was labelled")
		}
		if got := c.probed(running); got != mesh.ProbeSourceIPv4 {
			t.Errorf("probe of an enrolled pod without ztunnel: from %s, want %s", got, mesh.ProbeSourceIPv4)
		}
		c.api.namespace("shop", "")
		c.annotated(running, "label removed", "")
		if running.captured() {
			t.Error("captured after the label was removed")
		}
		c.eventually("probes are nothing special", func() bool { return c.probed(running) == netnstest.NodeAddr.String() })
		z.want("while the pod drains")
		c.eventually("the pod leaves", func() bool {
			c.clock.advance(drainDelay)
			return z.has("del " + running.uid)
		})
		z.want("the pod leaves", "del "+running.uid)
	}
	c.setPod(running, true, map[string]any{"labels": map[string]any{mesh.LabelDataplaneMode: "ambient"}})
	z.want("the pod itself labelled", added(running))
	c.annotated(running, "the pod itself labelled", mesh.RedirectionEnabled)
	if ownNet.captured() {
		t.Error("a pod in the host's network was captured")
	}
}

func TestClusterStaticPod(t *testing.T) {
	c := newCluster(t)
	c.api.namespace("shop", "ambient")
	c.start(true)
	z := c.ztunnel()
	z.want("connect", "snapshot")
	p := c.pod("static", false)
	c.setPod(p, true, map[string]any{"uid": "mirror", "annotations": map[string]any{annotationMirror: p.uid}})
	p.mustAdd()
	z.want("ADD by the kubelet's own UID", added(p))
	c.annotated(p, "the object of another UID", mesh.RedirectionEnabled)
}

func TestClusterAnnotate(t *testing.T) {
	c := newCluster(t)
	source, err := NewKubernetes(testLog(t), "n1", ownDaemonSet, c.api.config())
	must(t, err)
	p := c.pod("web", false)
	for _, tc := range []struct {
		name string
		pod  Pod
		want string
	}{
		{"gone", Pod{Name: "other", Namespace: "shop", UID: "u"}, ""},
		{"replaced", Pod{Name: "web", Namespace: "shop", UID: "former"}, ""},
		{"there", Pod{Name: "web", Namespace: "shop", UID: p.uid}, "enabled"},
	} {
		if err := source.Annotate(t.Context(), tc.pod, "enabled"); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		c.annotated(p, tc.name, tc.want)
	}
	c.api.refuseWith(http.StatusForbidden)
	if err := source.Annotate(t.Context(), Pod{Name: "web", Namespace: "shop", UID: p.uid}, ""); err == nil {
		t.Error("a refused patch is no error")
	}
}

func TestClusterAPIAway(t *testing.T) {
	c := newCluster(t)
	c.addTimeout = 50 * time.Millisecond
	c.api.refuseWith(http.StatusServiceUnavailable)
	p := c.pod("web", false)
	agent := c.start(false)
	c.eventually("the plugin's socket is there", agent.plugUp.Load)
	if err := p.add(); err == nil || !strings.Contains(err.Error(), "does not know the pods") {
		t.Errorf("ADD with the API server away: got %v, want that the agent knows no pods", err)
	}
	if c.get(agent, "/healthz") != http.StatusOK || c.get(agent, "/readyz") != http.StatusServiceUnavailable || c.chained() {
		t.Error("want healthy, not ready, and no plugin on a node where no pod could start")
	}
	c.api.namespace("shop", "ambient")
	c.api.refuseWith(0)
	c.eventually("ready", func() bool { return c.get(agent, "/readyz") == http.StatusOK })
	z := c.ztunnel()
	z.want("ADD is remembered", "snapshot", added(p))
	c.eventually("ADD succeeds", func() bool { return p.add() == nil })
}

// TestTrimKeepsWhatIsRead: what a pod's annotations decide, they decide in a cluster, too.
func TestTrimKeepsWhatIsRead(t *testing.T) {
	got, err := trim(&corev1.Pod{Annotations: map[string]string{
		mesh.AnnotationDNSCapture: "true", mesh.AnnotationSidecarStatus: "{}", mesh.AnnotationRedirection: "enabled",
		annotationMirror: "uid", "kubectl.kubernetes.io/last-applied-configuration": "{}",
	}})
	must(t, err)
	p := podFrom(got.(*corev1.Pod))
	if !p.capturesDNS(false) || p.UID != "uid" || len(p.Annotations) != 4 {
		t.Errorf("got %+v", p)
	}
}

func TestKubeConfig(t *testing.T) {
	if _, err := KubeConfig(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a kubeconfig that is not there is no error")
	}
	if _, err := NewKubernetes(testLog(t), "n1", ownDaemonSet, &rest.Config{Host: ":no url"}); err == nil {
		t.Error("an address that is none is no error")
	}
}
