package conformance

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
)

// ParseExpected reads a list of tests that pass: one name per line, sorted;
// what follows a # is a comment.
func ParseExpected(r io.Reader) ([]string, error) {
	var names []string
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		text = strings.TrimSpace(text)
		switch {
		case text == "":
			continue
		case strings.ContainsAny(text, " \t"):
			return nil, fmt.Errorf("line %d: %q: want the name of one test", n, text)
		case len(names) > 0 && text <= names[len(names)-1]:
			return nil, fmt.Errorf("line %d: %s must come before %s, and only once", n, text, names[len(names)-1])
		}
		names = append(names, text)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return names, nil
}

// AddExpected puts names into a list as ParseExpected reads it, in their
// places, and leaves all else as it is.
func AddExpected(list []byte, names []string) []byte {
	lines := strings.SplitAfter(string(list), "\n")
	if last := len(lines) - 1; lines[last] == "" {
		lines = lines[:last]
	} else {
		lines[last] += "\n"
	}
	for _, name := range names {
		at := slices.IndexFunc(lines, func(line string) bool {
			text, _, _ := strings.Cut(line, "#")
			return strings.TrimSpace(text) > name
		})
		if at < 0 {
			at = len(lines)
		}
		lines = slices.Insert(lines, at, name+"\n")
	}
	return []byte(strings.Join(lines, ""))
}

// A Verdict compares a run with the list of tests that are expected to pass.
// The run is as it must be if Broken, NotRun and Unknown are empty.
type Verdict struct {
	// Broken are tests of the list that failed.
	Broken []string
	// NotRun are tests, of the list or not, that the run did not come to or
	// skipped: a run that does not reach its end proves nothing.
	NotRun []string
	// Unknown are names of the list that are no tests of the suite.
	Unknown []string
	// New are tests that passed and are not in the list.
	New []string
}

// OK says whether the run is as it must be.
func (v Verdict) OK() bool { return len(v.Broken)+len(v.NotRun)+len(v.Unknown) == 0 }

// Lines say what is wrong, and what is new.
func (v Verdict) Lines() []string {
	var lines []string
	for _, part := range []struct {
		names []string
		what  string
	}{
		{v.New, "passes now, add it to expected.txt (or run with -update)"},
		{v.Broken, "FAIL: is expected to pass, and failed"},
		{v.NotRun, "FAIL: did not run to its end"},
		{v.Unknown, "FAIL: is expected to pass, but the suite has no such test"},
	} {
		for _, name := range part.names {
			lines = append(lines, fmt.Sprintf("conformance: %s: %s", name, part.what))
		}
	}
	return lines
}

// Judge compares outcomes of a run with the list of tests expected to pass.
// tests names all tests that were to run.
func Judge(tests, expected []string, results map[string]Result) Verdict {
	var v Verdict
	want := sets.New(expected...)
	for _, name := range slices.Sorted(slices.Values(tests)) {
		switch results[name].Outcome {
		case Passed:
			if !want.Has(name) {
				v.New = append(v.New, name)
			}
		case Failed:
			if want.Has(name) {
				v.Broken = append(v.Broken, name)
			}
		default:
			v.NotRun = append(v.NotRun, name)
		}
	}
	for _, name := range expected {
		if !slices.Contains(tests, name) {
			v.Unknown = append(v.Unknown, name)
		}
	}
	return v
}
