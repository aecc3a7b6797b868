package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// node is one node: namespaces, addresses, and what of /run is its own.
type node struct {
	name    string
	uid     string
	number  int
	address netip.Addr
	gateway netip.Addr // of its pods
	place   place
	nat     *nat
	created time.Time

	next byte // cluster.run's: last part of the pod address given last

	mu  sync.Mutex
	own []string // paths below /run that are not shared with other nodes
}

// newNode makes node number n of total.
func newNode(own *os.File, n, total int) (*node, error) {
	made := &node{
		name: fmt.Sprintf("n%d", n), number: n, address: nodeAddress(n), gateway: podGateway(n), next: 1,
		created: time.Now(), own: slices.Clone(nodeOwn),
	}
	made.uid = derivedUID("Node", "", made.name)
	var err error
	if made.place.net, err = newNetNS("node-" + made.name); err != nil {
		return nil, fmt.Errorf("node %s: %w", made.name, err)
	}
	if err := connectNode(own, made.place.net, n, total); err != nil {
		return nil, fmt.Errorf("node %s: %w", made.name, err)
	}
	if made.place.uts, err = newHostName(made.name); err != nil {
		return nil, fmt.Errorf("node %s: %w", made.name, err)
	}
	resolv := filepath.Join(labDir, "resolv.conf")
	made.place.mount, err = newMounts(place{net: made.place.net}, unix.MS_SLAVE, func() error {
		for _, dir := range nodeOwn {
			if err := mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
				return err
			}
		}
		return bindFile(resolv, "/etc/resolv.conf")
	})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", made.name, err)
	}
	made.nat = &nat{ns: made.place.net}
	return made, nil
}

// newAddress is the next free address for a pod.
func (n *node) newAddress(used func(netip.Addr) bool) (netip.Addr, error) {
	for range 253 {
		if n.next++; n.next == 255 {
			n.next = 2
		}
		a := podCIDR(n.number).Addr().As4()
		a[3] = n.next
		if address := netip.AddrFrom4(a); !used(address) {
			return address, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("node %s has no address left", n.name)
}

// dial connects from the node.
func (n *node) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var conn net.Conn
	err := inNet(n.place.net, func() error {
		// One address means that the socket is made on this very thread.
		var err error
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", to.String())
		return err
	})
	return conn, err
}

// ownPath makes a directory below /run that is not the other nodes'. Paths
// elsewhere are the machine's, and the lab leaves them alone.
func (n *node) ownPath(path string) error {
	path = filepath.Clean(path)
	if rest, ok := strings.CutPrefix(path, "/var/run"); ok {
		path = runDir + rest
	}
	if !inRun(path) {
		return fmt.Errorf("hostPath %s: only paths below /run are a node's own", path)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, own := range append(n.own, netNSDir) {
		if path == own || strings.HasPrefix(path, own+"/") {
			return inMounts(n.place.mount, func() error { return os.MkdirAll(path, 0o755) })
		}
	}
	source := filepath.Join(labDir, "nodes", n.name, strings.ReplaceAll(strings.TrimPrefix(path, "/run/"), "/", "_"))
	for _, dir := range []string{path, source} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	err := inMounts(n.place.mount, func() error { return mount(source, path, "", unix.MS_BIND, "") })
	if err == nil {
		n.own = append(n.own, path)
	}
	return err
}

func inMounts(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := (place{mount: ns}).enter(); err != nil {
			return err
		}
		return f()
	})
}

// object is the Node as a cluster would have it.
func (n *node) object() *corev1.Node {
	return &corev1.Node{
		APIVersion: "v1", Kind: "Node",
		Name: n.name, UID: types.UID(n.uid), CreationTimestamp: metav1.NewTime(n.created),
		Labels: map[string]string{corev1.LabelHostname: n.name, corev1.LabelOSStable: "linux"},
		Spec:   corev1.NodeSpec{PodCIDR: podCIDR(n.number).String(), PodCIDRs: []string{podCIDR(n.number).String()}},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: n.address.String()},
				{Type: corev1.NodeHostName, Address: n.name},
			},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}},
		},
	}
}

// setUpNodes makes the wire and the nodes.
func setUpNodes(count int) ([]*node, error) {
	own, err := openOwn("net")
	if err != nil {
		return nil, err
	}
	defer own.Close()
	if err := setUpBridge(own); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(labDir, "resolv.conf"), []byte(resolvConf(corev1.NamespaceDefault)), 0o644); err != nil {
		return nil, err
	}
	nodes := make([]*node, count)
	for i := range nodes {
		n, nodeErr := newNode(own, i+1, count)
		nodes[i], err = n, errors.Join(err, nodeErr)
	}
	return nodes, err
}
