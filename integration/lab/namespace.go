package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netNSDir holds one file per named network namespace. It is a mount of its
// own, so that a pod can be kept from seeing (and holding) the others.
const netNSDir = "/run/netns"

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

// place is where a process runs; nil means where pid 1 is.
type place struct {
	mount, net, uts *os.File
}

// enter moves the calling thread, which must be one of onThread's.
func (p place) enter() error {
	if p.net != nil {
		if err := unix.Setns(int(p.net.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
	}
	if p.uts != nil {
		if err := unix.Setns(int(p.uts.Fd()), unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("enter uts namespace: %w", err)
		}
	}
	if p.mount == nil {
		return nil
	}
	// "A process may not change its mount namespace while it shares filesystem
	// attributes", setns(2); Go's threads do.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare filesystem attributes: %w", err)
	}
	if err := unix.Setns(int(p.mount.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	return nil
}

// inNet runs f on a thread inside the network namespace.
func inNet(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := (place{net: ns}).enter(); err != nil {
			return err
		}
		return f()
	})
}

// openOwn opens a namespace of the calling thread: "net", "mnt" or "uts".
func openOwn(kind string) (*os.File, error) {
	return os.Open("/proc/thread-self/ns/" + kind)
}

// newNetNS makes a network namespace with the name and opens it. It forwards
// packets, accepts them whatever way they come, and its loopback is up.
func newNetNS(name string) (*os.File, error) {
	path := filepath.Join(netNSDir, name)
	var ns *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if err := os.WriteFile(path, nil, 0o444); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind network namespace to %s: %w", path, err)
		}
		if err := prepareNetNS(); err != nil {
			return err
		}
		var err error
		ns, err = openOwn("net")
		return err
	})
	if err != nil {
		return nil, errors.Join(err, dropNetNS(name))
	}
	return ns, nil
}

// dropNetNS takes the name away; the namespace ends with its last user.
func dropNetNS(name string) error {
	path := filepath.Join(netNSDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// prepareNetNS sets up the network namespace of the calling thread.
func prepareNetNS() error {
	for _, setting := range []struct{ name, value string }{
		{"ip_forward", "1"},
		{"conf/all/rp_filter", "0"},
		{"conf/default/rp_filter", "0"},
		{"conf/all/send_redirects", "0"},
		{"conf/default/send_redirects", "0"},
	} {
		path := "/proc/sys/net/ipv4/" + setting.name
		if err := os.WriteFile(path, []byte(setting.value), 0o644); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return nil
}
