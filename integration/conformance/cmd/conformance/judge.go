package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/util/sets"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/integration/conformance"
)

func readExpected(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := conformance.ParseExpected(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return names, nil
}

// judge prints the verdict and, last, the score.
func judge(opts options, expected []string, results map[string]conformance.Result, out io.Writer) error {
	names, err := opts.selected()
	if err != nil {
		return err
	}
	if opts.tests != "" {
		expected = sets.List(sets.New(expected...).Intersection(sets.New(names...)))
	}
	verdict := conformance.Judge(names, expected, results)
	if opts.update && len(verdict.New) > 0 {
		if err := addExpected(opts.expectedFile(), verdict.New); err != nil {
			return err
		}
		fmt.Fprintf(out, "conformance: added to %s: %v\n", opts.expectedFile(), verdict.New)
		verdict.New = nil
	}
	for _, line := range verdict.Lines() {
		fmt.Fprintln(out, line)
	}
	passed := sets.New[string]()
	for name, result := range results {
		if result.Outcome == conformance.Passed {
			passed.Insert(name)
		}
	}
	scores := conformance.Count(conformance.Tests(), conformance.Profiles(), passed)
	var reportErr error
	if opts.tests == "" && len(verdict.NotRun) == 0 {
		reportErr = checkReport(opts.reportFile(), scores)
		if reportErr != nil {
			fmt.Fprintf(out, "conformance: FAIL: %v\n", reportErr)
		} else {
			fmt.Fprintf(out, "conformance: the report is %s\n", opts.reportFile())
		}
	}
	if opts.tests != "" {
		fmt.Fprintf(out, "conformance: %d of the %d chosen tests passed\n", len(passed), len(names))
	} else {
		for _, line := range scores.Lines() {
			fmt.Fprintln(out, line)
		}
	}
	if !verdict.OK() || reportErr != nil {
		return errRed
	}
	return nil
}

func addExpected(path string, names []string) error {
	list, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, conformance.AddExpected(list, names), 0o644)
}

// checkReport holds the score against the report that the suite wrote.
func checkReport(path string, scores conformance.Scores) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the suite wrote no report: %w", err)
	}
	if err != nil {
		return err
	}
	var report confv1.ConformanceReport
	if err := yaml.Unmarshal(data, &report); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := scores.CheckReport(&report); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
