package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// program is one that a machine runs.
type program struct {
	name string
	argv []string // the first is a path
	// after is what the program waits for before its first start, in turn.
	after []condition
	// once marks one that is done when it ends well; the others run for ever.
	once bool
}

// ProgramStatus is how a machine's program does.
type ProgramStatus struct {
	Name    string    `json:"name"`
	PID     int       `json:"pid,omitempty"` // in the machine's pid namespace; 0 when it does not run
	Started time.Time `json:"started,omitzero"`
	Starts  int       `json:"starts"`
	Done    bool      `json:"done,omitempty"`  // it was to run once, and has
	Ended   string    `json:"ended,omitempty"` // how it ended last, if not well
}

// restartDelay is how long a program that ended stays down.
const restartDelay = time.Second

// supervisor keeps a machine's programs running. It is the only one in pid 1
// that waits for children, because pid 1 inherits everybody's orphans too.
type supervisor struct {
	log      *slog.Logger
	children chan struct{} // has an element when there may be children again

	mu      sync.Mutex // also held while a child is made, so that none ends unknown
	running map[int]chan<- syscall.WaitStatus
	status  []ProgramStatus
	done    map[string]chan struct{} // by program: closed when it is done
}

func newSupervisor(log *slog.Logger) *supervisor {
	return &supervisor{
		log: log, children: make(chan struct{}, 1),
		running: map[int]chan<- syscall.WaitStatus{}, done: map[string]chan struct{}{},
	}
}

// run starts the programs and never returns, unless ctx ends.
func (s *supervisor) run(ctx context.Context, programs []program) error {
	s.status = make([]ProgramStatus, len(programs))
	for i, p := range programs {
		s.status[i].Name = p.name
		s.done[p.name] = make(chan struct{})
	}
	go s.reap() // pid 1 does it to its last moment
	var keepers sync.WaitGroup
	for i, p := range programs {
		keepers.Go(func() { s.keep(ctx, i, p) })
	}
	keepers.Wait()
	<-ctx.Done()
	return ctx.Err()
}

// keep runs a program, again and again if it is to.
func (s *supervisor) keep(ctx context.Context, i int, p program) {
	for _, wait := range p.after {
		if err := wait(ctx, s); err != nil {
			s.set(i, func(status *ProgramStatus) { status.Ended = err.Error() })
			return
		}
	}
	for ctx.Err() == nil {
		how := s.runOnce(i, p)
		s.log.Info("program ended", "program", p.name, "how", how)
		good := p.once && how == ""
		s.set(i, func(status *ProgramStatus) {
			status.PID, status.Done, status.Ended = 0, good, how
		})
		if good {
			close(s.done[p.name])
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartDelay):
		}
	}
}

// runOnce runs the program to its end and says how that was; "" is well.
func (s *supervisor) runOnce(i int, p program) string {
	ended := make(chan syscall.WaitStatus, 1)
	if err := s.start(i, p, ended); err != nil {
		return err.Error()
	}
	status := <-ended
	switch {
	case status.Signaled():
		return "killed: " + status.Signal().String()
	case status.ExitStatus() != 0:
		return fmt.Sprintf("exit code %d", status.ExitStatus())
	case !p.once:
		return "exit code 0"
	}
	return ""
}

func (s *supervisor) start(i int, p program, ended chan<- syscall.WaitStatus) error {
	log, err := os.OpenFile(filepath.Join(machineDir, "logs", p.name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	s.mu.Lock()
	pid, err := syscall.ForkExec(p.argv[0], p.argv, &syscall.ProcAttr{
		Dir: "/", Env: machineEnvironment(),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err == nil {
		s.running[pid] = ended
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.argv[0], err)
	}
	select {
	case s.children <- struct{}{}:
	default:
	}
	s.log.Info("program started", "program", p.name, "pid", pid)
	s.set(i, func(status *ProgramStatus) {
		status.PID, status.Started = pid, time.Now()
		status.Starts++
	})
	return nil
}

// reap collects ended children until the process ends.
func (s *supervisor) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.ECHILD) {
			<-s.children
			continue
		}
		if err != nil {
			continue // interrupted
		}
		s.mu.Lock()
		ended := s.running[pid]
		delete(s.running, pid)
		s.mu.Unlock()
		if ended != nil {
			ended <- status
		}
	}
}

// set changes a program's status and writes all for others to read.
func (s *supervisor) set(i int, change func(*ProgramStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status[i])
	if err := writeJSON(filepath.Join(machineDir, "status.json"), s.status); err != nil {
		s.log.Warn("write status", "error", err)
	}
}

// condition waits until something is so.
type condition func(ctx context.Context, s *supervisor) error

// programDone is met when the program, one of those that run once, has ended
// well.
func programDone(name string) condition {
	return func(ctx context.Context, s *supervisor) error {
		select {
		case <-s.done[name]:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fileExists is met when the file is there.
func fileExists(path string) condition {
	return tried(func(context.Context) error {
		_, err := os.Stat(path)
		return err
	})
}

// tried is met when try succeeds; it is repeated until then.
func tried(try func(ctx context.Context) error) condition {
	return func(ctx context.Context, _ *supervisor) error {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for try(ctx) != nil {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
}
