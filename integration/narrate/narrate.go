// Package narrate tells what a check by machine does as a story for people: each
// step prints what a person would type, what happened, and ok or FAIL.
package narrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// Narrator tells the story on a terminal or into a file, and counts. It is used
// by one goroutine.
type Narrator struct {
	name   string
	out    io.Writer
	color  bool
	began  time.Time
	passed int
	failed int
}

// New returns the narrator of the program of that name.
func New(name string, out *os.File) *Narrator {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &Narrator{name: name, out: out, color: terminal && os.Getenv("NO_COLOR") == "", began: time.Now()}
}

// Failed reports how many checks have failed so far.
func (n *Narrator) Failed() int { return n.failed }

// Printf prints as it is.
func (n *Narrator) Printf(format string, args ...any) { fmt.Fprintf(n.out, format, args...) }

const (
	bold  = "1"
	red   = "31"
	green = "32"
	blue  = "36"
	faint = "2"
)

func (n *Narrator) paint(color, text string) string {
	if !n.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// ErrFailed ends a step that has said itself what was wrong.
var ErrFailed = errors.New("failed")

// Step runs one chapter: its checks print ok or FAIL, and so does an error
// that it returns. It reports whether the chapter held.
func (n *Narrator) Step(ctx context.Context, title string, run func(ctx context.Context) error) bool {
	fmt.Fprintf(n.out, "\n%s\n", n.paint(bold, "— "+title))
	before := n.failed
	if err := run(ctx); err != nil && !errors.Is(err, ErrFailed) {
		n.fail(title, err.Error())
	}
	return n.failed == before
}

// Command shows what a person would type.
func (n *Narrator) Command(format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(n.out, "  %s\n", n.paint(blue, "$ "+strings.TrimRight(line, "\n")))
	}
}

// Manifest shows a manifest without its comments.
func (n *Narrator) Manifest(text string) {
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			fmt.Fprintf(n.out, "  %s\n", n.paint(blue, "| "+strings.TrimRight(line, "\n")))
		}
	}
}

// Note tells what happened.
func (n *Narrator) Note(format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(n.out, "  %s\n", n.paint(faint, strings.TrimRight(line, "\n")))
	}
}

// Check prints one verdict: what was expected and what was seen.
func (n *Narrator) Check(held bool, expected, seen string) error {
	if !held {
		n.fail(expected, seen)
		return ErrFailed
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

func (n *Narrator) fail(expected, seen string) {
	n.failed++
	fmt.Fprintf(n.out, "  %s %s\n       %s\n", n.paint(red, "FAIL"), expected, strings.ReplaceAll(seen, "\n", "\n       "))
}

// End prints the last line.
func (n *Narrator) End() {
	fmt.Fprintf(n.out, "\n%s\n", n.paint(faint, fmt.Sprintf("took %.1f s", time.Since(n.began).Seconds())))
	fmt.Fprintf(n.out, "%s: %d passed, %d failed\n", n.name, n.passed, n.failed)
}
