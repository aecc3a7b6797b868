package images

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Tar writes the layout in the directory as a stream that "ctr images import"
// takes. With archs, the blobs of other architectures are left out; the image
// keeps its digest, as if it had been pulled on such a machine.
func Tar(dir string, out io.Writer, archs ...string) error {
	layout := os.DirFS(dir)
	found, err := Read(layout)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	wanted, err := found.wanted(archs)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	names := []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile}
	for blob := range wanted {
		name, err := blobPath(blob)
		if err != nil {
			return err
		}
		names = append(names, name)
	}
	slices.Sort(names[2:]) // what the files are comes first
	archive := tar.NewWriter(out)
	for _, name := range names {
		if err := addFile(archive, layout, name); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	return archive.Close()
}

func addFile(archive *tar.Writer, layout fs.FS, name string) error {
	file, err := layout.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: info.Size(), ModTime: epoch}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(archive, file)
	return err
}
