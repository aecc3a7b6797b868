// Package installer puts the CNI plugin into the container runtime's configuration, keeps
// it there, and takes it out again: the program in the runtime's plugin directory, and an
// entry at the end of the plugin list that the runtime uses.
//
// It owns that program and that entry, and nothing else in either directory. The runtime
// uses the first file of the directory in the order of their names that it can read
// (libcni's and containerd's rule); a file with a single plugin, which has no list, is
// replaced by one with a list. The file as it was is kept beside it, to be restored byte
// for byte unless its owner has changed it since. Every file is replaced by renaming, so
// that the runtime never reads half of one.
//
// It knows no pods; cmd/ambit-cni's node agent runs it, in ztunnel/cni.
package installer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// PluginName is the type of our entry, and the program's file name.
const PluginName = "ambit-cni"

const (
	every = 500 * time.Millisecond // between looks at the directories
	quiet = 100 * time.Millisecond // after a change, for the others to follow
	audit = time.Minute            // between attempts without a change
)

// Config of an Installer.
type Config struct {
	BinDir, ConfDir string
	Program         string // the file to be copied; empty = the running program
	Entry           Entry
	Log             *slog.Logger
	// Result is told of every attempt; may be nil.
	Result func(installed bool)
}

// Entry is what the plugin is told with every call.
type Entry struct {
	RunDir   string   // of the agent, as the container runtime's host sees it
	Excluded []string // namespaces whose pods are none of the agent's business
}

func (e Entry) marshal() (json.RawMessage, error) {
	excluded := e.Excluded
	if excluded == nil {
		excluded = []string{}
	}
	return json.Marshal(map[string]any{
		"type":               PluginName,
		"name":               PluginName,
		"cni_agent_run_dir":  e.RunDir,
		"exclude_namespaces": excluded,
	})
}

// Installer is one plugin on one node. Only Installed may be called while Run runs.
type Installer struct {
	cfg       Config
	installed atomic.Bool
	told      string // the last state that was logged
}

// New returns an Installer that does nothing yet.
func New(cfg Config) *Installer { return &Installer{cfg: cfg} }

// Installed says whether the plugin is where it should be, as far as is known.
func (i *Installer) Installed() bool { return i.installed.Load() }

// Run installs the plugin, and again whenever something in the directories changes,
// until ctx is done. It leaves everything where it is. It looks for changes by itself,
// because a node's inotify instances run out, and a watched directory may be made anew.
//
// The error is that a directory has been removed under a mount: its successor is another
// one, and only a new container sees it.
func (i *Installer) Run(ctx context.Context) error {
	for {
		seen, err := i.look()
		if err != nil {
			return err
		}
		i.attempt()
		for tried := time.Now(); time.Since(tried) < audit; {
			if !pause(ctx, every) {
				return nil
			}
			if now, err := i.look(); err != nil || now != seen {
				break
			}
		}
		if !pause(ctx, quiet) {
			return nil
		}
	}
}

// look says what is in the directories, and when each file was last changed.
func (i *Installer) look() (string, error) {
	var b strings.Builder
	for _, dir := range []string{i.cfg.BinDir, i.cfg.ConfDir} {
		var st syscall.Stat_t
		if syscall.Stat(dir, &st) == nil && st.Nlink == 0 {
			return "", fmt.Errorf("%s has been removed; a new container is needed to see what takes its place", dir)
		}
		entries, err := os.ReadDir(dir)
		fmt.Fprintln(&b, dir, err)
		for _, e := range entries {
			if syscall.Lstat(filepath.Join(dir, e.Name()), &st) == nil {
				fmt.Fprintln(&b, e.Name(), st.Ino, st.Ctim)
			}
		}
	}
	return b.String(), nil
}

// pause says whether the time has passed before ctx was done.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// attempt installs, and says so when that is news.
func (i *Installer) attempt() {
	state, file, err := "installed", "", i.prepare()
	if err == nil {
		err = i.installProgram()
	}
	if err == nil {
		file, err = i.installEntry()
	}
	i.installed.Store(err == nil)
	if i.cfg.Result != nil {
		i.cfg.Result(err == nil)
	}
	if err != nil {
		state = err.Error()
	}
	if state+file == i.told {
		return
	}
	i.told = state + file
	if err != nil {
		i.cfg.Log.Warn("CNI plugin not installed, to be tried again", "error", err)
		return
	}
	i.cfg.Log.Info("CNI plugin installed", "program", filepath.Join(i.cfg.BinDir, PluginName), "configuration", file)
}

// prepare makes the directories, and removes what an attempt that was killed has left.
func (i *Installer) prepare() error {
	for _, dir := range []string{i.cfg.BinDir, i.cfg.ConfDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return i.sweep()
}

// installEntry chains the entry into the configuration that the runtime uses.
func (i *Installer) installEntry() (string, error) {
	entry, err := i.cfg.Entry.marshal()
	if err != nil {
		return "", err
	}
	f, err := i.first()
	if err != nil {
		return "", err
	}
	if !f.list.chain(entry) {
		return f.path, nil
	}
	data, err := f.list.marshal()
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.path, err)
	}
	if err := f.unchanged(); err != nil {
		return "", err
	}
	if f.isList {
		if !f.chained {
			if err := replace(f.path+keptSuffix, f.raw, f.mode); err != nil {
				return "", err
			}
		}
		return f.path, replace(f.path, data, f.mode)
	}
	list, err := listName(f.path)
	if err != nil {
		return "", err
	}
	if err := replace(list, data, f.mode); err != nil {
		return "", err
	}
	// Until this, the runtime uses the old file, which comes first.
	return list, os.Rename(f.path, f.path+keptSuffix)
}

// Uninstall restores the configurations as they were, takes the entry out of those that
// have changed since, and removes the program. It goes on after an error.
func (i *Installer) Uninstall() error {
	i.installed.Store(false)
	errs := []error{i.sweep(), i.restore()}
	files, err := i.files()
	errs = append(errs, err)
	for _, path := range files {
		f, err := read(path)
		if err != nil || !f.isList || !f.list.unchain() {
			continue // what cannot be read is not what was written
		}
		data, err := f.list.marshal()
		if err == nil {
			err = replace(path, data, f.mode)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	err = os.Remove(filepath.Join(i.cfg.BinDir, PluginName))
	if !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
