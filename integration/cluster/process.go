package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process identifies a process for ever: numbers are used again, but not with
// the same start time in the same life of the kernel.
type process struct {
	PID     int    `json:"pid"`
	Started uint64 `json:"started"` // clock ticks after boot
	Boot    string `json:"boot"`
}

// processOf identifies a running process.
func processOf(pid int) (process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	fields, err := parseStat(stat)
	if err != nil {
		return process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Started: fields.started, Boot: strings.TrimSpace(string(boot))}, nil
}

// stat is what we want to know of /proc/PID/stat.
type stat struct {
	ended   bool // a zombie, or less
	started uint64
}

// parseStat reads proc_pid_stat(5). The name, in parentheses, may contain
// anything, a parenthesis too.
func parseStat(content []byte) (stat, error) {
	_, rest, ok := bytes.CutLast(content, []byte(")"))
	if !ok {
		return stat{}, errors.New("no name in parentheses")
	}
	fields := strings.Fields(string(rest)) // from field 3 on
	const threads, startTime = 20 - 3, 22 - 3
	if len(fields) <= startTime || len(fields[0]) != 1 {
		return stat{}, fmt.Errorf("%d fields after the name", len(fields))
	}
	started, err := strconv.ParseUint(fields[startTime], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("start time: %w", err)
	}
	// The first thread alone is a zombie, for a moment, when another one has called
	// execve(2).
	ended := (fields[0] == "Z" && fields[threads] == "1") || fields[0] == "X"
	return stat{ended: ended, started: started}, nil
}

// alive says whether the process runs; a zombie does not.
func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	now, err := processOf(p.PID)
	if err != nil || now != p {
		return false
	}
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	fields, err := parseStat(content)
	return err == nil && !fields.ended
}

// kill ends the process and waits until it has gone.
func (p process) kill(wait time.Duration) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %d: %w", p.PID, err)
	}
	if !poll(wait, func() bool { return !p.alive() }) {
		return fmt.Errorf("process %d does not end", p.PID)
	}
	return nil
}

// poll asks until the answer is yes, or the time is over. It is for what the
// kernel tells nobody about.
func poll(wait time.Duration, done func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(wait); !done(); <-tick.C {
		if time.Now().After(end) {
			return done()
		}
	}
	return true
}
