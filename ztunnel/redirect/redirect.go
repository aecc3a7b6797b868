// Package redirect programs the rules inside a pod's network namespace that bring the
// pod's new TCP connections, and its DNS questions if wanted, to ztunnel's sockets there,
// over netlink: one nftables table, one routing rule and one route per address family. In
// the host's namespace it programs one table, by which pods recognise the node's probes
// (Host).
//
// It owns these objects and nothing else in either namespace, and keeps no state: what
// is there is read from the kernel. It knows no pods; ztunnel/cni calls it. Every function
// may be called again, whatever an earlier call left; calls for one namespace must not
// overlap.
//
// Only the packet that opens a connection is redirected. A connection that is older
// than the rules is left alone in both directions, and one that was redirected outlives
// the redirection (Release) until Remove takes the rest away. The meaning of the rules
// is spec/ztunnel.md App. C; the guard is DESIGN.md §5.
package redirect

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrUnsupported says that the kernel lacks something; the error names it.
var ErrUnsupported = errors.New("unsupported kernel")

// Options are what may differ between pods.
type Options struct {
	// DNS redirects what the pod asks of resolvers, too: UDP and TCP to port 53, except
	// over loopback.
	DNS bool
}

// Apply makes the namespace redirect new connections, except the node's probes: see
// Host. It changes nothing when the rules are already there, and replaces them in one
// transaction when they differ.
func Apply(ns *os.File, o Options) error {
	return inside(ns, func(fd int) error {
		if err := routes(fd, (*netlink.Handle).RuleAdd, (*netlink.Handle).RouteReplace, unix.EEXIST); err != nil {
			return fmt.Errorf("policy route: %w", err)
		}
		return program(fd, captureRules(o))
	})
}

// Release ends the redirection of new connections and keeps those alive that were
// redirected: connection tracking, marks and the policy route stay.
func Release(ns *os.File) error {
	return inside(ns, func(fd int) error { return program(fd, releaseRules()) })
}

// Remove takes away everything that Apply made. Connections that were redirected do
// not survive it: see Connections.
func Remove(ns *os.File) error {
	return inside(ns, func(fd int) error {
		c, err := nftables.New(nftables.WithNetNSFd(fd))
		if err != nil {
			return err
		}
		c.AddTable(table) // so that deleting cannot fail
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			return fmt.Errorf("remove table: %w", err)
		}
		if err := routes(fd, (*netlink.Handle).RuleDel, (*netlink.Handle).RouteDel, unix.ENOENT, unix.ESRCH); err != nil {
			return fmt.Errorf("policy route: %w", err)
		}
		return forgetQuestions(fd)
	})
}

// Connections counts the open connections that depend on what Release leaves:
// redirected ones, and those from ztunnel to the application.
func Connections(ns *os.File) (int, error) {
	n := 0
	err := inside(ns, func(fd int) error {
		return eachFamily(fd, func(h *netlink.Handle, family netlink.InetFamily) error {
			flows, err := h.ConntrackTableList(netlink.ConntrackTable, family)
			for _, f := range flows {
				if isOpen(f) && isOurs(f) {
					n++
				}
			}
			return err
		})
	})
	return n, err
}

// inside runs f with the namespace's descriptor.
func inside(ns *os.File, do func(fd int) error) error {
	rc, err := ns.SyscallConn()
	if err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	if cerr := rc.Control(func(fd uintptr) { err = do(int(fd)) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	return nil
}
