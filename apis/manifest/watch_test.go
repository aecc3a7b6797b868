package manifest

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// watching runs a watcher and gives its changes, one apply each.
type watching struct {
	t       *testing.T
	changes chan []Change
	last    []string
}

func watch(t *testing.T, dirs ...string) *watching {
	t.Helper()
	w := &watching{t: t, changes: make(chan []Change, 100)}
	ended := make(chan error, 1)
	go func() {
		ended <- NewWatcher(slog.New(slog.DiscardHandler), dirs...).Run(t.Context(), func(changes []Change, initial bool) {
			w.changes <- changes
		})
	}()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

// want waits for one line "file: +key -key !error" per changed file, in the
// order in which they come, over as many calls of apply as it takes.
func (w *watching) want(lines ...string) {
	w.t.Helper()
	deadline := time.After(10 * time.Second)
	for len(w.last) < len(lines) {
		select {
		case changes := <-w.changes:
			for _, c := range changes {
				w.last = append(w.last, describe(c))
			}
		case <-deadline:
			w.t.Fatalf("got %q, want %q", w.last, lines)
		}
	}
	if !slices.EqualFunc(w.last, lines, strings.HasPrefix) {
		w.t.Fatalf("got %q, want %q", w.last, lines)
	}
	w.last = nil
}

func describe(c Change) string {
	text := filepath.Base(c.File) + ":"
	for _, o := range c.Set {
		value, _ := o.Body.Object["data"].(string)
		text += " +" + o.Key.Name + value
	}
	for _, k := range c.Deleted {
		text += " -" + k.Name
	}
	if c.Err != nil {
		text += " !" + strings.ReplaceAll(c.Err.Error(), filepath.Dir(c.File)+"/", "")
	}
	return text
}

func object(name, data string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: %q\n---\n", name, data)
}

func write(t *testing.T, path string, text ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Join(text, "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, path string, text ...string) {
	t.Helper()
	write(t, path+".tmp", text...)
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

func TestWatcherFollowsFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", object("a", "1"), object("b", "1"))
	write(t, dir+"/.hidden.yaml", object("hidden", "1"))
	write(t, dir+"/notes.txt", "not a manifest")
	w := watch(t, dir)
	w.want("a.yaml: +a1 +b1")

	write(t, dir+"/a.yaml", object("a", "2"), object("b", "1"))
	w.want("a.yaml: +a2")
	replace(t, dir+"/a.yaml", object("a", "2"))
	w.want("a.yaml: -b")
	write(t, dir+"/sub/deeper/c.json", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":"1"}`)
	w.want("c.json: +c1")
	if err := os.RemoveAll(dir + "/sub"); err != nil {
		t.Fatal(err)
	}
	w.want("c.json: -c")
}

func TestWatcherKeepsLastGood(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", object("a", "1"))
	w := watch(t, dir)
	w.want("a.yaml: +a1")

	write(t, dir+"/a.yaml", "")
	w.want("a.yaml: !a.yaml: holds no objects")
	write(t, dir+"/a.yaml", "kind: [\n")
	w.want("a.yaml: !a.yaml:")
	write(t, dir+"/a.yaml", object("a", "1"))
	w.want("a.yaml:") // the error is over, nothing else changed
	if err := os.Remove(dir + "/a.yaml"); err != nil {
		t.Fatal(err)
	}
	w.want("a.yaml: -a")
}

func TestWatcherAwaitsTheWriter(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", object("a", "1"), object("b", "1"))
	w := watch(t, dir)
	w.want("a.yaml: +a1 +b1")

	// Half of the file is on disk, valid by itself, and the writer takes its
	// time: b must not be taken for deleted.
	f, err := os.Create(dir + "/a.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(object("a", "2")); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/marker.yaml", object("marker", "1")) // read only after a.yaml has been quiet for as long
	w.want("marker.yaml: +marker1")
	if _, err := f.WriteString(object("b", "2")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	w.want("a.yaml: +a2 +b2")
}

func TestWatcherConflicts(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", object("a", "1"))
	write(t, dir+"/b.yaml", object("a", "2"), object("b", "1"))
	w := watch(t, dir)
	w.want("a.yaml: +a1", "b.yaml: !b.yaml:1: ConfigMap default/a is defined in a.yaml:1 already")

	replace(t, dir+"/a.yaml", object("other", "1"))
	w.want("a.yaml: +other1", "b.yaml: +a2 +b1")
}

func TestWatcherLaterDirectoryWins(t *testing.T) {
	user, state := t.TempDir(), t.TempDir()+"/objects"
	write(t, user+"/a.yaml", object("a", "user"))
	w := watch(t, user, state)
	w.want("a.yaml: +auser")

	replace(t, state+"/s.yaml", object("a", "state"))
	w.want("s.yaml: +astate")
	write(t, user+"/a.yaml", object("a", "user2"), object("b", "1"))
	w.want("a.yaml: +b1")
	if err := os.Remove(state + "/s.yaml"); err != nil {
		t.Fatal(err)
	}
	w.want("a.yaml: +auser2", "s.yaml:")
}

func TestWatcherObjectMovesBetweenFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", object("a", "1"), object("b", "1"))
	w := watch(t, dir)
	w.want("a.yaml: +a1 +b1")

	write(t, dir+"/a.yaml", object("a", "1"))
	write(t, dir+"/b.yaml", object("b", "2"))
	w.want("b.yaml: +b2") // and never "a.yaml: -b"
}

func TestWatcherFollowsALink(t *testing.T) {
	dir, link := t.TempDir(), t.TempDir()+"/link"
	write(t, dir+"/a.yaml", object("a", "1"))
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	w := watch(t, link)
	w.want("a.yaml: +a1")
	write(t, dir+"/a.yaml", object("a", "2"))
	w.want("a.yaml: +a2")
}

func TestWatcherReadsRegularFilesOnly(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", object("a", "1"))
	if err := syscall.Mkfifo(dir+"/p.yaml", 0o600); err != nil {
		t.Fatal(err)
	}
	watch(t, dir).want("a.yaml: +a1", "p.yaml: !p.yaml: is no regular file")
}

func TestWatcherIsNotStarvedByFolders(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", object("a", "1"))
	w := watch(t, dir)
	w.want("a.yaml: +a1")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Mkdir(dir+"/d", 0o755)
				_ = os.Remove(dir + "/d")
			}
		}
	}()
	write(t, dir+"/b.yaml", object("b", "1"))
	w.want("b.yaml: +b1")
	close(stop)
	<-stopped
}

func TestWatcherFolderRenamedUnderAWriter(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/sub/a.yaml", object("a", "1"))
	w := watch(t, dir)
	w.want("a.yaml: +a1")
	f, err := os.Create(dir + "/sub/a.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(object("a", "2")); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/marker.yaml", object("marker", "1"))
	w.want("marker.yaml: +marker1") // so that the writer is known to be busy
	if err := os.Rename(dir+"/sub", dir+"/sub2"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	w.want("a.yaml:", "a.yaml: +a2") // gone in one place, there in the other
}

func TestRefusedFileLosesWhatAnotherTook(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", object("a", "1"))
	write(t, dir+"/b.yaml", object("b", "old"))
	write(t, dir+"/z.yaml", object("z", "1"))
	w := NewWatcher(slog.New(slog.DiscardHandler), dir)
	w.read([]string{dir + "/a.yaml", dir + "/b.yaml", dir + "/z.yaml"})
	write(t, dir+"/a.yaml", object("b", "new"))
	write(t, dir+"/b.yaml", object("z", "2"))
	w.read([]string{dir + "/a.yaml", dir + "/b.yaml"})
	key := Key{Kind: "ConfigMap", Namespace: "default", Name: "b"}
	if got := w.effective(key).Body.Object["data"]; got != "new" || len(w.defined[key]) != 1 {
		t.Errorf("got %v, defined by %d files; want the one of a.yaml", got, len(w.defined[key]))
	}
}

func TestLostNotificationsEndNoWait(t *testing.T) {
	dir := t.TempDir()
	w := NewWatcher(slog.New(slog.DiscardHandler), dir)
	w.note(event{kind: modified, path: dir + "/a.yaml"})
	w.note(event{kind: lost}) // and with it that the file was closed
	if ready := w.ready(time.Now().Add(time.Hour)); !slices.Equal(ready, []string{dir + "/a.yaml"}) || !w.dirty {
		t.Errorf("got %v ready, dirty %v; want the file, and a look at everything", ready, w.dirty)
	}
}
