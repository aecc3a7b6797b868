//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// These tests start real clusters: root, and the binaries of cluster build.
// They run with
//
//	go test -tags cluster -run TestUp -timeout 10m ./integration/cluster

// testTool is the tool, built from these sources.
func testTool(t *testing.T) string {
	t.Helper()
	tool := filepath.Join(t.TempDir(), "cluster")
	build := exec.Command("go", "build", "-o", tool, "./cmd/cluster")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tool: %v: %s", err, out)
	}
	return tool
}

// traces are all that a cluster of the name has on this machine.
func traces(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	names, err := netNSNames(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		found = append(found, "network namespace "+n)
	}
	groups, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range groups {
		if _, err := os.Stat(h.dir(name, "")); err == nil {
			found = append(found, "cgroup "+h.dir(name, ""))
		}
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mountinfo)) {
		if strings.Contains(line, "/"+name+"/") || strings.Contains(line, netNSName(name, "")) {
			found = append(found, "mount "+line)
		}
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range dirs {
		content, _ := os.ReadFile(path)
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "stat"))
		if fields, err := parseStat(line); err != nil || fields.ended {
			continue // has ended; its parent, the host's pid 1, takes its time
		}
		if bytes.Contains(content, []byte("/"+cgroupParent+"/"+name+"/")) {
			found = append(found, "process "+path)
		}
	}
	for _, path := range []string{stateOf(name).dir(), stateOf(name).dir() + ".lock"} {
		if _, err := os.Stat(path); err == nil {
			found = append(found, "file "+path)
		}
	}
	slices.Sort(found)
	return found
}

// hostSettings are what all namespaces share and a kubelet would change.
func hostSettings(t *testing.T) map[string]string {
	t.Helper()
	values := map[string]string{}
	for name := range hiddenSettings {
		content, _ := os.ReadFile("/proc/sys/" + name)
		values[name] = string(content)
	}
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter", "net/netfilter/nf_conntrack_max"} {
		content, _ := os.ReadFile("/proc/sys/" + name)
		values[name] = string(content)
	}
	return values
}

func testConfig(t *testing.T) Config {
	t.Helper()
	return Config{Name: fmt.Sprintf("test-%d", os.Getpid()), Tool: testTool(t), Out: t.Output()}
}

// TestUpControlPlane: up, its API server works; its pid 1 is killed, up again;
// down, and nothing is left.
func TestUpControlPlane(t *testing.T) {
	config := testConfig(t)
	config.ControlPlaneOnly = true
	before, settings := traces(t, config.Name), hostSettings(t)
	t.Cleanup(func() { _, _ = Down(context.WithoutCancel(t.Context()), config.Name, func(string) {}) })
	c, err := Up(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "create", "configmap", "one")
	if _, err := Up(t.Context(), config); err != nil {
		t.Errorf("up of a running cluster: %v", err)
	}
	kubectl(t, c, "get", "configmap", "one")
	other := config
	other.ControlPlaneOnly, other.Nodes = false, 1
	if _, err := Up(t.Context(), other); err == nil || !strings.Contains(err.Error(), "cluster down first") {
		t.Errorf("up with another configuration: error %v, want advice", err)
	}

	first := c.state.pid1(machine{})
	if err := first.kill(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if !poll(10*time.Second, func() bool { return len(processesOf(t, config.Name)) == 0 }) {
		t.Errorf("with pid 1 killed, these live on: %v", processesOf(t, config.Name))
	}
	if c, err = Up(t.Context(), config); err != nil {
		t.Fatalf("up after a kill: %v", err)
	}
	kubectl(t, c, "get", "namespace", "default")
	if err := c.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, config.Name, before, settings)
	if there, err := Down(context.WithoutCancel(t.Context()), config.Name, func(string) {}); there || err != nil {
		t.Errorf("down of nothing: %t, %v", there, err)
	}
	checkNothingLeft(t, config.Name, before, settings)
}

// TestUpInterrupted: up is interrupted, or killed, at many moments; the one
// leaves nothing, after the other down leaves nothing.
func TestUpInterrupted(t *testing.T) {
	config := testConfig(t)
	before, settings := traces(t, config.Name), hostSettings(t)
	t.Cleanup(func() { _, _ = Down(context.WithoutCancel(t.Context()), config.Name, func(string) {}) })
	for i, after := range []time.Duration{30, 100, 200, 400, 800, 1500, 3000, 6000} {
		after *= time.Millisecond
		// No deadline: a client that sees one coming gives up before it, with an error
		// that is not an interrupt's.
		ctx, cancel := context.WithCancel(t.Context())
		interrupt := time.AfterFunc(after, cancel)
		_, err := Up(ctx, config)
		interrupt.Stop()
		cancel()
		if err == nil { // up already, on a fast machine
			if i < 5 {
				t.Errorf("up takes less than %s: the moments are too late", after)
			}
			break
		}
		t.Logf("interrupted after %s: %v", after, err)
		checkNothingLeft(t, config.Name, before, settings)

		up := exec.Command(config.Tool, "--name", config.Name, "up", "--source", "parts")
		if err := up.Start(); err != nil {
			t.Fatal(err)
		}
		killer := time.AfterFunc(after, func() { _ = up.Process.Signal(syscall.SIGKILL) })
		_ = up.Wait()
		killer.Stop()
		if _, err := Down(context.WithoutCancel(t.Context()), config.Name, func(string) {}); err != nil {
			t.Errorf("down after up was killed after %s: %v", after, err)
		}
		checkNothingLeft(t, config.Name, before, settings)
	}
	if _, err := Down(t.Context(), config.Name, func(string) {}); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, config.Name, before, settings)
}

// localProgram runs a program on n1 that is where only the host has one.
func localProgram(t *testing.T, config Config) *exec.Cmd {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "ambit-*") //nolint:usetesting // a node has a /var of its own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	data, err := os.ReadFile("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "say")
	if err := os.WriteFile(program, data, 0o700); err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), config.Tool, "--name", config.Name, "exec", "--local", "n1", program, "hello")
}

// TestUpNodes: two nodes; a pod's volume, limits and name; exec, load, and what
// a node must not change.
func TestUpNodes(t *testing.T) {
	config := testConfig(t)
	before, settings := traces(t, config.Name), hostSettings(t)
	t.Cleanup(func() { _, _ = Down(context.WithoutCancel(t.Context()), config.Name, func(string) {}) })
	c, err := Up(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range c.Nodes() {
		name, err := c.Command(node, "hostname").Output()
		if err != nil || strings.TrimSpace(string(name)) != node {
			t.Errorf("hostname of %s: %q, %v", node, name, err)
		}
		if err := c.Command(node, "sh", "-c", "touch /etc/x /var/x /opt/x /run/x").Run(); err != nil {
			t.Errorf("%s: %v", node, err)
		}
	}
	for _, path := range []string{"/etc/x", "/var/x", "/opt/x", "/run/x"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("a node has written the host's %s", path)
		}
	}
	command := c.Command("n1", "sh", "-c", "cat; exit 42")
	command.Stdin = strings.NewReader("in")
	out, err := command.Output()
	if string(out) != "in" || command.ProcessState.ExitCode() != 42 {
		t.Errorf("exec: output %q, %v; want the input, and exit code 42", out, err)
	}
	if out, err := localProgram(t, config).CombinedOutput(); err != nil || string(out) != "hello\n" {
		t.Errorf("exec --local: output %q, %v", out, err)
	}
	// The archive that nodes start with can be loaded once more.
	if err := c.Load(t.Context(), filepath.Join(c.record.Parts[imagesPart], "pause.tar")); err != nil {
		t.Error(err)
	}
	if err := c.Load(t.Context(), "nowhere"); err == nil {
		t.Error("loading nothing is no error")
	}
	kubectl(t, c, "run", "p", "--image=ambit-cluster/pause:1", "--image-pull-policy=Never")
	kubectl(t, c, "wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
	var status bytes.Buffer
	if err := c.Status(t.Context(), &status); err != nil || !strings.Contains(status.String(), "pods: 2 of 2 ready") {
		t.Errorf("status: %v\n%s", err, status.String())
	}
	// A node dies: up starts the cluster again.
	if err := c.state.pid1(machine{node: 2}).kill(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if c, err = Up(t.Context(), config); err != nil {
		t.Fatalf("up after a node was killed: %v", err)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, config.Name, before, settings)
}

// TestUpFails: the error has the end of the log of the program that fails.
func TestUpFails(t *testing.T) {
	config := testConfig(t)
	config.ControlPlaneOnly = true
	config.CacheDir = t.TempDir()
	before, settings := traces(t, config.Name), hostSettings(t)
	t.Cleanup(func() { _, _ = Down(context.WithoutCancel(t.Context()), config.Name, func(string) {}) })
	completed, err := config.completed()
	if err != nil {
		t.Fatal(err)
	}
	compiler, err := findToolchain(t.Context(), completed.SourceDir)
	if err != nil {
		t.Fatal(err)
	}
	kube := neededParts(0)[0]
	hash, err := kube.hash(os.DirFS(filepath.Join(completed.SourceDir, "kube")), compiler)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(config.CacheDir, "kube-"+hash)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range kube.links {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho no $0 today\nexit 3\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err = Up(t.Context(), config)
	if err == nil {
		t.Fatal("up with programs that end is fine")
	}
	for _, want := range []string{"exit code 3", "on cp ended", "today", stateOf(config.Name).dir()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in the error: %v", want, err)
		}
	}
	if _, err := Down(context.WithoutCancel(t.Context()), config.Name, func(string) {}); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, config.Name, before, settings)
}

func checkNothingLeft(t *testing.T, name string, before []string, settings map[string]string) {
	t.Helper()
	if diff := cmp.Diff(before, traces(t, name)); diff != "" {
		t.Errorf("on the machine before and after (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(settings, hostSettings(t)); diff != "" {
		t.Errorf("settings of the kernel before and after (-before +after):\n%s", diff)
	}
}

func processesOf(t *testing.T, name string) []string {
	t.Helper()
	return slices.DeleteFunc(traces(t, name), func(trace string) bool { return !strings.HasPrefix(trace, "process ") })
}

func kubectl(t *testing.T, c *Cluster, args ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), c.Kubectl(), args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("kubectl %q: %v: %s", args, err, out)
	}
}
