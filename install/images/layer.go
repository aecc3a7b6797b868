package images

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// epoch dates every entry of a layer.
var epoch = time.Unix(0, 0)

// permissions are the bits of a mode that an entry may have.
const permissions = fs.ModePerm | fs.ModeSticky

// layer writes the files as a tar: directories before what is in them, sorted,
// all of root.
func layer(ctx context.Context, out io.Writer, files []File) error {
	entries, err := withParents(files)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(out)
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := addEntry(archive, entry); err != nil {
			return fmt.Errorf("layer: %s: %w", entry.Path, err)
		}
	}
	return archive.Close()
}

// withParents checks the files, adds the directories that they are in, and
// sorts by path.
func withParents(files []File) ([]File, error) {
	entries := map[string]File{}
	for _, file := range files {
		clean := path.Clean(file.Path)
		switch {
		case !path.IsAbs(file.Path) || clean == "/" || strings.ContainsRune(clean, 0):
			return nil, fmt.Errorf("layer: %q: the path in an image must be absolute, and not /", file.Path)
		case file.Mode&^(permissions|fs.ModeDir) != 0:
			return nil, fmt.Errorf("layer: %s: mode %v: only files and directories, without setuid and setgid", clean, file.Mode)
		case file.Mode.IsDir() && (file.Source != "" || len(file.Content) > 0):
			return nil, fmt.Errorf("layer: %s: a directory has no content", clean)
		case file.Source != "" && len(file.Content) > 0:
			return nil, fmt.Errorf("layer: %s: both a source and content", clean)
		}
		if _, twice := entries[clean]; twice {
			return nil, fmt.Errorf("layer: %s: given twice", clean)
		}
		file.Path = clean
		entries[clean] = file
	}
	for _, file := range files {
		for dir := path.Dir(path.Clean(file.Path)); dir != "/"; dir = path.Dir(dir) {
			if parent, there := entries[dir]; !there {
				entries[dir] = File{Path: dir, Mode: fs.ModeDir | 0o755}
			} else if !parent.Mode.IsDir() {
				return nil, fmt.Errorf("layer: %s: is a file, and %s is to be in it", dir, file.Path)
			}
		}
	}
	sorted := make([]File, 0, len(entries))
	for _, entry := range entries {
		sorted = append(sorted, entry)
	}
	slices.SortFunc(sorted, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return sorted, nil
}

func addEntry(archive *tar.Writer, entry File) error {
	header := &tar.Header{
		Name:    strings.TrimPrefix(entry.Path, "/"),
		Mode:    int64(entry.Mode.Perm()),
		ModTime: epoch,
	}
	if entry.Mode&fs.ModeSticky != 0 {
		header.Mode |= 0o1000
	}
	if entry.Mode.IsDir() {
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
		return archive.WriteHeader(header)
	}
	header.Typeflag = tar.TypeReg
	content, size, err := open(entry)
	if err != nil {
		return err
	}
	defer content.Close()
	if header.Size = size; entry.Mode == 0 {
		header.Mode = 0o644
		if entry.Source != "" {
			header.Mode = 0o755
		}
	}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	written, err := io.Copy(archive, content)
	if err == nil && written != size {
		err = errors.New("the file became shorter while it was read")
	}
	return err
}

func open(entry File) (io.ReadCloser, int64, error) {
	if entry.Source == "" {
		return io.NopCloser(bytes.NewReader(entry.Content)), int64(len(entry.Content)), nil
	}
	file, err := os.Open(entry.Source)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", entry.Source)
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}
