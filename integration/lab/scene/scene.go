// Package scene is a lab with the bookinfo sample and the mesh in it, and the
// ways to act on it and look at it: manifests that are added and edited as a
// user would, requests and load from pods, captures of the wire, the proxies'
// dumps, logs and metrics. The demo tells its story with it and the end-to-end
// tests check with it.
//
// It waits for conditions, never for time. A Scene is used by one goroutine;
// the loads and captures that it starts run beside.
package scene

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/install/samples/bookinfo"
	"github.com/ambit-mesh/ambit/integration/lab"
)

// Options say what to start.
type Options struct {
	Dir     string            // manifests and state go below it
	Bin     string            // the programs
	MeshEnv map[string]string // see lab.Options
	Detach  bool              // the lab outlives this process
	NoMesh  bool
}

// Scene is a running lab with bookinfo.
type Scene struct {
	Lab       *lab.Lab
	Manifests string // the directory that istiod and the lab follow
	State     string
}

// Start brings up bookinfo, a client beside it, and one outside the mesh, with
// no namespace labelled.
func Start(ctx context.Context, o Options) (*Scene, error) {
	s := &Scene{Manifests: filepath.Join(o.Dir, "manifests"), State: filepath.Join(o.Dir, "state")}
	if err := os.MkdirAll(s.Manifests, 0o755); err != nil {
		return nil, err
	}
	for _, name := range []string{"bookinfo.yaml", "curl.yaml", "outside.yaml"} {
		if err := s.AddSample(name); err != nil {
			return nil, err
		}
	}
	var err error
	s.Lab, err = lab.Start(ctx, lab.Options{
		Binary: filepath.Join(o.Bin, "lab"), ConfigDir: s.Manifests, StateDir: s.State, BinDir: o.Bin,
		MeshEnv: o.MeshEnv, Detach: o.Detach, NoMesh: o.NoMesh,
	})
	return s, err
}

// Sample returns the text of one of the sample's manifests.
func Sample(name string) (string, error) {
	text, err := fs.ReadFile(bookinfo.Manifests, name)
	return string(text), err
}

// AddSample adds one of the sample's manifests under its own name.
func (s *Scene) AddSample(name string) error {
	text, err := Sample(name)
	if err != nil {
		return err
	}
	return s.Add(filepath.Base(name), text)
}

// Add writes a manifest, at once as readers see it.
func (s *Scene) Add(name, text string) error {
	temporary := filepath.Join(s.Manifests, "."+name+".new")
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(s.Manifests, name))
}

// Remove deletes a manifest.
func (s *Scene) Remove(name string) error {
	return os.Remove(filepath.Join(s.Manifests, filepath.Base(name)))
}

// Edit replaces text in a manifest; it must occur exactly once.
func (s *Scene) Edit(name, old, replacement string) error {
	data, err := os.ReadFile(filepath.Join(s.Manifests, name))
	if err != nil {
		return err
	}
	if count := strings.Count(string(data), old); count != 1 {
		return fmt.Errorf("%s: %q occurs %d times, want once", name, old, count)
	}
	return s.Add(name, strings.Replace(string(data), old, replacement, 1))
}

// Label adds a label to an object of bookinfo.yaml that has a line of metadata
// "name: <name>" after "kind: <kind>".
func (s *Scene) Label(kind, name, label, value string) error {
	data, err := os.ReadFile(filepath.Join(s.Manifests, "bookinfo.yaml"))
	if err != nil {
		return err
	}
	const separator = "---\n"
	documents := strings.Split(string(data), separator)
	for i, document := range documents {
		if !strings.Contains(document, "\nkind: "+kind+"\n") {
			continue
		}
		head := "metadata:\n  name: " + name + "\n"
		if !strings.Contains(document, head) {
			continue
		}
		line := "    " + label + ": " + value + "\n"
		if strings.Contains(document, "\n  labels:\n") {
			document = strings.Replace(document, "\n  labels:\n", "\n  labels:\n"+line, 1)
		} else {
			document = strings.Replace(document, head, head+"  labels:\n"+line, 1)
		}
		documents[i] = document
		return s.Add("bookinfo.yaml", strings.Join(documents, separator))
	}
	return fmt.Errorf("bookinfo.yaml has no %s %s", kind, name)
}

// Run runs a program in a pod or on a node and returns what it printed. An
// exit code other than 0 is an *ExitError.
func (s *Scene) Run(ctx context.Context, target string, argv ...string) (string, error) {
	var out, errOut bytes.Buffer
	code, err := s.Lab.Exec(ctx, target, argv, lab.Stdio{Out: &out, Err: &errOut})
	if err != nil {
		return out.String(), err
	}
	if code != 0 {
		return out.String(), &ExitError{Code: code, Output: strings.TrimSpace(errOut.String())}
	}
	return out.String(), nil
}

// ExitError is the end of a program that failed.
type ExitError struct {
	Code   int
	Output string // its standard error
}

// Error returns the exit code and what the program said.
func (e *ExitError) Error() string { return fmt.Sprintf("exit code %d: %s", e.Code, e.Output) }

// Await polls until check succeeds. The error is that of the last try.
func Await(ctx context.Context, what string, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(25 * time.Millisecond)
	defer ticker.Stop()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, errors.Join(last, ctx.Err()))
		case <-ticker.C:
		}
	}
}

// PodOf returns the pod of a Deployment or DaemonSet on a node, or on any when
// node is "".
func (s *Scene) PodOf(ctx context.Context, namespace, workload, node string) (lab.PodStatus, error) {
	pods, err := s.Pods(ctx, namespace)
	if err != nil {
		return lab.PodStatus{}, err
	}
	for _, pod := range pods {
		if strings.HasPrefix(pod.Name, workload+"-") && (node == "" || pod.Node == node) {
			return pod, nil
		}
	}
	return lab.PodStatus{}, fmt.Errorf("no pod of %s/%s on node %q", namespace, workload, node)
}

// Pods returns the pods of a namespace.
func (s *Scene) Pods(ctx context.Context, namespace string) ([]lab.PodStatus, error) {
	status, err := s.Lab.Status(ctx)
	if err != nil {
		return nil, err
	}
	var pods []lab.PodStatus
	for _, pod := range status.Pods {
		if pod.Namespace == namespace {
			pods = append(pods, pod)
		}
	}
	return pods, nil
}

// LogLines returns the lines of a workload's log, on all nodes, that contain
// all of the texts.
func (s *Scene) LogLines(ctx context.Context, namespace, workload string, texts ...string) ([]string, error) {
	pods, err := s.Pods(ctx, namespace)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, pod := range pods {
		if !strings.HasPrefix(pod.Name, workload+"-") {
			continue
		}
		files, err := filepath.Glob(s.Lab.LogFile(namespace, pod.Name, "*"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			for line := range strings.Lines(string(data)) {
				if containsAll(line, texts) {
					lines = append(lines, strings.TrimRight(line, "\n"))
				}
			}
		}
	}
	return lines, nil
}

func containsAll(line string, texts []string) bool {
	for _, text := range texts {
		if !strings.Contains(line, text) {
			return false
		}
	}
	return true
}

// get asks a loopback HTTP server of a pod or node.
func (s *Scene) get(ctx context.Context, target, url string, into any) error {
	text, err := s.Run(ctx, target, "client", url)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}
