package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layout is what an image layout holds, as [Read] finds it.
type Layout struct {
	Reference Reference
	Digest    digest.Digest // of the image's index: what a registry calls its digest
	Platforms []Platform
}

// Platform is an image's variant for one platform.
type Platform struct {
	Arch   string
	Digest digest.Digest // of the manifest
	Size   int64         // bytes of all its blobs
	blobs  []digest.Digest
}

// maxDocument bounds the JSON documents of a layout that are read: registries
// take no manifest above 4 MiB
// (https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-manifests).
const maxDocument = 4 << 20

// Read reads a layout that [Write] made, from its root (os.DirFS of the
// directory): one image, for one or more platforms. It checks that all blobs
// are there in the size that they should have, and the digests of the
// documents, not those of layers.
func Read(layout fs.FS) (Layout, error) {
	var version ocispec.ImageLayout
	if err := document(layout, ocispec.ImageLayoutFile, &version); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Layout{}, fmt.Errorf("not an OCI image layout: %w", err)
		}
		return Layout{}, err
	}
	var top, image ocispec.Index
	if err := document(layout, ocispec.ImageIndexFile, &top); err != nil {
		return Layout{}, err
	}
	if len(top.Manifests) != 1 || top.Manifests[0].MediaType != ocispec.MediaTypeImageIndex {
		return Layout{}, fmt.Errorf("%s: one image index is wanted, there are %d entries", ocispec.ImageIndexFile, len(top.Manifests))
	}
	index := top.Manifests[0]
	name := index.Annotations[AnnotationImageName]
	reference, err := ParseReference(name)
	if err != nil {
		return Layout{}, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	if err := blob(layout, index, &image); err != nil {
		return Layout{}, err
	}
	found := Layout{Reference: reference, Digest: index.Digest}
	for _, manifest := range image.Manifests {
		platform, err := readPlatform(layout, manifest)
		if err != nil {
			return Layout{}, err
		}
		found.Platforms = append(found.Platforms, platform)
	}
	return found, nil
}

func readPlatform(layout fs.FS, descriptor ocispec.Descriptor) (Platform, error) {
	if descriptor.Platform == nil {
		return Platform{}, fmt.Errorf("manifest %s: no platform", descriptor.Digest)
	}
	var manifest ocispec.Manifest
	if err := blob(layout, descriptor, &manifest); err != nil {
		return Platform{}, err
	}
	platform := Platform{Arch: descriptor.Platform.Architecture, Digest: descriptor.Digest}
	for _, part := range append([]ocispec.Descriptor{descriptor, manifest.Config}, manifest.Layers...) {
		if err := present(layout, part); err != nil {
			return Platform{}, err
		}
		platform.Size += part.Size
		platform.blobs = append(platform.blobs, part.Digest)
	}
	return platform, nil
}

// document reads a JSON file of the layout.
func document(layout fs.FS, name string, into any) error {
	text, err := readLimited(layout, name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// blob reads a JSON document by its digest, and checks that.
func blob(layout fs.FS, descriptor ocispec.Descriptor, into any) error {
	name, err := blobPath(descriptor.Digest)
	if err != nil {
		return err
	}
	text, err := readLimited(layout, name)
	if err != nil {
		return err
	}
	if digest.FromBytes(text) != descriptor.Digest {
		return fmt.Errorf("%s: the content has another digest", name)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func present(layout fs.FS, descriptor ocispec.Descriptor) error {
	name, err := blobPath(descriptor.Digest)
	if err != nil {
		return err
	}
	info, err := fs.Stat(layout, name)
	if err != nil {
		return err
	}
	if info.Size() != descriptor.Size {
		return fmt.Errorf("%s: has %d bytes, should have %d", name, info.Size(), descriptor.Size)
	}
	return nil
}

func readLimited(layout fs.FS, name string) ([]byte, error) {
	file, err := layout.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxDocument+1))
	if err == nil && len(text) > maxDocument {
		err = fmt.Errorf("%s: larger than %d bytes", name, maxDocument)
	}
	return text, err
}

// blobPath is where a blob is. Only sha256 is taken: it is what Write writes,
// and it keeps a digest from being a path to somewhere else.
func blobPath(name digest.Digest) (string, error) {
	if err := name.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", name, err)
	}
	if name.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("digest %s: only sha256 is taken", name)
	}
	return path.Join(ocispec.ImageBlobsDir, string(digest.SHA256), name.Encoded()), nil
}

// Archs are the architectures in the layout.
func (l Layout) Archs() []string {
	var archs []string
	for _, platform := range l.Platforms {
		archs = append(archs, platform.Arch)
	}
	return archs
}

// String tells name and platforms.
func (l Layout) String() string {
	return l.Reference.String() + " (" + strings.Join(l.Archs(), ", ") + ")"
}

// wanted are the blobs of the platforms asked for, all without any.
func (l Layout) wanted(archs []string) (map[digest.Digest]bool, error) {
	for _, arch := range archs {
		if !slices.Contains(l.Archs(), arch) {
			return nil, fmt.Errorf("%s: no variant for linux/%s", l, arch)
		}
	}
	wanted := map[digest.Digest]bool{l.Digest: true}
	for _, platform := range l.Platforms {
		if len(archs) > 0 && !slices.Contains(archs, platform.Arch) {
			continue
		}
		for _, blob := range platform.blobs {
			wanted[blob] = true
		}
	}
	return wanted, nil
}
