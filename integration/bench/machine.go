package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

// describe writes what the numbers were measured on. It names no path, user or
// host: the file is checked in.
func describe(w io.Writer, systems []*system) {
	fmt.Fprintf(w, "# machine: %s, %d processors, %s, Linux %s, bench built with %s\n",
		orUnknown(field("/proc/cpuinfo", "model name")), runtime.NumCPU(), orUnknown(field("/proc/meminfo", "MemTotal")),
		orUnknown(firstLine("/proc/sys/kernel/osrelease")), runtime.Version())
	fmt.Fprintf(w, "# load average at the start: %s\n", orUnknown(firstLine("/proc/loadavg")))
	for _, s := range systems {
		if s.detail != "" {
			fmt.Fprintf(w, "# %s: %s\n", s.name, s.detail)
		}
	}
}

// field returns the value of the first "name: value" line of a file.
func field(path, name string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return ""
}

func firstLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

func orUnknown(text string) string {
	if text == "" {
		return "unknown"
	}
	return text
}
