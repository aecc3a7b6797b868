package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exec runs a command in the namespaces of a machine with the caller's standard
// files, and returns its exit code. When the caller dies, the command does.
// program is a file of the host that is run in the place of args[0], which the
// machine need not have; nil if the command is the machine's own.
func (c *Cluster) Exec(ctx context.Context, name string, args []string, program *os.File) (int, error) {
	m, err := c.machine(name)
	if err != nil {
		return 0, err
	}
	first := c.state.pid1(m)
	if !first.alive() {
		return 0, fmt.Errorf("%s of cluster %s has ended: %s says why; cluster up starts it again", name, c.record.Name, c.state.log(m, "init"))
	}
	tool, err := os.Open("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	defer tool.Close()
	code := 0
	err = onThread(func() error { // which ends only after the command
		if err := enterNamespaces(first.PID); err != nil {
			return err
		}
		var err error
		code, err = run(ctx, tool, args, program)
		return err
	})
	return code, err
}

// enterNamespaces moves the calling thread, one of onThread's, to where the
// process is; children are in its pid namespace.
func enterNamespaces(pid int) error {
	kinds := []struct {
		name string
		flag int
	}{
		{"cgroup", unix.CLONE_NEWCGROUP},
		{"ipc", unix.CLONE_NEWIPC},
		{"uts", unix.CLONE_NEWUTS},
		{"net", unix.CLONE_NEWNET},
		{"pid", unix.CLONE_NEWPID},
		{"mnt", unix.CLONE_NEWNS}, // last: /proc is another one then
	}
	// "A process may not change its mount namespace while it shares filesystem
	// attributes", setns(2); Go's threads do.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare filesystem attributes: %w", err)
	}
	for _, kind := range kinds {
		file, err := os.Open(filepath.Join("/proc", fmt.Sprint(pid), "ns", kind.name))
		if err != nil {
			return err
		}
		err = unix.Setns(int(file.Fd()), kind.flag)
		_ = file.Close()
		if err != nil {
			return fmt.Errorf("enter %s namespace: %w", kind.name, err)
		}
	}
	return nil
}

// ExecCommand is the argument with which the tool, inside a machine, becomes
// the command of [Cluster.Exec], and ExecProgram the flag with which that is a
// program of the host. They are not for people.
const (
	ExecCommand = "machine-exec"
	ExecProgram = "program"
)

// Descriptors that it is given besides the standard ones.
const (
	fdTool    = 3 // its own binary: no path in the machine may lead to it
	fdParent  = 4 // closed at the other end when the parent has died
	fdProgram = 5 // the host's program; absent if the command is the machine's own
)

// run runs the command from the calling thread, which has moved, and hands on
// no signal: an interrupt at the terminal reaches the command by itself.
func run(ctx context.Context, tool *os.File, args []string, program *os.File) (int, error) {
	alive, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer w.Close()
	defer alive.Close()
	command := exec.CommandContext(ctx, fmt.Sprintf("/proc/self/fd/%d", fdTool))
	command.Args = append([]string{"cluster", ExecCommand, "--"}, args...)
	command.Dir, command.Env = "/", execEnvironment(os.Environ(), machineEnvironment())
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.ExtraFiles = []*os.File{tool, alive}
	if program != nil {
		command.ExtraFiles = append(command.ExtraFiles, program)
		command.Args = slices.Insert(command.Args, 2, "--"+ExecProgram)
	}
	if inForeground(os.Stdin) {
		// A shell wants to lead the group that the terminal listens to; ours has
		// a leader that it cannot see.
		command.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Ctty: int(os.Stdin.Fd())}
		signal.Ignore(syscall.SIGTTOU, syscall.SIGTTIN)
	}
	err = command.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// inForeground says whether the file is the terminal that listens to us.
func inForeground(file *os.File) bool {
	group, err := unix.IoctlGetInt(int(file.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// BecomeCommand is what the tool does for [ExecCommand]. The command is to die
// with its parent; the death signal cannot be set from there, as Go takes a
// parent in another pid namespace for a dead one.
func BecomeCommand(args []string, program bool) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set death signal: %w", err)
	}
	parent := []unix.PollFd{{Fd: fdParent}}
	if _, err := unix.Poll(parent, 0); err != nil || parent[0].Revents&unix.POLLHUP != 0 {
		return errors.New("the parent has died")
	}
	unix.CloseOnExec(fdTool)
	unix.CloseOnExec(fdParent)
	if program {
		unix.CloseOnExec(fdProgram)
		path := fmt.Sprintf("/proc/self/fd/%d", fdProgram)
		return fmt.Errorf("%s: %w", args[0], syscall.Exec(path, args, os.Environ()))
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", path, syscall.Exec(path, args, os.Environ()))
}

// execEnvironment is the machine's over the caller's.
func execEnvironment(callers, machines []string) []string {
	environment := slices.DeleteFunc(slices.Clone(callers), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "KUBECONFIG" || slices.ContainsFunc(machines, func(m string) bool { return strings.HasPrefix(m, name+"=") })
	})
	return append(environment, machines...)
}
