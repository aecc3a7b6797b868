// Package netnstest runs the tests of packages that need network namespaces, as root
// and as an ordinary user alike, and makes namespaces that look like pods.
//
// The test process plays the node: it runs in new network and mount namespaces (and a
// new user namespace when it is not root), forwards packets, and has a veth pair to each
// pod. A privilege that is missing fails the tests; nothing is skipped. For tests only.
package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// childName is the argv[0] by which the process that runs the tests knows itself.
const childName = "netnstest"

// Main is what TestMain of such a package calls. It does not return. It runs the tests
// in new namespaces and fails when they leave goroutines or descriptors behind.
func Main(m *testing.M) {
	if os.Args[0] == childName {
		if exe, err := os.Executable(); err == nil {
			os.Args[0] = exe
		}
		os.Exit(runTests(m))
	}
	if fuzzing() {
		os.Exit(m.Run()) // needs no privilege; its workers inherit descriptors
	}
	os.Exit(reexecute())
}

func fuzzing() bool {
	for _, arg := range os.Args[1:] {
		if strings.HasPrefix(arg, "-test.fuzzworker") || (strings.HasPrefix(arg, "-test.fuzz=") && arg != "-test.fuzz=") {
			return true
		}
	}
	return false
}

// reexecute runs this program again in new namespaces and returns its exit code.
func reexecute() int {
	runtime.LockOSThread() // Pdeathsig fires when the thread that made the child ends
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0] = childName
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	if err := c.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "netnstest: new namespaces: %v (maybe user namespaces are restricted: kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces)\n", err)
		return 1
	}
	go func() { // ends with the process
		for s := range signals {
			_ = c.Process.Signal(s)
		}
	}()
	err := c.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "netnstest:", err)
		return 1
	}
	return 0
}

func runTests(m *testing.M) int {
	if err := setUpNode(); err != nil {
		fmt.Fprintln(os.Stderr, "netnstest: node:", err)
		return 1
	}
	goroutines, files := runtime.NumGoroutine(), openFiles()
	code := m.Run()
	if code == 0 && !settled(goroutines, len(files)) {
		fmt.Fprintf(os.Stderr, "netnstest: left behind: %d goroutines, had %d; files %q, had %q\n",
			runtime.NumGoroutine(), goroutines, openFiles(), files)
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		return 1
	}
	return code
}

// setUpNode prepares the process's own namespace to forward between pods.
func setUpNode() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600); err != nil {
		return err
	}
	if !haveIPv6() {
		return nil
	}
	if err := noDAD(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o600)
}

// noDAD makes IPv6 addresses of links that are made later usable at once.
func noDAD() error {
	return os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o600)
}

func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/all/forwarding")
	return err == nil
}

// settled waits until no more than so many goroutines and files are left.
func settled(goroutines, files int) bool {
	deadline := time.After(5 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for runtime.NumGoroutine() > goroutines || len(openFiles()) > files {
		select {
		case <-deadline:
			return false
		case <-tick.C:
			runtime.GC() // files without an owner close when they are collected
		}
	}
	return true
}

// openFiles lists the process's descriptors without those that the runtime and
// package netns keep for good.
func openFiles() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	home, _ := os.Readlink("/proc/self/ns/net")
	var files []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || target == home || strings.HasPrefix(target, "anon_inode:") {
			continue
		}
		files = append(files, target)
	}
	return files
}
