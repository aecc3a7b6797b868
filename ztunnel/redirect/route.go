package redirect

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// routes adds or removes what brings the application's answers to a foreign address
// back to ztunnel: packets with the connection mark are looked up in a table that
// delivers everything locally. Errors among fine mean that there is nothing to do.
func routes(fd int, doRule func(*netlink.Handle, *netlink.Rule) error, doRoute func(*netlink.Handle, *netlink.Route) error, fine ...unix.Errno) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		addrs, err := h.AddrList(lo, family)
		if err != nil || (family == unix.AF_INET6 && len(addrs) == 0) {
			continue // this namespace has no IPv6
		}
		if err := ignore(doRule(h, policyRule(family)), fine); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
				return fmt.Errorf("%w: no policy routing (CONFIG_IP_MULTIPLE_TABLES)", ErrUnsupported)
			}
			return fmt.Errorf("rule: %w", err)
		}
		if err := ignore(doRoute(h, localRoute(family, lo.Attrs().Index)), fine); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	}
	return nil
}

func ignore(err error, fine []unix.Errno) error {
	for _, e := range fine {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

func policyRule(family int) *netlink.Rule {
	r := netlink.NewRule()
	mask := mesh.MarkMask
	r.Family, r.Priority, r.Table = family, mesh.RoutePriority, mesh.RouteTable
	r.Mark, r.Mask = mesh.MarkConnection, &mask
	return r
}

func localRoute(family, lo int) *netlink.Route {
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if family == unix.AF_INET6 {
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{
		Family:    family,
		Dst:       all,
		LinkIndex: lo,
		Table:     mesh.RouteTable,
		Type:      unix.RTN_LOCAL,
		Scope:     netlink.SCOPE_HOST,
	}
}
