package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// Finder looks for pods' network namespaces among the processes and the named namespaces
// of the node, for pods that started before the agent was there.
type Finder struct {
	ProcDir  string // the host's /proc
	NetNSDir string // where the container runtime names namespaces; may be empty
	Log      *slog.Logger
}

// Find is of type Find. It reads the control groups of all processes once, however many
// pods there are. A namespace is a pod's if a process of the pod is in it or the
// container runtime named it, and in either case if it has an address of the pod and is
// not the host's.
func (n Finder) Find(ctx context.Context, pods []Pod) map[string]Found {
	found := map[string]Found{}
	host, err := netns.Open(filepath.Join(n.ProcDir, "1/ns/net"))
	if err != nil {
		n.Log.Warn("host's network namespace not opened, so that no pod's can be told from it", "error", err)
		return found
	}
	defer func() { _ = host.Close() }()
	wanted := map[string]Pod{}
	for _, p := range pods {
		wanted[p.UID] = p
	}
	n.findByProcess(ctx, host, wanted, found)
	n.findByName(ctx, host, wanted, found)
	return found
}

func (n Finder) findByProcess(ctx context.Context, host *netns.NS, wanted map[string]Pod, found map[string]Found) {
	entries, err := os.ReadDir(n.ProcDir)
	if err != nil {
		n.Log.Warn("processes not listed", "error", err)
		return
	}
	for _, e := range entries {
		if ctx.Err() != nil || len(found) == len(wanted) {
			return
		}
		if _, err := strconv.ParseUint(e.Name(), 10, 32); err != nil {
			continue
		}
		dir := filepath.Join(n.ProcDir, e.Name())
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil {
			continue // it has ended
		}
		pod, ok := wanted[podOfGroups(string(groups))]
		if !ok || found[pod.UID].NS != nil {
			continue
		}
		ns, err := openPodNS(filepath.Join(dir, "ns/net"), host, pod.IPs)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				n.Log.Debug("process is not in its pod's network namespace", "pod", pod.Namespace+"/"+pod.Name, "pid", e.Name(), "error", err)
			}
			continue
		}
		found[pod.UID] = Found{NS: ns}
	}
}

// findByName gives what was found a lasting name, and finds pods that have no process
// that the node can see. Then the address alone has to tell, so that it must be in one
// namespace only.
func (n Finder) findByName(ctx context.Context, host *netns.NS, wanted map[string]Pod, found map[string]Found) {
	if n.NetNSDir == "" {
		return
	}
	entries, err := os.ReadDir(n.NetNSDir)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			n.Log.Warn("named network namespaces not listed", "error", err)
		}
		return
	}
	candidates := map[string][]Found{} // by UID
	for _, e := range entries {
		if ctx.Err() != nil {
			break
		}
		path := filepath.Join(n.NetNSDir, e.Name())
		ns, err := netns.Open(path)
		if err != nil {
			continue // it has gone
		}
		if uid := n.podOf(ns, host, wanted, found); uid != "" {
			candidates[uid] = append(candidates[uid], Found{NS: ns, Path: path})
			continue
		}
		_ = ns.Close()
	}
	for uid, c := range candidates {
		f := found[uid]
		for _, named := range c {
			if f.NS != nil && f.NS.Same(named.NS) {
				f.Path = named.Path
			}
		}
		if f.NS == nil && len(c) == 1 {
			f, c = c[0], nil
		}
		for _, named := range c {
			_ = named.NS.Close()
		}
		if f.NS != nil {
			found[uid] = f
		}
	}
}

// podOf says whose the named namespace may be.
func (n Finder) podOf(ns, host *netns.NS, wanted map[string]Pod, found map[string]Found) string {
	if ns.Check() != nil || ns.Same(host) {
		return ""
	}
	for uid, f := range found {
		if f.NS.Same(ns) {
			return uid
		}
	}
	if len(found) == len(wanted) {
		return ""
	}
	addrs, err := addressesIn(ns)
	if err != nil {
		return ""
	}
	for uid, p := range wanted {
		if found[uid].NS == nil && slices.ContainsFunc(p.IPs, func(a netip.Addr) bool { return addrs[a] }) {
			return uid
		}
	}
	return ""
}

// openPodNS opens a namespace if it may be the pod's.
func openPodNS(path string, host *netns.NS, ips []netip.Addr) (*netns.NS, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	if err := checkPodNS(ns, host, ips); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

func checkPodNS(ns, host *netns.NS, ips []netip.Addr) error {
	if err := ns.Check(); err != nil {
		return err
	}
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

// podOfGroups reads the UID of a process's pod from its /proc/PID/cgroup, or returns
// nothing. Kubelets name a pod's group pod<uid> (driver cgroupfs) or
// kubepods-<class>-pod<uid>.slice with dashes as underscores (driver systemd), in every
// hierarchy of version 1 and in the one of version 2.
func podOfGroups(groups string) string {
	for line := range strings.Lines(groups) {
		// hierarchy:controllers:path, cgroups(7)
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		_, path, _ := strings.Cut(rest, ":")
		for segment := range strings.SplitSeq(path, "/") {
			if uid := podOfGroup(segment); uid != "" {
				return uid
			}
		}
	}
	return ""
}

func podOfGroup(name string) string {
	slice, isSlice := strings.CutSuffix(name, ".slice")
	uid, ok := strings.CutPrefix(name, "pod")
	if isSlice {
		var class string
		class, uid, ok = strings.CutLast(slice, "-pod")
		uid, ok = strings.ReplaceAll(uid, "_", "-"), ok && strings.HasPrefix(class, "kubepods")
	}
	if !ok || validUID(uid) != nil {
		return ""
	}
	return uid
}
