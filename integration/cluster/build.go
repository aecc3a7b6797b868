package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// BuildOptions say where binaries come from and go to.
type BuildOptions struct {
	// CacheDir is where they are kept, one directory PART-HASH for each part.
	CacheDir string
	// SourceDir is the repository's integration/cluster/parts.
	SourceDir string
	// Out is told what is being built, and for how long.
	Out io.Writer
}

// Build builds what a cluster of so many nodes needs and is not there yet, and
// returns the directories of all, by part. 0 nodes need a control plane only.
//
// A part is built in a directory that gets its name when all is there, so an
// interrupted build leaves nothing that could be taken for a part. Parts are
// built one after the other, as go build uses all processors by itself.
func Build(ctx context.Context, o BuildOptions, nodes int) (map[string]string, error) {
	needed := neededParts(nodes)
	t, err := findToolchain(ctx, o.SourceDir)
	if err != nil {
		return nil, err
	}
	dirs := map[string]string{}
	var missing []part
	for _, p := range needed {
		p = p.with(t)
		hash, err := p.hash(os.DirFS(filepath.Join(o.SourceDir, p.name)), t)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		dirs[p.name] = filepath.Join(o.CacheDir, p.name+"-"+hash)
		if _, err := os.Stat(dirs[p.name]); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		if err := o.buildAll(ctx, missing, dirs); err != nil {
			return nil, err
		}
	}
	if nodes == 0 {
		return dirs, nil
	}
	dirs[imagesPart], err = makeImages(ctx, o.CacheDir, t.arch, dirs)
	return dirs, err
}

// buildAll builds the parts into their directories.
func (o BuildOptions) buildAll(ctx context.Context, missing []part, dirs map[string]string) error {
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return err
	}
	lock, err := lockFile(ctx, filepath.Join(o.CacheDir, "lock"), os.O_CREATE|os.O_RDWR, func() {
		fmt.Fprintln(o.Out, "waiting for another build to end")
	})
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := removeAbandoned(o.CacheDir); err != nil { // we have the lock: nobody builds
		return err
	}
	began := time.Now()
	for i, p := range missing {
		if _, err := os.Stat(dirs[p.name]); err == nil {
			continue // somebody else was first
		}
		show := newProgress(o.Out, fmt.Sprintf("building %s (%d of %d)", p.name, i+1, len(missing)))
		err := p.build(ctx, filepath.Join(o.SourceDir, p.name), dirs[p.name], show)
		show.end(err)
		if err != nil {
			return fmt.Errorf("build %s: %w", p.name, err)
		}
	}
	fmt.Fprintf(o.Out, "binaries are in %s, after %s\n", o.CacheDir, time.Since(began).Round(time.Second))
	return nil
}

const unfinished = ".unfinished-"

// removeAbandoned removes what an interrupted build has left.
func removeAbandoned(cacheDir string) error {
	left, err := filepath.Glob(filepath.Join(cacheDir, unfinished+"*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// build compiles the part in the source directory into the target.
func (p part) build(ctx context.Context, source, target string, show *progress) error {
	dir, err := os.MkdirTemp(filepath.Dir(target), unfinished+p.name+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // it has its name by then, or the next build removes it
	environment := append(os.Environ(), "GOTOOLCHAIN=auto", "GOWORK=off", "GOFLAGS=-buildvcs=false", "CGO_ENABLED=0")
	if p.cgo {
		environment = append(environment, "CGO_ENABLED=1")
	}
	total, err := p.countPackages(ctx, source, environment)
	if err != nil {
		return err
	}
	show.expect(total)
	args := []string{"build", "-v", "-trimpath", "-o", dir + "/", "-ldflags", strings.TrimSpace("-s -w " + p.ldflags)}
	if p.tags != "" {
		args = append(args, "-tags", p.tags)
	}
	if err := runGo(ctx, source, environment, append(args, p.packages...), show.line); err != nil {
		return err
	}
	for _, name := range p.binaries {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("not among what was built: %w", err)
		}
	}
	for _, link := range p.links {
		if err := os.Symlink(p.binaries[0], filepath.Join(dir, link)); err != nil {
			return err
		}
	}
	if p.tagsWithSeccomp != "" && p.tags == p.tagsWithSeccomp {
		if err := os.WriteFile(filepath.Join(dir, seccompFile), nil, 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return os.Rename(dir, target)
}

// countPackages downloads the sources and says how many packages there are.
func (p part) countPackages(ctx context.Context, source string, environment []string) (int, error) {
	args := []string{"list", "-deps"}
	if p.tags != "" {
		args = append(args, "-tags", p.tags)
	}
	n := 0
	command := goCommand(ctx, source, environment, append(args, p.packages...))
	var errs bytes.Buffer
	command.Stderr = &errs
	out, err := command.Output()
	if err != nil {
		return 0, fmt.Errorf("go list: %w: %s", err, bytes.TrimSpace(errs.Bytes()))
	}
	for range bytes.Lines(out) {
		n++
	}
	return n, nil
}

func goCommand(ctx context.Context, dir string, environment, args []string) *exec.Cmd {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir, command.Env = dir, environment
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = 5 * time.Second
	return command
}

// runGo runs go build; each line of output goes to line, which says whether it
// belongs to the error if there is one.
func runGo(ctx context.Context, dir string, environment, args []string, line func(string) bool) error {
	command := goCommand(ctx, dir, environment, args)
	output, err := command.StderrPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	var said []string
	for lines := bufio.NewScanner(output); lines.Scan(); {
		if line(lines.Text()) {
			said = append(said, lines.Text())
		}
	}
	if err := command.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w\n%s", err, strings.Join(said, "\n"))
	}
	return nil
}

// findToolchain asks go; all parts name the same toolchain.
func findToolchain(ctx context.Context, source string) (toolchain, error) {
	var values struct{ GOVERSION, GOARCH, CC string }
	command := goCommand(ctx, filepath.Join(source, "kube"), append(os.Environ(), "GOTOOLCHAIN=auto", "GOWORK=off"),
		[]string{"env", "-json", "GOVERSION", "GOARCH", "CC"})
	out, err := command.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return toolchain{}, errors.New("go is not on the PATH; it builds the cluster's binaries")
	}
	if err != nil {
		return toolchain{}, fmt.Errorf("go env: %w", err)
	}
	if err := json.Unmarshal(out, &values); err != nil {
		return toolchain{}, fmt.Errorf("go env: %w", err)
	}
	compiler, err := exec.CommandContext(ctx, values.CC, "-dumpfullversion", "-dumpversion").Output()
	if err != nil {
		return toolchain{}, fmt.Errorf("the C compiler %s, which runc needs, does not run (Debian's package is gcc, with libc6-dev): %w", values.CC, err)
	}
	return toolchain{
		goVersion: values.GOVERSION, arch: values.GOARCH,
		cc:      values.CC + " " + strings.TrimSpace(string(compiler)),
		seccomp: hasSeccomp(ctx),
	}, nil
}

// hasSeccomp asks as cgo will.
func hasSeccomp(ctx context.Context) bool {
	tool := os.Getenv("PKG_CONFIG")
	if tool == "" {
		tool = "pkg-config"
	}
	return exec.CommandContext(ctx, tool, "--cflags", "--libs", "libseccomp").Run() == nil
}

// lockFile opens a file, or a directory, and locks it, which it waits for until
// ctx ends; note is told once that somebody else has the lock.
func lockFile(ctx context.Context, path string, flags int, note func()) (*os.File, error) {
	file, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(50 * time.Millisecond) // a flock that waits hears no signal
	defer tick.Stop()
	for {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(&fs.PathError{Op: "lock", Path: path, Err: err}, file.Close())
		}
		note()
		note = func() {}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), file.Close())
		}
	}
}

// BuildAll builds what a cluster of this configuration needs.
func BuildAll(ctx context.Context, config Config) error {
	config, err := config.completed()
	if err != nil {
		return err
	}
	dirs, err := Build(ctx, BuildOptions{CacheDir: config.CacheDir, SourceDir: config.SourceDir, Out: config.Out}, config.Nodes)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(dirs)) {
		fmt.Fprintln(config.Out, dirs[name])
	}
	return nil
}
