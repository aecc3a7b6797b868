package arch

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ambit-mesh/ambit/"

// imports is who may import whom of ours, besides apis, which everybody may.
// An unlisted package fails. A "*" stands for the packages below a folder.
var imports = map[string][]string{
	"apis/manifest": {},
	"apis/mesh":     {},
	"apis/security": {"apis/workload"},
	"apis/spiffe":   {},
	"apis/workload": {},
	"apis/zds":      {},

	"cmd/ambit-cni": {"ztunnel/cni", "ztunnel/cni/installer", "ztunnel/redirect", "ztunnel/telemetry"},
	"cmd/ambitctl":  {"install/crds", "install/installer"},
	"cmd/istiod":    {"istiod"},
	"cmd/waypoint":  {"waypoint", "ztunnel/telemetry", "ztunnel/xds"},
	"cmd/ztunnel":   {"ztunnel", "ztunnel/config", "ztunnel/telemetry"},

	"ztunnel":              {"ztunnel/*"},
	"ztunnel/admin":        {},
	"ztunnel/cni":          {"ztunnel/cni/installer", "ztunnel/netns", "ztunnel/redirect"},
	"ztunnel/config":       {},
	"ztunnel/dns":          {"ztunnel/netns", "ztunnel/telemetry", "ztunnel/workload"},
	"ztunnel/hbone":        {"ztunnel/hbone/h2", "ztunnel/hbone/record"},
	"ztunnel/hbone/h2":     {},
	"ztunnel/hbone/record": {"ztunnel/socket"},
	"ztunnel/identity":     {"ztunnel/mtls"},
	"ztunnel/inpod":        {"ztunnel/netns"},
	"ztunnel/local":        {"ztunnel/workload"},
	"ztunnel/mtls":         {},
	"ztunnel/netns":        {},
	"ztunnel/plan":         {"ztunnel/workload"},
	"ztunnel/proxy":        {"ztunnel/hbone", "ztunnel/identity", "ztunnel/mtls", "ztunnel/netns", "ztunnel/plan", "ztunnel/rbac", "ztunnel/relay", "ztunnel/telemetry", "ztunnel/workload"},
	"ztunnel/rbac":         {},
	"ztunnel/redirect":     {},
	"ztunnel/relay":        {"ztunnel/socket"},
	"ztunnel/socket":       {},
	"ztunnel/telemetry":    {},
	"ztunnel/workload":     {"ztunnel/rbac"},
	"ztunnel/xds":          {},

	"ztunnel/cni/installer":         {},
	"ztunnel/identity/identitytest": {"ztunnel/mtls"},
	"ztunnel/netns/netnstest":       {"ztunnel/netns"},
	"ztunnel/workload/workloadtest": {"ztunnel/workload"},

	"waypoint":         {"waypoint/backend", "waypoint/config", "waypoint/serve", "ztunnel/hbone", "ztunnel/identity", "ztunnel/mtls", "ztunnel/telemetry", "ztunnel/workload", "ztunnel/xds"},
	"waypoint/backend": {"waypoint/codec", "ztunnel/hbone", "ztunnel/mtls", "ztunnel/relay"},
	"waypoint/codec":   {},
	"waypoint/config":  {"waypoint/backend", "waypoint/codec", "waypoint/filter", "waypoint/route", "ztunnel/xds"},
	"waypoint/filter":  {"waypoint/codec"},
	"waypoint/route":   {"waypoint/codec", "waypoint/filter"},
	"waypoint/serve":   {"waypoint/backend", "waypoint/codec", "waypoint/config", "waypoint/filter", "waypoint/route", "ztunnel/hbone", "ztunnel/identity", "ztunnel/mtls", "ztunnel/relay", "ztunnel/telemetry", "ztunnel/workload"},

	"istiod":                 {"istiod/*"},
	"istiod/admin":           {},
	"istiod/authn":           {},
	"istiod/authn/authntest": {},
	"istiod/ca":              {"istiod/authn"},
	"istiod/collection":      {},
	"istiod/deploy":          {"istiod/model", "istiod/source"},
	"istiod/gateway":         {"istiod/model"},
	"istiod/kube":            {},
	"istiod/model":           {},
	"istiod/source":          {"istiod/collection", "istiod/model", "install/crds"},
	"istiod/status":          {"istiod/model", "istiod/source"},
	"istiod/translate":       {"istiod/model"},
	"istiod/xds":             {},
	"istiod/xds/xdstest":     {"istiod/xds"},

	"install/charts":                 {},
	"install/crds":                   {"install/charts"},
	"install/images":                 {},
	"install/images/cmd/images":      {"install/images"},
	"install/installer":              {"install/charts", "install/crds"},
	"install/samples/bookinfo":       {},
	"install/samples/bookinfo/app":   {},
	"install/samples/bookinfo/cmd/*": {"install/samples/bookinfo/app"},

	"integration/arch":                {},
	"integration/bed":                 {"istiod/authn", "istiod/ca", "istiod/xds", "ztunnel/netns", "ztunnel/redirect"},
	"integration/bench":               {"integration/bed"},
	"integration/bench/baseline":      {"ztunnel/netns"},
	"integration/cluster":             {"install/images"},
	"integration/cluster/nft":         {},
	"integration/cluster/cmd/cluster": {"integration/cluster", "integration/cluster/nft"},
	"integration/contract":            {},
	"integration/clustertest":         {"install/samples/bookinfo", "integration/lab", "integration/narrate", "ztunnel/netns"},
	"integration/demo":                {"integration/lab", "integration/lab/scene", "integration/narrate"},
	"integration/e2e":                 {},
	"integration/lab":                 {},
	"integration/lab/cmd/lab":         {"integration/lab"},
	"integration/lab/scene":           {"integration/lab", "install/samples/bookinfo"},
	"integration/narrate":             {},
	"integration/scenario":            {},
}

// goPackage is what go list tells of a package.
type goPackage struct {
	ImportPath string
	Imports    []string
}

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, listed := rule(name)
		if !listed {
			t.Errorf("package %s is not in the import table: say there what it may import", name)
			continue
		}
		for _, imported := range p.Imports {
			ours, ok := strings.CutPrefix(imported, module)
			if ok && (!strings.HasPrefix(ours, "apis/") || strings.HasPrefix(name, "apis/")) && !matches(allowed, ours) {
				t.Errorf("%s imports %s, which the import table does not allow", name, ours)
			}
		}
	}
}

// TestTableIsTrue keeps entries of packages that are gone out of the table.
func TestTableIsTrue(t *testing.T) {
	var names []string
	for _, p := range list(t) {
		names = append(names, strings.TrimPrefix(p.ImportPath, module))
	}
	for pattern := range imports {
		if !slices.ContainsFunc(names, func(name string) bool { return match(pattern, name) }) {
			t.Errorf("the import table names %s, and there is no such package", pattern)
		}
	}
}

func rule(name string) (allowed []string, listed bool) {
	if allowed, listed = imports[name]; listed {
		return allowed, true
	}
	for pattern, allowed := range imports {
		if match(pattern, name) {
			return allowed, true
		}
	}
	return nil, false
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return match(pattern, name) })
}

func match(pattern, name string) bool {
	if folder, ok := strings.CutSuffix(pattern, "/*"); ok {
		return strings.HasPrefix(name, folder+"/")
	}
	return pattern == name
}

func list(t *testing.T) []goPackage {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...")
	command.Dir = "../.."
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(strings.NewReader(string(output)))
	var packages []goPackage
	for {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

var (
	code       = regexp.MustCompile("`([^`\n]+)`")
	makeTarget = regexp.MustCompile(`\bmake ([a-z-]+)`)
	ourPath    = regexp.MustCompile(`^(\.ci|\.golangci\.yml|apis|cmd|install|integration|istiod|waypoint|ztunnel)(/[\w./*-]*)?$`)
)

// TestDocumentsAreTrue checks that every path of the repository and every make
// target that a document names exists.
func TestDocumentsAreTrue(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range []string{"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"} {
		text, err := os.ReadFile(filepath.Join("../..", document))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, target := range makeTarget.FindAllStringSubmatch(string(text), -1) {
			if !regexp.MustCompile(`(?m)^` + target[1] + `:`).Match(makefile) {
				t.Errorf("%s names make %s, and there is no such target", document, target[1])
			}
		}
		for _, quoted := range code.FindAllStringSubmatch(string(text), -1) {
			name := strings.TrimSuffix(quoted[1], "/")
			if !ourPath.MatchString(name) {
				continue
			}
			if found, err := filepath.Glob(path.Join("../..", name)); err != nil || len(found) == 0 {
				t.Errorf("%s names %s, which does not exist", document, name)
			}
		}
	}
}

// TestClusterTestsRun checks that make cluster-test names every package with
// tests that need a cluster: without their tag nobody else misses them.
func TestClusterTestsRun(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	err = filepath.WalkDir("../..", func(file string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(file, "_test.go") {
			return err
		}
		text, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(text), "//go:build cluster\n") {
			return err
		}
		found++
		dir := "./" + strings.TrimPrefix(filepath.ToSlash(filepath.Dir(file)), "../../")
		if !regexp.MustCompile(`go test .*-tags cluster.* ` + regexp.QuoteMeta(dir) + `\n|call apitest,.*` + regexp.QuoteMeta(dir) + `\b`).Match(makefile) {
			t.Errorf("no target runs %s", file)
		}
		return nil
	})
	if err != nil || found == 0 {
		t.Errorf("%d files with the tag, %v", found, err)
	}
}

// TestArchitectureIsShort holds ARCHITECTURE.md to its 150 lines.
func TestArchitectureIsShort(t *testing.T) {
	text, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "\n"); lines > 150 {
		t.Errorf("ARCHITECTURE.md has %d lines, want at most 150", lines)
	}
}
