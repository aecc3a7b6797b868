package images

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"
)

// ErrUnauthorized is what Push returns when the registry wants to know who is
// pushing, or does not let them.
var ErrUnauthorized = errors.New("not authorized")

// Push copies the layout in the directory, all platforms, to the registry in
// the image's name; blobs that the registry has are not sent again. credential
// answers for a registry's host; nil is nobody. A registry on this machine is
// spoken to over plain HTTP, others over HTTPS.
func Push(ctx context.Context, dir string, credential auth.CredentialFunc) (Layout, error) {
	layout, err := Read(os.DirFS(dir))
	if err != nil {
		return Layout{}, fmt.Errorf("%s: %w", dir, err)
	}
	if err := push(ctx, dir, layout, credential); err != nil {
		return Layout{}, fmt.Errorf("push %s: %w", layout.Reference, err)
	}
	return layout, nil
}

func push(ctx context.Context, dir string, layout Layout, credential auth.CredentialFunc) error {
	store, err := oci.NewFromFS(ctx, os.DirFS(dir))
	if err != nil {
		return err
	}
	repository, err := remote.NewRepository(layout.Reference.Name())
	if err != nil {
		return err
	}
	repository.PlainHTTP = isLocal(layout.Reference.Registry)
	repository.Client = &auth.Client{Client: retry.DefaultClient, Cache: auth.NewCache(), Credential: credential}
	tag := layout.Reference.Tag
	pushed, err := oras.Copy(ctx, store, tag, repository, tag, oras.DefaultCopyOptions)
	switch {
	case unauthorized(err):
		return fmt.Errorf("%w by %s: log in with \"docker login %[2]s\" (or podman, skopeo) first, as somebody who may push there: %w",
			ErrUnauthorized, layout.Reference.Registry, err)
	case err != nil:
		return err
	case pushed.Digest != layout.Digest || pushed.MediaType != ocispec.MediaTypeImageIndex:
		return fmt.Errorf("the registry has %s %s instead of %s", pushed.MediaType, pushed.Digest, layout.Digest)
	}
	return nil
}

func unauthorized(err error) bool {
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return true
	}
	response, ok := errors.AsType[*errcode.ErrorResponse](err)
	return ok && (response.StatusCode == http.StatusUnauthorized || response.StatusCode == http.StatusForbidden)
}

// isLocal tells whether a registry is on this machine.
func isLocal(registry string) bool {
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry
	}
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}
