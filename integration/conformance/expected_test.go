package conformance

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseExpected(t *testing.T) {
	for _, tc := range []struct {
		name, list string
		want       []string
		wantErr    string
	}{
		{"empty", "", nil, ""},
		{"comments and blank lines", "# what passes\n\nA # since yesterday\n  B\t\n", []string{"A", "B"}, ""},
		{"no newline at the end", "A\nB", []string{"A", "B"}, ""},
		{"unsorted", "B\nA\n", nil, "line 2: A must come before B"},
		{"twice", "A\n\nA\n", nil, "line 3: A must come before A, and only once"},
		{"two on a line", "A B\n", nil, `line 1: "A B": want the name of one test`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseExpected(strings.NewReader(tc.list))
			switch {
			case tc.wantErr == "" && err != nil, tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)):
				t.Fatalf("got error %v, want %q", err, tc.wantErr)
			case !slices.Equal(got, tc.want):
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestAddExpected(t *testing.T) {
	for _, tc := range []struct {
		name, list string
		add        []string
		want       string
	}{
		{"to nothing", "", []string{"A", "B"}, "A\nB\n"},
		{"below the comment", "# list\n", []string{"A"}, "# list\nA\n"},
		{"in its place", "# list\nA\nC # why\nE\n", []string{"B", "D", "F"}, "# list\nA\nB\nC # why\nD\nE\nF\n"},
		{"after a line without its end", "A", []string{"B"}, "A\nB\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := string(AddExpected([]byte(tc.list), tc.add)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// A list that can be read can be read with names added, and then has them all.
func FuzzExpected(f *testing.F) {
	f.Add([]byte("# comment\n\nA # b\n\tC"), "B")
	f.Add([]byte("A\r\nB\r\n"), "C")
	f.Fuzz(func(t *testing.T, list []byte, name string) {
		names, err := ParseExpected(bytes.NewReader(list))
		if err != nil {
			return
		}
		if one, err := ParseExpected(strings.NewReader(name)); err != nil || !slices.Equal(one, []string{name}) || slices.Contains(names, name) {
			return // not a name, or nothing to add
		}
		got, err := ParseExpected(bytes.NewReader(AddExpected(list, []string{name})))
		if err != nil {
			t.Fatalf("%q with %q: %v", list, name, err)
		}
		want := append(names, name)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%q with %q: got %q, want %q", list, name, got, want)
		}
	})
}

func TestJudge(t *testing.T) {
	tests := []string{"C", "A", "B"}
	outcomes := func(a, b, c Outcome) map[string]Result {
		results := map[string]Result{"NotOfAMesh": {Outcome: Skipped}}
		for name, outcome := range map[string]Outcome{"A": a, "B": b, "C": c} {
			if outcome != "" {
				results[name] = Result{Outcome: outcome}
			}
		}
		return results
	}
	for _, tc := range []struct {
		name     string
		expected []string
		results  map[string]Result
		want     Verdict
		ok       bool
	}{
		{"as listed", []string{"A"}, outcomes(Passed, Failed, Failed), Verdict{}, true},
		{"nothing listed, nothing passes", nil, outcomes(Failed, Failed, Failed), Verdict{}, true},
		{"new ones", []string{"A"}, outcomes(Passed, Passed, Passed), Verdict{New: []string{"B", "C"}}, true},
		{"a listed one fails", []string{"A", "B"}, outcomes(Passed, Failed, Failed), Verdict{Broken: []string{"B"}}, false},
		{"a listed one is skipped", []string{"A"}, outcomes(Skipped, Failed, Failed), Verdict{NotRun: []string{"A"}}, false},
		{"one that is not listed does not run", []string{"A"}, outcomes(Passed, Failed, ""), Verdict{NotRun: []string{"C"}}, false},
		{"nothing runs", nil, nil, Verdict{NotRun: []string{"A", "B", "C"}}, false},
		{"a listed one is unknown", []string{"A", "X"}, outcomes(Passed, Failed, Failed), Verdict{Unknown: []string{"X"}}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Judge(tests, tc.expected, tc.results)
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if got.OK() != tc.ok {
				t.Errorf("OK() is %v, want %v", got.OK(), tc.ok)
			}
			if named := len(got.New) + len(got.Broken) + len(got.NotRun) + len(got.Unknown); len(got.Lines()) != named {
				t.Errorf("got %d lines, want one for each of %d names", len(got.Lines()), named)
			}
		})
	}
}
