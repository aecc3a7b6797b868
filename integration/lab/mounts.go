package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Three kinds of mount namespace, each made from the one before:
//
//   - pid 1's: cut off from the machine, with a tmpfs on a *shared* /run;
//   - a node's: a *slave*, so that network namespaces named later appear in it
//     (a private one would not see them), with directories of its own below
//     /run for the sockets of the node's agents;
//   - a container's: private, with its resolv.conf, hosts and volumes. Those of
//     host-network pods stay slaves, as the node's agents need the names too.

const (
	runDir     = "/run"
	labDir     = "/run/lab" // the lab's own files; not on disk
	secretsDir = "/run/secrets"
)

// nodeOwn are the directories that differ on each node from the start.
var nodeOwn = []string{"/run/ztunnel", "/run/ambit-cni"}

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

// mountRoot sets up pid 1's mount namespace.
func mountRoot() error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", runDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := mount("", runDir, "", unix.MS_SHARED, ""); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	for _, dir := range append([]string{netNSDir, labDir, secretsDir}, nodeOwn...) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := mount("tmpfs", netNSDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if resolved, err := filepath.EvalSymlinks("/var/run"); err != nil || resolved != runDir {
		// The mesh's paths are below /var/run, which is /run nearly everywhere.
		if err := mount(runDir, "/var/run", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	return prepareEtc()
}

// prepareEtc sees to it that there is a /etc/resolv.conf to bind over: it may
// be a link into the hidden /run, or be missing.
func prepareEtc() error {
	const path = "/etc/resolv.conf"
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	target, err := os.Readlink(path)
	if err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join("/etc", target)
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return fmt.Errorf("%s points to %s: %w", path, target, err)
		}
		return os.WriteFile(target, nil, 0o644)
	}
	upper, work := labDir+"/etc/upper", labDir+"/etc/work"
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// Without userxattr an unprivileged user namespace may not mount it.
	if err := mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work+",userxattr"); err != nil {
		return fmt.Errorf("there is no %s and none can be laid over: %w", path, err)
	}
	return os.WriteFile(path, nil, 0o644)
}

// newMounts makes a mount namespace out of the one of base and lets set change
// it; the calling thread of set is also in base's other namespaces.
func newMounts(base place, propagation uintptr, set func() error) (*os.File, error) {
	var ns *os.File
	err := onThread(func() error {
		if err := base.enter(); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("new mount namespace: %w", err)
		}
		if err := mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			return err
		}
		if err := set(); err != nil {
			return err
		}
		var err error
		ns, err = openOwn("mnt")
		return err
	})
	return ns, err
}

// newHostName makes a uts namespace with the host name.
func newHostName(name string) (*os.File, error) {
	var ns *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("new uts namespace: %w", err)
		}
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
		var err error
		ns, err = openOwn("uts")
		return err
	})
	return ns, err
}

// bindFile puts a file in the place of another, where there is one.
func bindFile(source, target string) error {
	if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return mount(source, target, "", unix.MS_BIND, "")
}

// setMounts changes the calling thread's mount namespace into a container's.
func (m containerMounts) set() error {
	if m.private {
		// A private copy of another pod's name would keep its namespace alive.
		if err := unix.Unmount(netNSDir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", netNSDir, err)
		}
		_ = mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "") // its own interfaces, where allowed
	}
	if err := bindFile(m.etc+"/resolv.conf", "/etc/resolv.conf"); err != nil {
		return err
	}
	if err := bindFile(m.etc+"/hosts", "/etc/hosts"); err != nil {
		return err
	}
	if err := mount("tmpfs", secretsDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=1m"); err != nil {
		return err
	}
	for _, b := range m.binds {
		if err := b.mount(); err != nil {
			return err
		}
	}
	if !m.private {
		return nil
	}
	for _, dir := range []string{labDir, m.keys} {
		if err := mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, "mode=755,size=4k"); err != nil {
			return err
		}
	}
	return nil
}

// containerMounts is what a container's mount namespace has that its node's has
// not.
type containerMounts struct {
	private bool
	etc     string // directory of resolv.conf and hosts
	keys    string // directory that a private one does not show, besides the lab's own
	binds   []bind
}

// bind is a volume at its place.
type bind struct {
	source, target string
	readOnly       bool
}

func (b bind) mount() error {
	if inRun(b.target) {
		if err := os.MkdirAll(b.target, 0o755); err != nil {
			return err
		}
	}
	if err := mount(b.source, b.target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if !b.readOnly {
		return nil
	}
	return mount("", b.target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// inRun says whether the path is below the lab's own /run.
func inRun(path string) bool {
	path = filepath.Clean(path)
	return strings.HasPrefix(path, "/run/") || strings.HasPrefix(path, "/var/run/")
}
