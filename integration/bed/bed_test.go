package bed_test

import (
	"context"
	"flag"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/integration/bed"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

var binary = flag.String("ztunnel", "", "the ztunnel `binary` to test; ours is built when empty")

func TestMain(m *testing.M) {
	flag.Parse()
	netnstest.Main(m)
}

// patience is how long anything may take on a busy machine.
const patience = time.Minute

// TestBed shows every part of a bed at work with our own ztunnel: what it is
// told by xDS, ZDS and the CA, on two nodes, IPv4 and IPv6.
func TestBed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dir := t.TempDir()
	if *binary == "" {
		*binary = filepath.Join(dir, "ztunnel")
		build := exec.CommandContext(ctx, "go", "build", "-o", *binary, "github.com/ambit-mesh/ambit/cmd/ztunnel")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	b, err := bed.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	var ztunnels []*bed.Ztunnel
	var pods []*bed.Pod
	for _, name := range []string{"one", "two"} {
		n, err := b.AddNode(name)
		if err != nil {
			t.Fatal(err)
		}
		z, err := n.StartZtunnel(ctx, *binary)
		if err != nil {
			t.Fatal(err)
		}
		p, err := n.AddPod(bed.PodOptions{Name: "app-" + name, Namespace: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		ztunnels, pods = append(ztunnels, z), append(pods, p)
	}
	client, server := pods[0], pods[1]
	if err := b.SetWorkloads(client.Workload(), server.Workload()); err != nil {
		t.Fatal(err)
	}
	echo(t, server)
	for _, to := range []netip.Addr{server.Addr, server.Addr6} {
		if err := greet(ctx, client, netip.AddrPortFrom(to, 8080)); err != nil {
			t.Errorf("to %s: %v", to, err)
		}
	}

	const deny = "shop/deny-all"
	if err := b.SetPolicies(&security.Authorization{Name: "deny-all", Namespace: "shop", Scope: security.Scope_NAMESPACE, Action: security.Action_ALLOW}); err != nil {
		t.Fatal(err)
	}
	await(ctx, t, "the policy arrives", func() bool {
		dump, err := ztunnels[1].Get(ctx, "http://127.0.0.1:15000/config_dump")
		return err == nil && strings.Contains(dump, "deny-all")
	})
	if err := greet(ctx, client, netip.AddrPortFrom(server.Addr, 8080)); err == nil {
		t.Errorf("%s lets a connection pass", deny)
	}

	if out, err := client.Exec(ctx, "cat", "/proc/net/dev"); err != nil || !strings.Contains(out, "eth0") {
		t.Errorf("exec in a pod: %v: %s", err, out)
	}
	if err := server.Remove(); err != nil {
		t.Errorf("remove: %v", err)
	}
	for _, z := range ztunnels {
		if err := z.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	log, err := ztunnels[0].Log()
	if err != nil || !strings.Contains(log, `dst.identity="spiffe://cluster.local/ns/shop/sa/app-two"`) {
		t.Errorf("the access log lacks the server's identity (%v):\n%s", err, log)
	}
}

// TestNoZtunnel checks that a binary that cannot serve is reported with its
// last words.
func TestNoZtunnel(t *testing.T) {
	b, err := bed.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	n, err := b.AddNode("n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.StartZtunnel(t.Context(), "/bin/echo"); err == nil || !strings.Contains(err.Error(), "proxy ztunnel") {
		t.Errorf("echo as ztunnel: %v", err)
	}
}

// echo serves one pod until the test ends.
func echo(t *testing.T, p *bed.Pod) {
	t.Helper()
	l, err := p.Listen(8080)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

func greet(ctx context.Context, from *bed.Pod, to netip.AddrPort) error {
	c, err := from.Dial(ctx, to)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return exchange(ctx, c)
}

func exchange(ctx context.Context, c net.Conn) error {
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

func await(ctx context.Context, t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, ctx.Err())
		case <-tick.C:
		}
	}
}
