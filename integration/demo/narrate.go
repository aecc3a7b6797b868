package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// narrator tells the story on a terminal or into a file, and counts.
type narrator struct {
	out    io.Writer
	color  bool
	began  time.Time
	passed int
	failed int
}

func newNarrator(out *os.File) *narrator {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &narrator{out: out, color: terminal && os.Getenv("NO_COLOR") == "", began: time.Now()}
}

const (
	bold  = "1"
	red   = "31"
	green = "32"
	blue  = "36"
	faint = "2"
)

func (n *narrator) paint(color, text string) string {
	if !n.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// errFailed ends a step that has said itself what was wrong.
var errFailed = errors.New("failed")

// step runs one chapter: its checks print ok or FAIL, and so does an error
// that it returns. It reports whether the chapter held.
func (n *narrator) step(ctx context.Context, title string, run func(ctx context.Context) error) bool {
	fmt.Fprintf(n.out, "\n%s\n", n.paint(bold, "— "+title))
	before := n.failed
	if err := run(ctx); err != nil && !errors.Is(err, errFailed) {
		n.fail(title, err.Error())
	}
	return n.failed == before
}

// command shows what a person would type.
func (n *narrator) command(format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(n.out, "  %s\n", n.paint(blue, "$ "+strings.TrimRight(line, "\n")))
	}
}

// manifest shows a manifest without its comments.
func (n *narrator) manifest(text string) {
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			fmt.Fprintf(n.out, "  %s\n", n.paint(blue, "| "+strings.TrimRight(line, "\n")))
		}
	}
}

// note tells what happened.
func (n *narrator) note(format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(n.out, "  %s\n", n.paint(faint, strings.TrimRight(line, "\n")))
	}
}

// check prints one verdict: what was expected and what was seen.
func (n *narrator) check(held bool, expected, seen string) error {
	if !held {
		n.fail(expected, seen)
		return errFailed
	}
	n.passed++
	fmt.Fprintf(n.out, "  %s %s%s\n", n.paint(green, "ok  "), expected, inParentheses(seen))
	return nil
}

func inParentheses(text string) string {
	if text == "" {
		return ""
	}
	return " (" + text + ")"
}

func (n *narrator) fail(expected, seen string) {
	n.failed++
	fmt.Fprintf(n.out, "  %s %s\n       %s\n", n.paint(red, "FAIL"), expected, strings.ReplaceAll(seen, "\n", "\n       "))
}

// end prints the last line.
func (n *narrator) end() {
	fmt.Fprintf(n.out, "\n%s\n", n.paint(faint, fmt.Sprintf("took %.1f s", time.Since(n.began).Seconds())))
	fmt.Fprintf(n.out, "demo: %d passed, %d failed\n", n.passed, n.failed)
}
