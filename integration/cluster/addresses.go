package cluster

import (
	"fmt"
	"net/netip"
)

// Addresses are the same in every cluster, as each has its own network
// namespaces.
const (
	ClusterDomain = "cluster.local"

	podRange     = "10.244.0.0/16"
	serviceRange = "10.96.0.0/16"
	nodeRange    = "10.89.0.0/24"
	apiPort      = 6443
	maxNodes     = 9 // as many as have been thought of, and the letters of a name
)

var (
	controlPlaneAddress = netip.MustParseAddr("10.89.0.1")
	apiServiceAddress   = netip.MustParseAddr("10.96.0.1")
	dnsAddress          = netip.MustParseAddr("10.96.0.10")
)

// apiURL is where machines find the API server.
func apiURL() string {
	return "https://" + netip.AddrPortFrom(controlPlaneAddress, apiPort).String()
}

// machine is the control plane or a node of a cluster.
type machine struct {
	// node is the node's number, from 1; 0 is the control plane.
	node int
}

// name is what the machine is called, and its host name.
func (m machine) name() string {
	if m.node == 0 {
		return "cp"
	}
	return fmt.Sprintf("n%d", m.node)
}

func (m machine) address() netip.Addr {
	if m.node == 0 {
		return controlPlaneAddress
	}
	return netip.AddrFrom4([4]byte{10, 89, 0, byte(10 + m.node)})
}

// pods is the range of the node's pods.
func (m machine) pods() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(m.node), 0}), 24)
}

// machines are the control plane and so many nodes.
func machines(nodes int) []machine {
	all := make([]machine, nodes+1)
	for i := range all {
		all[i].node = i
	}
	return all
}
