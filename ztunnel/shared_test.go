package ztunnel

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

// startShared runs a ztunnel in a pod of its own, which serves the two pods of
// the bed as a node agent has it.
func startShared(t *testing.T, b *dedicatedBed, environ ...string) *process {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "zds.sock")
	agent, err := netns.ListenSeqpacket(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Close() })
	root := string(encode(b.ca.root))
	p := startProcess(t, netnstest.NewPod(t), append([]string{
		"CA_ADDRESS=" + b.ca.address, "CA_ROOT_CA=" + root, "XDS_ROOT_CA=" + root, "AUTH_TOKEN=token", "INPOD_UDS=" + socket,
	}, environ...)...)
	c := announce(t, agent, map[string]*netnstest.Pod{"web": b.web, "shop": b.shop})
	t.Cleanup(func() { _ = c.Close() })
	p.ready()
	echo(t, b.shop, 8080)
	return p
}

// TestSharedWithoutControlPlane: a node's pods, described by a text.
func TestSharedWithoutControlPlane(t *testing.T) {
	b := newDedicatedBed(t)
	p := startShared(t, b, "XDS_ADDRESS=", "LOCAL_XDS="+meshYAML(b.web, b.shop, ""))
	if err := once(t, b.web, vip); err != nil {
		t.Errorf("to the service: %v", err)
	}
	p.logged(`src.identity="spiffe://cluster.local/ns/web/sa/web"`)
}

// TestIstiodAway: what it has told stays in effect, and readiness says so.
func TestIstiodAway(t *testing.T) {
	b := newDedicatedBed(t)
	control := listenIstiod(t, netnstest.NodeAddr.AsSlice(), describe("web", b.web), describe("shop", b.shop))
	to := netip.AddrPortFrom(b.shop.Addr, 8080)
	p := startShared(t, b, "XDS_ADDRESS="+control.address, "XDS_ROOT_CA="+string(encode(control.root)))
	live := call(t, b.web, to)
	if err := talk(live); err != nil {
		t.Fatal(err)
	}
	control.stop()
	until(t, "the note", func() string { return p.get("15021/healthz/ready") },
		func(s string) bool { return strings.HasPrefix(s, "ready\nnote: istiod at "+control.address+" is away") })
	if err := talk(live); err != nil {
		t.Errorf("the open connection: %v", err)
	}
	if err := talk(call(t, b.web, to)); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}
