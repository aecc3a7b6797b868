package bed

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// TrustDomain is that of every identity in a bed.
const TrustDomain = "cluster.local"

// Bed is a running test bed.
type Bed struct {
	dir     string // of the caller; sockets, tokens and logs go there
	wire    *netns.NS
	control *control

	mu    sync.Mutex
	nodes []*Node
}

// New makes a bed without nodes. Files go into dir, which stays the caller's.
// Its control plane serves until Close.
func New(dir string) (*Bed, error) {
	b := &Bed{dir: dir}
	var err error
	if b.wire, err = newNamespace(); err != nil {
		return nil, fmt.Errorf("bed: %w", err)
	}
	if err := b.wire.Do(layWire); err != nil {
		return nil, fmt.Errorf("bed: wire: %w", errors.Join(err, b.wire.Close()))
	}
	if b.control, err = startControl(b); err != nil {
		return nil, fmt.Errorf("bed: control plane: %w", errors.Join(err, b.wire.Close()))
	}
	return b, nil
}

// Close ends every process and the control plane, and gives up the namespaces.
func (b *Bed) Close() error {
	b.mu.Lock()
	nodes := slices.Clone(b.nodes)
	b.mu.Unlock()
	var errs []error
	for _, n := range nodes {
		errs = append(errs, n.close())
	}
	b.control.stop()
	return errors.Join(append(errs, b.wire.Close())...)
}

// AddNode makes a node with its agent and no ztunnel yet.
func (b *Bed) AddNode(name string) (*Node, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := &Node{Name: name, bed: b, number: len(b.nodes) + 1}
	if n.number > maxNodes {
		return nil, fmt.Errorf("bed: node %s: more than %d nodes", name, maxNodes)
	}
	if err := n.start(); err != nil {
		return nil, fmt.Errorf("bed: node %s: %w", name, errors.Join(err, n.close()))
	}
	b.nodes = append(b.nodes, n)
	return n, nil
}

// Outside returns an address of the wire that is in no mesh, for listeners of
// the caller: see Listen.
func (b *Bed) Outside() netip.Addr { return wireAddress }

// Dir is where the files of the bed are.
func (b *Bed) Dir() string { return b.dir }

// Namespace is the wire: neither a node nor a pod.
func (b *Bed) Namespace() *netns.NS { return b.wire }

// podsOf returns the pods of a node, those of ztunnels among them; nil when there
// is no such node.
func (b *Bed) podsOf(node string) []*Pod {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.nodes {
		if n.Name == node {
			n.mu.Lock()
			defer n.mu.Unlock()
			return slices.Concat(n.homes, n.pods)
		}
	}
	return nil
}

// file writes a file for a ztunnel to read.
func (b *Bed) file(name string, data []byte) (string, error) {
	path := b.dir + "/" + name
	return path, os.WriteFile(path, data, 0o600)
}
