package images

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func refused(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want one with %q", err, want)
	}
}

func readFile(t *testing.T, dir, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// checked reads a blob and checks it against its descriptor.
func checked(t *testing.T, dir string, d ocispec.Descriptor, mediaType string) []byte {
	t.Helper()
	content := readFile(t, dir, "blobs/sha256/"+d.Digest.Encoded())
	if d.MediaType != mediaType || d.Size != int64(len(content)) || d.Digest != digest.FromBytes(content) {
		t.Errorf("descriptor %v does not describe its blob of %d bytes and type %s", d, len(content), mediaType)
	}
	return content
}

func sprint(kind string, position int, mode int64, uid, gid int, content []byte) string {
	return fmt.Sprintf("%s %d %o %d:%d %s", kind, position, mode, uid, gid, content)
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, dir string, blob digest.Digest, content string) {
	t.Helper()
	put(t, dir, "blobs/sha256/"+blob.Encoded(), content)
}

func remove(t *testing.T, dir string, blob digest.Digest) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, "blobs/sha256", blob.Encoded())); err != nil {
		t.Fatal(err)
	}
}

func git(t *testing.T, dir string, args ...string) {
	t.Helper()
	if output, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v: %s", args, err, output)
	}
}
