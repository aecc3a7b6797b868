package bed

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// Node is a node with its agent.
type Node struct {
	Name string

	bed    *Bed
	number int
	ns     *netns.NS
	agent  *agent

	mu       sync.Mutex
	pods     []*Pod
	lastPod  int
	ztunnels []*Ztunnel
	homes    []*Pod // of the ztunnels, also of those that have ended
}

// Addr is the node's own address.
func (n *Node) Addr() netip.Addr { return nodeAddress(n.number).v4 }

// Namespace is the node's own network namespace.
func (n *Node) Namespace() *netns.NS { return n.ns }

// Pods returns the pods that there are now.
func (n *Node) Pods() []*Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.pods)
}

// start makes the namespace and the agent. The bed's lock is held.
func (n *Node) start() error {
	var err error
	if n.ns, err = newNamespace(); err != nil {
		return err
	}
	if err := joinNode(n.bed.wire, n.ns, n.number); err != nil {
		return err
	}
	for _, other := range n.bed.nodes {
		if err := introduce(n, other); err != nil {
			return err
		}
	}
	n.agent, err = startAgent(n.bed.dir + "/" + n.Name + ".sock")
	return err
}

func (n *Node) close() error {
	var errs []error
	n.mu.Lock()
	ztunnels, pods := n.ztunnels, append(n.homes, n.pods...)
	n.ztunnels, n.homes, n.pods = nil, nil, nil
	n.mu.Unlock()
	for _, z := range ztunnels {
		z.Kill()
	}
	if n.agent != nil {
		n.agent.stop()
	}
	for _, p := range pods {
		errs = append(errs, p.ns.Close())
	}
	if n.ns != nil {
		errs = append(errs, n.ns.Close())
	}
	return errors.Join(errs...)
}

// PodOptions say which pod to make.
type PodOptions struct {
	Name, Namespace string // both are required
	ServiceAccount  string // "" is the name
	Uncaptured      bool   // not in the mesh: no rules, unknown to ztunnel
	DNS             bool   // its name look-ups are captured, too
}

// AddPod makes a pod. A captured one is known to the node's ztunnel, if there
// is one, when AddPod returns. The control plane knows nothing of it before
// SetWorkloads.
func (n *Node) AddPod(o PodOptions) (*Pod, error) {
	p, err := n.newPod(o)
	if err != nil {
		return nil, fmt.Errorf("bed: pod %s: %w", o.Name, err)
	}
	n.mu.Lock()
	n.pods = append(n.pods, p)
	n.mu.Unlock()
	if o.Uncaptured {
		return p, nil
	}
	if err := p.Enrol(); err != nil {
		return nil, fmt.Errorf("bed: pod %s: %w", o.Name, err)
	}
	return p, nil
}

// newPod makes the namespace of a pod, which is nobody's yet.
func (n *Node) newPod(o PodOptions) (*Pod, error) {
	p := &Pod{Name: o.Name, Namespace: o.Namespace, ServiceAccount: o.ServiceAccount, node: n, dns: o.DNS}
	if p.ServiceAccount == "" {
		p.ServiceAccount = p.Name
	}
	n.mu.Lock()
	n.lastPod++
	p.number = n.lastPod
	n.mu.Unlock()
	if p.number > maxPods {
		return nil, fmt.Errorf("more than %d pods on node %s", maxPods, n.Name)
	}
	p.UID = fmt.Sprintf("%s-%d", n.Name, p.number)
	own := podAddress(n.number, p.number)
	p.Addr, p.Addr6 = own.v4, own.v6
	return p, p.make()
}
