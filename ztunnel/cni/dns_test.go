package cni

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

func TestCapturesDNS(t *testing.T) {
	for _, test := range []struct {
		annotation   string
		preset, want bool
	}{
		{"", false, false},
		{"", true, true},
		{"true", false, true},
		{"false", true, false},
		{"maybe", true, true},
		{"maybe", false, false},
	} {
		p := Pod{Annotations: map[string]string{mesh.AnnotationDNSCapture: test.annotation}}
		if got := p.capturesDNS(test.preset); got != test.want {
			t.Errorf("annotation %q, default %v: got %v", test.annotation, test.preset, got)
		}
	}
}

// The annotation decides, also when it comes to a pod that is enrolled already.
func TestDNSFollowsAnnotation(t *testing.T) {
	b := newBed(t)
	b.namespace("shop", "ambient")
	p := b.pod("web")
	b.start()
	b.ztunnel()
	p.mustAdd()
	if p.capturedDNS() {
		t.Error("questions are captured, the agent's default is not to")
	}
	for _, value := range []string{"true", "false", "true"} {
		must(t, b.store.Update(p.key(), func(o *unstructured.Unstructured) error {
			return unstructured.SetNestedField(o.Object, value, "metadata", "annotations", mesh.AnnotationDNSCapture)
		}))
		b.eventually("questions are captured: "+value, func() bool { return p.capturedDNS() == (value == "true") })
		if !p.captured() {
			t.Errorf("annotation %q: connections are not captured any more", value)
		}
	}
}

// capturedDNS says whether a question of the pod reaches ztunnel's port, or who was asked.
func (p *pod) capturedDNS() bool {
	p.b.t.Helper()
	node := netip.AddrPortFrom(netnstest.NodeAddr, 53)
	ztunnel, err := p.NS.ListenUDP(netip.MustParseAddrPort("127.0.0.1:15053"), netns.ListenOptions{})
	must(p.b.t, err)
	resolver, err := (*netns.NS)(nil).ListenUDP(node, netns.ListenOptions{})
	must(p.b.t, err)
	heard := make(chan *net.UDPConn, 2)
	var hearing sync.WaitGroup
	for _, c := range []*net.UDPConn{ztunnel, resolver} {
		hearing.Go(func() {
			if _, err := c.Read(make([]byte, 16)); err == nil {
				heard <- c
			}
		})
	}
	clients := netns.UDPClients{NS: p.NS}
	c, err := clients.Dial(node)
	must(p.b.t, err)
	_, err = c.Write([]byte("question"))
	must(p.b.t, err)
	first := <-heard
	for _, c := range []*net.UDPConn{c, ztunnel, resolver} {
		must(p.b.t, c.Close())
	}
	hearing.Wait()
	return first == ztunnel
}
