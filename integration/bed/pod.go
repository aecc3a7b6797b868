package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"

	"github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// Pod is a pod: a namespace with an address of each family.
type Pod struct {
	Name, Namespace, ServiceAccount string
	UID                             string
	Addr, Addr6                     netip.Addr

	node     *Node
	number   int
	ns       *netns.NS
	dns      bool
	enrolled bool // of the caller that enrols; one at a time
}

func (p *Pod) make() error {
	var err error
	if p.ns, err = newNamespace(); err != nil {
		return err
	}
	if err := joinPod(p.node.ns, p.node.number, p); err != nil {
		return errors.Join(err, p.ns.Close())
	}
	return nil
}

// Enrol puts the pod into the mesh in the order of Istio's agent: rules, then
// ztunnel, whose acknowledgement it awaits.
func (p *Pod) Enrol() error {
	if err := redirect.Apply(p.ns.File(), redirect.Options{DNS: p.dns}); err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	p.enrolled = true
	return p.node.agent.add(p)
}

// Release takes the pod out of the mesh: rules for new connections first, then
// ztunnel is told.
func (p *Pod) Release() error {
	if err := redirect.Release(p.ns.File()); err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	p.enrolled = false
	return p.node.agent.remove(p)
}

// Remove deletes the pod.
func (p *Pod) Remove() error {
	var err error
	if p.enrolled {
		err = p.node.agent.remove(p)
	}
	p.node.mu.Lock()
	p.node.pods = slices.DeleteFunc(p.node.pods, func(other *Pod) bool { return other == p })
	p.node.mu.Unlock()
	return errors.Join(err, p.ns.Close())
}

// Node is the node that the pod runs on.
func (p *Pod) Node() *Node { return p.node }

// NetNS is the pod's namespace.
func (p *Pod) NetNS() *netns.NS { return p.ns }

// Listen listens in the pod on all its addresses; port 0 lets the kernel choose.
func (p *Pod) Listen(port uint16) (*net.TCPListener, error) {
	return p.ns.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), port), netns.ListenOptions{})
}

// Dial connects from the pod, as an application there would.
func (p *Pod) Dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	return p.ns.Dial(ctx, to, netns.DialOptions{})
}

// Start starts a command in the pod's network namespace; the caller waits for
// it. It is killed when this process ends.
func (p *Pod) Start(c *exec.Cmd) error { return start(p.ns, c) }

// Exec runs a program in the pod and returns what it wrote.
func (p *Pod) Exec(ctx context.Context, name string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out // one writer: exec writes both from one goroutine
	if err := p.Start(c); err != nil {
		return "", err
	}
	err := c.Wait()
	if err != nil {
		err = fmt.Errorf("pod %s: %s: %w", p.Name, name, err)
	}
	return out.String(), err
}

// Workload describes the pod as istiod would: an enrolled pod speaks HBONE. The
// caller may change the message before it gives it to SetWorkloads.
func (p *Pod) Workload() *workload.Workload {
	w := &workload.Workload{
		Uid: "Kubernetes//Pod/" + p.Namespace + "/" + p.Name, Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount,
		Addresses: [][]byte{p.Addr.AsSlice(), p.Addr6.AsSlice()}, Node: p.node.Name, ClusterId: "Kubernetes",
		WorkloadName: p.Name, WorkloadType: workload.WorkloadType_POD, CanonicalName: p.Name, CanonicalRevision: "latest",
		Status: workload.WorkloadStatus_HEALTHY,
	}
	if p.enrolled {
		w.TunnelProtocol = workload.TunnelProtocol_HBONE
	}
	return w
}
