package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Versions of what is built, as parts/*/go.mod require them; a test holds the
// two together.
const (
	KubernetesVersion = "v1.37.2"
	containerdVersion = "v2.4.2"
)

// part is a Go module below parts/ and what is built from it.
type part struct {
	name     string
	packages []string
	binaries []string // that come out
	links    []string // further names of the first binary
	tags     string
	ldflags  string
	cgo      bool
	// tagsWithSeccomp takes the place of tags where libseccomp can be linked.
	tagsWithSeccomp string
}

// parts are in the order in which they are built: what is quick, and what may
// lack something on this machine, first.
var parts = []part{
	{
		// Its first steps inside a container are in C. What happens without
		// libseccomp's headers, noseccomp says.
		name: "runc", packages: []string{"github.com/opencontainers/runc", "./noseccomp"}, binaries: []string{"runc", "noseccomp"},
		cgo: true, tagsWithSeccomp: "seccomp",
	},
	{
		name:     "cni",
		packages: []string{"github.com/containernetworking/plugins/plugins/main/ptp", "github.com/containernetworking/plugins/plugins/ipam/host-local"},
		binaries: []string{"ptp", "host-local"},
	},
	{name: "pause", packages: []string{"."}, binaries: []string{"pause"}},
	{
		name: "containerd",
		packages: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
		},
		binaries: []string{"containerd", "containerd-shim-runc-v2", "ctr"},
		tags:     "no_btrfs,no_zfs,no_aufs,no_devmapper",
		ldflags:  "-X github.com/containerd/containerd/v2/version.Version=" + containerdVersion,
	},
	{name: "coredns", packages: []string{"."}, binaries: []string{"coredns"}},
	{
		name: "kube", packages: []string{"."}, binaries: []string{"kube"},
		links: []string{"etcd", "kubectl", "kubelet", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler"},
		ldflags: "-X k8s.io/component-base/version.gitVersion=" + KubernetesVersion +
			" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37" +
			" -X k8s.io/client-go/pkg/version.gitVersion=" + KubernetesVersion,
	},
}

// controlPlaneParts are those that a control plane without nodes needs.
var controlPlaneParts = []string{"kube"}

// partOf is the part that a binary comes from.
func partOf(binary string) string {
	for _, p := range parts {
		if slices.Contains(p.binaries, binary) || slices.Contains(p.links, binary) {
			return p.name
		}
	}
	panic("no part has " + binary)
}

// neededParts are those that a cluster of so many nodes needs.
func neededParts(nodes int) []part {
	if nodes > 0 {
		return parts
	}
	return slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return !slices.Contains(controlPlaneParts, p.name) })
}

// toolchain is what compiles.
type toolchain struct {
	goVersion, arch string
	cc              string // the C compiler and its version, for cgo
	seccomp         bool   // whether there is a libseccomp to compile and link with
}

// with is the part as this toolchain builds it.
func (p part) with(t toolchain) part {
	if t.seccomp && p.tagsWithSeccomp != "" {
		p.tags = p.tagsWithSeccomp
	}
	return p
}

// seccompFile is in the directory of a runc that has seccomp.
const seccompFile = "with-seccomp"

// hash is of everything that goes into the part: its sources, go.mod and go.sum
// (and with that, everything it requires), the flags and the compiler.
func (p part) hash(source fs.FS, t toolchain) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "go %q arch %q packages %q tags %q ldflags %q links %q cgo %t\n", t.goVersion, t.arch, p.packages, p.tags, p.ldflags, p.links, p.cgo)
	if p.cgo {
		fmt.Fprintf(h, "cc %q\n", t.cc)
	}
	err := fs.WalkDir(source, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !isSource(entry.Name()) {
			return err
		}
		content, err := fs.ReadFile(source, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "file %q %x\n", path, sha256.Sum256(content))
		return nil
	})
	return hex.EncodeToString(h.Sum(nil))[:16], err
}

func isSource(name string) bool {
	if strings.HasSuffix(name, "_test.go") {
		return false
	}
	return name == "go.mod" || name == "go.sum" || slices.Contains([]string{".go", ".c", ".h", ".s"}, filepath.Ext(name))
}

// sourceDir finds parts/: beside the tool when that is in bin/ of the
// repository, or around the working directory.
func sourceDir(tool string) (string, error) {
	const below = "integration/cluster/parts"
	working, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for _, start := range []string{filepath.Dir(tool), working} {
		for dir := start; ; dir = filepath.Dir(dir) {
			candidate := filepath.Join(dir, below)
			if _, err := os.Stat(filepath.Join(candidate, "kube", "go.mod")); err == nil {
				return candidate, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", errors.New("the sources of the cluster's binaries, " + below + ", are neither around " + tool + " nor around " + working)
}
