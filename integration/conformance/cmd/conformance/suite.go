package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/integration/conformance"
)

const (
	rootTest = "TestGatewayAPI"
	// suiteTimeout ends a run that hangs; a mesh that fails everything needs
	// about a quarter of an hour.
	suiteTimeout = 40 * time.Minute
	// parallel is how many cases of a test run at once: those that fail wait
	// most of the time.
	parallel = 8
	// interruptWait is how long the test may take to end when interrupted.
	interruptWait = 10 * time.Second
)

// runSuite runs the Go test and prints each of the suite's tests as it ends. A
// test that fails is no error here.
func runSuite(ctx context.Context, opts options, kubeconfig string, out io.Writer) (map[string]conformance.Result, error) {
	names, err := opts.selected()
	if err != nil {
		return nil, err
	}
	if err := os.Remove(opts.reportFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	log, err := os.Create(opts.logFile())
	if err != nil {
		return nil, err
	}
	defer log.Close()

	command := testCommand(ctx, opts, kubeconfig, names)
	command.Stderr = log
	events, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "conformance: running %d tests of the Gateway API suite; what they log is in %s\n", len(names), opts.logFile())
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("go test: %w", err)
	}
	ended := 0
	watcher := conformance.Watcher{
		Root: rootTest, Log: log,
		Notice: func(text string) { fmt.Fprintln(out, "      "+text) },
		Ended: func(name string, result conformance.Result) {
			if result.Outcome == conformance.Skipped {
				return // not about a mesh; if it is, the verdict says so
			}
			ended++
			printResult(out, fmt.Sprintf("%d/%d", ended, len(names)), name, result)
		},
	}
	results, err := watcher.Watch(events)
	waitErr := command.Wait()
	if _, exited := errors.AsType[*exec.ExitError](waitErr); exited {
		waitErr = nil // it says what the events have said
	}
	if err := errors.Join(err, waitErr); err != nil {
		return nil, fmt.Errorf("go test: %w", err)
	}
	if ended == 0 && ctx.Err() == nil {
		return nil, fmt.Errorf("no test ran:\n%s", tail(opts.logFile()))
	}
	return results, nil
}

// tail returns the last lines of a file, or why it cannot.
func tail(path string) string {
	const most = 15
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}

func testCommand(ctx context.Context, opts options, kubeconfig string, names []string) *exec.Cmd {
	args := []string{
		"test", "-json", "-count=1", "-timeout", suiteTimeout.String(), "-parallel", fmt.Sprint(parallel), "./gatewayapi",
	}
	if opts.tests != "" {
		args = append(args, "-run", fmt.Sprintf("^%s$/^(%s)$", rootTest, strings.Join(names, "|")))
	}
	args = append(args, "-args", "-kubeconfig", kubeconfig, "-report-output", opts.reportFile(), "-version", opts.version)
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = filepath.Join(opts.root, "integration/conformance")
	// Its own process group: an interrupt of the terminal comes to this
	// program alone, which then ends go and the test together.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGTERM) }
	command.WaitDelay = interruptWait
	return command
}

func printResult(out io.Writer, progress, name string, result conformance.Result) {
	word := "ok  "
	if result.Outcome != conformance.Passed {
		word = "FAIL"
	}
	fmt.Fprintf(out, "%s  %5s  %-42s %5.1f s", word, progress, name, result.Elapsed.Seconds())
	if result.FailedCases > 0 {
		fmt.Fprintf(out, "  %d of %d cases", result.FailedCases, result.Cases)
	}
	fmt.Fprintln(out)
	if result.Reason != "" {
		fmt.Fprintf(out, "             %s\n", result.Reason)
	}
}
