package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Addresses, as in the cluster test bed.
var (
	nodeNetwork    = netip.MustParsePrefix("10.89.0.0/24")
	nodeGateway    = netip.MustParseAddr("10.89.0.1")
	podNetwork     = netip.MustParsePrefix("10.244.0.0/16")
	serviceNetwork = netip.MustParsePrefix("10.96.0.0/16")
	dnsAddress     = netip.MustParseAddr("10.96.0.10")
	dnsEndpoint    = netip.AddrPortFrom(dnsAddress, 53)
)

const (
	bridgeName = "lab0"
	maxNodes   = 200
)

// nodeAddress is 10.89.0.1N.
func nodeAddress(n int) netip.Addr {
	a := nodeNetwork.Addr().As4()
	a[3] = byte(10 + n)
	return netip.AddrFrom4(a)
}

// podCIDR is 10.244.N.0/24.
func podCIDR(n int) netip.Prefix {
	a := podNetwork.Addr().As4()
	a[2] = byte(n)
	return netip.PrefixFrom(netip.AddrFrom4(a), 24)
}

// podGateway is 10.244.N.1: what a pod sees as its router, and where the
// kubelet's probes come from.
func podGateway(n int) netip.Addr { return podCIDR(n).Addr().Next() }

// netHandle is a netlink connection inside a namespace with errors that name
// what was tried.
type netHandle struct{ *netlink.Handle }

func newNetHandle(ns *os.File) (netHandle, error) {
	handle, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return netHandle{}, fmt.Errorf("netlink: %w", err)
	}
	return netHandle{handle}, nil
}

// addAddress gives the interface an address and brings it up.
func (h netHandle) addAddress(link string, address netip.Prefix) (netlink.Link, error) {
	l, err := h.LinkByName(link)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", link, err)
	}
	if err := h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
		return nil, fmt.Errorf("add address %s to %s: %w", address, link, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("%s up: %w", link, err)
	}
	return l, nil
}

// addRoute adds a route; an invalid via means that the target is on the link.
func (h netHandle) addRoute(to netip.Prefix, via netip.Addr, link netlink.Link) error {
	route := &netlink.Route{Dst: ipNet(to), LinkIndex: link.Attrs().Index}
	if via.IsValid() {
		route.Gw = via.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("add route to %s: %w", to, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

var everywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// setUpBridge makes pid 1's own network namespace the wire between the nodes.
// It also is the home of the DNS server's address, and the end of every way
// that leads out of the lab.
func setUpBridge(own *os.File) error {
	if err := prepareNetNS(); err != nil {
		return err
	}
	h, err := newNetHandle(own)
	if err != nil {
		return err
	}
	defer h.Close()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = bridgeName
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	if _, err := h.addAddress(bridgeName, netip.PrefixFrom(nodeGateway, nodeNetwork.Bits())); err != nil {
		return err
	}
	if _, err := h.addAddress("lo", host(dnsAddress)); err != nil {
		return err
	}
	unreachable := &netlink.Route{Dst: ipNet(serviceNetwork), Type: unix.RTN_UNREACHABLE}
	if err := h.RouteAdd(unreachable); err != nil {
		return fmt.Errorf("add unreachable route: %w", err)
	}
	return nil
}

// connectNode joins node n of total to the bridge and sets its routes.
func connectNode(own, node *os.File, n, total int) error {
	h, err := newNetHandle(own)
	if err != nil {
		return err
	}
	defer h.Close()
	bridge, err := h.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	name := fmt.Sprintf("node%d", n)
	if err := h.addVeth(name, node); err != nil {
		return err
	}
	port, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := h.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("join %s to the bridge: %w", name, err)
	}
	if err := h.LinkSetUp(port); err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	if err := h.addRoute(podCIDR(n), nodeAddress(n), bridge); err != nil {
		return err
	}

	in, err := newNetHandle(node)
	if err != nil {
		return err
	}
	defer in.Close()
	eth0, err := in.addAddress("eth0", netip.PrefixFrom(nodeAddress(n), nodeNetwork.Bits()))
	if err != nil {
		return err
	}
	if err := in.addRoute(everywhere, nodeGateway, eth0); err != nil {
		return err
	}
	for other := 1; other <= total; other++ {
		if other == n {
			continue
		}
		if err := in.addRoute(podCIDR(other), nodeAddress(other), eth0); err != nil {
			return err
		}
	}
	return nil
}

// addVeth makes a pair of interfaces: one here with the name, its peer eth0.
func (h netHandle) addVeth(name string, peer *os.File) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = name
	veth := &netlink.Veth{LinkAttrs: attributes, PeerName: "eth0", PeerNamespace: netlink.NsFd(peer.Fd())}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s: %w", name, err)
	}
	return nil
}

// connectPod joins a pod to its node, as CNI's ptp plugin does: an address of
// its own without a network, and the gateway's on the node's end.
func connectPod(node, pod *os.File, link string, address, gateway netip.Addr) error {
	h, err := newNetHandle(node)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.addVeth(link, pod); err != nil {
		return err
	}
	near, err := h.addAddress(link, host(gateway))
	if err != nil {
		return err
	}
	if err := h.addRoute(host(address), netip.Addr{}, near); err != nil {
		return err
	}

	in, err := newNetHandle(pod)
	if err != nil {
		return err
	}
	defer in.Close()
	eth0, err := in.addAddress("eth0", host(address))
	if err != nil {
		return err
	}
	if err := in.addRoute(host(gateway), netip.Addr{}, eth0); err != nil {
		return err
	}
	return in.addRoute(everywhere, gateway, eth0)
}

// disconnectPod removes the node's end, and so the pair.
func disconnectPod(node *os.File, link string) error {
	h, err := newNetHandle(node)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if err != nil {
		return nil //nolint:nilerr // gone already
	}
	return h.LinkDel(l)
}
