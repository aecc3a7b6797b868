package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/integration/conformance"
)

// repository is a tree with a list of expected tests and the report of a run in
// which the tests passed that are named.
func repository(t *testing.T, expected string, passed ...string) options {
	t.Helper()
	root := t.TempDir()
	opts := options{root: root, bin: filepath.Join(root, "bin")}
	for _, dir := range []string{opts.bin, filepath.Dir(opts.expectedFile())} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, opts.expectedFile(), expected)
	var report confv1.ConformanceReport
	for _, p := range conformance.Count(conformance.Tests(), conformance.Profiles(), sets.New(passed...)).Profiles {
		statistics := func(s conformance.Score) confv1.Statistics {
			return confv1.Statistics{Passed: uint32(s.Passed), Failed: uint32(s.Total - s.Passed)}
		}
		report.ProfileReports = append(report.ProfileReports, confv1.ProfileReport{
			Name:     string(p.Name),
			Core:     confv1.Status{Statistics: statistics(p.Core)},
			Extended: &confv1.ExtendedStatus{Statistics: statistics(p.Extended)},
		})
	}
	data, err := yaml.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	write(t, opts.reportFile(), string(data))
	return opts
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run of all tests, in which those passed that are named.
func results(passed ...string) map[string]conformance.Result {
	all := map[string]conformance.Result{}
	for _, test := range conformance.Tests() {
		all[test.ShortName] = conformance.Result{Outcome: conformance.Failed}
	}
	for _, name := range passed {
		all[name] = conformance.Result{Outcome: conformance.Passed}
	}
	return all
}

func TestJudge(t *testing.T) {
	const list = "# list\nMeshBasic\n"
	for _, tc := range []struct {
		name    string
		opts    options // root and bin are filled in
		results map[string]conformance.Result
		report  []string // tests that the report counts as passed
		red     bool
		says    string
		list    string // afterwards
	}{
		{
			name: "as expected", results: results("MeshBasic"), report: []string{"MeshBasic"},
			says: "conformance: MESH-GRPC core 1/", list: list,
		},
		{
			name: "more than expected", results: results("MeshBasic", "MeshPorts"), report: []string{"MeshBasic"},
			says: "conformance: MeshPorts: passes now, add it", list: list,
		},
		{
			name: "more than expected, to be added", opts: options{update: true},
			results: results("MeshBasic", "MeshPorts"), report: []string{"MeshBasic"},
			says: "added to", list: list + "MeshPorts\n",
		},
		{
			name: "less than expected: the list never shrinks", opts: options{update: true},
			results: results("MeshPorts"), red: true,
			says: "conformance: MeshBasic: FAIL", list: list + "MeshPorts\n",
		},
		{
			name: "the report says otherwise", results: results("MeshBasic"), report: []string{"MeshBasic", "MeshTrafficSplit"}, red: true,
			says: "the report counts", list: list,
		},
		{
			name: "the suite did not run", red: true,
			says: "conformance: MeshBasic: FAIL: did not run to its end", list: list,
		},
		{
			name: "one test alone", opts: options{tests: "MeshPorts"},
			results: map[string]conformance.Result{"MeshPorts": {Outcome: conformance.Failed}},
			says:    "0 of the 1 chosen tests passed", list: list,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts := repository(t, list, tc.report...)
			opts.tests, opts.update = tc.opts.tests, tc.opts.update
			expected, err := readExpected(opts.expectedFile())
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err = judge(opts, expected, tc.results, &out)
			if errors.Is(err, errRed) != tc.red || err != nil && !tc.red {
				t.Errorf("got error %v, want red: %v", err, tc.red)
			}
			if !strings.Contains(out.String(), tc.says) {
				t.Errorf("want %q in\n%s", tc.says, out.String())
			}
			if last := "conformance: mesh tests "; opts.tests == "" && !strings.Contains(out.String()[strings.LastIndex(strings.TrimSpace(out.String()), "\n")+1:], last) {
				t.Errorf("the last line is not the score:\n%s", out.String())
			}
			if got, err := os.ReadFile(opts.expectedFile()); err != nil || string(got) != tc.list {
				t.Errorf("the list is now %q, %v, want %q", got, err, tc.list)
			}
		})
	}
}

func TestJudgeWithoutReport(t *testing.T) {
	opts := repository(t, "")
	if err := os.Remove(opts.reportFile()); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := judge(opts, nil, results(), &out); !errors.Is(err, errRed) {
		t.Errorf("got %v, want %v", err, errRed)
	}
	if want := "the suite wrote no report"; !strings.Contains(out.String(), want) {
		t.Errorf("want %q in\n%s", want, out.String())
	}
}

func TestParse(t *testing.T) {
	opts, err := parse([]string{"-root", "/r", "-test", "MeshBasic,MeshPorts", "-update"}, "c")
	if err != nil {
		t.Fatal(err)
	}
	if opts.name != "c" || opts.bin != "/r/bin" || !opts.update {
		t.Errorf("got %+v", opts)
	}
	if names, err := opts.selected(); err != nil || len(names) != 2 {
		t.Errorf("selected %q, %v", names, err)
	}
	if _, err := parse([]string{"now"}, ""); err == nil {
		t.Error("an argument is taken for nothing")
	}
}

func TestExpectedListOfTheRepository(t *testing.T) {
	opts, err := parse([]string{"-root", "../../../.."}, "")
	if err != nil {
		t.Fatal(err)
	}
	listed, err := readExpected(opts.expectedFile())
	if err != nil {
		t.Fatal(err)
	}
	all, err := opts.selected()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conformance.Select(all, listed); err != nil {
		t.Error(err)
	}
}

func TestPrintResult(t *testing.T) {
	var out bytes.Buffer
	printResult(&out, "3/23", "MeshPorts", conformance.Result{
		Outcome: conformance.Failed, Elapsed: 40100 * time.Millisecond, Cases: 4, FailedCases: 2, Reason: "case: got 404",
	})
	want := "FAIL   3/23  MeshPorts                                   40.1 s  2 of 4 cases\n             case: got 404\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
