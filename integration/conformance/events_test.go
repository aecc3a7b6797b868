package conformance

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// What go test -json prints of a run in which A passes, B fails in two of three
// cases and C fails in its own assertion; D never ends.
const stream = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestSuite"}
{"Action":"output","Package":"p","Test":"TestSuite","Output":"    x_test.go:1: conformance: waypoint is programmed after 3 s\n"}
{"Time":"2026-11-23T09:00:00.5Z","Action":"run","Package":"p","Test":"TestSuite/A"}
{"Action":"output","Package":"p","Test":"TestSuite/A","Output":"    pod.go:76: now: Response expectation failed for request: [client http://echo]  not ready yet: wanted status code to be one of [200], got 503 (after 5ms)\n"}
{"Time":"2026-11-23T09:00:01.75Z","Action":"pass","Package":"p","Test":"TestSuite/A","Elapsed":0.01}
{"Time":"2026-11-23T09:00:07Z","Action":"run","Package":"p","Test":"TestSuite/B"}
{"Action":"run","Package":"p","Test":"TestSuite/B/one"}
{"Action":"run","Package":"p","Test":"TestSuite/B/2_to_'/two'"}
{"Action":"output","Package":"p","Test":"TestSuite/B/one","Output":"    pod.go:76: now: Request [client http://echo] failed, not ready yet: exit code 1 (after 5ms)\n"}
{"Action":"output","Package":"p","Test":"TestSuite/B/2_to_'/two'","Output":"    pod.go:76: now: Response expectation failed  not ready yet: got (none) (after 5ms)\n"}
{"Action":"output","Package":"p","Test":"TestSuite/B/2_to_'/two'","Output":"    pod.go:76: now: Response expectation failed  not ready yet: got 404 (after 1s)\n"}
{"Action":"output","Package":"p","Test":"TestSuite/B/2_to_'/two'","Output":"    http.go:304: now: timeout while waiting after 9 attempts\n"}
{"Action":"fail","Package":"p","Test":"TestSuite/B/2_to_'/two'","Elapsed":0.5}
{"Action":"fail","Package":"p","Test":"TestSuite/B/one","Elapsed":0.5}
{"Action":"pass","Package":"p","Test":"TestSuite/B/three","Elapsed":0.5}
{"Time":"2026-11-23T09:00:09Z","Action":"fail","Package":"p","Test":"TestSuite/B"}
not JSON
{"Action":"run","Package":"p","Test":"TestSuite/C"}
{"Action":"output","Package":"p","Test":"TestSuite/C","Output":"        \tError:      \tno pods\n"}
{"Action":"fail","Package":"p","Test":"TestSuite/C","Elapsed":0}
{"Action":"skip","Package":"p","Test":"TestSuite/G","Elapsed":0}
{"Action":"run","Package":"p","Test":"TestSuite/D"}
{"Action":"output","Package":"p","Output":"panic: test timed out\n"}`

func TestWatcher(t *testing.T) {
	var log bytes.Buffer
	var notices, ended []string
	w := Watcher{
		Root: "TestSuite", Log: &log,
		Notice: func(text string) { notices = append(notices, text) },
		Ended:  func(name string, _ Result) { ended = append(ended, name) },
	}
	got, err := w.Watch(strings.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Result{
		"A": {Outcome: Passed, Elapsed: 1250 * time.Millisecond},
		"B": {Outcome: Failed, Elapsed: 2 * time.Second, Cases: 3, FailedCases: 2, Reason: "2 to '/two': got 404"},
		"C": {Outcome: Failed, Reason: "no pods"},
		"G": {Outcome: Skipped},
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if want := []string{"A", "B", "C", "G"}; !slices.Equal(ended, want) {
		t.Errorf("told of %q, want %q", ended, want)
	}
	if want := []string{"waypoint is programmed after 3 s"}; !slices.Equal(notices, want) {
		t.Errorf("notices are %q, want %q", notices, want)
	}
	for _, want := range []string{"timeout while waiting after 9 attempts\n", "not JSON\n", "panic: test timed out\n"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
}

// Whatever is printed, the watcher reads it to its end and no case counts
// without its test.
func FuzzWatcher(f *testing.F) {
	for line := range strings.Lines(stream) {
		f.Add([]byte(line))
	}
	f.Add([]byte(stream))
	f.Fuzz(func(t *testing.T, data []byte) {
		ended := map[string]bool{}
		w := Watcher{
			Root: "TestSuite", Log: io.Discard, Notice: func(string) {},
			Ended: func(name string, _ Result) { ended[name] = true },
		}
		results, err := w.Watch(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		for name, result := range results {
			if (result.Outcome != "") != ended[name] {
				t.Errorf("%q: outcome %q, told of it: %v", name, result.Outcome, ended[name])
			}
			if result.FailedCases > result.Cases {
				t.Errorf("%q: %d of %d cases failed", name, result.FailedCases, result.Cases)
			}
		}
	})
}
