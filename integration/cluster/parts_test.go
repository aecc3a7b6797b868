package cluster

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestHash(t *testing.T) {
	source := func() fstest.MapFS {
		return fstest.MapFS{
			"go.mod":     {Data: []byte("module x")},
			"go.sum":     {Data: []byte("sum")},
			"main.go":    {Data: []byte("package main")},
			"sub/sub.go": {Data: []byte("package sub")},
		}
	}
	base := part{name: "p", packages: []string{"."}, tags: "a", ldflags: "-X b=c", links: []string{"l"}, cgo: true, tagsWithSeccomp: "s"}
	compiler := toolchain{goVersion: "go1.27.4", arch: "amd64", cc: "gcc 12"}
	hash := func(p part, fs fstest.MapFS, t toolchain) string {
		h, err := p.with(t).hash(fs, t)
		if err != nil {
			panic(err)
		}
		return h
	}
	want := hash(base, source(), compiler)
	seen := map[string]string{want: "nothing"}
	for name, change := range map[string]func(*part, fstest.MapFS, *toolchain){
		"go.mod":      func(_ *part, fs fstest.MapFS, _ *toolchain) { fs["go.mod"].Data = []byte("module y") },
		"go.sum":      func(_ *part, fs fstest.MapFS, _ *toolchain) { fs["go.sum"].Data = []byte("mus") },
		"a source":    func(_ *part, fs fstest.MapFS, _ *toolchain) { fs["sub/sub.go"].Data = []byte("package bus") },
		"a name":      func(_ *part, fs fstest.MapFS, _ *toolchain) { fs["a.go"] = fs["main.go"]; delete(fs, "main.go") },
		"a new file":  func(_ *part, fs fstest.MapFS, _ *toolchain) { fs["b.c"] = &fstest.MapFile{} },
		"packages":    func(p *part, _ fstest.MapFS, _ *toolchain) { p.packages = []string{".", "./sub"} },
		"tags":        func(p *part, _ fstest.MapFS, _ *toolchain) { p.tags = "b" },
		"ldflags":     func(p *part, _ fstest.MapFS, _ *toolchain) { p.ldflags = "" },
		"links":       func(p *part, _ fstest.MapFS, _ *toolchain) { p.links = nil },
		"cgo":         func(p *part, _ fstest.MapFS, _ *toolchain) { p.cgo = false },
		"Go":          func(_ *part, _ fstest.MapFS, t *toolchain) { t.goVersion = "go1.27.5" },
		"the machine": func(_ *part, _ fstest.MapFS, t *toolchain) { t.arch = "arm64" },
		"the C":       func(_ *part, _ fstest.MapFS, t *toolchain) { t.cc = "gcc 13" },
		"libseccomp":  func(_ *part, _ fstest.MapFS, t *toolchain) { t.seccomp = true },
	} {
		p, fs, c := base, source(), compiler
		change(&p, fs, &c)
		got := hash(p, fs, c)
		if other, ok := seen[got]; ok {
			t.Errorf("a change of %s gives the same hash as a change of %s", name, other)
		}
		seen[got] = name
	}
	for name, change := range map[string]func(fstest.MapFS, *toolchain){
		"a test":   func(fs fstest.MapFS, _ *toolchain) { fs["main_test.go"] = &fstest.MapFile{} },
		"a readme": func(fs fstest.MapFS, _ *toolchain) { fs["README.md"] = &fstest.MapFile{} },
		"nothing":  func(fstest.MapFS, *toolchain) {},
	} {
		fs, c := source(), compiler
		change(fs, &c)
		if got := hash(base, fs, c); got != want {
			t.Errorf("%s changes the hash", name)
		}
	}
	pure := base
	pure.cgo = false
	other := compiler
	other.cc = "clang"
	if hash(pure, source(), compiler) != hash(pure, source(), other) {
		t.Error("the C compiler changes the hash of a part that has no C")
	}
}

// TestVersions holds the versions that binaries are told to what they are.
func TestVersions(t *testing.T) {
	for part, want := range map[string]string{
		"kube":       "k8s.io/kubernetes " + KubernetesVersion,
		"containerd": "github.com/containerd/containerd/v2 " + containerdVersion,
	} {
		content, err := os.ReadFile(filepath.Join("parts", part, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(content), want+"\n") && !strings.Contains(string(content), want+" // indirect\n") {
			t.Errorf("parts/%s/go.mod does not require %s", part, want)
		}
	}
	major, minor, _ := strings.Cut(strings.TrimPrefix(KubernetesVersion, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	kube := parts[slices.IndexFunc(parts, func(p part) bool { return p.name == "kube" })]
	for _, want := range []string{"gitMajor=" + major + " ", "gitMinor=" + minor + " "} {
		if !strings.Contains(kube.ldflags, want) {
			t.Errorf("kube's ldflags lack %s", want)
		}
	}
}

// TestToolchains: findToolchain asks in one part only.
func TestToolchains(t *testing.T) {
	lines := map[string][]string{}
	for _, p := range parts {
		content, err := os.ReadFile(filepath.Join("parts", p.name, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			if strings.HasPrefix(line, "toolchain ") {
				lines[line] = append(lines[line], p.name)
			}
		}
	}
	if len(lines) != 1 || len(slices.Collect(maps.Values(lines))[0]) != len(parts) {
		t.Errorf("toolchain lines of the parts differ: %v", lines)
	}
}

func TestPartOf(t *testing.T) {
	for binary, want := range map[string]string{"kubelet": "kube", "kube-proxy": "kube", "ctr": "containerd", "runc": "runc", "host-local": "cni"} {
		if got := partOf(binary); got != want {
			t.Errorf("partOf(%s) = %s, want %s", binary, got, want)
		}
	}
	if got := neededParts(0); len(got) != 1 || got[0].name != "kube" {
		t.Errorf("a control plane needs %v", got)
	}
}

func TestSourceDir(t *testing.T) {
	want, err := filepath.Abs("parts")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := sourceDir("/nowhere/bin/cluster"); err != nil || got != want {
		t.Errorf("sourceDir in the repository = %s, %v; want %s", got, err, want)
	}
	t.Chdir(t.TempDir())
	if got, err := sourceDir(filepath.Join(want, "../../../bin/cluster")); err != nil || got != want {
		t.Errorf("sourceDir of a tool in the repository = %s, %v; want %s", got, err, want)
	}
	if got, err := sourceDir("/nowhere/bin/cluster"); err == nil {
		t.Errorf("sourceDir outside = %s, want an error", got)
	}
}
