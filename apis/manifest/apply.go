package manifest

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// read takes over the files that are due and returns what changed, in order of
// file names. Files that were refused because of another file are tried again,
// since that one may have changed.
func (w *Watcher) read(paths []string) []Change {
	tried := map[string]loadedFile{}
	load := func(path string) {
		if loaded, ok := w.load(path); ok {
			tried[path] = loaded
		}
	}
	for _, path := range paths {
		delete(w.due, path)
		load(path)
	}
	if len(tried) == 0 {
		return nil
	}
	for path, known := range w.files {
		var conflict *conflictError
		if _, again := tried[path]; !again && errors.As(known.err, &conflict) {
			load(path)
		}
	}
	return w.take(tried)
}

// take replaces the objects of the files and returns the difference that this
// makes. All old contents go before the first new one comes, since an object
// may move from one file to another.
func (w *Watcher) take(tried map[string]loadedFile) []Change {
	before := map[Key]*Object{}
	note := func(objects []Object) {
		for _, object := range objects {
			if _, noted := before[object.Key]; !noted {
				before[object.Key] = w.effective(object.Key)
			}
		}
	}
	order := slices.Sorted(maps.Keys(tried))
	for _, path := range order {
		note(tried[path].objects)
		if known := w.files[path]; known != nil {
			note(known.objects)
		}
	}
	for _, path := range order {
		if known := w.files[path]; known != nil && tried[path].err == nil {
			w.undefine(path, known)
		}
	}
	changes := map[string]*Change{}
	for _, path := range order {
		if change := w.replace(path, tried[path]); change != nil {
			changes[path] = change
		}
	}
	for _, path := range order {
		if known := w.files[path]; known != nil && known.err != nil {
			w.restore(path, known)
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(before), compareKeys) {
		w.difference(changes, key, before[key], w.effective(key))
	}
	list := make([]Change, 0, len(changes))
	for _, path := range slices.Sorted(maps.Keys(changes)) {
		list = append(list, *changes[path])
	}
	return list
}

// replace gives a file its new contents unless they are refused. The change
// tells of errors that begin and end, and that a file is gone.
func (w *Watcher) replace(path string, loaded loadedFile) *Change {
	known := w.files[path]
	if loaded.gone {
		delete(w.files, path)
		delete(w.busy, path)
		return &Change{File: path}
	}
	if known == nil {
		known = &file{dir: w.dirOf(path)}
		w.files[path] = known
	}
	known.stamp = loaded.stamp
	err := loaded.err
	if err == nil {
		err = w.conflict(path, known.dir, loaded.objects)
	}
	was := known.err
	known.err = err
	if err != nil {
		if was != nil && was.Error() == err.Error() {
			return nil
		}
		return &Change{File: path, Err: err}
	}
	known.objects = loaded.objects
	w.define(path, known)
	if was != nil {
		return &Change{File: path}
	}
	return nil
}

func (w *Watcher) difference(changes map[string]*Change, key Key, was, is *Object) {
	var file string
	switch {
	case is != nil && (was == nil || !reflect.DeepEqual(was.Body, is.Body)):
		file = is.File
	case is == nil && was != nil:
		file = was.File
	default:
		return
	}
	change := changes[file]
	if change == nil || change.Err != nil { // the object of a refused file comes to count when another goes
		change = &Change{File: file}
		changes[file] = change
	}
	if is != nil {
		change.Set = append(change.Set, *is)
	} else {
		change.Deleted = append(change.Deleted, key)
	}
}

func (w *Watcher) define(path string, known *file) {
	for _, object := range known.objects {
		if w.defined[object.Key] == nil {
			w.defined[object.Key] = map[string]Object{}
		}
		w.defined[object.Key][path] = object
	}
}

// restore gives a file whose new contents were refused its old ones back, but
// for what another file has taken over in the same batch.
func (w *Watcher) restore(path string, known *file) {
	kept := known.objects[:0:0]
	for _, object := range known.objects {
		if taken, _ := w.definedElsewhere(path, known.dir, object.Key); taken == "" {
			kept = append(kept, object)
		}
	}
	known.objects = kept
	w.define(path, known)
}

// definedElsewhere returns the other file of the same directory that defines
// the key, and the line; "" if there is none.
func (w *Watcher) definedElsewhere(path string, dir int, key Key) (other string, line int) {
	for other, object := range w.defined[key] {
		if known := w.files[other]; other != path && known != nil && known.dir == dir {
			return other, object.Line
		}
	}
	return "", 0
}

func (w *Watcher) undefine(path string, known *file) {
	for _, object := range known.objects {
		delete(w.defined[object.Key], path)
		if len(w.defined[object.Key]) == 0 {
			delete(w.defined, object.Key)
		}
	}
}

// effective returns the definition that counts: that in the last directory.
func (w *Watcher) effective(key Key) *Object {
	var best *Object
	dir := -1
	for path, object := range w.defined[key] {
		if known := w.files[path]; known != nil && known.dir > dir {
			best, dir = &object, known.dir
		}
	}
	return best
}

// conflictError is the refusal of a file that defines what another one of its
// directory defines.
type conflictError struct{ at Error }

func (e *conflictError) Error() string { return e.at.Error() }
func (e *conflictError) Unwrap() error { return &e.at }

// conflict looks for an object that the file defines twice or that another
// file of the same directory defines as well.
func (w *Watcher) conflict(path string, dir int, objects []Object) error {
	lines := map[Key]int{}
	for _, object := range objects {
		if line, repeated := lines[object.Key]; repeated {
			return &Error{File: path, Line: object.Line, Reason: fmt.Sprintf("%s is defined in line %d already", object.Key, line)}
		}
		lines[object.Key] = object.Line
		if other, line := w.definedElsewhere(path, dir, object.Key); other != "" {
			return &conflictError{at: Error{
				File: path, Line: object.Line, Reason: fmt.Sprintf("%s is defined in %s:%d already", object.Key, other, line),
			}}
		}
	}
	return nil
}
