package netnstest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// The node's addresses, the gateways of every pod.
var (
	NodeAddr  = netip.MustParseAddr("10.244.0.1")
	NodeAddr6 = netip.MustParseAddr("fd00:244::1")
)

// Pod is a namespace with an address, a route to every other pod through the node, and
// nothing in it.
type Pod struct {
	NS    *netns.NS
	Path  string // a name of the namespace in the file system
	Addr  netip.Addr
	Addr6 netip.Addr // invalid where the kernel has no IPv6
}

var lastPod atomic.Uint32

// NewPod makes a pod that goes when the test ends.
func NewPod(tb testing.TB) *Pod {
	tb.Helper()
	n := lastPod.Add(1) + 1
	if n > 250 {
		tb.Fatal("too many pods for their address range")
	}
	p := &Pod{
		Path: filepath.Join(tb.TempDir(), fmt.Sprintf("pod-%d", n)),
		Addr: netip.AddrFrom4([4]byte{10, 244, 0, byte(n)}),
	}
	if haveIPv6() {
		p.Addr6 = netip.MustParseAddr(fmt.Sprintf("fd00:244::%x", n))
	}
	must(tb, "namespace", p.make())
	tb.Cleanup(func() {
		_ = p.NS.Close()
		must(tb, "unmount namespace", unix.Unmount(p.Path, unix.MNT_DETACH))
	})
	must(tb, "veth", p.connect(fmt.Sprintf("veth%d", n)))
	return p
}

// NewNS makes a namespace without any link but lo.
func NewNS(tb testing.TB) *netns.NS {
	tb.Helper()
	p := &Pod{Path: filepath.Join(tb.TempDir(), "ns")}
	must(tb, "namespace", p.make())
	tb.Cleanup(func() {
		_ = p.NS.Close()
		must(tb, "unmount namespace", unix.Unmount(p.Path, unix.MNT_DETACH))
	})
	return p.NS
}

// make makes the namespace on a thread that returns home, by way of Do.
func (p *Pod) make() error {
	home, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = home.Close() }()
	if err := os.WriteFile(p.Path, nil, 0o600); err != nil {
		return err
	}
	err = home.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", p.Path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount: %w", err)
		}
		if haveIPv6() {
			if err := noDAD(); err != nil {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		return err
	}
	p.NS, err = netns.Open(p.Path)
	return err
}

// Unplug makes the pod unreachable: its packets, and those to it, vanish.
func (p *Pod) Unplug(tb testing.TB) {
	tb.Helper()
	must(tb, "unplug", p.NS.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	}))
}

// connect joins the pod with the node.
func (p *Pod) connect(nodeEnd string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nodeEnd
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(p.NS.File().Fd()))}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	if err := setUp(nodeEnd, NodeAddr, NodeAddr6, p.Addr6.IsValid()); err != nil {
		return err
	}
	if err := p.NS.Do(func() error { return setUp("eth0", p.Addr, p.Addr6, p.Addr6.IsValid()) }); err != nil {
		return err
	}
	for _, pair := range [][2]netip.Addr{{p.Addr, NodeAddr}, {p.Addr6, NodeAddr6}} {
		if !pair[0].IsValid() {
			continue
		}
		if err := route(nodeEnd, pair[0], netip.Addr{}); err != nil {
			return err
		}
		err := p.NS.Do(func() error {
			if err := route("eth0", pair[1], netip.Addr{}); err != nil {
				return err
			}
			return route("eth0", netip.Addr{}, pair[1])
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func setUp(name string, a4, a6 netip.Addr, ipv6 bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: host(a4)}); err != nil {
		return fmt.Errorf("address %s: %w", a4, err)
	}
	if ipv6 {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: host(a6), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %s: %w", a6, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// route adds a route to one address, or the default route through one.
func route(dev string, to, through netip.Addr) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index}
	if to.IsValid() {
		r.Dst, r.Scope = host(to), netlink.SCOPE_LINK
	} else {
		r.Gw, r.Flags = through.AsSlice(), int(netlink.FLAG_ONLINK)
		r.Dst = &net.IPNet{IP: make(net.IP, len(r.Gw)), Mask: make(net.IPMask, len(r.Gw))}
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("route %v: %w", r, err)
	}
	return nil
}

func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func must(tb testing.TB, what string, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatalf("%s: %v", what, err)
	}
}
