package manifest

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// quiet is how long a file must have been left alone before it is read:
	// programs that truncate and then write leave a file that is empty, or
	// worse, valid and incomplete, in between (DESIGN.md §4).
	quiet = 100 * time.Millisecond
	// patience is how long files that are ready wait for others that are about
	// to be: an object that moves from one file to another must not be gone in
	// between.
	patience = time.Second
	// awaitInterval is how often a directory that does not exist is looked for.
	awaitInterval = 500 * time.Millisecond
)

// Change is what the (re)reading of one file means for the objects.
type Change struct {
	File    string
	Set     []Object // new or different
	Deleted []Key    // gone from this file, and defined nowhere else
	// Err says why nothing of the file was taken: it is unreadable, empty,
	// unparsable, or defines an object that another file of its directory
	// defines. The objects that it held before stay as they were.
	Err error
}

// Watcher follows directories of manifests. An object that several directories
// define is that of the last of them.
type Watcher struct {
	log  *slog.Logger
	dirs []string

	files   map[string]*file          // every manifest file that exists
	defined map[Key]map[string]Object // by the files that define it; may be of several directories
	busy    map[string]bool           // changed, and not closed by its writer yet
	due     map[string]due            // changed files, and when they are read
}

// file is what is known of a manifest file.
type file struct {
	dir     int // index into dirs
	stamp   stamp
	objects []Object // as last taken
	err     error    // why its present content was not taken
}

// due is when a changed file is read. A file that was replaced by rename is
// read alone and at once.
type due struct {
	at    time.Time
	alone bool
}

// stamp tells whether a file has changed.
type stamp struct {
	size     int64
	modified int64 // nanoseconds since 1970
	changed  int64 // likewise, of the inode: moves also where a program sets the other back
	inode    uint64
}

// NewWatcher returns a watcher of the manifests in dirs and the folders below
// them: files that end in .yaml, .yml or .json and do not begin with a dot.
func NewWatcher(log *slog.Logger, dirs ...string) *Watcher {
	return &Watcher{
		log: log, dirs: dirs,
		files: map[string]*file{}, defined: map[Key]map[string]Object{},
		busy: map[string]bool{}, due: map[string]due{},
	}
}

// Run reads everything, hands it to apply with initial set, and then the
// changes as they happen, until ctx is done. It calls apply from one goroutine
// and only once at a time. A directory that does not exist counts as empty and
// is awaited.
func (w *Watcher) Run(ctx context.Context, apply func(changes []Change, initial bool)) error {
	notify, err := newNotifier()
	if err != nil {
		return err
	}
	defer notify.close()
	missing := w.scan(notify)
	apply(w.read(slices.Sorted(maps.Keys(w.due))), true)

	await := time.NewTicker(awaitInterval)
	defer await.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(w.untilDue(time.Now()))
		select {
		case <-ctx.Done():
			return nil
		case err := <-notify.failed:
			return err
		case event := <-notify.events:
			missing = w.note(event, notify) || missing
		case <-await.C:
			if missing {
				missing = w.scan(notify)
			}
		case <-timer.C:
		}
		missing = w.noteAll(notify) || missing // what happened meanwhile may make a file busy again
		if changes := w.read(w.ready(time.Now())); len(changes) > 0 {
			apply(changes, false)
		}
	}
}

// note records what happened to a file or, after changes of the tree, looks at
// all of it. It reports whether a directory is missing.
func (w *Watcher) note(event event, notify *notifier) (missing bool) {
	now := time.Now()
	switch event.kind {
	case tree:
		return w.scan(notify)
	case modified:
		w.busy[event.path] = true
	case closed, removed:
		delete(w.busy, event.path)
		w.due[event.path] = due{at: now.Add(quiet)}
	case replaced:
		delete(w.busy, event.path)
		w.due[event.path] = due{at: now, alone: true}
	}
	return false
}

// noteAll takes note of all events that are waiting.
func (w *Watcher) noteAll(notify *notifier) (missing bool) {
	for {
		select {
		case event := <-notify.events:
			missing = w.note(event, notify) || missing
		default:
			return missing
		}
	}
}

// ready returns the files whose time has come.
func (w *Watcher) ready(now time.Time) []string {
	var alone, together []string
	waiting, first := false, now
	for path, due := range w.due {
		switch {
		case w.busy[path]:
		case due.at.After(now):
			waiting = true
		case due.alone:
			alone = append(alone, path)
		default:
			together = append(together, path)
			if due.at.Before(first) {
				first = due.at
			}
		}
	}
	if waiting && now.Sub(first) < patience {
		return slices.Sorted(slices.Values(alone))
	}
	return slices.Sorted(slices.Values(append(alone, together...)))
}

// untilDue returns how long nothing can become ready.
func (w *Watcher) untilDue(now time.Time) time.Duration {
	wait := time.Hour
	for path, due := range w.due {
		if left := due.at.Sub(now); !w.busy[path] && left > 0 {
			wait = min(wait, left)
		}
	}
	if wait == time.Hour && len(w.ready(now)) > 0 {
		return 0
	}
	return wait
}

// scan walks the directories, watches every folder and makes due every file
// that is new, different or gone. It reports whether a directory is missing.
func (w *Watcher) scan(notify *notifier) (missing bool) {
	seen := map[string]bool{}
	for _, dir := range w.dirs {
		if _, err := os.Stat(dir); err != nil {
			missing = true
			continue
		}
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil //nolint:nilerr // gone meanwhile, or not ours to read: the file's own read says so
			case entry.IsDir() && path != dir && strings.HasPrefix(entry.Name(), "."):
				return fs.SkipDir
			case entry.IsDir():
				return notify.add(path)
			case !isManifest(path):
				return nil
			}
			seen[path] = true
			known := w.files[path]
			if now, err := stampOf(path); known == nil || err != nil || now != known.stamp {
				if _, waiting := w.due[path]; !waiting {
					w.due[path] = due{at: time.Now()}
				}
			}
			return nil
		})
		if err != nil {
			w.log.Warn("directory of manifests cannot be watched", "dir", dir, "error", err)
		}
	}
	for path := range w.files {
		if !seen[path] {
			w.due[path] = due{at: time.Now().Add(quiet)} // an editor may be replacing it
		}
	}
	return missing
}

func isManifest(path string) bool {
	name := filepath.Base(path)
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// load reads one file that is due. A file that changes while it is read stays
// due.
func (w *Watcher) load(path string) (loaded loadedFile, ok bool) {
	before, err := stampOf(path)
	if errors.Is(err, fs.ErrNotExist) {
		return loadedFile{gone: true}, true
	}
	if err != nil {
		return loadedFile{err: &Error{File: path, Reason: err.Error()}}, true
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return loadedFile{stamp: before, err: &Error{File: path, Reason: err.Error()}}, true
	}
	if after, err := stampOf(path); err != nil || after != before {
		w.due[path] = due{at: time.Now().Add(quiet)}
		return loadedFile{}, false
	}
	objects, err := Parse(path, data)
	if err == nil && len(objects) == 0 {
		err = &Error{File: path, Reason: "holds no objects; delete the file to delete what it defined"}
	}
	return loadedFile{stamp: before, objects: objects, err: err}, true
}

type loadedFile struct {
	gone    bool
	stamp   stamp
	objects []Object
	err     error
}

// dirOf returns the index of the directory that path is below.
func (w *Watcher) dirOf(path string) int {
	best, length := 0, -1
	for i, dir := range w.dirs {
		if rel, err := filepath.Rel(dir, path); err == nil && !strings.HasPrefix(rel, "..") && len(dir) > length {
			best, length = i, len(dir)
		}
	}
	return best
}
