package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/integration/bed"
)

const (
	echoPort = 8080 // answers what it gets
	sinkPort = 8081 // takes everything

	namespace = "bench"
	startup   = time.Minute
)

// system is one way from a client pod to a server pod.
type system struct {
	name     string
	detail   string // of the binary, for the record
	bed      *bed.Bed
	client   *bed.Pod
	server   *bed.Pod
	stranger *bed.Pod // outside the mesh, beside the client
	proxies  []int    // process ids: client's side, server's side; none for direct
	sunk     *counter
	pool     *x509.CertPool
	cert     tls.Certificate // of a client in the mesh
	close    func() error
}

// systemKind says how to make a system.
type systemKind struct {
	name   string
	binary string // "" for direct
	start  func(ctx context.Context, s *system, binary string) error
}

func (k systemKind) make(ctx context.Context, dir string) (_ *system, err error) {
	dir = filepath.Join(dir, k.name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	s := &system{name: k.name, sunk: &counter{}}
	if s.bed, err = bed.New(dir); err != nil {
		return nil, err
	}
	var listeners []io.Closer
	s.close = func() error {
		for _, l := range listeners {
			_ = l.Close()
		}
		return s.bed.Close()
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", k.name, errors.Join(err, s.close()))
		}
	}()
	if err := s.lay(k.binary == ""); err != nil {
		return nil, err
	}
	for port, serve := range map[uint16]func(net.Conn){echoPort: echo, sinkPort: s.sunk.sink} {
		l, err := s.server.Listen(port)
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
		go accept(l, serve) // ends with the listener
	}
	if k.start == nil {
		return s, nil
	}
	if err := s.certify(); err != nil {
		return nil, err
	}
	limit, cancel := context.WithTimeout(ctx, startup)
	defer cancel()
	return s, k.start(limit, s, k.binary)
}

// lay makes nodes and pods.
func (s *system) lay(plain bool) error {
	for _, place := range []struct {
		node string
		pod  **bed.Pod
	}{{"near", &s.client}, {"far", &s.server}} {
		n, err := s.bed.AddNode(place.node)
		if err != nil {
			return err
		}
		*place.pod, err = n.AddPod(bed.PodOptions{Name: "app-" + place.node, Namespace: namespace, Uncaptured: plain})
		if err != nil {
			return err
		}
	}
	var err error
	s.stranger, err = s.client.Node().AddPod(bed.PodOptions{Name: "stranger", Namespace: namespace, Uncaptured: true})
	return err
}

func (s *system) certify() error {
	var err error
	if s.cert, err = s.bed.Certificate(namespace, "app-near"); err != nil {
		return err
	}
	s.pool = x509.NewCertPool()
	if !s.pool.AppendCertsFromPEM(s.bed.RootPEM()) {
		return errors.New("no root certificate")
	}
	return nil
}

func (s *system) echo() netip.AddrPort { return netip.AddrPortFrom(s.server.Addr, echoPort) }

func (s *system) sink() netip.AddrPort { return netip.AddrPortFrom(s.server.Addr, sinkPort) }

func (s *system) tunnel() netip.AddrPort { return netip.AddrPortFrom(s.server.Addr, mesh.PortHBONE) }

// startZtunnels is systemKind.start for any ztunnel. Everything is told before
// the processes begin, so that none passes traffic because it knows nothing yet.
func startZtunnels(ctx context.Context, s *system, binary string) error {
	if err := s.bed.SetWorkloads(s.client.Workload(), s.server.Workload(), s.stranger.Workload()); err != nil {
		return err
	}
	if err := s.bed.SetPolicies(policies()...); err != nil {
		return err
	}
	var near *bed.Ztunnel
	for _, p := range []*bed.Pod{s.client, s.server} {
		z, err := p.Node().StartZtunnel(ctx, binary)
		if err != nil {
			return err
		}
		s.proxies = append(s.proxies, z.Pid())
		if near == nil {
			near = z
		}
	}
	s.detail = version(ctx, binary)
	return s.verify(ctx, near)
}

// policies are what a namespace would have: who may call, and who may not.
func policies() []*security.Authorization {
	from := func(name string, action security.Action, account string) *security.Authorization {
		exact := &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: bed.TrustDomain + "/ns/" + namespace + "/sa/" + account}}
		return &security.Authorization{
			Name: name, Namespace: namespace, Scope: security.Scope_NAMESPACE, Action: action,
			Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{Principals: []*security.StringMatch{exact}}}}}}},
		}
	}
	return []*security.Authorization{from("clients", security.Action_ALLOW, "app-near"), from("banned", security.Action_DENY, "somebody")}
}

// verify makes sure that what is measured is the mesh: a connection passes, and
// the access log says by whom.
func (s *system) verify(ctx context.Context, near *bed.Ztunnel) error {
	if err := s.roundTrip(ctx); err != nil {
		return err
	}
	want := "spiffe://" + bed.TrustDomain + "/ns/" + namespace + "/sa/app-far"
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		log, err := near.Log()
		if err != nil {
			return err
		}
		if strings.Contains(log, want) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no access-log line with %s: does the traffic go through a tunnel?", want)
		case <-tick.C:
		}
	}
}

func (s *system) roundTrip(ctx context.Context) error {
	c, err := s.client.Dial(ctx, s.echo())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	_, err = ping(c, make([]byte, 1))
	return err
}

// startBaseline is systemKind.start for the baseline: one process in each pod.
func startBaseline(ctx context.Context, s *system, binary string) error {
	dir, err := os.MkdirTemp(filepath.Dir(s.bed.Dir()), "baseline-files-")
	if err != nil {
		return err
	}
	for role, p := range map[string]*bed.Pod{"outbound": s.client, "inbound": s.server} {
		args, err := s.identityFiles(dir, p)
		if err != nil {
			return err
		}
		c := exec.CommandContext(context.WithoutCancel(ctx), binary, append([]string{role}, args...)...)
		c.Stderr = os.Stderr
		if err := p.Start(c); err != nil {
			return err
		}
		stop := s.close
		s.close = func() error {
			_ = c.Process.Kill()
			_ = c.Wait() // it was killed
			return stop()
		}
		s.proxies = append(s.proxies, c.Process.Pid)
	}
	s.detail = "net/http CONNECT"
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.roundTrip(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-tick.C:
		}
	}
}

func (s *system) identityFiles(dir string, p *bed.Pod) ([]string, error) {
	cert, err := s.bed.Certificate(p.Namespace, p.ServiceAccount)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, err
	}
	var args []string
	for name, text := range map[string][]byte{
		"cert": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		"key":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"root": s.bed.RootPEM(),
	} {
		path := filepath.Join(dir, p.Name+"-"+name+".pem")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return nil, err
		}
		args = append(args, "--"+name, path)
	}
	return args, nil
}

// version is what a binary says of itself, in one line without paths.
func version(ctx context.Context, binary string) string {
	out, err := exec.CommandContext(ctx, binary, "version").Output()
	if err != nil {
		return "version unknown"
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

func accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go serve(c) // ends with the connection, which its client or the proxy ends
	}
}
