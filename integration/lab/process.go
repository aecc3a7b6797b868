package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// command is a program to be started somewhere in the lab.
type command struct {
	path  string
	argv  []string
	env   []string
	dir   string // "" means /
	stdio [3]*os.File
	in    place
}

// process is a started program. ended is closed when it has ended; status may
// be read from then on.
type process struct {
	pid    int
	ended  chan struct{}
	status syscall.WaitStatus
}

// processes starts programs and is the only one in pid 1 that waits for
// children, because pid 1 inherits everybody's orphans too.
type processes struct {
	children chan struct{} // has an element when there may be children again

	mu      sync.Mutex // also held while a child is made, so that none ends unknown
	running map[int]*process
}

func newProcesses() *processes {
	return &processes{children: make(chan struct{}, 1), running: map[int]*process{}}
}

// start starts the program in a session of its own.
func (p *processes) start(c command) (*process, error) {
	files := make([]uintptr, len(c.stdio))
	for i, file := range c.stdio {
		files[i] = file.Fd()
	}
	if c.dir == "" {
		c.dir = "/"
	}
	started := &process{ended: make(chan struct{})}
	err := onThread(func() error {
		if err := c.in.enter(); err != nil {
			return err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		pid, err := syscall.ForkExec(c.path, c.argv, &syscall.ProcAttr{
			Dir: c.dir, Env: c.env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		if err != nil {
			return fmt.Errorf("start %s: %w", c.path, err)
		}
		started.pid = pid
		p.running[pid] = started
		return nil
	})
	if err != nil {
		return nil, err
	}
	select {
	case p.children <- struct{}{}:
	default:
	}
	return started, nil
}

// reap collects ended children until the process ends; it is not owned by
// anyone, as pid 1 must do it to its last moment.
func (p *processes) reap() {
	for {
		pid, err := nextEnded()
		switch {
		case errors.Is(err, syscall.ECHILD):
			<-p.children
			continue
		case err != nil:
			continue // interrupted
		}
		p.mu.Lock()
		ended := p.running[pid]
		delete(p.running, pid)
		if ended != nil {
			// What it has left running goes with it, as in a container whose
			// pid 1 ends. Until it is waited for, its number is nobody else's.
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		}
		p.mu.Unlock()
		var status syscall.WaitStatus
		for {
			if _, err = syscall.Wait4(pid, &status, 0, nil); !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		if ended != nil {
			ended.status = status
			close(ended.ended)
		}
	}
}

// nextEnded waits until a child has ended and returns its number; the child is
// still to be waited for.
func nextEnded() (int, error) {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		return 0, err
	}
	// The union behind the three numbers that all signals have begins with the
	// child's pid, sigaction(2).
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), siginfoPID))), nil //nolint:gosec // x/sys has no name for it
}

// siginfoPID is where si_pid is in a siginfo_t of 64 bits.
const siginfoPID = 16

// killAll kills every process of the lab but pid 1, and waits until none is
// left or the time is over.
func killAll(wait time.Duration) {
	ticks := time.NewTicker(time.Millisecond)
	defer ticks.Stop()
	end := time.After(wait)
	for !errors.Is(syscall.Kill(-1, syscall.SIGKILL), syscall.ESRCH) {
		select {
		case <-ticks.C:
		case <-end:
			return
		}
	}
}

// signal sends the signal to the process's whole group, while it runs.
func (p *processes) signal(target *process, signal syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running[target.pid] == target {
		_ = syscall.Kill(-target.pid, signal) // gone is as good
	}
}

// code is the exit code as a shell reports it.
func (p *process) code() int {
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}

// outputDelay is how long output is read after the program has ended.
const outputDelay = time.Second

// output runs a program to its end and returns what it wrote.
func (p *processes) output(ctx context.Context, c command, stdin []byte) (stdout, stderr []byte, err error) {
	var pipes [3][2]*os.File
	for i := range pipes {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		defer r.Close()
		defer w.Close()
		pipes[i] = [2]*os.File{r, w}
	}
	c.stdio = [3]*os.File{pipes[0][0], pipes[1][1], pipes[2][1]}
	started, err := p.start(c)
	for _, file := range c.stdio {
		_ = file.Close()
	}
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { p.signal(started, syscall.SIGKILL) })
	defer stop()

	var readers sync.WaitGroup
	var out, errs bytes.Buffer
	readers.Go(func() { _, _ = io.Copy(&out, pipes[1][0]) })
	readers.Go(func() { _, _ = io.Copy(&errs, pipes[2][0]) })
	_, _ = pipes[0][1].Write(stdin) // a program may end without reading
	_ = pipes[0][1].Close()
	<-started.ended
	// A grandchild in a session of its own may hold the output for ever.
	enough := time.AfterFunc(outputDelay, func() {
		_ = pipes[1][0].Close()
		_ = pipes[2][0].Close()
	})
	defer enough.Stop()
	readers.Wait()
	if ctx.Err() != nil && started.status.Signaled() {
		return out.Bytes(), errs.Bytes(), fmt.Errorf("%s: killed: %w", filepath.Base(c.path), ctx.Err())
	}
	if code := started.code(); code != 0 {
		return out.Bytes(), errs.Bytes(), fmt.Errorf("%s: exit code %d", filepath.Base(c.path), code)
	}
	return out.Bytes(), errs.Bytes(), nil
}

// killAllIn kills every process that is in the given network namespace: what a
// container has left running when it ended.
func killAllIn(ns *os.File) {
	var want syscall.Stat_t
	if err := syscall.Fstat(int(ns.Fd()), &want); err != nil {
		return
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if !isIn(dir, want) {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(strings.TrimPrefix(dir, "/proc/"), &pid); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// isIn says whether all threads of the process are in the network namespace: a
// ztunnel, or pid 1, has single ones in a pod's, now and then its first.
func isIn(process string, want syscall.Stat_t) bool {
	threads, _ := filepath.Glob(process + "/task/[0-9]*/ns/net")
	for _, thread := range threads {
		var got syscall.Stat_t
		if err := syscall.Stat(thread, &got); err != nil || got.Ino != want.Ino || got.Dev != want.Dev {
			return false
		}
	}
	return len(threads) > 0
}
