package cluster

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Control groups come in three ways: version 1 (a hierarchy per controller),
// version 2 (one hierarchy), and both, where version 2 has no controller of
// those that matter. In each hierarchy a machine gets a directory
// ambit-cluster/CLUSTER/MACHINE, which is the root of its cgroup namespace.

const cgroupParent = "ambit-cluster"

// hierarchy is a tree of control groups.
type hierarchy struct {
	mount       string   // where it is mounted
	controllers []string // as the mount option says, "name=systemd" too; nil in version 2
}

func (h hierarchy) unified() bool { return h.controllers == nil }

// hierarchies are those mounted on this machine.
func hierarchies() ([]hierarchy, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return parseHierarchies(file)
}

// parseHierarchies reads proc_pid_mountinfo(5); a hierarchy that is mounted
// twice counts once.
func parseHierarchies(r io.Reader) ([]hierarchy, error) {
	var found []hierarchy
	seen := map[string]bool{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			return nil, fmt.Errorf("mountinfo: line %q", lines.Text())
		}
		h := hierarchy{mount: unescapeMount(left[4])}
		switch right[0] {
		case "cgroup":
			h.controllers = controllersOf(right[2])
		case "cgroup2":
		default:
			continue
		}
		key := strings.Join(h.controllers, ",")
		if !seen[key] {
			seen[key] = true
			found = append(found, h)
		}
	}
	return found, lines.Err()
}

// controllersOf picks the controllers from a version 1 mount's options.
func controllersOf(options string) []string {
	controllers := []string{}
	for option := range strings.SplitSeq(options, ",") {
		switch {
		case option == "rw" || option == "ro" || option == "none" || option == "xattr" || option == "noprefix" || option == "clone_children":
		case strings.HasPrefix(option, "release_agent=") || strings.HasPrefix(option, "cpuset_"):
		case option != "":
			controllers = append(controllers, option)
		}
	}
	return controllers
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// pureV2 says whether version 2 is all there is.
func pureV2(all []hierarchy) bool {
	return len(all) == 1 && all[0].unified()
}

// neededControllers are those that a kubelet will not start without.
var neededControllers = []string{"cpu", "cpuset", "memory", "pids"}

// missingControllers are the needed ones that no hierarchy has.
func missingControllers(all []hierarchy) []string {
	var have []string
	for _, h := range all {
		if !h.unified() {
			have = append(have, h.controllers...)
			continue
		}
		content, _ := os.ReadFile(filepath.Join(h.mount, "cgroup.controllers"))
		have = append(have, strings.Fields(string(content))...)
	}
	return slices.DeleteFunc(slices.Clone(neededControllers), func(c string) bool { return slices.Contains(have, c) })
}

// cgroupDir is a machine's directory in the hierarchy, or with no machine the
// cluster's.
func (h hierarchy) dir(cluster, machine string) string {
	return filepath.Join(h.mount, cgroupParent, cluster, machine)
}

// makeCgroups makes a machine's directories, with the controllers switched on.
func makeCgroups(all []hierarchy, cluster, machine string) error {
	for _, h := range all {
		path := h.mount
		for _, name := range []string{cgroupParent, cluster, machine} {
			if pureV2(all) {
				if err := delegate(path); err != nil {
					return err
				}
			}
			parent := path
			path = filepath.Join(path, name)
			if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if slices.Contains(h.controllers, "cpuset") {
				if err := inheritCPUs(parent, path); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// delegate gives a version 2 group's children all controllers that it has
// itself. "Domain controllers can only be enabled in a non-root cgroup that has
// no processes of its own" (cgroup-v2.rst), so those that are there, as in a
// container with a cgroup namespace, move to a child first.
func delegate(dir string) error {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	err = enableControllers(dir, strings.Fields(string(available)))
	if !errors.Is(err, syscall.EBUSY) {
		return err
	}
	leaf := filepath.Join(dir, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !poll(time.Second, func() bool { // new ones may come while the others move
		pids, _ := processesIn(dir)
		for _, pid := range pids {
			_ = joinCgroup(leaf, pid) // kernel threads stay, ended ones are gone
		}
		err = enableControllers(dir, strings.Fields(string(available)))
		return !errors.Is(err, syscall.EBUSY)
	}) {
		return fmt.Errorf("%s: its processes do not move to %s: %w", dir, leaf, err)
	}
	return err
}

// enableControllers switches on what is not on yet.
func enableControllers(dir string, controllers []string) error {
	path := filepath.Join(dir, "cgroup.subtree_control")
	enabled, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var missing []string
	for _, c := range controllers {
		if !slices.Contains(strings.Fields(string(enabled)), c) {
			missing = append(missing, "+"+c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	err = os.WriteFile(path, []byte(strings.Join(missing, " ")), 0o644)
	if err == nil || errors.Is(err, syscall.EBUSY) {
		return err
	}
	// One that cannot be had must not keep the others off.
	for _, c := range missing {
		if err := os.WriteFile(path, []byte(c), 0o644); err != nil && slices.Contains(neededControllers, c[1:]) {
			return fmt.Errorf("%s: enable %s: %w", dir, c, err)
		}
	}
	return nil
}

// inheritCPUs gives a version 1 cpuset its parent's processors and memory; it
// starts with none.
func inheritCPUs(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		content, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// joinCgroups moves a process into a machine's directories.
func joinCgroups(all []hierarchy, cluster, machine string, pid int) error {
	for _, h := range all {
		if err := joinCgroup(h.dir(cluster, machine), pid); err != nil {
			return err
		}
	}
	return nil
}

func joinCgroup(dir string, pid int) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	return nil
}

// processesIn are the processes in a group, not those below it.
func processesIn(dir string) ([]int, error) {
	content, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range bytes.Lines(content) {
		pid, err := strconv.Atoi(string(bytes.TrimSpace(line)))
		if err != nil {
			return nil, fmt.Errorf("%s/cgroup.procs: %w", dir, err)
		}
		if pid > 0 { // 0 is one that this pid namespace does not show
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// removeCgroups kills whatever is in a cluster's groups and removes them, and
// the directory above if no other cluster has any.
func removeCgroups(all []hierarchy, cluster string) error {
	var errs []error
	for _, h := range all {
		root := h.dir(cluster, "")
		var left error
		if !poll(5*time.Second, func() bool {
			left = removeTree(root)
			return left == nil
		}) {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", left))
		}
		_ = os.Remove(filepath.Dir(root)) // fails as long as another cluster has some
	}
	return errors.Join(errs...)
}

// removeTree tries once to empty and remove a group with all below it.
func removeTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	for _, dir := range slices.Backward(dirs) {
		pids, _ := processesIn(dir)
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if removed := syscall.Rmdir(dir); removed != nil && !errors.Is(removed, syscall.ENOENT) {
			err = &fs.PathError{Op: "rmdir", Path: dir, Err: removed}
		}
	}
	return err
}
