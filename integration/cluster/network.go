package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	netNSDir   = "/run/netns" // where ip-netns(8) looks, too
	bridgeName = "nodes"
	nodeLink   = "eth0"
)

// netNSName is the name of a machine's network namespace.
func netNSName(cluster, machine string) string { return "ambit-" + cluster + "-" + machine }

// onThread runs f on an operating system thread of its own that ends with f,
// so that f may change the thread's namespaces and leave them changed. Go makes
// new threads only from one that was never locked, so none inherits the change.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- f()
	}()
	return <-result
}

// inNetNS runs f on a thread in the named network namespace.
func inNetNS(name string, f func() error) error {
	return onThread(func() error {
		file, err := os.Open(filepath.Join(netNSDir, name))
		if err != nil {
			return err
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", name, err)
		}
		return f()
	})
}

// newNetNS makes a named network namespace, in which nobody is, and prepares
// it: loopback up, packets forwarded whatever way they come.
func newNetNS(name string) error {
	lock, err := lockNetNSDir()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := makeNetNSDir(); err != nil {
		return err
	}
	path := filepath.Join(netNSDir, name)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_ = file.Close()
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind network namespace to %s: %w", path, err)
		}
		return prepareNetNS()
	})
}

// lockNetNSDir keeps other clusters from making the directory of names, or
// removing it, at the same time.
func lockNetNSDir() (*os.File, error) {
	return lockFile(context.Background(), filepath.Dir(netNSDir), os.O_RDONLY, func() {}) // nobody has it for long
}

// makeNetNSDir makes the directory as ip-netns(8) does: a mount of its own. Made
// otherwise, ip would lay its mount over our names, and nobody could take them
// away any more.
func makeNetNSDir() error {
	if err := os.MkdirAll(netNSDir, 0o755); err != nil {
		return err
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if slices.Contains(mountsBelow(string(mountinfo), filepath.Dir(netNSDir)), netNSDir) {
		return nil
	}
	if err := mount(netNSDir, netNSDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return mount("", netNSDir, "", unix.MS_SHARED|unix.MS_REC, "")
}

// removeNetNSDir removes the directory when there is no name in it.
func removeNetNSDir() error {
	lock, err := lockNetNSDir()
	if err != nil {
		return err
	}
	defer lock.Close()
	entries, err := os.ReadDir(netNSDir)
	if err != nil || len(entries) > 0 {
		return ignoring(err, fs.ErrNotExist)
	}
	if err := unix.Unmount(netNSDir, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return nil //nolint:nilerr // somebody is in it: it stays
	}
	return os.Remove(netNSDir)
}

// prepareNetNS sets up the network namespace of the calling thread.
func prepareNetNS() error {
	for _, setting := range []struct{ name, value string }{
		{"ipv4/ip_forward", "1"},
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
		{"ipv4/conf/all/send_redirects", "0"},
		{"ipv4/conf/default/send_redirects", "0"},
		{"bridge/bridge-nf-call-iptables", "0"}, // where br_netfilter is loaded
		{"bridge/bridge-nf-call-ip6tables", "0"},
	} {
		file, err := os.OpenFile("/proc/sys/net/"+setting.name, os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = file.WriteString(setting.value)
		if err = errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return linkUp(lo)
}

// dropNetNS takes the name away; the namespace ends with its last user.
func dropNetNS(name string) error {
	path := filepath.Join(netNSDir, name)
	// More than once where a start was interrupted between two mounts.
	for unix.Unmount(path, unix.MNT_DETACH) == nil {
	}
	return ignoring(os.Remove(path), fs.ErrNotExist)
}

// ignoring is the error, unless it is the one that does not matter.
func ignoring(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

// netNSNames are the names that belong to the cluster, whoever made them.
func netNSNames(cluster string) ([]string, error) {
	entries, err := os.ReadDir(netNSDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	own := regexp.MustCompile("^" + regexp.QuoteMeta(netNSName(cluster, "")) + "(cp|n[0-9]+)$")
	var names []string
	for _, entry := range entries {
		if own.MatchString(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// makeNetworks makes the machines' network namespaces and joins them.
func makeNetworks(cluster string, all []machine) error {
	for _, m := range all {
		if err := newNetNS(netNSName(cluster, m.name())); err != nil {
			return err
		}
	}
	cp := netNSName(cluster, all[0].name())
	if err := inNetNS(cp, makeBridge); err != nil {
		return fmt.Errorf("%s: %w", cp, err)
	}
	for _, node := range all[1:] {
		if err := connect(cluster, node); err != nil {
			return fmt.Errorf("%s: %w", node.name(), err)
		}
	}
	// Routes need all links.
	for _, m := range all {
		if err := inNetNS(netNSName(cluster, m.name()), func() error { return addRoutes(m, all) }); err != nil {
			return fmt.Errorf("%s: %w", m.name(), err)
		}
	}
	return nil
}

func makeBridge() error {
	bridge := &netlink.Bridge{Name: bridgeName}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make bridge: %w", err)
	}
	return addAddress(bridge, controlPlaneAddress)
}

// connect joins a node's namespace to the bridge.
func connect(cluster string, node machine) error {
	target, err := os.Open(filepath.Join(netNSDir, netNSName(cluster, node.name())))
	if err != nil {
		return err
	}
	defer target.Close()
	err = inNetNS(netNSName(cluster, machine{}.name()), func() error {
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		veth := &netlink.Veth{
			Name:          node.name(),
			MasterIndex:   bridge.Attrs().Index,
			PeerName:      nodeLink,
			PeerNamespace: netlink.NsFd(int(target.Fd())),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make veth: %w", err)
		}
		return linkUp(veth)
	})
	if err != nil {
		return err
	}
	return inNetNS(netNSName(cluster, node.name()), func() error {
		link, err := netlink.LinkByName(nodeLink)
		if err != nil {
			return err
		}
		return addAddress(link, node.address())
	})
}

// addRoutes gives the machine ways to the others' pods; the control plane one
// to the services as well, of which the first node knows the endpoints.
func addRoutes(m machine, all []machine) error {
	for _, node := range all[1:] {
		if node == m {
			continue
		}
		if err := addRoute(node.pods(), node.address()); err != nil {
			return err
		}
	}
	if m.node != 0 {
		return addRoute(netip.MustParsePrefix("0.0.0.0/0"), controlPlaneAddress)
	}
	if len(all) > 1 {
		return addRoute(netip.MustParsePrefix(serviceRange), all[1].address())
	}
	return nil
}

func addAddress(link netlink.Link, address netip.Addr) error {
	bits := netip.MustParsePrefix(nodeRange).Bits()
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(address, bits))}); err != nil {
		return fmt.Errorf("add address %s: %w", address, err)
	}
	return linkUp(link)
}

func addRoute(to netip.Prefix, via netip.Addr) error {
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("add route to %s via %s: %w", to, via, err)
	}
	return nil
}

func linkUp(link netlink.Link) error {
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
