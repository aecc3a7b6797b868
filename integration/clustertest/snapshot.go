package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// nodeState is what a mesh could leave behind on a node: a set of lines. Pods
// has the same for the network namespace of each pod, by the pod's address.
type nodeState struct {
	Lines []string
	Pods  map[string][]string
}

// places are the directories that node agents write to.
var places = []string{"/etc/cni/net.d", "/opt/cni/bin", "/var/run/ambit-cni", "/var/run/istio-cni", "/var/run/ztunnel"}

// sysctls are those that a mesh might set in a network namespace.
var sysctls = []string{"net/ipv4/tcp_migrate_req", "net/ipv4/conf/all/route_localnet", "net/ipv4/conf/all/rp_filter", "net/ipv4/ip_nonlocal_bind"}

// proxyTable is kube-proxy's: it follows the services, whatever a mesh does.
const proxyTable = "kube-proxy"

func printSnapshot(out io.Writer) error {
	lines, err := networkLines()
	if err != nil {
		return err
	}
	s := nodeState{Lines: lines, Pods: map[string][]string{}}
	for _, dir := range places {
		files, err := fileLines(dir)
		if err != nil {
			return err
		}
		s.Lines = append(s.Lines, files...)
	}
	entries, err := os.ReadDir("/var/run/netns")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if err := s.addPod(filepath.Join("/var/run/netns", entry.Name())); err != nil {
			return fmt.Errorf("%s: %w", entry.Name(), err)
		}
	}
	return json.NewEncoder(out).Encode(s)
}

// addPod adds the state of a pod's namespace, unless the pod is just going.
func (s *nodeState) addPod(path string) error {
	ns, err := netns.Open(path)
	if err != nil {
		return nil //nolint:nilerr // deleted between the listing and now
	}
	defer ns.Close() //nolint:errcheck // only read
	return ns.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return nil //nolint:nilerr // being taken down
		}
		addresses, err := netlink.AddrList(link, unix.AF_INET)
		if err != nil || len(addresses) == 0 {
			return err
		}
		lines, err := networkLines()
		s.Pods[addresses[0].IP.String()] = lines
		return err
	})
}

// networkLines describes rules, routes and settings of this thread's network
// namespace.
func networkLines() ([]string, error) {
	lines, err := filterLines()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	rules, err := netlink.RuleList(unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("policy rules: %w", err)
	}
	for _, r := range rules {
		lines = append(lines, "rule "+r.String())
	}
	routes, err := netlink.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	for _, r := range routes {
		if r.Family == unix.AF_INET6 && r.Dst != nil && r.Dst.IP.IsLinkLocalUnicast() || r.Type == unix.RTN_MULTICAST {
			continue // the kernel's own, which come late
		}
		lines = append(lines, fmt.Sprintf("route table %d type %d to %v via %v dev %d src %v", r.Table, r.Type, r.Dst, r.Gw, r.LinkIndex, r.Src))
	}
	for _, name := range sysctls {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			continue // an older kernel
		}
		lines = append(lines, "sysctl "+name+" = "+strings.TrimSpace(string(value)))
	}
	slices.Sort(lines)
	return lines, nil
}

// filterLines describes all tables of nftables but kube-proxy's.
func filterLines() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, table := range tables {
		if table.Name == proxyTable {
			continue
		}
		name := fmt.Sprintf("nft table %d %s", table.Family, table.Name)
		lines = append(lines, name)
		for _, chain := range chains {
			if chain.Table.Name != table.Name || chain.Table.Family != table.Family {
				continue
			}
			rules, err := c.GetRules(table, chain)
			if err != nil {
				return nil, err
			}
			lines = append(lines, fmt.Sprintf("%s chain %s: %d rules", name, chain.Name, len(rules)))
		}
	}
	return lines, nil
}

// fileLines lists the files below a directory with their content's digest.
func fileLines(dir string) ([]string, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case entry.IsDir():
			return nil // Kubernetes leaves the directories of hostPath volumes
		case !entry.Type().IsRegular():
			lines = append(lines, "file "+path+" "+entry.Type().String())
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		lines = append(lines, "file "+path+" "+hex.EncodeToString(sum[:8]))
		return nil
	})
	return lines, err
}

// state is all that is compared before and after: nodes and API server.
type state struct {
	nodes map[string]nodeState
	api   []string
}

// kinds are those of which a mesh's installation could leave objects.
var kinds = []string{
	"namespaces", "customresourcedefinitions", "mutatingwebhookconfigurations", "validatingwebhookconfigurations",
	"validatingadmissionpolicies", "validatingadmissionpolicybindings", "clusterroles", "clusterrolebindings", "priorityclasses", "apiservices",
	"roles", "rolebindings", "serviceaccounts", "configmaps", "secrets", "services", "deployments", "daemonsets", "leases", "networkpolicies",
}

func (t *test) snapshot(ctx context.Context) (state, error) {
	nodes, err := t.nodeStates(ctx)
	if err != nil {
		return state{}, err
	}
	s := state{nodes: nodes}
	for _, kind := range kinds {
		text, err := t.kubectl(ctx, "get", kind, "-A", "--ignore-not-found", "--no-headers",
			"-o", "custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name")
		if err != nil {
			return state{}, err
		}
		for line := range strings.Lines(text) {
			s.api = append(s.api, strings.Join(strings.Fields(line), " "))
		}
	}
	return s, nil
}

func (t *test) nodeStates(ctx context.Context) (map[string]nodeState, error) {
	states := map[string]nodeState{}
	for _, node := range t.nodes {
		text, err := output(t.program(ctx, "cluster", "exec", "--local", node, filepath.Join(t.programs, "clustertest"), "snapshot"))
		if err != nil {
			return nil, err
		}
		var s nodeState
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return nil, err
		}
		states[node] = s
	}
	return states, nil
}

// difference says what is in one list only: "-" before, "+" after.
func difference(before, after []string) []string {
	var out []string
	for _, line := range before {
		if !slices.Contains(after, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			out = append(out, "+ "+line)
		}
	}
	return out
}

// size is how many lines there are to compare.
func (s state) size() int {
	n := len(s.api)
	for _, node := range s.nodes {
		n += len(node.Lines)
		for _, lines := range node.Pods {
			n += len(lines)
		}
	}
	return n
}

// changes says what differs between two states of everything.
func (s state) changes(after state) []string {
	out := difference(s.api, after.api)
	for _, node := range slices.Sorted(maps.Keys(s.nodes)) {
		for _, line := range difference(s.nodes[node].Lines, after.nodes[node].Lines) {
			out = append(out, node+": "+line)
		}
		out = append(out, podChanges(s.nodes[node], after.nodes[node])...)
	}
	return out
}

// podChanges says what differs in the namespaces of pods that are in both.
func podChanges(before, after nodeState) []string {
	var out []string
	for _, address := range slices.Sorted(maps.Keys(before.Pods)) {
		now, ok := after.Pods[address]
		if !ok {
			continue
		}
		for _, line := range difference(before.Pods[address], now) {
			out = append(out, "pod "+address+": "+line)
		}
	}
	return out
}
