package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the kernel's accounts, USER_HZ, which is 100 on every
// architecture that Go knows.
const tick = 10 * time.Millisecond

// usage is what has been used up to now.
type usage struct {
	at      time.Time
	proxies time.Duration // CPU of the system's proxies
	own     time.Duration // CPU of this process
	busy    time.Duration // of all processors together, by processes
	total   time.Duration // of all processors together, idle or not
	sunk    int64
}

func sample(s *system) (usage, error) {
	u := usage{at: time.Now(), sunk: s.sunk.n.Load()}
	for _, pid := range s.proxies {
		cpu, err := cpuOf(strconv.Itoa(pid))
		if err != nil {
			return u, fmt.Errorf("%s: %w", s.name, err)
		}
		u.proxies += cpu
	}
	var err error
	if u.own, err = cpuOf("self"); err != nil {
		return u, err
	}
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, err
	}
	u.busy, u.total, err = parseStat(string(text))
	return u, err
}

func (u usage) since(before usage) measurement {
	m := measurement{bytes: float64(u.sunk - before.sunk), elapsed: u.at.Sub(before.at), cpu: u.proxies - before.proxies}
	if total := u.total - before.total; total > 0 {
		others := (u.busy - before.busy) - m.cpu - (u.own - before.own)
		m.foreign = max(0, float64(others)/float64(total))
	}
	return m
}

// cpuOf is the CPU time of a process and of its threads that have ended.
func cpuOf(pid string) (time.Duration, error) {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, err
	}
	return parseProcessStat(text)
}

// parseProcessStat reads utime and stime of proc_pid_stat(5). The name of the
// program, in parentheses, may hold anything.
func parseProcessStat(text []byte) (time.Duration, error) {
	_, rest, ok := bytes.CutLast(text, []byte(")"))
	if !ok {
		return 0, errors.New("process stat: no name")
	}
	fields := strings.Fields(string(rest))
	const utime, stime = 11, 12 // counted from the field after the name
	if len(fields) <= stime {
		return 0, fmt.Errorf("process stat: only %d fields", len(fields))
	}
	var sum time.Duration
	for _, i := range []int{utime, stime} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("process stat: %w", err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// parseStat reads the first line of proc_stat(5): all processors together. Time
// in interrupts is not busy: most of it carries the packets of the load.
func parseStat(text string) (busy, total time.Duration, err error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	const idle, steal = 4, 8 // between them: waiting for disks, interrupts
	if len(fields) <= steal || fields[0] != "cpu" {
		return 0, 0, fmt.Errorf("stat: first line %q", line)
	}
	for i, field := range fields[1 : steal+1] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("stat: %w", err)
		}
		total += time.Duration(n) * tick
		if field := i + 1; field < idle || field == steal {
			busy += time.Duration(n) * tick
		}
	}
	return busy, total, nil
}

// resident is the memory of a process that is in RAM, in bytes.
func resident(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parseResident(string(text))
}

func parseResident(text string) (float64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
			return kb * 1024, err
		}
	}
	return 0, errors.New("process status: no VmRSS")
}

// descriptors counts the open files of a process.
func descriptors(pid int) (float64, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return float64(len(entries)), err
}
