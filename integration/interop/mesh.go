package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/integration/bed"
)

const (
	namespace = "interop"
	port      = 8080
	vip       = "10.96.0.7"
	hostname  = "server.interop.svc.cluster.local"
)

// place is a bed with a client on one node and a server on another.
type place struct {
	bed            *bed.Bed
	near, far      *bed.Node
	client, server *bed.Pod
	ztunnels       map[*bed.Node]*bed.Ztunnel
	binaries       map[*bed.Node]string
}

// newPlace makes a bed; a side without a binary has no ztunnel, and its pod is
// not captured.
func newPlace(ctx context.Context, dir, near, far string) (p *place, err error) {
	dir, err = os.MkdirTemp(dir, "bed-")
	if err != nil {
		return nil, err
	}
	p = &place{ztunnels: map[*bed.Node]*bed.Ztunnel{}, binaries: map[*bed.Node]string{}}
	if p.bed, err = bed.New(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.bed.Close())
		}
	}()
	for _, side := range []struct {
		name, binary string
		node         **bed.Node
		pod          **bed.Pod
	}{{"client", near, &p.near, &p.client}, {"server", far, &p.far, &p.server}} {
		if *side.node, err = p.bed.AddNode(side.name + "-node"); err != nil {
			return nil, err
		}
		*side.pod, err = (*side.node).AddPod(bed.PodOptions{Name: side.name, Namespace: namespace, Uncaptured: side.binary == ""})
		if err != nil {
			return nil, err
		}
		p.binaries[*side.node] = side.binary
	}
	if err := p.tell(); err != nil {
		return nil, err
	}
	for node, binary := range p.binaries {
		if binary == "" {
			continue
		}
		if p.ztunnels[node], err = node.StartZtunnel(ctx, binary); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// tell describes the pods and a service of the server to the control plane;
// change may alter the server's workload and the service.
func (p *place) tell(change ...func(*workload.Workload, *workload.Service)) error {
	server := p.server.Workload()
	ports := &workload.PortList{Ports: []*workload.Port{{ServicePort: 80, TargetPort: port}}}
	server.Services = map[string]*workload.PortList{namespace + "/" + hostname: ports}
	service := &workload.Service{
		Name: "server", Namespace: namespace, Hostname: hostname, Ports: ports.GetPorts(),
		Addresses: []*workload.NetworkAddress{{Address: netip.MustParseAddr(vip).AsSlice()}},
	}
	for _, f := range change {
		f(server, service)
	}
	all := []*workload.Workload{p.client.Workload(), server}
	for _, other := range slices.Concat(p.near.Pods(), p.far.Pods()) {
		if other != p.client && other != p.server {
			all = append(all, other.Workload())
		}
	}
	if err := p.bed.SetWorkloads(all...); err != nil {
		return err
	}
	return p.bed.SetServices(service)
}

// awaitKnown waits until a section of every ztunnel's dump holds a text, or does
// not.
func (p *place) awaitKnown(ctx context.Context, section, text string, known bool) error {
	for node, z := range p.ztunnels {
		err := poll(ctx, func() error {
			dump, err := z.Get(ctx, fmt.Sprintf("http://127.0.0.1:%d/config_dump", mesh.PortAdmin))
			if err != nil {
				return err
			}
			var sections map[string]json.RawMessage
			if err := json.Unmarshal([]byte(dump), &sections); err != nil {
				return err
			}
			if strings.Contains(string(sections[section]), text) != known {
				return fmt.Errorf("%s in the dump of %s have %q: %v, want %v", section, node.Name, text, !known, known)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// poll tries until it succeeds or ctx is done.
func poll(ctx context.Context, try func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// logged waits until the access log of the client's ztunnel shows a connection
// to an identity: that it went through a tunnel.
func (p *place) logged(ctx context.Context, text string) error {
	return poll(ctx, func() error {
		log, err := p.ztunnels[p.near].Log()
		if err == nil && !strings.Contains(log, text) {
			err = fmt.Errorf("the access log lacks %s", text)
		}
		return err
	})
}

func (p *place) direct() netip.AddrPort { return netip.AddrPortFrom(p.server.Addr, port) }

// ztunnels runs the scenarios between two ztunnels under our control plane.
func ztunnels(ctx context.Context, r *report, dir, pair, near, far string) error {
	missing := errors.Join(need("PEER", near), need("PEER", far))
	var p *place
	if missing == nil {
		var err error
		if p, err = newPlace(ctx, dir, near, far); err != nil {
			r.line(pair, "start", err)
			return nil
		}
		defer func() { _ = p.bed.Close() }()
		if err := p.serve(); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		name string
		run  func(*place, context.Context) error
	}{
		{"start", (*place).started},
		{"connection-ipv4", (*place).overIPv4},
		{"connection-ipv6", (*place).overIPv6},
		{"service-vip", (*place).overVIP},
		{"half-close", (*place).halfClose},
		{"server-first", (*place).serverFirst},
		{"bulk-both-ways", (*place).bulk},
		{"many-connections", (*place).many},
		{"policy-denies-and-lets-go", (*place).policy},
		{"pod-comes-and-goes", (*place).latePod},
		{"hand-over", (*place).handOver},
		{"restart", (*place).restart},
	} {
		r.run(ctx, pair, s.name, missing, func(ctx context.Context) error { return s.run(p, ctx) })
	}
	return nil
}

// started is what newPlace has shown: every ztunnel got certificates,
// configuration and pods, and is ready.
func (p *place) started(ctx context.Context) error {
	if err := p.hello(ctx, p.direct()); err != nil {
		return err
	}
	return p.logged(ctx, "spiffe://"+bed.TrustDomain+"/ns/"+namespace+"/sa/server")
}

func (p *place) overIPv4(ctx context.Context) error { return p.hello(ctx, p.direct()) }

func (p *place) overIPv6(ctx context.Context) error {
	return p.hello(ctx, netip.AddrPortFrom(p.server.Addr6, port))
}

func (p *place) overVIP(ctx context.Context) error {
	return p.hello(ctx, netip.AddrPortFrom(netip.MustParseAddr(vip), 80))
}

// policy denies the client, then lets it pass again.
func (p *place) policy(ctx context.Context) error {
	exact := &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: bed.TrustDomain + "/ns/" + namespace + "/sa/client"}}
	deny := &security.Authorization{
		Name: "no-client", Namespace: namespace, Scope: security.Scope_NAMESPACE, Action: security.Action_DENY,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{Principals: []*security.StringMatch{exact}}}}}}},
	}
	if err := p.bed.SetPolicies(deny); err != nil {
		return err
	}
	if err := p.awaitKnown(ctx, "policies", `"no-client"`, true); err != nil {
		return err
	}
	if err := p.hello(ctx, p.direct()); err == nil {
		return errors.New("a connection passes although a policy denies it")
	}
	if err := p.bed.SetPolicies(); err != nil {
		return err
	}
	if err := p.awaitKnown(ctx, "policies", `"no-client"`, false); err != nil {
		return err
	}
	return p.hello(ctx, p.direct())
}

// latePod adds a client after its ztunnel has its snapshot, and removes it.
func (p *place) latePod(ctx context.Context) error {
	late, err := p.near.AddPod(bed.PodOptions{Name: "late", Namespace: namespace})
	if err != nil {
		return err
	}
	if err := p.tell(); err != nil {
		return err
	}
	if err := p.helloFrom(ctx, late, p.direct()); err != nil {
		return err
	}
	if err := late.Remove(); err != nil {
		return err
	}
	if err := p.tell(); err != nil {
		return err
	}
	return p.awaitKnown(ctx, "workloads", `"late"`, false)
}

// handOver starts a second ztunnel of the same kind on the server's node, ends
// the first, and opens connections all the while: none may fail.
func (p *place) handOver(ctx context.Context) error {
	failures := make(chan error, 1)
	loop, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		n := 0
		for loop.Err() == nil {
			if err := p.hello(loop, p.direct()); err != nil && loop.Err() == nil {
				failures <- fmt.Errorf("connection %d: %w", n+1, err)
				return
			}
			n++
		}
		failures <- nil
	}()
	old := p.ztunnels[p.far]
	successor, err := p.far.StartZtunnel(ctx, p.binaries[p.far])
	if err != nil {
		return err
	}
	p.ztunnels[p.far] = successor
	if err := old.Stop(ctx); err != nil {
		return fmt.Errorf("the first one: %w", err)
	}
	if err := p.hello(ctx, p.direct()); err != nil {
		return err
	}
	stop()
	return <-failures
}

// restart kills the client's ztunnel and starts it again.
func (p *place) restart(ctx context.Context) error {
	p.ztunnels[p.near].Kill()
	if err := p.hello(ctx, p.direct()); err == nil {
		return errors.New("a connection passes without a ztunnel")
	}
	z, err := p.near.StartZtunnel(ctx, p.binaries[p.near])
	if err != nil {
		return err
	}
	p.ztunnels[p.near] = z
	return p.hello(ctx, p.direct())
}

// file writes a file into a directory of a run.
func file(dir, name string, text []byte) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, text, 0o600)
}
