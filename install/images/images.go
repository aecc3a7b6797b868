// Package images turns binaries into container images: OCI image layouts on
// disk, FROM scratch, without a container engine. It owns the format (layer,
// config, manifest, index), the table of the images of this repository, how
// their binaries are built, and the push to a registry.
//
// What is written depends on the inputs only: entries are sorted, owned by
// root and dated 1970, and no file says when or where it was made, so equal
// inputs have equal digests.
//
// It does not run containers and does not talk to containerd: whoever does
// hands it the stream of [Tar]. Callers are cmd/images, the cluster tool (its
// pause and CoreDNS images) and the conformance tests.
//
// Functions may be called concurrently for different directories; a directory
// has one writer at a time.
//
// The formats: https://github.com/opencontainers/image-spec/blob/v1.1.1/spec.md
package images

import (
	"context"
	"io/fs"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// AnnotationImageName is the annotation by which containerd, importing a
// layout, names the image.
const AnnotationImageName = "io.containerd.image.name"

// File is an entry of an image's only layer. Its directories need no entries
// of their own: they are made with mode 0755. Everything belongs to root.
type File struct {
	// Path in the image, absolute: /usr/local/bin/istiod.
	Path string
	// Mode is the permission bits, with fs.ModeDir for a directory and
	// fs.ModeSticky where wanted. 0 means 0755 for what is read from Source
	// and 0644 for Content.
	Mode fs.FileMode
	// Source is the file on this machine that has the content. Its own mode,
	// owner and time do not matter.
	Source string
	// Content is the content when Source is empty.
	Content []byte
}

// Variant is an image for one platform, linux on Arch.
type Variant struct {
	Arch       string // as GOARCH: amd64, arm64
	Files      []File
	Entrypoint []string
	Cmd        []string
	Env        []string // NAME=value
	User       string   // uid or uid:gid; "" is root
	WorkingDir string
	Labels     map[string]string
	// Compress makes the layer gzip, for a registry; otherwise it is a plain
	// tar, which a local import takes faster. It changes the digest.
	Compress bool
}

// Write writes an image as an OCI layout into the directory, which is made
// when absent; a layout that is there is replaced. ref is the image's name as
// manifests have it (ambit-mesh/istiod:1); containerd will know the image by
// its full name (docker.io/ambit-mesh/istiod:1). All variants become one
// index. The new index.json takes the old one's place when everything that it
// names is there, so a write that ends early leaves the old image; only then
// are blobs of the old image removed.
func Write(ctx context.Context, dir, ref string, variants ...Variant) error {
	full, err := ParseReference(ref)
	if err != nil {
		return err
	}
	w, err := newWriter(dir)
	if err != nil {
		return err
	}
	manifests := make([]ocispec.Descriptor, 0, len(variants))
	for _, variant := range variants {
		manifest, err := w.variant(ctx, variant)
		if err != nil {
			return err
		}
		manifests = append(manifests, manifest)
	}
	return w.index(full, manifests)
}
