package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Archs are the architectures that images may be built for.
var Archs = []string{"amd64", "arm64"}

// Build says how images are made from recipes.
type Build struct {
	Root     string   // of the repository
	Out      string   // directory of the layouts
	Hub, Tag string   // of the names: HUB/name:TAG
	Archs    []string // of Archs
	Compress bool     // layers, for a registry
	Progress io.Writer
}

// Built is an image that was made.
type Built struct {
	Layout
	Dir string
}

// Run compiles the programs of the recipes for all architectures and writes
// the layouts, in the order of the recipes. Compiled programs stay in a hidden
// directory below Out, so that those whose sources did not change are not
// linked again.
func (b Build) Run(ctx context.Context, recipes []Recipe) ([]Built, error) {
	if err := b.check(recipes); err != nil {
		return nil, err
	}
	// Each stage: reads recipes, produces programs with the modules they are from.
	programs, err := b.compile(ctx, recipes)
	if err != nil {
		return nil, err
	}
	// Reads recipes and programs, produces layouts.
	var built []Built
	revision := revision(ctx, b.Root)
	for _, recipe := range recipes {
		variants := b.variants(recipe, programs, revision)
		dir := filepath.Join(b.Out, recipe.Dir())
		if err := Write(ctx, dir, b.reference(recipe), variants...); err != nil {
			return nil, fmt.Errorf("%s: %w", recipe.Name, err)
		}
		layout, err := Read(os.DirFS(dir))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		built = append(built, Built{Layout: layout, Dir: dir})
	}
	return built, nil
}

// check finds mistakes before minutes of compiling.
func (b Build) check(recipes []Recipe) error {
	if len(b.Archs) == 0 {
		return errors.New("no architecture")
	}
	for i, arch := range b.Archs {
		if !slices.Contains(Archs, arch) {
			return fmt.Errorf("architecture %q: there are %s", arch, strings.Join(Archs, ", "))
		}
		if slices.Contains(b.Archs[:i], arch) {
			return fmt.Errorf("architecture %q given twice", arch)
		}
	}
	for _, recipe := range recipes {
		if _, err := ParseReference(b.reference(recipe)); err != nil {
			return fmt.Errorf("hub %q and tag %q do not make a name: %w", b.Hub, b.Tag, err)
		}
	}
	return nil
}

func (b Build) reference(r Recipe) string {
	if r.Reference != "" {
		return r.Reference
	}
	return b.Hub + "/" + r.Name + ":" + b.Tag
}

// goPackage is what go list tells of a package.
type goPackage struct {
	Name   string
	Module struct{ Path, Version, Dir string }
}

// programs is where the compiled packages are: by architecture, then package.
type programs struct {
	files  map[string]map[string]string
	listed map[string]goPackage
}

// compile runs go build once per module and architecture.
func (b Build) compile(ctx context.Context, recipes []Recipe) (programs, error) {
	p := programs{files: map[string]map[string]string{}, listed: map[string]goPackage{}}
	packages := map[string][]string{}
	var modules []string
	for _, r := range recipes {
		if !slices.Contains(modules, r.Module) {
			modules = append(modules, r.Module)
		}
		for _, name := range r.Packages {
			if !slices.Contains(packages[r.Module], name) {
				packages[r.Module] = append(packages[r.Module], name)
			}
		}
	}
	for _, arch := range b.Archs {
		p.files[arch] = map[string]string{}
		for _, module := range modules {
			if err := b.compileModule(ctx, p, arch, module, packages[module]); err != nil {
				return programs{}, fmt.Errorf("build %s for linux/%s: %w", module, arch, err)
			}
		}
	}
	return p, nil
}

func (b Build) compileModule(ctx context.Context, p programs, arch, module string, packages []string) error {
	out, err := filepath.Abs(filepath.Join(b.Out, ".programs", arch, strings.NewReplacer(".", "main", "/", "_").Replace(module)))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, name := range packages {
		other, taken := byFile(p.files[arch], filepath.Join(out, path.Base(name)))
		if taken {
			return fmt.Errorf("%s and %s have the same file name", other, name)
		}
		p.files[arch][name] = filepath.Join(out, path.Base(name))
		if p.listed[name], err = b.list(ctx, module, name); err != nil {
			return err
		}
	}
	// No cgo: FROM scratch has no libc. -buildvcs=false: a commit that does not
	// touch a program leaves it as it is. The build id stays, since by it go
	// build knows that a program need not be linked again; with -trimpath it
	// depends on the sources only.
	args := append([]string{"build", "-v", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out + "/"}, packages...)
	return b.run(b.command(ctx, module, arch, args...), "linux/"+arch)
}

func byFile(files map[string]string, file string) (string, bool) {
	for name, other := range files {
		if other == file {
			return name, true
		}
	}
	return "", false
}

func (b Build) command(ctx context.Context, module, arch string, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = filepath.Join(b.Root, module)
	command.Env = append(command.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOWORK=off")
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = 10 * time.Second
	return command
}

// list asks what a package is and which module it comes from.
func (b Build) list(ctx context.Context, module, name string) (p goPackage, err error) {
	command := b.command(ctx, module, b.Archs[0], "list", "-json=Name,Module", name)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	text, err := command.Output()
	if err != nil {
		return p, fmt.Errorf("go list %s: %w: %s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return p, fmt.Errorf("go list %s: %w", name, err)
	}
	if p.Name != "main" {
		return p, fmt.Errorf("%s is package %q, not a program", name, p.Name)
	}
	return p, nil
}

// variants are the image's contents for all architectures.
func (b Build) variants(r Recipe, p programs, revision string) []Variant {
	module := p.listed[r.Packages[0]].Module
	labels := map[string]string{
		ocispec.AnnotationTitle:       r.Name,
		ocispec.AnnotationDescription: r.Description,
		ocispec.AnnotationSource:      r.Source,
		ocispec.AnnotationVersion:     b.Tag,
		ocispec.AnnotationLicenses:    "Apache-2.0",
	}
	if module.Version != "" { // from another module: what is in it is not of our revision
		labels[ocispec.AnnotationVersion] = module.Version
	} else if revision != "" {
		labels[ocispec.AnnotationRevision] = revision
	}
	var variants []Variant
	for _, arch := range b.Archs {
		v := Variant{
			Arch: arch, User: r.User, Labels: labels, Compress: b.Compress,
			Entrypoint: []string{path.Join(r.Folder, path.Base(r.Packages[0]))},
			// Programs expect a /tmp that they may write to.
			Files: []File{{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777}},
		}
		for _, name := range r.Packages {
			v.Files = append(v.Files, File{Path: path.Join(r.Folder, path.Base(name)), Source: p.files[arch][name]})
		}
		for from, to := range r.Copies {
			v.Files = append(v.Files, File{Path: to, Mode: 0o644, Source: filepath.Join(module.Dir, from)})
		}
		variants = append(variants, v)
	}
	return variants
}

// revision is the commit that is checked out, with -dirty when files differ
// from it, and empty without git.
func revision(ctx context.Context, root string) string {
	head, err := exec.CommandContext(ctx, "git", "-C", root, "rev-parse", "--verify", "HEAD").Output()
	if err != nil {
		return ""
	}
	commit := string(bytes.TrimSpace(head))
	status, err := exec.CommandContext(ctx, "git", "-C", root, "status", "--porcelain").Output()
	if err != nil || len(status) > 0 {
		return commit + "-dirty"
	}
	return commit
}
