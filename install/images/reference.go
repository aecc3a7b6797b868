package images

import (
	"fmt"
	"regexp"
	"strings"
)

// Reference is the full name of an image with a tag.
type Reference struct {
	Registry   string // docker.io, localhost:5000
	Repository string // ambit-mesh/istiod
	Tag        string // 1
}

// defaultRegistry and defaultNamespace are what container engines add to a
// short name.
const (
	defaultRegistry  = "docker.io"
	defaultNamespace = "library/"
)

// The grammar of
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests
// and, for the registry, what all engines take.
var (
	repositoryForm = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagForm        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	registryForm   = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*(:[0-9]{1,5})?$|^\[[0-9a-fA-F:]+\](:[0-9]{1,5})?$`)
)

// ParseReference reads an image's name as manifests have it and completes it
// as containerd does: docker.io/ in front of a name without a registry,
// library/ in front of a single word there, :latest without a tag. Digests are
// not taken: an image that is yet to be written has none.
func ParseReference(name string) (Reference, error) {
	r, rest := splitRegistry(name)
	if strings.Contains(rest, "@") {
		return Reference{}, fmt.Errorf("image %q: a tag is wanted, not a digest", name)
	}
	ref := Reference{Registry: r, Tag: "latest"}
	if ref.Repository = rest; strings.Contains(rest, ":") {
		ref.Repository, ref.Tag, _ = strings.Cut(rest, ":")
	}
	if ref.Registry == defaultRegistry && ref.Repository != "" && !strings.Contains(ref.Repository, "/") {
		ref.Repository = defaultNamespace + ref.Repository
	}
	switch {
	case !registryForm.MatchString(ref.Registry):
		return Reference{}, fmt.Errorf("image %q: %q is not a registry (host or host:port)", name, ref.Registry)
	case !repositoryForm.MatchString(ref.Repository) || len(ref.Repository) > 255:
		return Reference{}, fmt.Errorf("image %q: %q is not a repository (words of a-z, 0-9, '.', '_', '-' with '/' between them)", name, ref.Repository)
	case !tagForm.MatchString(ref.Tag):
		return Reference{}, fmt.Errorf("image %q: %q is not a tag (at most 128 of A-Z, a-z, 0-9, '_', '.', '-')", name, ref.Tag)
	}
	return ref, nil
}

// splitRegistry takes the first word for a registry when it looks like a host:
// with a dot, with a port, or localhost.
func splitRegistry(name string) (registry, rest string) {
	first, rest, found := strings.Cut(name, "/")
	if found && (strings.ContainsAny(first, ".:") || first == "localhost") {
		if first == "index.docker.io" {
			first = defaultRegistry
		}
		return first, rest
	}
	return defaultRegistry, name
}

// Name is the reference without the tag.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String is the full name, as containerd has it.
func (r Reference) String() string { return r.Name() + ":" + r.Tag }
