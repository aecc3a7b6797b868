// Command gobuild runs go build and says how far it is, since the first build
// on a machine takes minutes: in place on a terminal, every ten seconds
// otherwise. Its exit code is that of go build.
//
//	gobuild DIRECTORY [go build's arguments]
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: gobuild DIRECTORY [go build's arguments]")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code, err := run(ctx, os.Args[1], os.Args[2:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "gobuild:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(ctx context.Context, dir string, args []string) (int, error) {
	began := time.Now()
	p := &progress{began: began, terminal: isTerminal(os.Stdout), total: dependencies(ctx, dir, args)}
	command := exec.CommandContext(ctx, "go", append([]string{"build", "-v"}, args...)...)
	command.Dir = dir
	command.Stdout = os.Stdout
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	output, err := command.StderrPipe()
	if err != nil {
		return 0, err
	}
	if err := command.Start(); err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(output); lines.Scan(); {
		p.line(lines.Text())
	}
	err = command.Wait()
	p.end(err == nil)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// dependencies counts the packages that could have to be compiled; 0 when that
// is not known.
func dependencies(ctx context.Context, dir string, args []string) int {
	list := []string{"list", "-deps"}
	for i, arg := range args {
		if !strings.HasPrefix(arg, "-") && (i == 0 || args[i-1] != "-o") {
			list = append(list, arg)
		}
	}
	command := exec.CommandContext(ctx, "go", list...)
	command.Dir = dir
	output, err := command.Output()
	if err != nil {
		return 0 // go build will say why
	}
	return bytes.Count(output, []byte("\n"))
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

type progress struct {
	began, last time.Time
	terminal    bool
	total       int
	compiled    int
}

// line takes a line of go build -v: a package that is being compiled, or what
// is wrong with one.
func (p *progress) line(text string) {
	if strings.ContainsAny(text, " \t#") {
		fmt.Fprintln(os.Stderr, text)
		return
	}
	p.compiled++
	interval := 10 * time.Second
	if p.terminal {
		interval = 200 * time.Millisecond
	}
	if time.Since(p.last) >= interval {
		p.last = time.Now()
		p.show("building: ")
	}
}

func (p *progress) show(what string) {
	text := fmt.Sprintf("%s%d packages compiled of at most %d, %.0f s", what, p.compiled, p.total, time.Since(p.began).Seconds())
	if p.terminal {
		fmt.Printf("\r\x1b[K%s", text)
		return
	}
	fmt.Println(text)
}

func (p *progress) end(ok bool) {
	if ok && p.compiled > 0 {
		p.show("built: ")
	}
	if p.terminal {
		fmt.Println()
	}
}
