package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// openPodNS is the only way to a pod's namespace: what is under the path may be another
// pod's by now, or the host's, because process numbers come again. It is the pod's if it
// has one of the pod's addresses.
func openPodNS(path string, ips []netip.Addr) (*netns.NS, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	if err := checkPodNS(ns, ips); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), ns.Close())
	}
	return ns, nil
}

func checkPodNS(ns *netns.NS, ips []netip.Addr) error {
	if err := ns.Check(); err != nil {
		return err
	}
	host, err := netns.Open("/proc/thread-self/ns/net") // where the agent runs
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	if ns.Same(host) {
		return errors.New("the network namespace is the host's")
	}
	addrs, err := addressesIn(ns)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(ips, func(a netip.Addr) bool { return addrs[a] }) {
		return fmt.Errorf("%s has none of the addresses %v", ns, ips)
	}
	return nil
}

func addressesIn(ns *netns.NS) (map[netip.Addr]bool, error) {
	all := map[netip.Addr]bool{}
	err := ns.Do(func() error {
		addrs, err := net.InterfaceAddrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				all[p.Addr().Unmap()] = true
			}
		}
		return err
	})
	return all, err
}

// holds says whether the namespace is the pod's, as far as is known.
func (e *entry) holds(ns *netns.NS) bool {
	if e.ns != nil {
		return e.ns.Same(ns)
	}
	return e.reachable() && leadsTo(e.record.NetNS, ns)
}

// leadsTo says whether the path names the namespace now.
func leadsTo(path string, ns *netns.NS) bool {
	named, err := netns.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = named.Close() }()
	return named.Same(ns)
}

// held says whether some pod has the namespace.
func (a *Agent) held(ns *netns.NS) bool {
	for _, e := range a.entries {
		if e.holds(ns) {
			return true
		}
	}
	return false
}
