package manifest

import (
	"context"
	"errors"
	"fmt"
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
	// scanInterval is how often, at the most, all files are looked at.
	scanInterval = 100 * time.Millisecond
	// maxFile bounds what is read of one file, in bytes.
	maxFile = 64 << 20
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

	dirty bool // something may have happened that no event told: look at everything

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
	w.scan(notify)
	apply(w.read(slices.Sorted(maps.Keys(w.due))), true)

	// Folders are looked at again at most once in a while, however many come
	// and go; a directory that does not exist is looked for as often.
	scan := time.NewTicker(scanInterval)
	defer scan.Stop()
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
			w.note(event)
		case <-scan.C:
			if w.dirty {
				w.scan(notify)
			}
		case <-timer.C:
		}
		w.noteWaiting(notify.events) // what happened meanwhile may make a file busy again
		if changes := w.read(w.ready(time.Now())); len(changes) > 0 {
			apply(changes, false)
		}
	}
}

// note records what happened to a file.
func (w *Watcher) note(event event) {
	now := time.Now()
	switch event.kind {
	case lost:
		w.dirty = true
		for path := range w.busy { // what closed them may be among what was lost
			w.due[path] = due{at: now.Add(quiet)}
		}
		clear(w.busy)
	case tree:
		w.dirty = true
	case modified:
		w.busy[event.path] = true
	case closed, removed:
		delete(w.busy, event.path)
		w.due[event.path] = due{at: now.Add(quiet)}
	case replaced:
		delete(w.busy, event.path)
		w.due[event.path] = due{at: now, alone: true}
	}
}

// noteWaiting takes note of the events that are waiting, but not of those that
// come meanwhile.
func (w *Watcher) noteWaiting(events <-chan event) {
	for range len(events) {
		w.note(<-events)
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
// that is new, different or gone. Links to folders below a directory are not
// followed.
func (w *Watcher) scan(notify *notifier) {
	w.dirty = false
	seen := map[string]bool{}
	for _, dir := range w.dirs {
		if _, err := os.Stat(dir); err != nil {
			w.dirty = true // awaited
			continue
		}
		root := dir + string(filepath.Separator) // so that a directory that is a link is followed
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil //nolint:nilerr // gone meanwhile, or not ours to read: the file's own read says so
			case entry.IsDir() && path != root && strings.HasPrefix(entry.Name(), "."):
				return fs.SkipDir
			case entry.IsDir():
				return notify.add(path)
			case isManifest(path):
				seen[path] = true
				w.notice(path)
			}
			return nil
		})
		if err != nil {
			w.dirty = true // tried again
			w.log.Warn("directory of manifests cannot be watched", "dir", dir, "error", err)
		}
	}
	for path := range w.files {
		if !seen[path] {
			delete(w.busy, path)
			w.due[path] = due{at: time.Now().Add(quiet)} // an editor may be replacing it
		}
	}
}

// notice makes a file due if it is new or different.
func (w *Watcher) notice(path string) {
	if _, waiting := w.due[path]; waiting {
		return
	}
	known := w.files[path]
	if now, err := stampOf(path); known == nil || err != nil || now != known.stamp {
		w.due[path] = due{at: time.Now().Add(quiet)}
	}
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
	if before.size > maxFile {
		return loadedFile{stamp: before, err: &Error{File: path, Reason: fmt.Sprintf("has %d bytes, more than %d", before.size, maxFile)}}, true
	}
	data, err := os.ReadFile(path)
	if after, statErr := stampOf(path); statErr != nil || after != before {
		w.due[path] = due{at: time.Now().Add(quiet)}
		return loadedFile{}, false
	}
	if err != nil {
		return loadedFile{stamp: before, err: &Error{File: path, Reason: err.Error()}}, true
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
