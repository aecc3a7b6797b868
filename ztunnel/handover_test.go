package ztunnel

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// TestHandOver replaces one ztunnel of a node by the next, as a DaemonSet does
// that surges, while a pod opens connections all the time: none is refused or
// reset, and one that was open goes on.
func TestHandOver(t *testing.T) {
	web, shop := netnstest.NewPod(t), netnstest.NewPod(t)
	for _, pod := range []*netnstest.Pod{web, shop} {
		if err := redirect.Apply(pod.NS.File(), redirect.Options{}); err != nil {
			t.Fatalf("redirect: %v", err)
		}
	}
	control := listenIstiod(t, netnstest.NodeAddr.AsSlice(), describe("web", web), describe("shop", shop))
	dir := t.TempDir()
	token, socket := filepath.Join(dir, "token"), filepath.Join(dir, "zds.sock")
	if err := os.WriteFile(token, []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	agent, err := netns.ListenSeqpacket(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = agent.Close() }()
	begin := func() *process {
		t.Helper()
		// Each is a pod of its own, with its own admin ports.
		p := startProcess(t, netnstest.NewPod(t), "NODE_NAME=n1", "XDS_ADDRESS="+control.address, "CA_ADDRESS="+control.address,
			"XDS_ROOT_CA="+control.rootFile, "CA_ROOT_CA="+control.rootFile, "AUTH_TOKEN="+token, "INPOD_UDS="+socket, "CONNECTION_TERMINATION_DEADLINE=1h")
		c := announce(t, agent, map[string]*netnstest.Pod{"web": web, "shop": shop})
		t.Cleanup(func() { _ = c.Close() })
		p.ready()
		return p
	}
	echo(t, shop, 8080)
	to := netip.AddrPortFrom(shop.Addr, 8080)
	first := begin()
	live := call(t, web, to)
	if err := talk(live); err != nil {
		t.Fatal(err)
	}

	stop := make(chan struct{})
	var opening sync.WaitGroup
	var opened, failed int
	opening.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := once(t, web, to); err != nil {
				failed++
				t.Errorf("connection %d: %v", opened, err)
			}
			opened++
		}
	})
	second := begin()
	if err := first.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := talk(live); err != nil {
		t.Errorf("the open connection during the hand-over: %v", err)
	}
	_ = live.Close()
	if err := first.wait(); err != nil {
		t.Errorf("the first ended with %v", err)
	}
	if err := once(t, web, to); err != nil {
		t.Errorf("after the hand-over: %v", err)
	}
	close(stop)
	opening.Wait()
	if opened == 0 || failed > 0 {
		t.Errorf("%d of %d connections failed", failed, opened)
	}
	second.logged(`direction="inbound"`)
	t.Log(fmt.Sprint(opened, " connections during the hand-over"))
}

// once opens a connection, talks over it and closes it.
func once(t *testing.T, from *netnstest.Pod, to netip.AddrPort) error {
	t.Helper()
	c, err := from.NS.Dial(t.Context(), to, netns.DialOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return talk(c)
}
