package ztunnel

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFollowed: every change takes effect once, by whatever way it is made, and
// an error is told once as long as it is the same.
func TestFollowed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	var took []string
	f := &followed{variable: "V", path: path, set: func(text []byte) error {
		if strings.HasPrefix(string(text), "bad") {
			return errors.New("bad text")
		}
		took = append(took, string(text))
		return nil
	}}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to string) {
		t.Helper()
		_ = os.Remove(filepath.Join(dir, "next"))
		if err := errors.Join(os.Symlink(filepath.Join(dir, to), filepath.Join(dir, "next")), os.Rename(filepath.Join(dir, "next"), path)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, changed bool, fails, last string) {
		t.Helper()
		got, err := f.read()
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got != changed || !strings.Contains(text, fails) || (err == nil) != (fails == "") || (len(took) > 0 && took[len(took)-1] != last) {
			t.Errorf("%s: changed %v, %v, last %q; want %v, %q, %q", what, got, err, took, changed, fails, last)
		}
		if (f.err.Load() == nil) != (fails == "") && changed {
			t.Errorf("%s: noted error %v", what, f.err.Load())
		}
	}
	want("no file", true, "V: stat ", "")
	want("still no file", false, "V: stat ", "")
	write("file", "one")
	want("a file", true, "", "one")
	want("the same", false, "", "one")
	write("file", "second")
	want("written in place", true, "", "second")
	write("file", "bad 1")
	want("broken", true, "V: "+path+": bad text", "second")
	if changed, err := f.read(); changed || err != nil {
		t.Errorf("broken as before: %v, %v", changed, err)
	}
	if f.err.Load() == nil {
		t.Error("a file that is broken as before is taken for good")
	}
	write("a", "from a")
	write("b", "from b")
	link("a")
	want("a link", true, "", "from a")
	link("b")
	want("a link that is swapped", true, "", "from b")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("gone", true, "V: stat ", "from b")
	link("b")
	want("back", true, "", "from b")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil { // there, and cannot be read
		t.Fatal(err)
	}
	want("cannot be read", true, "V: read ", "from b")
	want("still cannot be read", false, "V: read ", "from b")
	if len(took) != 5 {
		t.Errorf("took %q", took)
	}
}
