package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/identity/identitytest"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

const patience = 20 * time.Second

var (
	noOptions       = netns.DialOptions{}
	noListenOptions = netns.ListenOptions{}
)

// world is a mesh of pods in network namespaces that one test builds.
type world struct {
	t     *testing.T
	store *workload.Store
	ca    *identitytest.CA
	// certificate stands for the identity cache.
	certificate func(context.Context, spiffe.ID) (*mtls.Certificate, error)
	hold        Hold
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, store: workload.NewStore("", ""), ca: identitytest.New(t, "cluster.local"), hold: Hold{Arrival: patience, Policy: patience}}
	issued := map[spiffe.ID]*mtls.Certificate{}
	for _, name := range []string{"web", "shop", "other"} {
		id := w.ca.ID(name, name)
		issued[id] = w.ca.Issue(id, time.Hour)
	}
	w.certificate = func(_ context.Context, id spiffe.ID) (*mtls.Certificate, error) {
		if c := issued[id]; c != nil {
			return c, nil
		}
		return nil, fmt.Errorf("no certificate for %s", id)
	}
	return w
}

func (w *world) apply(messages ...proto.Message) { workloadtest.Apply(w.t, w.store, messages...) }

// pod is a pod with a proxy, an application and a way in for captured
// connections, which a redirection would bring otherwise.
type pod struct {
	*netnstest.Pod
	w       *world
	name    string
	proxy   *Proxy
	metrics *telemetry.Metrics
	lines   chan *telemetry.AccessLine
}

// message returns the pod as istiod describes it: pod, namespace and service
// account have one name.
func (p *pod) message(edit ...func(*api.Workload)) *api.Workload {
	m := &api.Workload{
		Uid: "Kubernetes//Pod/" + p.name + "/" + p.name, Name: p.name, Namespace: p.name, ServiceAccount: p.name,
		Addresses: p.addresses(), TunnelProtocol: api.TunnelProtocol_HBONE, WorkloadName: p.name, CanonicalName: p.name,
		CanonicalRevision: "v1", Node: "n1",
	}
	for _, f := range edit {
		f(m)
	}
	return m
}

func (p *pod) addresses() [][]byte {
	all := [][]byte{p.Addr.AsSlice()}
	if p.Addr6.IsValid() {
		all = append(all, p.Addr6.AsSlice())
	}
	return all
}

// pod starts a pod; its message is not applied yet.
func (w *world) pod(name string, edit ...func(*Config)) *pod {
	w.t.Helper()
	p := &pod{Pod: netnstest.NewPod(w.t), w: w, name: name, metrics: telemetry.NewMetrics("test"), lines: make(chan *telemetry.AccessLine, 4096)}
	cfg := Config{
		Pod: workload.Info{Name: name, Namespace: name, ServiceAccount: name}, NetNS: p.NS, Store: w.store,
		Certificate: func(ctx context.Context, id spiffe.ID) (*mtls.Certificate, error) { return w.certificate(ctx, id) },
		Metrics:     p.metrics, Access: func(l *telemetry.AccessLine) { p.lines <- l },
		Log: quietLog(w.t), Mark: 0x539, PreserveSource: Off, ResponseBaggage: true,
		DrainTimeout: patience, Hold: w.hold,
	}
	for _, f := range edit {
		f(&cfg)
	}
	p.proxy = New(cfg)
	if err := p.proxy.Start(w.t.Context()); err != nil {
		w.t.Fatalf("start proxy of %s: %v", name, err)
	}
	w.t.Cleanup(p.proxy.Stop)
	return p
}

// quietLog wants access lines from level info on, and goes nowhere.
func quietLog(t *testing.T) *slog.Logger {
	t.Helper()
	levels, err := telemetry.NewLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	return telemetry.NewLogger(io.Discard, telemetry.Text, levels)
}

func (p *pod) addr(port uint16) netip.AddrPort { return netip.AddrPortFrom(p.Addr, port) }

// addr6 is addr with the pod's IPv6 address.
func (p *pod) addr6(port uint16) netip.AddrPort { return netip.AddrPortFrom(p.Addr6, port) }

// serve runs an application in the pod, at its IPv4 address; serve6 at its IPv6
// address, if it has one.
func (p *pod) serve(port uint16, app func(*net.TCPConn)) { p.serveAt(p.addr(port), app) }

func (p *pod) serve6(port uint16, app func(*net.TCPConn)) {
	if p.Addr6.IsValid() {
		p.serveAt(p.addr6(port), app)
	}
}

func (p *pod) serveAt(at netip.AddrPort, app func(*net.TCPConn)) {
	p.w.t.Helper()
	l, err := p.NS.Listen(at, netns.ListenOptions{})
	if err != nil {
		p.w.t.Fatalf("listen: %v", err)
	}
	ended := make(chan struct{})
	p.w.t.Cleanup(func() { _ = l.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go app(c)
		}
	}()
}

// echo sends back what it reads, and ends when the client has ended.
func echo(c *net.TCPConn) {
	defer func() { _ = c.Close() }()
	_, _ = io.Copy(c, c)
}

// connect opens a connection inside the pod and hands it to carry, as a
// redirection would.
func (p *pod) connect(carry func(*net.TCPConn)) *net.TCPConn {
	t := p.w.t
	t.Helper()
	l, err := p.NS.Listen(p.addr(0), netns.ListenOptions{})
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	defer func() { _ = l.Close() }()
	c, err := p.NS.Dial(t.Context(), canonical(l.Addr()), netns.DialOptions{})
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	captured, err := l.AcceptTCP()
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	p.proxy.running.Go(func() { carry(captured) })
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// dial opens a connection of the pod to target.
func (p *pod) dial(target netip.AddrPort) *net.TCPConn {
	p.w.t.Helper()
	return p.connect(func(c *net.TCPConn) { p.proxy.outbound(c, target) })
}

// plain opens a connection from p that reaches to as captured plaintext.
func (p *pod) plain(to *pod, port uint16) *net.TCPConn {
	p.w.t.Helper()
	return p.connect(func(c *net.TCPConn) { to.proxy.passthrough(c, to.addr(port)) })
}

// line returns the next access line.
func (p *pod) line() *telemetry.AccessLine {
	p.w.t.Helper()
	select {
	case l := <-p.lines:
		return l
	case <-time.After(patience):
		p.w.t.Fatalf("%s wrote no access line", p.name)
		return nil
	}
}

// wantReason checks why the next connection of the pod ended.
func (p *pod) wantReason(want telemetry.Reason) *telemetry.AccessLine {
	p.w.t.Helper()
	l := p.line()
	if got := reasonOf(l.Err); got != want {
		p.w.t.Errorf("%s: connection ended with %q (%v), want %q", p.name, got, l.Err, want)
	}
	return l
}

// ping sends one line and wants it back.
func ping(t *testing.T, c net.Conn) {
	t.Helper()
	if err := tryPing(c); err != nil {
		t.Fatalf("ping: %v", err)
	}
}

func tryPing(c net.Conn) error {
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if got != "hello\n" {
		return fmt.Errorf("got %q back", got)
	}
	return nil
}

// wantEnd reads to the end, which must come and must not be a reset.
func wantEnd(c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	return err
}

// wantClosed checks that a connection was closed without an answer.
func wantClosed(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); err == nil || n != 0 {
		t.Errorf("the connection is open, want it closed")
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() { //nolint:errorlint // not wrapped
		t.Errorf("the connection is open, want it closed: %v", err)
	}
}

// eventually polls a condition that another goroutine makes true.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !done(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not true after %v: %s", patience, what)
		}
	}
}
