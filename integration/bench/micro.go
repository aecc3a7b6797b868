package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strconv"
	"strings"
)

// microPackages have benchmarks of decisions: plan, policies, load balancing,
// state updates.
var microPackages = []string{"./ztunnel/plan", "./ztunnel/rbac", "./ztunnel/workload"}

// microResult is one line of go test -bench.
type microResult struct {
	name   string // package/benchmark
	values []microValue
}

type microValue struct {
	value float64
	unit  string
}

// runMicro runs the benchmarks of packages below root and writes a line for
// each figure of each.
func runMicro(ctx context.Context, w io.Writer, root, benchtime string) error {
	args := append([]string{"test", "-run", "^$", "-bench", ".", "-benchmem", "-benchtime", benchtime}, microPackages...)
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir = root
	var problems bytes.Buffer
	c.Stderr = &problems
	out, err := c.Output()
	for _, r := range parseMicro(string(out)) {
		for _, v := range r.values {
			fmt.Fprintf(w, "bench %s %s %s - vs - goal - -\n", r.name, figure(v.value), v.unit)
		}
	}
	if err != nil {
		return fmt.Errorf("go test -bench: %w\n%s%s", err, out, problems.Bytes())
	}
	return nil
}

// parseMicro reads the output of go test -bench:
// https://golang.org/design/14313-benchmark-format
func parseMicro(text string) []microResult {
	var (
		results []microResult
		pkg     string
	)
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "pkg: "); ok {
			pkg = path.Base(strings.TrimSpace(name))
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		r := microResult{name: pkg + "/" + strings.TrimPrefix(withoutProcs(fields[0]), "Benchmark")}
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				r.values = append(r.values, microValue{v, fields[i+1]})
			}
		}
		results = append(results, r)
	}
	return results
}

// withoutProcs takes "-2", the number of processors, off a benchmark's name.
func withoutProcs(name string) string {
	base, procs, ok := strings.CutLast(name, "-")
	if _, err := strconv.Atoi(procs); !ok || err != nil {
		return name
	}
	return base
}
