package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// setUpMachine gives the machine, whose pid 1 is the caller, what it has of its
// own. dir is the machine's directory as the host knows it. What is hidden is
// used up before:
//
//  1. nothing of what follows is seen outside
//  2. names of the host's network namespaces go, else they would be kept alive
//  3. /etc is a layer over the host's
//  4. /run in memory, with the machine's directory in it; /opt with the
//     binaries; /var: all three on the host's disk, or memory, only below dir
//  5. /proc and /sys of the new namespaces
//  6. on a node, what its programs want to find there
//  7. everything is shared from here on, as pods' mounts may ask for it
func setUpMachine(dir string, o orders) error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil { // 1
		return err
	}
	if err := unmountBelow("/run"); err != nil { // 2
		return err
	}
	if err := mountEtc(dir); err != nil { // 3
		return err
	}
	if err := mountOwn(dir, o); err != nil { // 4
		return err
	}
	noExec := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := mount("proc", "/proc", "proc", noExec, ""); err != nil { // 5
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", noExec, ""); err != nil {
		return err
	}
	if err := mountCgroups(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(o.machine().name())); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if o.Node != 0 { // 6
		if err := prepareNode(o); err != nil {
			return err
		}
	}
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") // 7
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		what := kind
		if what == "" {
			what = source
		}
		return fmt.Errorf("mount %s on %s: %w", what, target, err)
	}
	return nil
}

// unmountBelow detaches all mounts below the path, deepest first.
func unmountBelow(path string) error {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, target := range slices.Backward(mountsBelow(string(content), path)) {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	return nil
}

// mountsBelow are the mount points below the path in proc_pid_mountinfo(5), in
// its order: a mount comes after those it lies on.
func mountsBelow(mountinfo, path string) []string {
	var targets []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if target := unescapeMount(fields[4]); strings.HasPrefix(target, path+"/") {
			targets = append(targets, target)
		}
	}
	return targets
}

// mountEtc lays the machine's /etc over the host's.
func mountEtc(dir string) error {
	upper, work := filepath.Join(dir, "etc"), filepath.Join(dir, "etc-work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return err
	}
	// What the host has here is for the host's containers.
	for _, d := range []string{"/etc/cni", "/etc/containerd"} {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	return nil
}

// mountOwn gives the machine /run, /opt and /var.
func mountOwn(dir string, o orders) error {
	run, opt, variable := filepath.Join(dir, "run"), filepath.Join(dir, "opt"), filepath.Join(dir, "var")
	for _, d := range []string{run, opt, variable} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("tmpfs", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	own := filepath.Join(run, "cluster")
	if err := os.Mkdir(own, 0o755); err != nil {
		return err
	}
	if err := mount(dir, own, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for part, source := range o.Parts {
		target := filepath.Join(opt, "cluster", part)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	if err := mountTool(filepath.Join(opt, "cluster", toolDir)); err != nil {
		return err
	}
	for _, d := range []string{"cache", "lib", "log", "spool", "tmp"} {
		if err := os.MkdirAll(filepath.Join(variable, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(variable, "tmp"), 0o777|fs.ModeSticky); err != nil {
		return err
	}
	for link, target := range map[string]string{"run": "/run", "lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(variable, link)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// /var last: dir is in it.
	for _, m := range []struct{ source, target string }{{run, "/run"}, {opt, "/opt"}, {variable, "/var"}} {
		if err := mount(m.source, m.target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	return os.MkdirAll("/run/lock", 0o755)
}

// toolDir is where, among the binaries, a machine has this tool and its other
// names.
const toolDir = "tool"

func mountTool(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tool := filepath.Join(dir, "cluster")
	if err := os.WriteFile(tool, nil, 0o755); err != nil {
		return err
	}
	if err := mount("/proc/self/exe", tool, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := os.Symlink("cluster", filepath.Join(dir, "nft")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// mountCgroups mounts the hierarchies below /sys/fs/cgroup, as the host has
// them; all that can be seen in them is the machine's part.
func mountCgroups() error {
	content, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	const root = "/sys/fs/cgroup"
	all := parseOwnCgroups(string(content))
	if pureV2(all) {
		if err := mount("cgroup2", root, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return err
		}
		return makeRoom(root)
	}
	if err := mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	for _, h := range all {
		name, kind, options := strings.Join(h.controllers, ","), "cgroup", strings.Join(h.controllers, ",")
		if label, ok := strings.CutPrefix(name, "name="); ok {
			name, options = label, "none,"+name
		}
		if h.unified() {
			name, kind = "unified", "cgroup2"
		}
		target := filepath.Join(root, name)
		if err := os.Mkdir(target, 0o755); err != nil {
			return err
		}
		if err := mount(kind, target, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
			return err
		}
		if len(h.controllers) < 2 {
			continue
		}
		for _, controller := range h.controllers { // cpu -> cpu,cpuacct
			if err := os.Symlink(name, filepath.Join(root, controller)); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseOwnCgroups reads cgroups(7)'s /proc/self/cgroup: the hierarchies that
// the process is in. Those of version 1 that are not mounted anywhere have
// neither name nor controller, and do not count.
func parseOwnCgroups(content string) []hierarchy {
	var all []hierarchy
	for line := range strings.Lines(content) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, _, ok := strings.Cut(rest, ":")
		switch {
		case !ok:
		case id == "0":
			all = append(all, hierarchy{})
		case controllers != "":
			all = append(all, hierarchy{controllers: strings.Split(controllers, ",")})
		}
	}
	return all
}

// makeRoom moves the caller from the root of its version 2 namespace to a leaf
// and lets the root's children have controllers.
func makeRoom(root string) error {
	leaf := filepath.Join(root, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := joinCgroup(leaf, os.Getpid()); err != nil {
		return err
	}
	return delegate(root)
}
