package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/zds"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		PluginMain() // TestPluginAsAProcess runs this binary as the runtime would
		return
	}
	netnstest.Main(m)
}

// bed is a node: an agent over directories, and what belongs around it.
type bed struct {
	t          *testing.T
	dir        string
	store      *manifest.Store
	clock      *clock // nil: the real one
	addTimeout time.Duration
	stop       func() // ends the agent
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{t: t, dir: t.TempDir()}
	b.store = manifest.NewStore(filepath.Join(b.dir, "state", "objects"))
	must(t, os.MkdirAll(filepath.Join(b.dir, "config"), 0o755))
	must(t, os.MkdirAll(filepath.Join(b.dir, "state", "objects"), 0o755))
	t.Cleanup(func() {
		if b.stop != nil {
			b.stop()
		}
	})
	return b
}

// start runs an agent.
func (b *bed) start() {
	b.t.Helper()
	log := testLog(b.t)
	d := NewDir(log, "n1", filepath.Join(b.dir, "config"), filepath.Join(b.dir, "state"))
	cfg := Config{
		Source: d, Annotate: d.Annotate,
		Scope:      Scope{SystemNamespace: "istio-system", ExcludedNamespaces: []string{"kube-system"}},
		RunDir:     b.runDir(),
		ZDSSocket:  b.zdsPath(),
		Log:        log,
		AddTimeout: b.addTimeout,
	}
	if b.clock != nil {
		cfg.AfterFunc = b.clock.afterFunc
	}
	agent := New(cfg)
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- agent.Run(ctx) }()
	b.stop = func() {
		cancel()
		b.stop = nil
		if err := <-done; err != nil {
			b.t.Errorf("agent: %v", err)
		}
	}
	b.eventually("the agent is ready", func() bool { return agent.zdsUp.Load() && agent.plugUp.Load() })
}

func (b *bed) runDir() string  { return filepath.Join(b.dir, "run") }
func (b *bed) zdsPath() string { return filepath.Join(b.dir, "z", "z.sock") }

func testLog(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(testWriter{t}, nil))
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// namespace writes a Namespace manifest; mode may be empty.
func (b *bed) namespace(name, mode string) {
	b.t.Helper()
	text := "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: " + name + "\n"
	if mode != "" {
		text += "  labels: {istio.io/dataplane-mode: " + mode + "}\n"
	}
	file := filepath.Join(b.dir, "config", name+".yaml")
	must(b.t, os.WriteFile(file+".part", []byte(text), 0o600))
	must(b.t, os.Rename(file+".part", file))
}

// pod is a namespace and the object that the kubelet wrote for it.
type pod struct {
	*netnstest.Pod
	b         *bed
	uid, name string
}

func (b *bed) pod(name string) *pod {
	b.t.Helper()
	p := &pod{Pod: netnstest.NewPod(b.t), b: b, uid: "uid-" + name, name: name}
	p.write()
	return p
}

func (p *pod) write() {
	p.b.t.Helper()
	must(p.b.t, p.b.store.Apply(&unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": p.name, "namespace": "shop", "uid": p.uid},
		"spec":     map[string]any{"nodeName": "n1", "serviceAccountName": "cart"},
		"status":   map[string]any{"phase": "Running"},
	}}))
}

func (p *pod) key() manifest.Key { return manifest.Key{Kind: "Pod", Namespace: "shop", Name: p.name} }

// prev is the result of the plugin that has made the pod's interface.
func (p *pod) prev() string {
	return fmt.Sprintf(`{"cniVersion":"1.1.0","ips":[{"address":"%s/32"}],"extra":{"kept":true}}`, p.Addr)
}

func (p *pod) cniArgs() *skel.CmdArgs {
	return &skel.CmdArgs{
		Netns:     p.Path,
		Args:      "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=" + p.name + ";K8S_POD_UID=" + p.uid,
		StdinData: fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"lab","type":"ambit-cni","cni_agent_run_dir":%q,"prevResult":%s}`, p.b.runDir(), p.prev()),
	}
}

// add calls the plugin as the container runtime does.
func (p *pod) add() error {
	var out bytes.Buffer
	err := pluginAdd(p.cniArgs(), &out)
	if err == nil && out.String() != p.prev() {
		return fmt.Errorf("result is %s, want prevResult unchanged", out.String())
	}
	return err
}

func (p *pod) mustAdd() {
	p.b.t.Helper()
	if err := p.add(); err != nil {
		p.b.t.Fatalf("add %s: %v", p.name, err)
	}
}

func (p *pod) annotated(what, value string) {
	p.b.t.Helper()
	got := ""
	p.b.eventually(fmt.Sprintf("%s: annotation %q", what, value), func() bool {
		o, err := p.b.store.Get(p.key())
		must(p.b.t, err)
		got = o.GetAnnotations()[mesh.AnnotationRedirection]
		return got == value
	})
}

// captured says whether a new connection from the pod reaches ztunnel's port.
func (p *pod) captured() bool {
	p.b.t.Helper()
	ln, err := p.NS.Listen(netip.MustParseAddrPort("[::]:15001"), netns.ListenOptions{Mark: mesh.MarkZtunnel, ReusePort: true})
	must(p.b.t, err)
	defer func() { _ = ln.Close() }()
	c, err := p.NS.Dial(p.b.t.Context(), nobody, netns.DialOptions{})
	if err == nil {
		_ = c.Close()
		return true
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		p.b.t.Fatalf("connection from the pod: %v, want redirected or refused", err)
	}
	return false
}

// migrate is the sysctl by which listeners hand over.
func (p *pod) migrate() string {
	p.b.t.Helper()
	var value []byte
	must(p.b.t, p.NS.Do(func() (err error) {
		value, err = os.ReadFile("/proc/sys/net/ipv4/tcp_migrate_req")
		return err
	}))
	return strings.TrimSpace(string(value))
}

// nobody listens there.
var nobody = netip.AddrPortFrom(netnstest.NodeAddr, 9)

// open makes a redirected connection that stays.
func (p *pod) open() (stop func()) {
	p.b.t.Helper()
	ln, err := p.NS.Listen(netip.MustParseAddrPort("[::]:15001"), netns.ListenOptions{Mark: mesh.MarkZtunnel})
	must(p.b.t, err)
	defer func() { _ = ln.Close() }()
	c, err := p.NS.Dial(p.b.t.Context(), nobody, netns.DialOptions{})
	must(p.b.t, err)
	accepted, err := ln.AcceptTCP()
	must(p.b.t, err)
	return func() {
		_ = c.Close()
		_ = accepted.Close()
	}
}

// ztunnel is a fake one that acknowledges everything, unless told otherwise.
type ztunnel struct {
	b    *bed
	conn *net.UnixConn
	end  func()

	mu     sync.Mutex
	nacks  map[string]string // by uid
	events []string
	spaces map[string]*netns.NS // by uid, of adds
	onAdd  func(*netns.NS)      // before the acknowledgement; may be nil
}

func (b *bed) ztunnel() *ztunnel {
	b.t.Helper()
	conn, err := netns.DialSeqpacket(b.t.Context(), b.zdsPath())
	must(b.t, err)
	z := &ztunnel{b: b, conn: conn, nacks: map[string]string{}, spaces: map[string]*netns.NS{}}
	hello, err := proto.Marshal(&zds.ZdsHello{Version: zds.Version_V1})
	must(b.t, err)
	must(b.t, netns.SendPacket(conn, hello, nil))
	var wg sync.WaitGroup
	wg.Go(z.serve)
	z.end = sync.OnceFunc(func() {
		_ = conn.Close()
		wg.Wait()
		for _, ns := range z.spaces {
			_ = ns.Close()
		}
	})
	b.t.Cleanup(z.end)
	return z
}

func (z *ztunnel) serve() {
	for {
		p, err := netns.ReceivePacket(z.conn, make([]byte, maxPacket))
		if err != nil {
			return
		}
		ack := &zds.Ack{Error: z.take(p)}
		body, err := proto.Marshal(&zds.WorkloadResponse{Payload: &zds.WorkloadResponse_Ack{Ack: ack}})
		if err != nil || netns.SendPacket(z.conn, body, nil) != nil {
			return
		}
	}
}

// take records the request and says what is wrong with it.
func (z *ztunnel) take(p netns.Packet) string {
	var m zds.WorkloadRequest
	if err := proto.Unmarshal(p.Body, &m); err != nil {
		return err.Error()
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	switch q := m.GetPayload().(type) {
	case *zds.WorkloadRequest_Add:
		info := q.Add.GetWorkloadInfo()
		if len(p.Files) != 1 {
			return fmt.Sprintf("%d files", len(p.Files))
		}
		ns, err := netns.FromFile(p.Files[0])
		if err != nil {
			return err.Error()
		}
		if nack := z.nacks[q.Add.GetUid()]; nack != "" {
			_ = ns.Close()
			z.events = append(z.events, "refused "+q.Add.GetUid())
			return nack
		}
		if old := z.spaces[q.Add.GetUid()]; old != nil {
			_ = old.Close()
		}
		z.spaces[q.Add.GetUid()] = ns
		if z.onAdd != nil {
			z.onAdd(ns)
		}
		z.events = append(z.events, fmt.Sprintf("add %s %s/%s/%s", q.Add.GetUid(), info.GetNamespace(), info.GetServiceAccount(), info.GetName()))
	case *zds.WorkloadRequest_Del:
		z.events = append(z.events, "del "+q.Del.GetUid())
	case *zds.WorkloadRequest_Keep:
		z.events = append(z.events, "keep "+q.Keep.GetUid())
	case *zds.WorkloadRequest_SnapshotSent:
		z.events = append(z.events, "snapshot")
	}
	return ""
}

func added(p *pod) string { return "add " + p.uid + " shop/cart/" + p.name }

// want waits until exactly these requests came since the last want.
func (z *ztunnel) want(what string, events ...string) {
	z.b.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		<-tick.C
		got, ok := z.takeEvents(events)
		if ok {
			return
		}
		if time.Now().After(deadline) {
			z.b.t.Fatalf("%s: ztunnel got %q, want %q", what, got, events)
		}
	}
}

// takeEvents empties the record if it holds exactly want.
func (z *ztunnel) takeEvents(want []string) (got []string, ok bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	got, ok = z.events, slices.Equal(z.events, want)
	if ok {
		z.events = nil
	}
	return got, ok
}

func (z *ztunnel) nack(uid, why string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.nacks[uid] = why
}

func (b *bed) eventually(what string, cond func() bool) {
	b.t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			b.t.Fatalf("not within 10 s: %s", what)
		case <-tick.C:
		}
	}
}

func (p *pod) record() (record, error) {
	data, err := os.ReadFile(filepath.Join(p.b.runDir(), "pods", p.uid+".json"))
	if err != nil {
		return record{}, err
	}
	var rec record
	return rec, json.Unmarshal(data, &rec)
}

// clock runs timers when the test says so.
type clock struct {
	mu     sync.Mutex
	now    time.Duration
	timers map[*timer]bool
}

type timer struct {
	at time.Duration
	f  func()
}

func newClock() *clock { return &clock{timers: map[*timer]bool{}} }

func (c *clock) afterFunc(d time.Duration, f func()) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &timer{at: c.now + d, f: f}
	c.timers[t] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, t)
	}
}

// pending says how many timers are set.
func (c *clock) pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.timers)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	c.now += d
	var due []func()
	for t := range c.timers {
		if t.at <= c.now {
			due = append(due, t.f)
			delete(c.timers, t)
		}
	}
	c.mu.Unlock()
	for _, f := range due {
		f()
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
