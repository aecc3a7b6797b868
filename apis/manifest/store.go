package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// Store is a directory of generated objects, one file each. Files are replaced
// by rename, so that a reader sees an object whole, and writers of all
// processes take turns by a lock on the directory, so that several of them may
// update one object. Safe for concurrent use.
type Store struct {
	dir string
}

// NewStore returns the store in dir, which is created by the first write.
func NewStore(dir string) *Store { return &Store{dir: dir} }

// Apply writes the object whole, whatever was there.
func (s *Store) Apply(o *unstructured.Unstructured) error {
	return s.locked(func() error { return s.write(KeyOf(o), o) })
}

// Update reads the object, lets mutate change it and writes it back unless it
// is the same. The error is os.ErrNotExist when there is no such object, and
// mutate's own otherwise.
func (s *Store) Update(key Key, mutate func(o *unstructured.Unstructured) error) error {
	return s.locked(func() error {
		object, err := s.Get(key)
		if err != nil {
			return err
		}
		if err := mutate(object); err != nil {
			return err
		}
		return s.write(key, object)
	})
}

// Delete removes the object; an absent one is no error.
func (s *Store) Delete(key Key) error {
	return s.locked(func() error {
		err := os.Remove(s.path(key))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// Get reads the object. The error is os.ErrNotExist when there is none.
func (s *Store) Get(key Key) (*unstructured.Unstructured, error) {
	data, err := os.ReadFile(s.path(key))
	if err != nil {
		return nil, err
	}
	objects, err := Parse(s.path(key), data)
	if err != nil {
		return nil, err
	}
	if len(objects) != 1 {
		return nil, &Error{File: s.path(key), Reason: fmt.Sprintf("holds %d objects, want 1", len(objects))}
	}
	return objects[0].Body, nil
}

// List reads all objects, ordered by file name.
func (s *Store) List() ([]*unstructured.Unstructured, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var list []*unstructured.Unstructured
	for _, entry := range entries {
		file := filepath.Join(s.dir, entry.Name())
		if entry.IsDir() || !isManifest(file) {
			continue
		}
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		objects, err := Parse(file, data)
		if err != nil {
			return nil, err
		}
		for _, object := range objects {
			list = append(list, object.Body)
		}
	}
	return list, nil
}

func (s *Store) locked(f func() error) error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := flock(lock); err != nil {
		return fmt.Errorf("lock %s: %w", s.dir, err)
	}
	return f()
}

func flock(file *os.File) error {
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func (s *Store) write(key Key, o *unstructured.Unstructured) error {
	data, err := yaml.Marshal(o.Object)
	if err != nil {
		return err
	}
	target := s.path(key)
	if old, err := os.ReadFile(target); err == nil && bytes.Equal(old, data) {
		return nil
	}
	mode := fs.FileMode(0o644)
	if key.Kind == "Secret" && key.Group == "" {
		mode = 0o600
	}
	temporary := filepath.Join(s.dir, "."+filepath.Base(target)+".new") // hidden from readers; the lock makes it ours
	if err := os.WriteFile(temporary, data, mode); err != nil {
		return err
	}
	return os.Rename(temporary, target)
}

// path returns <kind>[.<group>]_<namespace>_<name>.yaml. No part can contain
// an underscore, but for names of kinds that allow any path segment, which
// come last.
func (s *Store) path(key Key) string {
	kind := strings.ToLower(key.Kind)
	if key.Group != "" {
		kind += "." + key.Group
	}
	return filepath.Join(s.dir, kind+"_"+key.Namespace+"_"+key.Name+".yaml")
}
