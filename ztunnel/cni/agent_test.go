package cni

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

func TestAddEnrols(t *testing.T) {
	b := newBed(t)
	b.namespace("shop", "ambient")
	p := b.pod("web")
	b.start()
	z := b.ztunnel()
	z.want("nothing known yet", "snapshot")
	p.mustAdd()
	z.want("acknowledged before ADD returns", added(p))
	if !p.captured() {
		t.Error("the pod's connections are not captured")
	}
	p.annotated("after ADD", mesh.RedirectionEnabled)
	if got := p.migrate(); got != "1" {
		t.Errorf("tcp_migrate_req of an enrolled pod: got %s, want 1", got)
	}
	if !z.spaces[p.uid].Same(p.NS) {
		t.Error("ztunnel got another namespace")
	}
	p.mustAdd() // again: nothing to do
	z.want("second ADD")
}

func TestAddOfPodsOutsideTheMesh(t *testing.T) {
	b := newBed(t)
	b.namespace("shop", "")
	p := b.pod("web")
	b.start() // no ztunnel is needed
	p.mustAdd()
	if p.captured() {
		t.Error("the pod is captured without a label")
	}
	p.annotated("after ADD", "")
}

func TestAddBeforeZtunnelConnects(t *testing.T) {
	b := newBed(t)
	b.addTimeout = 50 * time.Millisecond
	b.namespace("shop", "ambient")
	p := b.pod("web")
	b.start()
	if err := p.add(); err == nil || !strings.Contains(err.Error(), "no ztunnel is connected") {
		t.Fatalf("ADD without ztunnel: got %v, want that none is connected", err)
	}
	if p.captured() {
		t.Error("captured without a ztunnel: its connections would be refused")
	}
	p.annotated("unknown to ztunnel", "")
	z := b.ztunnel()
	z.want("the pod is sent after the snapshot", "snapshot", added(p))
	p.annotated("after the snapshot", mesh.RedirectionEnabled)
	b.addTimeout = 0
	p.mustAdd()
	if !p.captured() {
		t.Error("the pod's connections are not captured")
	}
}

func TestAddOfUnknownPod(t *testing.T) {
	b := newBed(t)
	b.addTimeout = 50 * time.Millisecond
	b.namespace("shop", "ambient")
	p := b.pod("web")
	must(t, b.store.Delete(p.key()))
	b.start()
	z := b.ztunnel()
	z.want("connect", "snapshot")
	if err := p.add(); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Fatalf("ADD of a pod that the watch has not seen: got %v, want that it is not known", err)
	}
	p.write()
	z.want("seen after all", added(p))
	p.annotated("seen after all", mesh.RedirectionEnabled)
	p.mustAdd()
}

func TestZtunnelRefuses(t *testing.T) {
	b := newBed(t)
	b.namespace("shop", "ambient")
	p := b.pod("web")
	b.start()
	z := b.ztunnel()
	z.want("connect", "snapshot")
	z.nack(p.uid, "bind 15008: address already in use")
	if err := p.add(); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Fatalf("ADD refused by ztunnel: got %v, want its reason", err)
	}
	if p.captured() {
		t.Error("captured before ztunnel serves the pod")
	}
	p.annotated("while ztunnel refuses", "")
	z.nack(p.uid, "")
	p.annotated("when it does not any more", mesh.RedirectionEnabled)
}

func TestLabelsChangeLive(t *testing.T) {
	b := newBed(t)
	b.clock = newClock()
	b.namespace("shop", "")
	p := b.pod("web")
	b.start()
	z := b.ztunnel()
	z.want("connect", "snapshot")
	p.mustAdd()

	b.namespace("shop", "ambient")
	z.want("label set", added(p))
	p.annotated("label set", mesh.RedirectionEnabled)
	closeConn := p.open()

	b.namespace("shop", "")
	p.annotated("label removed", "")
	if p.captured() {
		t.Error("new connections are captured after the label was removed")
	}
	waitTimer := func(what string) {
		t.Helper()
		b.eventually(what, func() bool { return b.clock.pending() == 1 })
	}
	for range 3 {
		waitTimer("the next look at open connections")
		b.clock.advance(drainDelay)
	}
	waitTimer("the next look at open connections")
	z.want("ztunnel serves the pod while a redirected connection is open")
	closeConn()
	b.eventually("the pod leaves", func() bool {
		b.clock.advance(drainInterval)
		rec, err := p.record()
		return err == nil && !rec.Enrolled
	})
	z.want("after the last redirected connection", "del "+p.uid)
	if got := p.migrate(); got != "0" {
		t.Errorf("tcp_migrate_req of a pod that left: got %s, want 0 as before", got)
	}

	b.namespace("shop", "ambient")
	z.want("label set again", added(p))
	p.annotated("label set again", mesh.RedirectionEnabled)
	if !p.captured() {
		t.Error("not captured after the label was set again")
	}
}

func TestLabelBackDuringDrain(t *testing.T) {
	b := newBed(t)
	b.clock = newClock()
	b.namespace("shop", "ambient")
	p := b.pod("web")
	b.start()
	z := b.ztunnel()
	z.want("connect", "snapshot")
	p.mustAdd()
	z.want("ADD", added(p))
	p.annotated("ADD", mesh.RedirectionEnabled)
	defer p.open()()
	b.namespace("shop", "")
	p.annotated("label removed", "")
	b.namespace("shop", "ambient")
	p.annotated("label back", mesh.RedirectionEnabled)
	if !p.captured() {
		t.Error("not captured after the label came back")
	}
	z.want("ztunnel had the pod all the time")
}

func TestAgentRestart(t *testing.T) {
	b := newBed(t)
	b.namespace("shop", "ambient")
	kept, gone, left := b.pod("kept"), b.pod("gone"), b.pod("left")
	b.start()
	z := b.ztunnel()
	z.want("connect", "snapshot")
	for _, p := range []*pod{kept, gone, left} {
		p.mustAdd()
		p.annotated("ADD", mesh.RedirectionEnabled)
	}
	z.end()
	b.stop()
	if !kept.captured() {
		t.Error("captured no more while the agent is away")
	}
	must(t, b.store.Delete(gone.key()))
	must(t, os.WriteFile(filepath.Join(b.runDir(), "pods", "broken.json"), []byte("{"), 0o600))
	b.clock = newClock()
	b.start()
	z = b.ztunnel()
	b.eventually("the deleted pod's record goes", func() bool { _, err := gone.record(); return os.IsNotExist(err) })
	b.eventually("snapshot from the records", func() bool {
		return z.has(added(kept)) && z.has(added(left)) && z.has("snapshot")
	})
	z.mu.Lock()
	defer z.mu.Unlock()
	if !z.spaces[kept.uid].Same(kept.NS) || z.spaces[gone.uid] != nil {
		t.Error("snapshot: want the persisted namespace of the kept pod, and not the deleted pod")
	}
}

func (z *ztunnel) has(event string) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Contains(z.events, event)
}

func TestPodDeleted(t *testing.T) {
	b := newBed(t)
	b.namespace("shop", "ambient")
	p, q := b.pod("web"), b.pod("job")
	b.start()
	z := b.ztunnel()
	z.want("connect", "snapshot")
	p.mustAdd()
	z.want("ADD", added(p))
	must(t, b.store.Delete(p.key()))
	z.want("object deleted", "del "+p.uid)
	b.eventually("its record goes", func() bool { _, err := p.record(); return os.IsNotExist(err) })
	q.mustAdd()
	z.want("ADD", added(q))
	q.annotated("ADD", mesh.RedirectionEnabled)
	must(t, pluginDel(q.cniArgs()))
	z.want("sandbox deleted", "del "+q.uid)
	q.mustAdd()
	z.want("sandbox made again", added(q))
}

func TestSandboxReplaced(t *testing.T) {
	b := newBed(t)
	b.namespace("shop", "ambient")
	p := b.pod("web")
	b.start()
	z := b.ztunnel()
	z.want("connect", "snapshot")
	p.mustAdd()
	z.want("ADD", added(p))
	old := p.Pod
	p.Pod = netnstest.NewPod(t)
	p.mustAdd()
	z.want("ADD with another namespace", added(p))
	if !z.spaces[p.uid].Same(p.NS) || !p.captured() {
		t.Error("the new namespace is not the one that ztunnel has and that is captured")
	}
	late := *p
	late.Pod = old
	must(t, pluginDel(late.cniArgs()))
	p.mustAdd()
	z.want("a late DEL of the old sandbox changes nothing")
}

func TestSeveralZtunnels(t *testing.T) {
	b := newBed(t)
	b.namespace("shop", "ambient")
	p, q := b.pod("web"), b.pod("api")
	b.start()
	before := b.ztunnel()
	before.want("connect", "snapshot")
	p.mustAdd()
	before.want("ADD", added(p))
	after := b.ztunnel()
	after.want("the newer one gets a snapshot", added(p), "snapshot")
	q.mustAdd()
	after.want("a new pod goes to the newest", added(q))
	must(t, b.store.Delete(p.key()))
	after.want("a deletion goes to all", "del "+p.uid)
	before.want("a deletion goes to all, and the new pod did not", "del "+p.uid)
	after.end()
	before.want("when the newest goes, the other learns what it lacks", added(q))
	before.end()
	b.eventually("nothing breaks without any", func() bool { return q.captured() })
}

func TestSessionErrors(t *testing.T) {
	b := newBed(t)
	b.start()
	for _, tc := range []struct {
		name    string
		packets [][]byte
	}{
		{"no hello", [][]byte{{0xff}}},
		{"another version", [][]byte{{0x08, 0x07}}},
		{"a packet that answers nothing", [][]byte{{0x08, 0x01}, {0x0a, 0x00}, {0x0a, 0x00}}},
	} {
		conn, err := netns.DialSeqpacket(t.Context(), b.zdsPath())
		must(t, err)
		for _, p := range tc.packets {
			_ = netns.SendPacket(conn, p, nil)
		}
		must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
		for err == nil {
			_, err = netns.ReceivePacket(conn, make([]byte, maxPacket))
		}
		if os.IsTimeout(err) {
			t.Errorf("%s: the connection is still open", tc.name)
		}
		must(t, conn.Close())
	}
}

func TestNoConnectionFailsWhenLabelsChange(t *testing.T) {
	b := newBed(t)
	b.namespace("shop", "")
	p := b.pod("web")
	var direct, redirected atomic.Int64
	addr := accept(t, nil, netip.AddrPortFrom(netnstest.NodeAddr, 0), &direct)
	b.start()
	z := b.ztunnel()
	z.mu.Lock()
	z.onAdd = func(ns *netns.NS) { accept(t, ns, netip.MustParseAddrPort("[::]:15001"), &redirected) }
	z.mu.Unlock()
	p.mustAdd()

	stop := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for {
			c, err := p.NS.Dial(t.Context(), addr, netns.DialOptions{})
			if err != nil {
				failed <- err
				return
			}
			_ = c.Close()
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for range 3 {
		n := redirected.Load()
		b.namespace("shop", "ambient")
		p.annotated("label set", mesh.RedirectionEnabled)
		b.eventually("connections are redirected", func() bool { return redirected.Load() > n })
		b.namespace("shop", "")
		p.annotated("label removed", "")
		n = direct.Load()
		b.eventually("connections are direct", func() bool { return direct.Load() > n })
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Errorf("a connection failed: %v", err)
	}
}

// accept counts connections until the test ends.
func accept(t *testing.T, ns *netns.NS, addr netip.AddrPort, n *atomic.Int64) netip.AddrPort {
	t.Helper()
	ln, err := ns.Listen(addr, netns.ListenOptions{Mark: mesh.MarkZtunnel, ReusePort: true})
	if err != nil {
		t.Errorf("listen %s: %v", addr, err)
		return netip.AddrPort{}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			n.Add(1)
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}
