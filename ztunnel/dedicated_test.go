package ztunnel

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

var vip = netip.MustParseAddrPort("10.96.0.20:80")

// meshYAML describes the two pods and a service, and adds policies.
func meshYAML(web, shop *netnstest.Pod, policies string) string {
	return fmt.Sprintf(`
workloads:
- {uid: web, name: web, namespace: web, serviceAccount: web, workloadIps: [%s], protocol: HBONE, services: {}}
- {uid: shop, name: shop, namespace: shop, serviceAccount: shop, workloadIps: [%s], protocol: HBONE, services: {shop/shop.test: {80: 8080}}}
services:
- {name: shop, namespace: shop, hostname: shop.test, vips: [/%s], ports: {80: 8080}}
policies: [%s]
`, web.Addr, shop.Addr, vip.Addr(), policies)
}

const denyWeb = `{name: deny, namespace: shop, scope: Namespace, action: Deny, dryRun: false, rules: [[[{principals: [{Exact: cluster.local/ns/web/sa/web}]}]]]}`

// dedicatedBed is two machines with a ztunnel each and no control plane but an
// authority.
type dedicatedBed struct {
	web, shop *netnstest.Pod
	ca        *istiod
	file      string // the mesh's description, for both
	crl       string
}

func newDedicatedBed(t *testing.T) *dedicatedBed {
	t.Helper()
	b := &dedicatedBed{web: netnstest.NewPod(t), shop: netnstest.NewPod(t)}
	for _, pod := range []*netnstest.Pod{b.web, b.shop} {
		if err := redirect.Apply(pod.NS.File(), redirect.Options{}); err != nil {
			t.Fatalf("redirect: %v", err)
		}
	}
	b.ca = listenIstiod(t, netnstest.NodeAddr.AsSlice())
	b.file, b.crl = filepath.Join(t.TempDir(), "mesh.yaml"), filepath.Join(t.TempDir(), "crl.pem")
	b.write(t, b.file, meshYAML(b.web, b.shop, ""))
	b.write(t, b.crl, "")
	return b
}

// write replaces a file at once, as careful writers do.
func (b *dedicatedBed) write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// start runs the ztunnel of the pod that is called name.
func (b *dedicatedBed) start(t *testing.T, pod *netnstest.Pod, name string, environ ...string) *process {
	t.Helper()
	return startProcess(t, pod, append([]string{
		"PROXY_MODE=dedicated", fmt.Sprintf("PROXY_WORKLOAD_INFO=%s/%s/%s", name, name, name), "PACKET_MARK=1337", "XDS_ADDRESS=", "LOCAL_XDS_PATH=" + b.file,
		"CA_ADDRESS=" + b.ca.address, "CA_ROOT_CA=" + string(encode(b.ca.root)), "AUTH_TOKEN=spiffe://cluster.local/ns/" + name + "/sa/" + name, "CRL_PATH=" + b.crl,
	}, environ...)...)
}

// TestDedicated runs two ztunnels as VMs have them, each in the network
// namespace of its workload: no node agent, no istiod.
func TestDedicated(t *testing.T) {
	b := newDedicatedBed(t)
	client, server := b.start(t, b.web, "web"), b.start(t, b.shop, "shop")
	seen := echo(t, b.shop, 8080)
	client.ready()
	server.ready()

	live := call(t, b.web, netip.AddrPortFrom(b.shop.Addr, 8080))
	if err := talk(live); err != nil {
		t.Fatalf("to the workload: %v", err)
	}
	if got := <-seen; got != b.web.Addr {
		t.Errorf("the application sees %s, want %s", got, b.web.Addr)
	}
	toVIP := call(t, b.web, vip)
	if err := talk(toVIP); err != nil {
		t.Fatalf("to the service: %v", err)
	}
	_ = toVIP.Close()
	server.logged(`src.identity="spiffe://cluster.local/ns/web/sa/web"`)
	client.logged(`dst.identity="spiffe://cluster.local/ns/shop/sa/shop"`)
	for _, want := range []string{`"uid": "shop"`, `"staticConfig": {`, `"proxyMode": "Dedicated"`, `"protocol": "HBONE"`, `"web/web": {`, `"identity": "spiffe://cluster.local/ns/web/sa/web"`} {
		if dump := client.get("15000/config_dump"); !strings.Contains(dump, want) {
			t.Errorf("dump lacks %s:\n%s", want, dump)
		}
	}

	// A broken file changes nothing, and shows.
	b.write(t, b.file, "workloads: [")
	until(t, "a note on the broken file", func() string { return server.get("15021/healthz/ready") },
		func(s string) bool { return strings.HasPrefix(s, "ready\nnote: LOCAL_XDS_PATH: "+b.file) })
	server.logged("file is not in effect")
	if err := talk(live); err != nil {
		t.Errorf("after a broken file: %v", err)
	}

	// A policy in the file cuts the live connection, and refuses new ones.
	b.write(t, b.file, meshYAML(b.web, b.shop, denyWeb))
	server.ready()
	until(t, "the end of the live connection", func() string { return fmt.Sprint(talk(live)) }, func(s string) bool { return s != "<nil>" })
	server.logged("policy-changed")
	if err := talk(call(t, b.web, vip)); err == nil {
		t.Error("a denied connection works")
	}
	until(t, "the refusal in the dump", func() string { return server.get("15000/config_dump") },
		func(s string) bool {
			return strings.Contains(s, `"reason": "policy-denied"`) && strings.Contains(s, `"refused": [`)
		})
	b.write(t, b.file, meshYAML(b.web, b.shop, ""))
	until(t, "a connection after the policy is gone", func() string { return fmt.Sprint(talk(call(t, b.web, vip))) }, func(s string) bool { return s == "<nil>" })
}

// TestDedicatedDNS: the workload's programs ask for a name of the mesh.
func TestDedicatedDNS(t *testing.T) {
	b := newDedicatedBed(t)
	client := b.start(t, b.web, "web", "ISTIO_META_DNS_CAPTURE=true", "ENABLE_PROXY=false")
	client.ready()
	if c, err := b.web.NS.Dial(t.Context(), netip.AddrPortFrom(b.web.Addr, 15008), netns.DialOptions{Mark: 1337}); err == nil {
		_ = c.Close()
		t.Error("ENABLE_PROXY=false and port 15008 is open")
	}
	c, err := b.web.NS.Dial(t.Context(), netip.MustParseAddrPort("127.0.0.1:15053"), netns.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	conn := &dns.Conn{Conn: c}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion("shop.test.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	answer, err := conn.ReadMsg()
	if err != nil || len(answer.Answer) != 1 || !strings.HasSuffix(answer.Answer[0].String(), vip.Addr().String()) {
		t.Errorf("answer %v, %v", answer, err)
	}
}

// TestDedicatedRevocation: a list that revokes the client cuts what it has and
// refuses what is new.
func TestDedicatedRevocation(t *testing.T) {
	b := newDedicatedBed(t)
	client, server := b.start(t, b.web, "web"), b.start(t, b.shop, "shop")
	echo(t, b.shop, 8080)
	client.ready()
	server.ready()
	live := call(t, b.web, vip)
	if err := talk(live); err != nil {
		t.Fatal(err)
	}
	b.write(t, b.crl, b.ca.revoke("spiffe://cluster.local/ns/web/sa/web"))
	until(t, "the end of the live connection", func() string { return fmt.Sprint(talk(live)) }, func(s string) bool { return s != "<nil>" })
	until(t, "the refusal of a new one", func() string { return fmt.Sprint(talk(call(t, b.web, vip))) }, func(s string) bool { return s != "<nil>" })
	server.logged("revoked")
}

// TestDedicatedDrain: at SIGTERM listeners close at once, what is open goes on
// until it ends, and then the process does.
func TestDedicatedDrain(t *testing.T) {
	b := newDedicatedBed(t)
	client, server := b.start(t, b.web, "web"), b.start(t, b.shop, "shop", "CONNECTION_TERMINATION_DEADLINE=1h")
	echo(t, b.shop, 8080)
	client.ready()
	server.ready()
	live := call(t, b.web, vip)
	if err := talk(live); err != nil {
		t.Fatal(err)
	}
	if err := server.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the listener", func() string {
		c, err := b.web.NS.Dial(t.Context(), netip.AddrPortFrom(b.shop.Addr, 15008), netns.DialOptions{Mark: 1337})
		if err == nil {
			_ = c.Close()
		}
		return fmt.Sprint(err)
	}, func(s string) bool { return strings.Contains(s, "refused") })
	if err := talk(live); err != nil {
		t.Errorf("the open connection during the drain: %v", err)
	}
	if s := server.get("15021/healthz/ready"); !strings.HasPrefix(s, "not ready, pending: proxy\nproxy: the process ends") {
		t.Errorf("readiness during the drain: %s", s)
	}
	_ = live.Close()
	if err := server.wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
}

// TestDedicatedDeadline: what does not end by itself is ended.
func TestDedicatedDeadline(t *testing.T) {
	b := newDedicatedBed(t)
	client, server := b.start(t, b.web, "web"), b.start(t, b.shop, "shop", "CONNECTION_TERMINATION_DEADLINE=100ms")
	echo(t, b.shop, 8080)
	client.ready()
	server.ready()
	live := call(t, b.web, vip)
	if err := talk(live); err != nil {
		t.Fatal(err)
	}
	if err := server.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := server.wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
	if err := talk(live); err == nil {
		t.Error("the connection outlives the process")
	}
}

// TestBindConflicts: a port in use makes the start fail, never silently.
func TestBindConflicts(t *testing.T) {
	b := newDedicatedBed(t)
	for _, port := range []uint16{15001, 15006, 15008, 15000, 15020, 15021} {
		address := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
		if port == 15000 {
			address = netip.MustParseAddrPort("127.0.0.1:15000")
		}
		l, err := b.web.NS.Listen(address, netns.ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p := b.start(t, b.web, "web")
		if err := p.wait(); err == nil || !strings.Contains(p.out.String(), fmt.Sprint(port)) {
			t.Errorf("port %d in use: ended with %v and says %q", port, err, p.out.String())
		}
		_ = l.Close()
	}
}

// TestBadStarts: what would not be as it was meant does not start.
func TestBadStarts(t *testing.T) {
	b := newDedicatedBed(t)
	for what, c := range map[string]struct {
		environ []string
		want    string
	}{
		"a missing file":  {[]string{"LOCAL_XDS_PATH=/none"}, "LOCAL_XDS_PATH: stat /none"},
		"a broken text":   {[]string{"LOCAL_XDS_PATH=", "LOCAL_XDS=workloads: 1"}, "LOCAL_XDS: yaml"},
		"no workload":     {[]string{"PROXY_WORKLOAD_INFO="}, "PROXY_WORKLOAD_INFO: "},
		"an unknown mode": {[]string{"PROXY_MODE=sidecar"}, "PROXY_MODE: "},
	} {
		p := b.start(t, b.web, "web", c.environ...)
		if err := p.wait(); err == nil || !strings.Contains(p.out.String(), c.want) {
			t.Errorf("%s: ended with %v and says %q, want %q", what, err, p.out.String(), c.want)
		}
	}
}

// TestStopBeforeWarm: a process that waits for istiod says so, holds its ports
// and ends when asked to.
func TestStopBeforeWarm(t *testing.T) {
	b := newDedicatedBed(t)
	p := b.start(t, b.web, "web", "LOCAL_XDS_PATH=", "XDS_ADDRESS=127.0.0.1:1", "XDS_ROOT_CA="+string(encode(b.ca.root)))
	until(t, "the reason in the readiness detail", func() string { return p.get("15021/healthz/ready") }, func(s string) bool {
		return strings.HasPrefix(s, "not ready, pending: proxy, state manager\n") && strings.Contains(s, "127.0.0.1:1") && strings.Contains(s, "refused")
	})
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
}
