package bed

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// Addresses: those of the lab and of the cluster test bed.
var (
	wireAddress  = netip.MustParseAddr("10.89.0.1")
	wireAddress6 = netip.MustParseAddr("fd00:89::1")
)

const (
	bridge   = "bed0"
	uplink   = "eth0"
	maxNodes = 200
	maxPods  = 250 // of a node
)

// address is one of both families.
type address struct{ v4, v6 netip.Addr }

func nodeAddress(node int) address {
	return address{
		netip.AddrFrom4([4]byte{10, 89, 0, byte(10 + node)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:89::%x", 10+node)),
	}
}

// podAddress is a pod's; pod 0 is the gateway of the node's pods.
func podAddress(node, pod int) address {
	return address{
		netip.AddrFrom4([4]byte{10, 244, byte(node), byte(pod + 1)}),
		netip.MustParseAddr(fmt.Sprintf("fd00:244:%x::%x", node, pod+1)),
	}
}

// settings of every namespace. The last two are for benchmarks: one client
// opens more connections per minute than there are ports by default.
var settings = []struct{ path, value string }{
	{"ipv6/conf/default/accept_dad", "0"},
	{"ipv6/conf/all/forwarding", "1"},
	{"ipv4/ip_forward", "1"},
	{"ipv4/conf/all/rp_filter", "0"},
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/ip_local_port_range", "10240 65000"},
	{"ipv4/tcp_tw_reuse", "1"},
}

// newNamespace makes a network namespace without a name whose loopback is up.
// Its thread returns home by way of Do, because a thread that ended would end
// the processes that it has started (see Node.Start).
func newNamespace() (*netns.NS, error) {
	home, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	defer func() { _ = home.Close() }()
	var file *os.File
	err = home.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		for _, s := range settings {
			if err := os.WriteFile("/proc/sys/net/"+s.path, []byte(s.value), 0o600); err != nil {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("loopback up: %w", err)
		}
		file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	return netns.FromFile(file)
}

// layWire makes the calling thread's namespace the wire between the nodes.
func layWire() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridge
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	if err := addAddress(bridge, netip.PrefixFrom(wireAddress, 24)); err != nil {
		return err
	}
	return addAddress(bridge, netip.PrefixFrom(wireAddress6, 64))
}

// joinNode connects a node with the wire.
func joinNode(wire, node *netns.NS, number int) error {
	a, pods := nodeAddress(number), podAddress(number, 0)
	err := wire.Do(func() error {
		name := fmt.Sprintf("node%d", number)
		if err := addPair(name, node.File()); err != nil {
			return err
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		to, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, to); err != nil {
			return fmt.Errorf("join %s to the bridge: %w", name, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		if err := addRoute(bridge, netip.PrefixFrom(pods.v4, 24), a.v4); err != nil {
			return err
		}
		return addRoute(bridge, netip.PrefixFrom(pods.v6, 64), a.v6)
	})
	if err != nil {
		return err
	}
	return node.Do(func() error {
		if err := addAddress(uplink, netip.PrefixFrom(a.v4, 24)); err != nil {
			return err
		}
		if err := addAddress(uplink, netip.PrefixFrom(a.v6, 64)); err != nil {
			return err
		}
		if err := addRoute(uplink, anywhere4, wireAddress); err != nil {
			return err
		}
		return addRoute(uplink, anywhere6, wireAddress6)
	})
}

// introduce gives two nodes the direct way to each other's pods.
func introduce(a, b *Node) error {
	for _, pair := range [][2]*Node{{a, b}, {b, a}} {
		via, pods := nodeAddress(pair[1].number), podAddress(pair[1].number, 0)
		err := pair[0].ns.Do(func() error {
			if err := addRoute(uplink, netip.PrefixFrom(pods.v4, 24), via.v4); err != nil {
				return err
			}
			return addRoute(uplink, netip.PrefixFrom(pods.v6, 64), via.v6)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// joinPod connects a pod with its node as CNI's ptp plugin does.
func joinPod(node *netns.NS, number int, p *Pod) error {
	gateway := podAddress(number, 0)
	err := node.Do(func() error {
		name := fmt.Sprintf("pod%d", p.number)
		if err := addPair(name, p.ns.File()); err != nil {
			return err
		}
		for _, pair := range [][2]netip.Addr{{gateway.v4, p.Addr}, {gateway.v6, p.Addr6}} {
			if err := addAddress(name, host(pair[0])); err != nil {
				return err
			}
			if err := addRoute(name, host(pair[1]), netip.Addr{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.ns.Do(func() error {
		for _, way := range []struct {
			own, gateway netip.Addr
			all          netip.Prefix
		}{{p.Addr, gateway.v4, anywhere4}, {p.Addr6, gateway.v6, anywhere6}} {
			if err := addAddress(uplink, host(way.own)); err != nil {
				return err
			}
			if err := addRoute(uplink, host(way.gateway), netip.Addr{}); err != nil {
				return err
			}
			if err := addRoute(uplink, way.all, way.gateway); err != nil {
				return err
			}
		}
		return nil
	})
}

var (
	anywhere4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	anywhere6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// addPair makes a veth pair: name here, uplink in the other namespace.
func addPair(name string, other *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsFd(int(other.Fd()))}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	return nil
}

// addAddress gives a link of the calling thread's namespace an address and
// brings it up.
func addAddress(link string, a netip.Prefix) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find %s: %w", link, err)
	}
	own := &netlink.Addr{IPNet: network(a)}
	if a.Addr().Is6() {
		own.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(l, own); err != nil {
		return fmt.Errorf("address %s of %s: %w", a, link, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("%s up: %w", link, err)
	}
	return nil
}

// addRoute adds a route; an invalid via means that the target is on the link.
func addRoute(link string, to netip.Prefix, via netip.Addr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find %s: %w", link, err)
	}
	r := &netlink.Route{Dst: network(to.Masked()), LinkIndex: l.Attrs().Index}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("route to %s by %s: %w", to, link, err)
	}
	return nil
}

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
