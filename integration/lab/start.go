package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// InitCommand is the argument with which the lab's binary becomes pid 1. It is
// not for people.
const InitCommand = "init"

// Descriptors that pid 1 is given besides standard input (its options), output
// and error (its log).
const (
	fdReport = 3 // where it says that it is up, or why not
	fdLock   = 4 // the state directory's lock, held as long as it lives
)

var errLocked = errors.New("a lab is running there")

// report is what pid 1 tells whoever started it.
type report struct {
	Ready bool   `json:"ready,omitempty"`
	Error string `json:"error,omitempty"`
}

// Start starts a lab and returns when all its pods are ready. When ctx ends
// before, or anything fails, nothing is left running. The lab ends with the
// calling process, unless it is detached.
func Start(ctx context.Context, options Options) (*Lab, error) {
	options, err := options.checked()
	if err != nil {
		return nil, err
	}
	lock, err := lockState(options.StateDir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", options.StateDir, err)
	}
	defer lock.Close()
	if err := clearState(options.StateDir); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, options.Timeout)
	defer cancel()
	l := &Lab{stateDir: options.StateDir, ended: make(chan struct{})}
	reports, err := l.fork(options, lock)
	if err != nil {
		return nil, fmt.Errorf("start pid 1: %w", explain(options.Binary, err))
	}
	if err := awaitReady(ctx, reports); err != nil {
		_ = syscall.Kill(l.pid, syscall.SIGKILL) // takes everything with it
		<-l.ended
		return nil, fmt.Errorf("%w (more in %s)", explain(options.Binary, err), labLog(options.StateDir))
	}
	return l, nil
}

// explain replaces an error that a kernel's refusal may have caused by what the
// kernel refuses.
func explain(binary string, err error) error {
	if !errors.Is(err, errSetup) && !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	if cause := Check(binary); cause != nil {
		return cause
	}
	return err
}

// errSetup marks errors of the time before any pod is started.
var errSetup = errors.New("set up")

// fork starts pid 1 and returns its reports.
func (l *Lab) fork(options Options, lock *os.File) (*os.File, error) {
	encoded, err := json.Marshal(options)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(labLog(options.StateDir), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	reports, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()

	cmd := exec.Command(options.Binary, InitCommand)
	cmd.Stdin = strings.NewReader(string(encoded))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w, lock}
	cmd.SysProcAttr = namespaces()
	if options.Detach {
		cmd.SysProcAttr.Setsid = true
	} else {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	started := make(chan error)
	go func() {
		// The death signal comes when the *thread* that made the child ends, so
		// this one stays with it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(l.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, reports.Close())
	}
	l.pid = cmd.Process.Pid
	return reports, nil
}

// namespaces says what of the lab's own pid 1 gets; a user namespace, with the
// caller mapped to root, where the caller is not root.
func namespaces() *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if os.Getuid() != 0 {
		attributes.Cloneflags |= syscall.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		attributes.GidMappingsEnableSetgroups = false
	}
	return attributes
}

// awaitReady reads reports until the lab is up or has failed, and closes them.
func awaitReady(ctx context.Context, reports *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = reports.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	defer reports.Close()
	last := ""
	lines := bufio.NewScanner(reports)
	for lines.Scan() {
		var r report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("report of pid 1: %w", err)
		}
		if r.Ready {
			return nil
		}
		last = r.Error
		if ctx.Err() == nil && strings.HasPrefix(last, errSetup.Error()) {
			return fmt.Errorf("%w%s", errSetup, strings.TrimPrefix(last, errSetup.Error()))
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("not up in time: %s: %w", last, err)
	}
	return fmt.Errorf("pid 1 ended: %s", last)
}

// lockState takes the state directory's lock, or says errLocked.
func lockState(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lab.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errLocked
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// clearState removes what an earlier lab has left in the directory.
func clearState(dir string) error {
	for _, name := range []string{"objects", "accepted", "status", "logs", "lab.log", "jwks.json", socketName} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"objects", "accepted", "status", "logs"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	return nil
}
