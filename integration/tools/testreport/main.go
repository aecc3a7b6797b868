// Command testreport runs go test and tells what matters: a line for each
// package, the whole output of what failed, every test that was skipped with
// its reason, and the totals. Its exit code is that of go test.
//
//	testreport DIRECTORY [go test's arguments]
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"time"
)

// event is one line of go test -json, see go doc test2json.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Elapsed    float64 // seconds
	Output     string
}

type report struct {
	out                     io.Writer
	output                  map[string][]string // by package and test, of those that run
	passed, failed, skipped int
	reasons                 []string
	failures                map[string]bool // packages with a failed test
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: testreport DIRECTORY [go test's arguments]")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code, err := run(ctx, os.Args[1], os.Args[2:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(ctx context.Context, dir string, args []string, out io.Writer) (int, error) {
	began := time.Now()
	command := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	command.Dir = dir
	command.Stderr = os.Stderr
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	events, err := command.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := command.Start(); err != nil {
		return 0, err
	}
	r := &report{out: out, output: map[string][]string{}, failures: map[string]bool{}}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			r.line(line)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	err = command.Wait()
	r.end(time.Since(began))
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

func (r *report) line(line string) {
	var e event
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		fmt.Fprint(r.out, line) // not test2json's: show it as it is
		return
	}
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		r.output[key] = append(r.output[key], e.Output)
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "pass", "fail", "skip":
		r.result(e, r.output[key])
		delete(r.output, key)
	}
}

func (r *report) result(e event, output []string) {
	if e.Action == "fail" {
		r.unfinished(e)
		fmt.Fprint(r.out, strings.Join(output, ""))
	}
	switch {
	case e.Test == "" && e.Action != "skip": // a package without tests is no test that was skipped
		fmt.Fprintf(r.out, "%-5s %s (%.1fs)\n", e.Action, e.Package, e.Elapsed)
	case e.Test == "":
	case e.Action == "pass":
		r.passed++
	case e.Action == "fail":
		r.failed++
	case e.Action == "skip":
		r.skipped++
		r.reasons = append(r.reasons, e.Package+" "+e.Test+": "+reason(output))
	}
}

// unfinished shows what the tests said that a failed package leaves behind: one
// of them hung or ended the process. Such a package counts as a failed test.
func (r *report) unfinished(e event) {
	if e.Test != "" {
		r.failures[e.Package] = true
		return
	}
	for _, key := range slices.Sorted(maps.Keys(r.output)) {
		if strings.HasPrefix(key, e.Package+" ") && key != e.Package+" " {
			fmt.Fprint(r.out, strings.Join(r.output[key], ""))
			delete(r.output, key)
		}
	}
	if !r.failures[e.Package] {
		r.failed++
	}
}

// reason is what the test said when it was skipped.
func reason(output []string) string {
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}

func (r *report) end(took time.Duration) {
	if len(r.reasons) == 0 {
		fmt.Fprintln(r.out, "skipped: nothing")
	} else {
		fmt.Fprintln(r.out, "skipped:")
		for _, reason := range r.reasons {
			fmt.Fprintln(r.out, "  "+reason)
		}
	}
	fmt.Fprintf(r.out, "took %s\n%d passed, %d failed, %d skipped\n", took.Round(time.Second), r.passed, r.failed, r.skipped)
}
