package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// InitCommand is the argument with which the tool becomes a machine's pid 1; a
// directory follows. It is not for people.
const InitCommand = "machine-init"

// initReady follows the directory when the process has its cgroup namespace.
const initReady = "in-cgroup"

// Descriptors that pid 1 is given besides the standard ones.
const (
	fdGo    = 3 // says when it has been recorded and is in its cgroups
	fdRelay = 4 // the control plane's: a socket that listens on the host's loopback
)

// machineDir is where a machine sees its directory of the cluster's state.
const machineDir = "/run/cluster"

// binariesDir is where a machine sees the parts' binaries.
const binariesDir = "/opt/cluster"

// orders say what a machine's pid 1 is to do.
type orders struct {
	Cluster string            `json:"cluster"`
	Node    int               `json:"node"`  // 0 is the control plane
	Nodes   int               `json:"nodes"` // how many there are
	Parts   map[string]string `json:"parts"` // directories of binaries on the host
	// Limited is set where CAP_SYS_RESOURCE is not to be had.
	Limited bool `json:"limited"`
}

func (o orders) machine() machine { return machine{node: o.Node} }

// Init is the life of a machine's pid 1: it returns only when it fails.
//
//  1. wait until the starter has written down who we are, and has moved us into
//     our cgroups; if it dies before, so do we
//  2. make those the root of a cgroup namespace; a thread's, hence the exec
//  3. mount what the machine has of its own
//  4. start the machine's programs, again when they end, and collect orphans
func Init(ctx context.Context, args []string) error {
	if os.Getpid() != 1 {
		return errors.New(InitCommand + " is for a machine's pid 1")
	}
	if len(args) == 1 {
		return enterCgroupNamespace(args[0])
	}
	if len(args) != 2 || args[1] != initReady {
		return fmt.Errorf("%s: arguments %q", InitCommand, args)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var o orders
	if err := readJSON(filepath.Join(args[0], "init.json"), &o); err != nil {
		return err
	}
	// How ps and top call it; only the calling thread, which is the first, is
	// shown there.
	if err := os.WriteFile("/proc/self/comm", []byte("cluster-"+o.machine().name()), 0o644); err != nil {
		return err
	}
	var relay net.Listener
	if o.Node == 0 {
		unix.CloseOnExec(fdRelay)
		file := os.NewFile(fdRelay, "relay")
		var err error
		if relay, err = net.FileListener(file); err != nil {
			return fmt.Errorf("relay: %w", err)
		}
		_ = file.Close()
	}
	if err := setUpMachine(args[0], o); err != nil {
		return err
	}
	log.Info("machine is set up", "cluster", o.Cluster, "machine", o.machine().name())
	if relay != nil {
		go serveRelay(relay, apiAddress(), log) // until the machine ends
	}
	s := newSupervisor(log)
	return s.run(ctx, programs(o))
}

// enterCgroupNamespace does steps 1 and 2.
func enterCgroupNamespace(dir string) error {
	start := os.NewFile(fdGo, "go")
	if _, err := io.ReadFull(start, make([]byte, 1)); err != nil {
		return fmt.Errorf("whoever starts this machine has gone: %w", err)
	}
	_ = start.Close()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("new cgroup namespace: %w", err)
	}
	return syscall.Exec("/proc/self/exe", []string{os.Args[0], InitCommand, dir, initReady}, os.Environ())
}
