package images

import (
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imagePath is the PATH of an image that sets none: where our binaries are,
// so that kubectl exec finds them.
const imagePath = "PATH=/usr/local/bin"

// unfinished begins the names of the files that are blobs to be.
const unfinished = ".blob-"

var archForm = regexp.MustCompile(`^[a-z0-9]+$`)

// writer writes one layout: blobs first, then index.json, and last it removes
// the blobs that the index before had and this one has not.
type writer struct {
	dir  string
	used map[digest.Digest]bool
}

func newWriter(dir string) (*writer, error) {
	w := &writer{dir: dir, used: map[digest.Digest]bool{}}
	if err := os.MkdirAll(w.blobs(), 0o755); err != nil {
		return nil, fmt.Errorf("image layout: %w", err)
	}
	return w, nil
}

func (w *writer) blobs() string {
	return filepath.Join(w.dir, ocispec.ImageBlobsDir, string(digest.SHA256))
}

// variant writes an image of one platform and returns its manifest's
// descriptor.
func (w *writer) variant(ctx context.Context, v Variant) (ocispec.Descriptor, error) {
	if !archForm.MatchString(v.Arch) {
		return ocispec.Descriptor{}, fmt.Errorf("image: %q is no architecture", v.Arch)
	}
	platform := ocispec.Platform{OS: "linux", Architecture: v.Arch}
	if v.Arch == "arm64" {
		platform.Variant = "v8" // https://github.com/opencontainers/image-spec/blob/v1.1.1/image-index.md#platform-variants
	}
	content, diffID, err := w.layer(ctx, v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("linux/%s: %w", v.Arch, err)
	}
	env := v.Env
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		env = append([]string{imagePath}, env...)
	}
	config, err := w.json(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: platform,
		Config: ocispec.ImageConfig{
			User: v.User, Env: env, Entrypoint: v.Entrypoint, Cmd: v.Cmd,
			WorkingDir: v.WorkingDir, Labels: v.Labels,
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	manifest, err := w.json(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		SchemaVersion: 2,
		MediaType:     ocispec.MediaTypeImageManifest,
		Config:        config,
		Layers:        []ocispec.Descriptor{content},
	})
	manifest.Platform = &platform
	return manifest, err
}

// layer writes the variant's layer and returns it and the digest of what it is
// uncompressed.
func (w *writer) layer(ctx context.Context, v Variant) (ocispec.Descriptor, digest.Digest, error) {
	mediaType, plain := ocispec.MediaTypeImageLayer, sha256.New()
	if v.Compress {
		mediaType = ocispec.MediaTypeImageLayerGzip
	}
	content, err := w.blob(mediaType, func(out io.Writer) error {
		if !v.Compress {
			return layer(ctx, io.MultiWriter(out, plain), v.Files)
		}
		compressor := gzip.NewWriter(out)
		if err := layer(ctx, io.MultiWriter(compressor, plain), v.Files); err != nil {
			return err
		}
		return compressor.Close()
	})
	return content, digest.NewDigest(digest.SHA256, plain), err
}

func (w *writer) json(mediaType string, value any) (ocispec.Descriptor, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return w.blob(mediaType, func(out io.Writer) error {
		_, err := out.Write(text)
		return err
	})
}

// blob stores what write writes under its digest.
func (w *writer) blob(mediaType string, write func(io.Writer) error) (ocispec.Descriptor, error) {
	file, err := os.CreateTemp(w.dir, unfinished)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { _ = os.Remove(file.Name()) }() // after the rename there is nothing to remove
	sum := sha256.New()
	err = write(io.MultiWriter(file, sum))
	size, seekErr := file.Seek(0, io.SeekCurrent)
	if err := errors.Join(err, seekErr, file.Chmod(0o644), file.Close()); err != nil {
		return ocispec.Descriptor{}, err
	}
	name := digest.NewDigest(digest.SHA256, sum)
	w.used[name] = true
	return ocispec.Descriptor{MediaType: mediaType, Digest: name, Size: size}, os.Rename(file.Name(), filepath.Join(w.blobs(), name.Encoded()))
}

// index makes the manifests the layout's image.
func (w *writer) index(ref Reference, manifests []ocispec.Descriptor) error {
	if len(manifests) == 0 {
		return fmt.Errorf("image %s: no variant", ref)
	}
	slices.SortStableFunc(manifests, func(a, b ocispec.Descriptor) int {
		return cmp.Compare(a.Platform.Architecture, b.Platform.Architecture)
	})
	for i := range manifests[1:] {
		if manifests[i].Platform.Architecture == manifests[i+1].Platform.Architecture {
			return fmt.Errorf("image %s: two variants for %s", ref, manifests[i].Platform.Architecture)
		}
	}
	image, err := w.json(ocispec.MediaTypeImageIndex, ocispec.Index{
		SchemaVersion: 2,
		MediaType:     ocispec.MediaTypeImageIndex,
		Manifests:     manifests,
	})
	if err != nil {
		return err
	}
	image.Annotations = map[string]string{
		ocispec.AnnotationRefName: ref.Tag,
		AnnotationImageName:       ref.String(),
	}
	err = errors.Join(
		w.file(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}),
		w.file(ocispec.ImageIndexFile, ocispec.Index{
			SchemaVersion: 2,
			MediaType:     ocispec.MediaTypeImageIndex,
			Manifests:     []ocispec.Descriptor{image},
		}),
	)
	if err != nil {
		return err
	}
	return w.sweep()
}

// file replaces a file of the layout at once.
func (w *writer) file(name string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// sweep removes the blobs that nothing refers to any more, and what writers
// that ended early left.
func (w *writer) sweep() error {
	entries, err := os.ReadDir(w.blobs())
	if err != nil {
		return err
	}
	rest, err := os.ReadDir(w.dir)
	for _, entry := range rest {
		if strings.HasPrefix(entry.Name(), unfinished) {
			err = errors.Join(err, os.Remove(filepath.Join(w.dir, entry.Name())))
		}
	}
	for _, entry := range entries {
		if !w.used[digest.NewDigestFromEncoded(digest.SHA256, entry.Name())] {
			err = errors.Join(err, os.RemoveAll(filepath.Join(w.blobs(), entry.Name())))
		}
	}
	return err
}
