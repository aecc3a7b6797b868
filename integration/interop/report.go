package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// errMissing says that a part is not there.
var errMissing = errors.New("not there")

// limit is how long a scenario may take.
const limit = time.Minute

// report runs scenarios and writes their lines.
type report struct {
	out    io.Writer
	only   *regexp.Regexp
	counts map[string]int
}

const (
	ok     = "ok"
	failed = "FAIL"
	notRun = "not run"
)

// run runs a scenario of a pair. missing is why it cannot run, nil if it can.
func (r *report) run(ctx context.Context, pair, scenario string, missing error, f func(ctx context.Context) error) {
	if !r.only.MatchString(pair + " " + scenario) {
		return
	}
	if missing == nil {
		limited, cancel := context.WithTimeout(ctx, limit)
		missing = f(limited)
		cancel()
	}
	r.line(pair, scenario, missing)
}

func (r *report) line(pair, scenario string, err error) {
	outcome := ok
	switch {
	case errors.Is(err, errMissing):
		outcome = notRun
	case err != nil:
		outcome = failed
	}
	r.counts[outcome]++
	fmt.Fprintf(r.out, "interop %s %s %s\n", pair, scenario, outcome)
	if err != nil {
		fmt.Fprintf(r.out, "\t%s\n", strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "\n\t"))
	}
}

// end writes the sum; it is an error when a scenario failed.
func (r *report) end() error {
	fmt.Fprintf(r.out, "interop: %d ok, %d FAIL, %d not run\n", r.counts[ok], r.counts[failed], r.counts[notRun])
	if n := r.counts[failed]; n > 0 {
		return fmt.Errorf("%d scenarios failed", n)
	}
	return nil
}
