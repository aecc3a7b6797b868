// Package e2e holds the end-to-end tests: the real programs, built with the
// race detector, in a lab of two nodes. What a single package can show is
// tested there; here is what only the whole can.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/integration/lab/scene"
)

// programs is where TestMain puts the programs under test.
var programs string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ambit-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	programs = dir
	code := 1
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, "building the programs:", err)
	} else {
		code = m.Run()
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

// build builds the mesh with the race detector, and what surrounds it without.
func build(dir string) error {
	samples, err := filepath.Glob("../../install/samples/bookinfo/cmd/*")
	if err != nil {
		return err
	}
	for _, step := range []struct {
		race     bool
		packages []string
	}{
		{true, []string{"../../cmd/istiod", "../../cmd/ztunnel", "../../cmd/ambit-cni", "../../cmd/waypoint"}},
		{false, append(samples, "../lab/cmd/lab", "../demo")},
	} {
		args := []string{"build", "-o", dir + "/"}
		if step.race {
			args = append(args, "-race")
		}
		for _, p := range step.packages {
			args = append(args, "./"+p)
		}
		command := exec.Command("go", args...)
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, output)
		}
	}
	return nil
}

// start brings up a scene that ends with the test, which fails if one of the
// programs reports a data race.
func start(t *testing.T) *scene.Scene {
	t.Helper()
	dir := t.TempDir()
	s, err := scene.Start(t.Context(), scene.Options{Dir: dir, Bin: programs})
	if s != nil && s.Lab != nil {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
			defer cancel()
			if err := s.Lab.Down(ctx); err != nil {
				t.Errorf("lab down: %v", err)
			}
			checkLogs(t, s.State)
		})
	}
	if err != nil {
		checkLogs(t, filepath.Join(dir, "state"))
		t.Fatal(err)
	}
	return s
}

// checkLogs looks for data races, and shows the ends of the logs of a test
// that failed.
func checkLogs(t *testing.T, state string) {
	t.Helper()
	files, err := filepath.Glob(state + "/logs/*.log")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if i := bytes.Index(data, []byte("WARNING: DATA RACE")); i >= 0 {
			t.Errorf("%s: %s", filepath.Base(file), data[i:min(len(data), i+4000)])
		}
		if t.Failed() && strings.HasPrefix(filepath.Base(file), "istio-system_") {
			t.Logf("%s ends:\n%s", filepath.Base(file), data[max(0, len(data)-3000):])
		}
	}
}

// enrol labels bookinfo and waits until it is in the mesh.
func enrol(t *testing.T, s *scene.Scene) {
	t.Helper()
	if err := s.Label("Namespace", "bookinfo", "istio.io/dataplane-mode", "ambient"); err != nil {
		t.Fatal(err)
	}
	if err := s.AwaitEnrolled(t.Context(), "bookinfo"); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const (
	inside     = "bookinfo/curl"
	detailsURL = "http://details.bookinfo:9080/details/0"
)

// TestDemo runs the demo as make demo does. It is the test of the whole story.
func TestDemo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(programs, "demo"))
	output, err := command.CombinedOutput()
	if err != nil || !strings.Contains(string(output), " passed, 0 failed\n") {
		t.Errorf("%v\n%s", err, output)
	}
}

func TestPolicyRewrittenInPlaceNeverLetsARequestThrough(t *testing.T) {
	s := start(t)
	enrol(t, s)
	const policy = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: nobody
  namespace: bookinfo
  annotations:
    round: "%d"
spec:
  selector:
    matchLabels:
      app: details
  action: DENY
  rules:
  - from:
    - source:
        namespaces: ["bookinfo"]
`
	must(t, s.Add("nobody.yaml", fmt.Sprintf(policy, 0)))
	must(t, s.AwaitPolicy(t.Context(), "bookinfo/nobody", "bookinfo", "details"))
	load, err := s.Load(t.Context(), inside, "--interval", "2ms", detailsURL)
	must(t, err)
	path := filepath.Join(s.Manifests, "nobody.yaml")
	for round := range 30 {
		file, err := os.Create(path) // truncates
		must(t, err)
		must(t, load.More(t.Context(), 5)) // longer than the time after which a quiet file is read
		text := fmt.Sprintf(policy, round)
		_, err = file.WriteString(text[:len(text)/2])
		must(t, err)
		must(t, load.More(t.Context(), 5))
		_, err = file.WriteString(text[len(text)/2:])
		must(t, err)
		must(t, file.Close())
		must(t, load.More(t.Context(), 20))
	}
	requests, err := load.Stop()
	must(t, err)
	for _, r := range requests {
		if !r.Failed() {
			t.Fatalf("a request was let through: %+v", r)
		}
	}
	t.Logf("%d requests, all refused", len(requests))

	// It was the policy, and files that are rewritten in place are read.
	must(t, os.WriteFile(path, []byte(strings.Replace(fmt.Sprintf(policy, 0), "app: details", "app: ratings", 1)), 0o644))
	must(t, scene.Await(t.Context(), "details is served once the policy is about ratings", func(ctx context.Context) error {
		_, err := s.Get(ctx, inside, detailsURL)
		return err
	}))
}

func TestBrokenManifestChangesNothing(t *testing.T) {
	s := start(t)
	enrol(t, s)
	must(t, s.AddSample("security/peer-authentication-strict.yaml"))
	must(t, s.AwaitPolicy(t.Context(), "istio-system/istio_converted_static_strict", "bookinfo", "details"))
	must(t, s.Edit("peer-authentication-strict.yaml", "mode: STRICT", "mode: STRIKT"))
	must(t, scene.Await(t.Context(), "istiod says what is wrong", func(ctx context.Context) error {
		lines, err := s.LogLines(ctx, "istio-system", "istiod", "peer-authentication-strict.yaml", "spec.mtls.mode", "STRIKT")
		if err == nil && len(lines) == 0 {
			err = fmt.Errorf("no such line")
		}
		return err
	}))
	must(t, awaitStatus(t, s, "peerauthentication", "spec.mtls.mode"))
	if body, err := s.Get(t.Context(), "outside/curl", detailsURL); err == nil {
		t.Errorf("a client outside the mesh got %q; the last good policy should stay", body)
	}
	if _, err := s.Get(t.Context(), inside, detailsURL); err != nil {
		t.Errorf("a client inside: %v", err)
	}
}

// awaitStatus waits until a status file of the kind contains the text.
func awaitStatus(t *testing.T, s *scene.Scene, kind, text string) error {
	t.Helper()
	return scene.Await(t.Context(), "the status of "+kind+" says "+text, func(context.Context) error {
		files, err := filepath.Glob(s.State + "/status/" + kind + "*.yaml")
		if err != nil {
			return err
		}
		for _, file := range files {
			if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), text) {
				return nil
			}
		}
		return fmt.Errorf("none of %v does", files)
	})
}

func TestTrafficGoesOnWithoutIstiod(t *testing.T) {
	s := start(t)
	enrol(t, s)
	load, err := s.Load(t.Context(), inside, "--interval", "5ms", detailsURL)
	must(t, err)
	pod, err := s.PodOf(t.Context(), "istio-system", "istiod", "")
	must(t, err)
	kill(t, "istiod")
	must(t, load.More(t.Context(), 100))
	must(t, scene.Await(t.Context(), "istiod was started again", func(ctx context.Context) error {
		again, err := s.PodOf(ctx, "istio-system", "istiod", "")
		if err == nil && (!again.Ready || again.Restarts == pod.Restarts) {
			err = fmt.Errorf("%+v", again)
		}
		return err
	}))
	must(t, s.AddSample("security/peer-authentication-strict.yaml")) // what it says from now on arrives
	must(t, s.AwaitPolicy(t.Context(), "istio-system/istio_converted_static_strict", "bookinfo", "details"))
	requests, err := load.Stop()
	must(t, err)
	if failed := scene.Failures(requests); len(failed) > 0 {
		t.Errorf("%d of %d requests failed: %v", len(failed), len(requests), failed)
	}
}

// kill ends the running processes of a program of ours, as a crash would.
func kill(t *testing.T, program string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	must(t, err)
	killed := 0
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != filepath.Join(programs, program) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		must(t, err)
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		killed++
	}
	if killed == 0 {
		t.Fatalf("no process of %s found", program)
	}
}
