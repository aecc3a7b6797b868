package main

import (
	"bytes"
	"strings"
	"testing"
)

// run returns what a command line writes.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := command()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestManifestGenerate(t *testing.T) {
	out, err := run(t, "manifest", "generate", "--component", "ztunnel", "--hub", "registry.example/mesh", "--tag", "007")
	if err != nil || !strings.Contains(out, "image: registry.example/mesh/ztunnel:007\n") {
		t.Errorf("--hub and --tag: %v\n%s", err, out)
	}
	out, err = run(t, "manifest", "generate", "--component", "ztunnel", "--tag", "1", "--set", "global.tag=2")
	if err != nil || !strings.Contains(out, "image: ambit-mesh/ztunnel:2\n") {
		t.Errorf("--set counts more than --tag: %v\n%s", err, out)
	}
	for _, args := range [][]string{
		{"--set", "nothing.such=1"}, {"--component", "pilot"}, {"-n", "elsewhere"}, {"argument"}, {"-f", "/nonexistent"},
	} {
		if out, err := run(t, append([]string{"manifest", "generate"}, args...)...); err == nil {
			t.Errorf("manifest generate %v writes\n%s", args, out)
		}
	}
}

func TestManifestValues(t *testing.T) {
	out, err := run(t, "manifest", "values")
	if err != nil || !strings.Contains(out, "\nistiod:\n") || !strings.Contains(out, "  replicaCount: 1\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestVersion(t *testing.T) {
	out, err := run(t, "version")
	if err != nil || !strings.HasPrefix(out, "ambitctl ") || !strings.Contains(out, "\ncharts 0.") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestUnreachableClusterIsSaid(t *testing.T) {
	for _, verb := range []string{"install", "uninstall"} {
		_, err := run(t, verb, "--kubeconfig", "/nonexistent/kubeconfig")
		if err == nil || !strings.Contains(err.Error(), "/nonexistent/kubeconfig") {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

func TestAsk(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false, "maybe\n": false, "y": true} {
		var out bytes.Buffer
		got, err := ask(strings.NewReader(answer), &out, []string{"release a", "release b"})
		if err != nil || got != want || !strings.Contains(out.String(), "release a\n  release b\n") {
			t.Errorf("%q: %v, %v\n%s", answer, got, err, out.String())
		}
	}
	if _, err := ask(strings.NewReader(""), &bytes.Buffer{}, nil); err == nil || !strings.Contains(err.Error(), "-y") {
		t.Errorf("nobody there: %v", err)
	}
}
