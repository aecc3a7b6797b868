package scenario

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/integration/bed"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// patience is how long a scenario may take on a busy machine.
const patience = 2 * time.Minute

// TestScenarios runs every scenario on a bed of its own.
func TestScenarios(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "ztunnel")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "github.com/ambit-mesh/ambit/cmd/ztunnel")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, s := range slices.Concat(reach, waypoints, inbound, policies, names, lifecycle) {
		t.Run(s.name, func(t *testing.T) { s.run(newWorld(t, binary, s.env...)) })
	}
}

// scenario is one story; env is for its ztunnels.
type scenario struct {
	name string
	env  []string
	run  func(*world)
}

// world is a bed with two nodes, a ztunnel on each, and what istiod has told them.
type world struct {
	*testing.T
	ctx    context.Context //nolint:containedctx // of this one test
	binary string
	env    []string
	bed    *bed.Bed

	nodes    []*bed.Node
	ztunnels []*bed.Ztunnel // the newest of each node

	workloads []*workload.Workload
	services  []*workload.Service
	policies  []*security.Authorization
	told      int
}

func newWorld(t *testing.T, binary string, env ...string) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	b, err := bed.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{T: t, ctx: ctx, binary: binary, bed: b, env: append([]string{"LOG_FORMAT=json"}, env...)}
	for _, name := range []string{"one", "two"} {
		n, err := b.AddNode(name)
		w.must(err)
		w.nodes = append(w.nodes, n)
		z, err := n.StartZtunnel(ctx, binary, w.env...)
		w.must(err)
		w.ztunnels = append(w.ztunnels, z)
	}
	t.Cleanup(w.tellLogs)
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// tellLogs prints what the ztunnels of a failed scenario have written.
func (w *world) tellLogs() {
	if !w.Failed() {
		return
	}
	for i, z := range w.ztunnels {
		text, err := z.Log()
		w.Logf("ztunnel on %s (%v):\n%s", w.nodes[i].Name, err, text)
	}
}

// pod makes a pod in namespace shop and describes it to istiod, which tells
// nobody before tell.
func (w *world) pod(node int, name string, change ...func(*workload.Workload)) *bed.Pod {
	w.Helper()
	return w.add(node, bed.PodOptions{Name: name, Namespace: "shop"}, change...)
}

// plainPod is a pod that is not in the mesh.
func (w *world) plainPod(node int, name string, change ...func(*workload.Workload)) *bed.Pod {
	w.Helper()
	return w.add(node, bed.PodOptions{Name: name, Namespace: "shop", Uncaptured: true}, change...)
}

func (w *world) add(node int, o bed.PodOptions, change ...func(*workload.Workload)) *bed.Pod {
	w.Helper()
	p, err := w.nodes[node].AddPod(o)
	w.must(err)
	m := p.Workload()
	for _, c := range change {
		c(m)
	}
	w.workloads = append(w.workloads, m)
	return p
}

// workload is the description of a pod.
func (w *world) workload(p *bed.Pod) *workload.Workload {
	i := slices.IndexFunc(w.workloads, func(m *workload.Workload) bool { return m.GetUid() == p.Workload().GetUid() })
	return w.workloads[i]
}

// tell sends out what there is and waits until every ztunnel has it.
func (w *world) tell() {
	w.Helper()
	w.told++
	marker := fmt.Sprintf("marker-%d", w.told)
	w.must(w.bed.SetPolicies(append(slices.Clone(w.policies), &security.Authorization{
		Name: marker, Namespace: marker, Scope: security.Scope_NAMESPACE, Action: security.Action_DENY,
	})...))
	w.must(w.bed.SetServices(w.services...))
	w.must(w.bed.SetWorkloads(append(slices.Clone(w.workloads), &workload.Workload{Uid: marker, Name: marker, Namespace: marker})...))
	for i, z := range w.ztunnels {
		select {
		case <-z.Ended():
			continue
		default:
		}
		w.await(fmt.Sprintf("ztunnel on %s knows update %d", w.nodes[i].Name, w.told), func() error {
			dump, err := z.Get(w.ctx, "http://127.0.0.1:15000/config_dump")
			if err != nil {
				return err
			}
			if n := strings.Count(dump, `"`+marker+`"`); n < 4 { // name and namespace of both
				return fmt.Errorf("it is there %d times", n)
			}
			return nil
		})
	}
}

// await waits until check has no objection.
func (w *world) await(what string, check func() error) {
	w.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-w.ctx.Done():
			w.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// A service in namespace shop with one port 80 that is 8080 of its pods.
func (w *world) service(name string, vip string, pods ...*bed.Pod) *workload.Service {
	s := &workload.Service{
		Name: name, Namespace: "shop", Hostname: name + ".shop.svc.cluster.local",
		Addresses: []*workload.NetworkAddress{{Address: netip.MustParseAddr(vip).AsSlice()}},
		Ports:     []*workload.Port{{ServicePort: 80, TargetPort: 8080}},
	}
	w.services = append(w.services, s)
	for _, p := range pods {
		m := w.workload(p)
		if m.Services == nil {
			m.Services = map[string]*workload.PortList{}
		}
		m.Services["shop/"+s.Hostname] = &workload.PortList{Ports: s.Ports}
	}
	return s
}

// answer is what a server of serve says to each line.
type answer struct {
	pod    string
	source netip.Addr // whom it takes for the client
}

// serve answers each line with the pod's name and the client's address, until
// the test ends.
func (w *world) serve(p *bed.Pod, port uint16) {
	w.Helper()
	l, err := p.Listen(port)
	w.must(err)
	w.accept(l, func(c net.Conn) {
		from, err := netip.ParseAddrPort(c.RemoteAddr().String())
		if err != nil {
			return
		}
		for lines := bufio.NewScanner(c); lines.Scan(); {
			if _, err := fmt.Fprintf(c, "%s %s\n", p.Name, from.Addr().Unmap()); err != nil {
				return
			}
		}
	})
}

// accept serves a listener until the test ends.
func (w *world) accept(l net.Listener, serve func(net.Conn)) {
	w.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				serve(c)
			}()
		}
	}()
}

// client is an open connection to a server of serve.
type client struct {
	net.Conn
	lines *bufio.Scanner
}

// dial connects from a pod.
func (w *world) dial(from *bed.Pod, to netip.AddrPort) (*client, error) {
	c, err := from.Dial(w.ctx, to)
	if err != nil {
		return nil, err
	}
	w.Cleanup(func() { _ = c.Close() })
	deadline, _ := w.ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	return &client{Conn: c, lines: bufio.NewScanner(c)}, nil
}

// ask makes one exchange.
func (c *client) ask() (answer, error) {
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return answer{}, err
	}
	if !c.lines.Scan() {
		return answer{}, errors.Join(errors.New("no answer"), c.lines.Err())
	}
	name, source, _ := strings.Cut(c.lines.Text(), " ")
	addr, err := netip.ParseAddr(source)
	return answer{name, addr}, err
}

// ask makes one exchange on a connection of its own.
func (w *world) ask(from *bed.Pod, to netip.AddrPort) (answer, error) {
	c, err := w.dial(from, to)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = c.Close() }()
	return c.ask()
}

// line is an access line.
type line struct {
	Scope, Message, Level, Direction, Error string

	SrcAddr     string `json:"src.addr"`
	SrcIdentity string `json:"src.identity"`
	DstAddr     string `json:"dst.addr"`
	DstHBONE    string `json:"dst.hbone_addr"`
	DstService  string `json:"dst.service"`
	DstWorkload string `json:"dst.workload"`
	DstIdentity string `json:"dst.identity"`
	Sent        uint64 `json:"bytes_sent"`
	Received    uint64 `json:"bytes_recv"`
}

// access returns the access lines of a node's newest ztunnel.
func (w *world) access(node int) []line {
	w.Helper()
	text, err := w.ztunnels[node].Log()
	w.must(err)
	var out []line
	for s := range strings.Lines(text) {
		var l line
		if json.Unmarshal([]byte(s), &l) == nil && l.Scope == "access" {
			out = append(out, l)
		}
	}
	return out
}

// awaitLine waits for an access line for which match holds.
func (w *world) awaitLine(node int, what string, match func(line) bool) (found line) {
	w.Helper()
	w.await("access line: "+what, func() error {
		lines := w.access(node)
		i := slices.IndexFunc(lines, match)
		if i < 0 {
			return fmt.Errorf("not among %d lines", len(lines))
		}
		found = lines[i]
		return nil
	})
	return found
}

func identity(p *bed.Pod) string {
	return "spiffe://" + bed.TrustDomain + "/ns/" + p.Namespace + "/sa/" + p.ServiceAccount
}

func at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }
