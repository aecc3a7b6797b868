package conformance

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// An Outcome is what became of a test.
type Outcome string

// The outcomes. The zero value stands for a test that did not end.
const (
	Passed  Outcome = "pass"
	Failed  Outcome = "fail"
	Skipped Outcome = "skip"
)

// A Result is what is known of one test of the suite.
type Result struct {
	Outcome Outcome
	// Elapsed is from its start to its end, cleaning up included.
	Elapsed time.Duration
	// Cases and FailedCases count the test's own subtests.
	Cases, FailedCases int
	// Reason is why it failed, in the suite's words: of its first case that
	// failed, what was last wrong with the answer.
	Reason string
}

// event is one line of go test -json; see go doc cmd/test2json.
type event struct {
	Time   time.Time
	Action string
	Test   string
	Output string
}

// A Watcher follows a run of the suite as the output of go test -json.
type Watcher struct {
	// Root is the Go test that runs the suite; the suite's tests are its
	// subtests.
	Root string
	// Log gets all that is printed; Notice each line that Root itself prints
	// with the prefix NoticePrefix.
	Log    io.Writer
	Notice func(text string)
	// Ended is told of each test of the suite as it ends.
	Ended func(name string, result Result)

	results map[string]Result
	began   map[string]time.Time // by the test's name
	reasons map[string]string    // by the full name of a test or case
}

// NoticePrefix marks a line for whoever waits for the run.
const NoticePrefix = "conformance: "

// Watch reads until r ends, and returns the results by the tests' names.
func (w *Watcher) Watch(r io.Reader) (map[string]Result, error) {
	w.results, w.began, w.reasons = map[string]Result{}, map[string]time.Time{}, map[string]string{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if err := w.line(line); err != nil {
				return w.results, err
			}
		}
		if errors.Is(err, io.EOF) {
			return w.results, nil
		}
		if err != nil {
			return w.results, err
		}
	}
}

func (w *Watcher) line(line []byte) error {
	var e event
	if json.Unmarshal(line, &e) != nil {
		// Not from the test but from the go command or what it started.
		e = event{Action: "output", Output: string(line)}
	}
	if e.Output != "" {
		if _, err := io.WriteString(w.Log, e.Output); err != nil {
			return fmt.Errorf("log: %w", err)
		}
	}
	name, isTest := strings.CutPrefix(e.Test, w.Root+"/")
	if !isTest {
		if _, text, ok := strings.Cut(e.Output, NoticePrefix); ok {
			w.Notice(strings.TrimSpace(text))
		}
		return nil
	}
	test, testCase, isCase := strings.Cut(name, "/")
	switch outcome := Outcome(e.Action); outcome {
	case "run":
		if !isCase {
			w.began[test] = e.Time
		}
	case Passed, Failed, Skipped:
		if isCase {
			w.caseEnded(test, testCase, outcome)
		} else {
			w.testEnded(test, outcome, e.Time)
		}
	default:
		if reason := reasonIn(e.Output); reason != "" {
			w.reasons[name] = reason
		}
	}
	return nil
}

func (w *Watcher) caseEnded(test, testCase string, outcome Outcome) {
	result := w.results[test]
	result.Cases++
	if outcome == Failed {
		result.FailedCases++
		if result.Reason == "" {
			// go test has written the spaces of the name as underscores.
			result.Reason = strings.ReplaceAll(testCase, "_", " ")
			if reason := w.reasons[test+"/"+testCase]; reason != "" {
				result.Reason += ": " + reason
			}
		}
	}
	w.results[test] = result
}

func (w *Watcher) testEnded(test string, outcome Outcome, now time.Time) {
	result := w.results[test]
	// The event's own Elapsed leaves out the wait for parallel cases.
	result.Outcome, result.Elapsed = outcome, now.Sub(w.began[test])
	if outcome == Failed && result.Reason == "" {
		result.Reason = w.reasons[test]
	}
	w.results[test] = result
	w.Ended(test, result)
}

// reasonIn finds, in one line of output, why a test does not pass: the suite
// writes "… not ready yet: <reason> (after 1s)" at each try, the assertions
// that it uses write "Error: <reason>" and "Messages: <reason>".
func reasonIn(output string) string {
	if _, reason, ok := strings.Cut(output, "not ready yet: "); ok {
		if i := strings.LastIndex(reason, " (after "); i >= 0 {
			reason = reason[:i]
		}
		return strings.TrimSpace(reason)
	}
	text := strings.TrimSpace(output)
	for _, label := range []string{"Error:", "Messages:"} {
		if reason, ok := strings.CutPrefix(text, label); ok {
			return strings.TrimSpace(reason)
		}
	}
	return ""
}
