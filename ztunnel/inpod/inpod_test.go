package inpod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/apis/zds"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// bed is an Agent under test, the node agent that it talks to, and a record of what
// became of the proxies.
type bed struct {
	t     *testing.T
	ln    *net.UnixListener
	agent *Agent
	conn  *net.UnixConn // the newest connection
	done  chan error    // Run's result
	stop  context.CancelFunc

	mu     sync.Mutex
	events []string
	fail   map[string]error // by uid: Start fails
}

type proxy struct {
	b   *bed
	uid string
}

func (p proxy) Stop()  { p.b.record("stop " + p.uid) }
func (p proxy) Drain() { p.b.record("drain " + p.uid) }

func (b *bed) record(event string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, event)
}

func (b *bed) setFail(uid string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail[uid] = err
}

func newBed(t *testing.T) *bed {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	b := &bed{t: t, done: make(chan error, 1), stop: cancel, fail: map[string]error{}}
	path := filepath.Join(t.TempDir(), "z.sock")
	var err error
	if b.ln, err = netns.ListenSeqpacket(path); err != nil {
		t.Fatal(err)
	}
	b.agent = New(Config{
		Socket:        path,
		RetryInterval: 5 * time.Millisecond,
		Log:           slog.New(slog.DiscardHandler),
		Start: func(p Pod) (Proxy, error) {
			b.mu.Lock()
			err := b.fail[p.UID]
			b.mu.Unlock()
			if err != nil {
				return nil, err
			}
			b.record(fmt.Sprintf("start %s %s/%s %s", p.UID, p.Namespace, p.Name, p.ServiceAccount))
			return proxy{b, p.UID}, nil
		},
	})
	var wg sync.WaitGroup
	wg.Go(func() { b.done <- b.agent.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		_ = b.ln.Close()
		if b.conn != nil {
			_ = b.conn.Close()
		}
	})
	b.accept()
	return b
}

// accept takes the next connection and its hello.
func (b *bed) accept() {
	b.t.Helper()
	must(b.t, b.ln.SetDeadline(time.Now().Add(5*time.Second)))
	conn, err := b.ln.AcceptUnix()
	if err != nil {
		b.t.Fatal(err)
	}
	b.conn = conn
	var hello zds.ZdsHello
	if err := proto.Unmarshal(b.receive(), &hello); err != nil || hello.GetVersion() != zds.Version_V1 {
		b.t.Fatalf("hello: got %v, %v, want version 1", &hello, err)
	}
}

func (b *bed) receive() []byte {
	b.t.Helper()
	must(b.t, b.conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	p, err := netns.ReceivePacket(b.conn, make([]byte, maxPacket))
	if err != nil {
		b.t.Fatalf("receive: %v", err)
	}
	return p.Body
}

// send sends one request with files and returns the error in its acknowledgement.
func (b *bed) send(m *zds.WorkloadRequest, files ...*os.File) string {
	b.t.Helper()
	body, err := proto.Marshal(m)
	must(b.t, err)
	return b.sendRaw(body, files...)
}

func (b *bed) sendRaw(body []byte, files ...*os.File) string {
	b.t.Helper()
	must(b.t, netns.SendPacket(b.conn, body, first(files)))
	return b.ack()
}

func (b *bed) ack() string {
	b.t.Helper()
	raw := b.receive()
	var resp zds.WorkloadResponse
	if err := proto.Unmarshal(raw, &resp); err != nil || resp.GetAck() == nil {
		b.t.Fatalf("response: got %v, %v, want an ack", &resp, err)
	}
	return resp.GetAck().GetError()
}

func first(files []*os.File) *os.File {
	if len(files) == 0 {
		return nil
	}
	return files[0]
}

func add(uid string) *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{
		Uid:          uid,
		WorkloadInfo: &zds.WorkloadInfo{Name: "n-" + uid, Namespace: "ns", ServiceAccount: "sa"},
	}}}
}

func keep(uid string) *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Keep{Keep: &zds.KeepWorkload{Uid: uid}}}
}

func del(uid string) *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: uid}}}
}

func snapshotSent() *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}}
}

func started(uid string) string { return "start " + uid + " ns/n-" + uid + " sa" }

// ok sends a request that must succeed.
func (b *bed) ok(m *zds.WorkloadRequest, files ...*os.File) {
	b.t.Helper()
	if got := b.send(m, files...); got != "" {
		b.t.Errorf("%v: nack %q, want ack", m, got)
	}
}

func (b *bed) want(what string, events ...string) {
	b.t.Helper()
	b.eventually(what, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Equal(b.events, events)
	}, func() any {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.events
	}, events)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = nil
}

func (b *bed) ready(what string, want bool) {
	b.t.Helper()
	b.eventually(what, func() bool { return b.agent.Ready() == want }, func() any { return !want }, want)
}

// detail checks what the agent says that it waits for.
func (b *bed) detail(what, want string) {
	b.t.Helper()
	b.eventually(what, func() bool {
		got := b.agent.Detail()
		return strings.Contains(got, want) && (want != "" || got == "")
	}, func() any { return b.agent.Detail() }, want)
}

func (b *bed) eventually(what string, cond func() bool, got func() any, want any) {
	b.t.Helper()
	deadline := time.After(5 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			b.t.Fatalf("%s: got %v, want %v", what, got(), want)
		case <-tick.C:
		}
	}
}

// ends waits for Run.
func (b *bed) ends(what string, want error) {
	b.t.Helper()
	select {
	case err := <-b.done:
		if !errors.Is(err, want) {
			b.t.Errorf("%s: Run returned %v, want %v", what, err, want)
		}
	case <-time.After(5 * time.Second):
		b.t.Fatalf("%s: Run did not return", what)
	}
}

func TestSnapshotThenUpdates(t *testing.T) {
	b := newBed(t)
	ns := netnstest.NewNS(t)
	b.ok(add("a"), ns.File())
	b.ok(add("b"), ns.File())
	b.want("adds start proxies at once", started("a"), started("b"))
	b.ready("before the snapshot is complete", false)
	b.ok(snapshotSent())
	b.ready("after the snapshot", true)
	b.ok(add("c"), ns.File())
	b.want("add after the snapshot", started("c"))
	b.ok(add("c"), ns.File())
	b.ok(del("a"))
	b.want("the same add again does nothing, del stops", "stop a")
	b.ok(del("unknown"))
	b.ok(add("b"), netnstest.NewNS(t).File())
	b.eventually("sandbox made again", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.events) == 2 && slices.Contains(b.events, "stop b") && slices.Contains(b.events, started("b"))
	}, func() any { return b.agent.Pods() }, "b stopped and started")
	var names []string
	for _, p := range b.agent.Pods() {
		names = append(names, p.Pod.UID+" "+string(p.State))
	}
	if want := []string{"b Up", "c Up"}; !slices.Equal(names, want) {
		t.Errorf("pods: got %v, want %v", names, want)
	}
}

func TestReconnectKeepsProxiesAndSnapshotDecides(t *testing.T) {
	b := newBed(t)
	ns := netnstest.NewNS(t)
	for _, uid := range []string{"added", "kept", "deleted", "unnamed"} {
		b.ok(add(uid), ns.File())
	}
	b.ok(snapshotSent())
	b.want("start", started("added"), started("kept"), started("deleted"), started("unnamed"))
	must(t, b.conn.Close())
	b.accept()
	b.ready("after reconnecting", false)
	b.ok(add("added"), ns.File())
	b.ok(keep("kept"))
	b.ok(add("deleted"), ns.File())
	b.ok(del("deleted"))
	b.want("the proxies keep running until the snapshot is complete")
	b.ok(snapshotSent())
	b.eventually("those not named stop", func() bool { return len(b.agent.Pods()) == 2 }, func() any { return b.agent.Pods() }, 2)
	b.ready("after the snapshot", true)
}

func TestPending(t *testing.T) {
	b := newBed(t)
	ns := netnstest.NewNS(t)
	b.setFail("a", errors.New("bind: "+strings.Repeat("long ", 1000)))
	b.setFail("gone", errors.New("bind: in use"))
	if got := b.send(add("a"), ns.File()); !strings.Contains(got, "bind: long") || len(got) > maxAckError {
		t.Errorf("nack: got %d bytes %.40q, want the cause, cut", len(got), got)
	}
	if got := b.send(add("gone"), ns.File()); !strings.Contains(got, "in use") {
		t.Errorf("nack: got %q, want the cause", got)
	}
	b.detail("before the snapshot is there", "has not sent all pods")
	b.ok(snapshotSent())
	b.ready("while pods are pending", false)
	b.detail("while pods are pending", "2 pods without a proxy; the latest: ")
	b.ok(del("gone"))
	b.setFail("a", nil)
	b.want("tried again on the same connection", started("a"))
	b.ready("when nothing is pending", true)
	b.detail("when nothing is pending", "")

	b.setFail("b", errors.New("bind: in use"))
	if got := b.send(add("b"), ns.File()); got == "" {
		t.Error("add b: got ack, want nack")
	}
	b.ready("pending after the snapshot", false)
	must(t, b.conn.Close())
	b.accept()
	b.ok(add("a"), ns.File())
	b.ok(snapshotSent())
	b.ready("a reconnect clears what was pending", true)
}

func TestProtocolErrorsEndTheProcess(t *testing.T) {
	for _, tc := range []struct {
		name string
		m    *zds.WorkloadRequest
		file bool
	}{
		{"keep after the snapshot", keep("a"), false},
		{"second end of the snapshot", snapshotSent(), false},
		{"add without workload_info", &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{Uid: "b"}}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			ns := netnstest.NewNS(t)
			b.ok(add("a"), ns.File())
			b.ok(snapshotSent())
			var files []*os.File
			if tc.file {
				files = append(files, ns.File())
			}
			if got := b.send(tc.m, files...); !strings.Contains(got, "protocol error") {
				t.Errorf("got ack error %q, want a protocol error", got)
			}
			b.ends(tc.name, ErrProtocol)
			b.want("proxies", started("a"), "stop a")
		})
	}
}

func TestBadPacketsReconnect(t *testing.T) {
	ns := netnstest.NewNS(t)
	marshal := func(m *zds.WorkloadRequest) []byte {
		body, err := proto.Marshal(m)
		must(t, err)
		return body
	}
	for _, tc := range []struct {
		name  string
		body  []byte
		files []int
		nack  string
	}{
		{"no protobuf", []byte("\xff\xff\xff"), nil, "packet"},
		{"unknown payload", []byte{0x7a, 0x00}, nil, "payload"},
		{"add without a descriptor", marshal(add("x")), nil, "0 descriptors"},
		{"add with two", marshal(add("x")), []int{0, 1}, "2 descriptors"},
		{"del with one", marshal(del("x")), []int{0}, "1 descriptors"},
		{"add without uid", marshal(add("")), []int{0}, "without a uid"},
		{"too long", marshal(add(strings.Repeat("x", 2*maxPacket))), []int{0}, "truncated"},
		{"too many descriptors", marshal(add("x")), slices.Repeat([]int{0}, 20), "truncated"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			b.ok(add("a"), ns.File())
			b.ok(snapshotSent())
			_, _, err := b.conn.WriteMsgUnix(tc.body, rights(tc.files), nil)
			must(t, err)
			if got := b.ack(); !strings.Contains(got, tc.nack) {
				t.Errorf("nack: got %q, want %q in it", got, tc.nack)
			}
			must(t, b.conn.Close())
			b.accept()
			b.want("the proxy keeps running", started("a"))
		})
	}
}

func TestNotANamespaceIsOnlyLogged(t *testing.T) {
	b := newBed(t)
	f, err := os.Open(os.DevNull)
	must(t, err)
	b.ok(add("a"), f)
	must(t, f.Close())
	b.want("add", started("a"))
}

func TestDrain(t *testing.T) {
	b := newBed(t)
	b.ok(add("a"), netnstest.NewNS(t).File())
	b.ok(snapshotSent())
	b.stop()
	b.ends("drain", nil)
	b.want("proxies end gently with the process", started("a"), "drain a")
	if b.agent.Ready() || len(b.agent.Pods()) != 0 {
		t.Error("after Run: want neither ready nor pods")
	}
}

func TestDialRetries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "z.sock")
	attempts := make(chan struct{}, 100)
	a := New(Config{Socket: path, Log: slog.New(countHandler{slog.DiscardHandler, attempts})})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	<-attempts
	<-attempts // failed twice
	ln, err := netns.ListenSeqpacket(path)
	must(t, err)
	conn, err := ln.AcceptUnix()
	must(t, err)
	cancel()
	must(t, <-done)
	must(t, conn.Close())
	must(t, ln.Close())
}

// countHandler reports each log record.
type countHandler struct {
	slog.Handler
	seen chan<- struct{}
}

func (h countHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h countHandler) Handle(context.Context, slog.Record) error {
	h.seen <- struct{}{}
	return nil
}

func FuzzParse(f *testing.F) {
	for _, m := range []*zds.WorkloadRequest{add("a"), keep("a"), del("a"), snapshotSent()} {
		body, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body, 0)
		f.Add(body, 1)
	}
	f.Fuzz(func(t *testing.T, body []byte, files int) {
		q, err := parseBody(body, files)
		switch {
		case err != nil && q != request{}:
			t.Errorf("a request %v beside the error %v", q, err)
		case err == nil && q.add != nil && (files != 1 || q.add.UID == ""):
			t.Errorf("add %v accepted with %d descriptors", q.add, files)
		case err == nil && q.add == nil && files != 0:
			t.Errorf("%v accepted with %d descriptors", q, files)
		}
	})
}

func TestCut(t *testing.T) {
	for _, tc := range []struct {
		in   string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"aé", 2, "a"}, {"", 0, ""}} {
		if got := cut(tc.in, tc.n); got != tc.want {
			t.Errorf("cut(%q, %d) = %q, want %q", tc.in, tc.n, got, tc.want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
