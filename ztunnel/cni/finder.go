package cni

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
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
	found, wanted := map[string]Found{}, map[string]Pod{}
	for _, p := range pods {
		wanted[p.UID] = p
	}
	n.findByProcess(ctx, wanted, found)
	n.findByName(ctx, wanted, found)
	return found
}

func (n Finder) findByProcess(ctx context.Context, wanted map[string]Pod, found map[string]Found) {
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
		ns, err := openPodNS(filepath.Join(dir, "ns/net"), pod.IPs)
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
func (n Finder) findByName(ctx context.Context, wanted map[string]Pod, found map[string]Found) {
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
		if uid := podOf(ns, wanted, found); uid != "" {
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

// podOf says whose the named namespace may be; of nobody when two pods say that the
// address is theirs: what one of them says is out of date.
func podOf(ns *netns.NS, wanted map[string]Pod, found map[string]Found) string {
	for uid, f := range found {
		if f.NS.Same(ns) {
			return uid
		}
	}
	owner := ""
	for uid, p := range wanted {
		if found[uid].NS == nil && checkPodNS(ns, p.IPs) == nil {
			if owner != "" {
				return ""
			}
			owner = uid
		}
	}
	return owner
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
