package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const reference = "ambit-mesh/sample:7"

// sample is an image of a program and of what makes layers hard: a directory
// of another mode, a file of another mode, something deep.
func sample(t *testing.T, arch string) Variant {
	t.Helper()
	source := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(source, []byte("program for "+arch), 0o600); err != nil {
		t.Fatal(err)
	}
	return Variant{
		Arch: arch,
		Files: []File{
			{Path: "/usr/local/bin/program", Source: source},
			{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
			{Path: "/etc/secret", Mode: 0o400, Content: []byte("s")},
			{Path: "/etc/empty"},
		},
		Entrypoint: []string{"/usr/local/bin/program"},
		Cmd:        []string{"--flag"},
		Env:        []string{"A=b"},
		User:       "1337:1337",
		WorkingDir: "/tmp",
		Labels:     map[string]string{ocispec.AnnotationTitle: "sample", "b": "c"},
	}
}

func write(t *testing.T, dir string, variants ...Variant) Layout {
	t.Helper()
	if err := Write(t.Context(), dir, reference, variants...); err != nil {
		t.Fatal(err)
	}
	layout, err := Read(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	return layout
}

func TestSameInputsSameDigest(t *testing.T) {
	first := write(t, t.TempDir(), sample(t, "amd64"), sample(t, "arm64"))

	t.Run("sources of another time, mode and place, variants and files in another order", func(t *testing.T) {
		a, b := sample(t, "amd64"), sample(t, "arm64")
		source := a.Files[0].Source
		if err := os.Chtimes(source, time.Time{}, time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(source, 0o444); err != nil {
			t.Fatal(err)
		}
		slices.Reverse(a.Files)
		if again := write(t, t.TempDir(), b, a); again.Digest != first.Digest {
			t.Errorf("digest %s, then %s", first.Digest, again.Digest)
		}
	})
	t.Run("every byte of the layout", func(t *testing.T) {
		var streams [2]bytes.Buffer
		for i := range streams {
			dir := t.TempDir()
			write(t, dir, sample(t, "amd64"))
			if err := Tar(dir, &streams[i]); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(streams[0].Bytes(), streams[1].Bytes()) {
			t.Error("two layouts of one image differ")
		}
	})
	t.Run("another content", func(t *testing.T) {
		a := sample(t, "amd64")
		a.Files[3].Content = []byte("not empty")
		if other := write(t, t.TempDir(), a, sample(t, "arm64")); other.Digest == first.Digest {
			t.Error("other content has the same digest")
		}
	})
}

// TestLayout follows a layout from the index to the layers as a registry or
// container engine does, and checks all digests and sizes on the way.
func TestLayout(t *testing.T) {
	for _, compress := range []bool{false, true} {
		dir := t.TempDir()
		a, b := sample(t, "amd64"), sample(t, "arm64")
		a.Compress, b.Compress = compress, compress
		write(t, dir, a, b)

		var version ocispec.ImageLayout
		parse(t, readFile(t, dir, "oci-layout"), &version)
		if version.Version != "1.0.0" {
			t.Errorf("layout version %q, want 1.0.0", version.Version)
		}
		var top, index ocispec.Index
		parse(t, readFile(t, dir, "index.json"), &top)
		wantNames := map[string]string{
			"org.opencontainers.image.ref.name": "7",
			"io.containerd.image.name":          "docker.io/ambit-mesh/sample:7",
		}
		if len(top.Manifests) != 1 {
			t.Fatalf("%d entries in index.json, want 1", len(top.Manifests))
		}
		if diff := cmp.Diff(wantNames, top.Manifests[0].Annotations); diff != "" {
			t.Errorf("annotations (-want +got):\n%s", diff)
		}
		parse(t, checked(t, dir, top.Manifests[0], ocispec.MediaTypeImageIndex), &index)
		var platforms []ocispec.Platform
		for i, descriptor := range index.Manifests {
			platforms = append(platforms, *descriptor.Platform)
			var manifest ocispec.Manifest
			parse(t, checked(t, dir, descriptor, ocispec.MediaTypeImageManifest), &manifest)
			checkImage(t, dir, manifest, []Variant{a, b}[i])
		}
		if diff := cmp.Diff([]ocispec.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}}, platforms); diff != "" {
			t.Errorf("platforms (-want +got):\n%s", diff)
		}
	}
}

func checkImage(t *testing.T, dir string, manifest ocispec.Manifest, v Variant) {
	t.Helper()
	var config ocispec.Image
	parse(t, checked(t, dir, manifest.Config, ocispec.MediaTypeImageConfig), &config)
	want := ocispec.ImageConfig{
		User: v.User, Env: []string{"PATH=/usr/local/bin", "A=b"}, Entrypoint: v.Entrypoint,
		Cmd: v.Cmd, WorkingDir: v.WorkingDir, Labels: v.Labels,
	}
	if diff := cmp.Diff(want, config.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	if config.Created != nil || config.OS != "linux" || config.Architecture != v.Arch {
		t.Errorf("config: created %v, platform %s/%s, want no time and linux/%s", config.Created, config.OS, config.Architecture, v.Arch)
	}
	mediaType := ocispec.MediaTypeImageLayer
	if v.Compress {
		mediaType = ocispec.MediaTypeImageLayerGzip
	}
	if len(manifest.Layers) != 1 || len(config.RootFS.DiffIDs) != 1 {
		t.Fatalf("%d layers and %d diff ids, want 1 and 1", len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	layer := checked(t, dir, manifest.Layers[0], mediaType)
	if v.Compress {
		reader, err := gzip.NewReader(bytes.NewReader(layer))
		if err != nil {
			t.Fatal(err)
		}
		if layer, err = io.ReadAll(reader); err != nil {
			t.Fatal(err)
		}
	}
	if got := digest.FromBytes(layer); got != config.RootFS.DiffIDs[0] {
		t.Errorf("diff id %s, the layer has %s", config.RootFS.DiffIDs[0], got)
	}
	if diff := cmp.Diff(map[string]string{
		"etc/":                  "5 1 755 0:0 ",
		"etc/empty":             "0 2 644 0:0 ",
		"etc/secret":            "0 3 400 0:0 s",
		"tmp/":                  "5 4 1777 0:0 ",
		"usr/":                  "5 5 755 0:0 ",
		"usr/local/":            "5 6 755 0:0 ",
		"usr/local/bin/":        "5 7 755 0:0 ",
		"usr/local/bin/program": "0 8 755 0:0 program for " + v.Arch,
	}, entries(t, layer)); diff != "" {
		t.Errorf("layer: type, position, mode, owner, content (-want +got):\n%s", diff)
	}
}

// entries tells what is in a tar, all of 1970.
func entries(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	found := map[string]string{}
	for reader := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		if !header.ModTime.Equal(time.Unix(0, 0)) || header.Uname != "" || header.Gname != "" {
			t.Errorf("%s: of %v, %q, %q", header.Name, header.ModTime, header.Uname, header.Gname)
		}
		found[header.Name] = sprint(string(header.Typeflag), len(found)+1, header.Mode, header.Uid, header.Gid, content)
	}
}

func TestWriteAgain(t *testing.T) {
	dir := t.TempDir()
	before := write(t, dir, sample(t, "amd64"), sample(t, "arm64"))
	put(t, dir, ".blob-1", "of a writer that was killed")
	v := sample(t, "amd64")
	v.User = "1:1"
	after := write(t, dir, v)
	if before.Digest == after.Digest {
		t.Error("another user, the same digest")
	}
	files, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil || len(files) != 4 {
		t.Errorf("blobs left: %q, %v, want index, manifest, config and layer", files, err)
	}
	rest, err := filepath.Glob(filepath.Join(dir, "*"))
	hidden, _ := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(rest) != 3 || len(hidden) != 0 {
		t.Errorf("in the directory: %q, %q, %v, want blobs, index.json and oci-layout", rest, hidden, err)
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Variant)
		want   string
	}{
		"path not absolute": {func(v *Variant) { v.Files[0].Path = "bin/x" }, `"bin/x": the path in an image must be absolute`},
		"path of the root":  {func(v *Variant) { v.Files[0].Path = "/x/.." }, "must be absolute, and not /"},
		"twice":             {func(v *Variant) { v.Files[0].Path = "/etc//empty" }, "/etc/empty: given twice"},
		"file in a file":    {func(v *Variant) { v.Files[0].Path = "/etc/empty/x" }, "/etc/empty: is a file, and /etc/empty/x is to be in it"},
		"setuid":            {func(v *Variant) { v.Files[0].Mode = fs.ModeSetuid | 0o755 }, "without setuid"},
		"symlink":           {func(v *Variant) { v.Files[0].Mode = fs.ModeSymlink }, "only files and directories"},
		"no source":         {func(v *Variant) { v.Files[0].Source += "x" }, "no such file"},
		"source directory":  {func(v *Variant) { v.Files[0].Source = "/" }, "/ is not a regular file"},
		"source, content":   {func(v *Variant) { v.Files[0].Content = []byte("x") }, "both a source and content"},
		"full directory":    {func(v *Variant) { v.Files[1].Content = []byte("x") }, "a directory has no content"},
		"no architecture":   {func(v *Variant) { v.Arch = "" }, `"" is no architecture`},
	} {
		t.Run(name, func(t *testing.T) {
			v := sample(t, "amd64")
			test.change(&v)
			refused(t, Write(t.Context(), t.TempDir(), reference, v), test.want)
		})
	}
	refused(t, Write(t.Context(), t.TempDir(), reference), "no variant")
	refused(t, Write(t.Context(), t.TempDir(), reference, sample(t, "arm64"), sample(t, "arm64")), "two variants for arm64")
	refused(t, Write(t.Context(), t.TempDir(), "a b", sample(t, "arm64")), "not a repository")

	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	refused(t, Write(canceled, t.TempDir(), reference, sample(t, "amd64")), "canceled")
}

func TestTar(t *testing.T) {
	dir := t.TempDir()
	layout := write(t, dir, sample(t, "amd64"), sample(t, "arm64"))
	for _, test := range []struct {
		archs []string
		want  int
	}{{nil, 9}, {[]string{"arm64"}, 6}, {[]string{"arm64", "amd64"}, 9}} {
		var stream bytes.Buffer
		if err := Tar(dir, &stream, test.archs...); err != nil {
			t.Fatal(err)
		}
		found := entries(t, stream.Bytes())
		if len(found) != test.want {
			t.Errorf("%v: %d files, want %d", test.archs, len(found), test.want)
		}
		if _, there := found["blobs/sha256/"+layout.Digest.Encoded()]; !there || !strings.HasPrefix(found["oci-layout"], "0 1 644 ") {
			t.Errorf("%v: oci-layout first and the index are wanted: %q", test.archs, found)
		}
	}
	refused(t, Tar(dir, io.Discard, "riscv64"), "docker.io/ambit-mesh/sample:7 (amd64, arm64): no variant for linux/riscv64")
	refused(t, Tar(t.TempDir(), io.Discard), "not an OCI image layout")
}

func TestReadRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(t *testing.T, dir string, l Layout)
		want   string
	}{
		"blob missing": {func(t *testing.T, dir string, l Layout) {
			t.Helper()
			remove(t, dir, l.Platforms[0].blobs[2])
		}, "no such file"},
		"layer cut": {func(t *testing.T, dir string, l Layout) {
			t.Helper()
			overwrite(t, dir, l.Platforms[0].blobs[2], "x")
		}, "has 1 bytes, should have"},
		"index changed": {func(t *testing.T, dir string, l Layout) {
			t.Helper()
			overwrite(t, dir, l.Digest, "{}")
		}, "the content has another digest"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			test.damage(t, dir, write(t, dir, sample(t, "amd64")))
			_, err := Read(os.DirFS(dir))
			refused(t, err, test.want)
		})
	}
}

// TestBuild builds a program of a module of its own for both architectures.
func TestBuild(t *testing.T) {
	root := t.TempDir()
	put(t, root, "go.mod", "module example.com/m\n\ngo 1.27.0\n")
	put(t, root, "cmd/hello/main.go", "package main\n\nfunc main() { println(\"hello\") }\n")
	put(t, root, "library/library.go", "package library\n")
	put(t, root, "broken/main.go", "package main\n\nfunc main() { hello() }\n")
	recipe := Recipe{
		Name: "team/hello", Module: ".", Packages: []string{"./cmd/hello"}, Folder: "/usr/local/bin",
		User: "5:5", Description: "says hello", Source: "https://example.com",
	}
	b := Build{Root: root, Out: filepath.Join(root, "out"), Hub: "localhost:5000", Tag: "2", Archs: []string{"arm64", "amd64"}, Progress: t.Output()}

	built, err := b.Run(t.Context(), []Recipe{recipe})
	if err != nil {
		t.Fatal(err)
	}
	if got := built[0].String(); got != "localhost:5000/team/hello:2 (amd64, arm64)" {
		t.Errorf("built %s", got)
	}
	if want := filepath.Join(b.Out, "team_hello"); built[0].Dir != want {
		t.Errorf("in %s, want %s", built[0].Dir, want)
	}
	for i, machine := range []elf.Machine{elf.EM_X86_64, elf.EM_AARCH64} {
		checkProgram(t, built[0], i, machine)
	}

	t.Run("again elsewhere", func(t *testing.T) {
		b.Out = filepath.Join(t.TempDir(), "elsewhere")
		again, err := b.Run(t.Context(), []Recipe{recipe})
		if err != nil || again[0].Digest != built[0].Digest {
			t.Errorf("digest %s, then %v, %v", built[0].Digest, again, err)
		}
	})
	t.Run("for one architecture", func(t *testing.T) {
		b.Archs = []string{runtime.GOARCH}
		one, err := b.Run(t.Context(), []Recipe{recipe})
		if err != nil || !slices.Equal(one[0].Archs(), b.Archs) {
			t.Errorf("built %v, %v, want %v", one, err, b.Archs)
		}
	})
	t.Run("refused", func(t *testing.T) {
		bad := recipe
		bad.Packages = []string{"./broken"}
		_, err := b.Run(t.Context(), []Recipe{bad})
		refused(t, err, "broken/main.go:3:15: undefined: hello")
		bad.Packages = []string{"./library"}
		_, err = b.Run(t.Context(), []Recipe{bad})
		refused(t, err, `./library is package "library", not a program`)
		b.Archs = []string{"mips"}
		_, err = b.Run(t.Context(), []Recipe{recipe})
		refused(t, err, `architecture "mips": there are amd64, arm64`)
		b.Archs, b.Hub = []string{"amd64"}, "Team"
		_, err = b.Run(t.Context(), []Recipe{recipe})
		refused(t, err, `hub "Team" and tag "2" do not make a name`)
	})
}

func checkProgram(t *testing.T, b Built, platform int, machine elf.Machine) {
	t.Helper()
	var manifest ocispec.Manifest
	var config ocispec.Image
	parse(t, readFile(t, b.Dir, "blobs/sha256/"+b.Platforms[platform].Digest.Encoded()), &manifest)
	parse(t, readFile(t, b.Dir, "blobs/sha256/"+manifest.Config.Digest.Encoded()), &config)
	wantLabels := map[string]string{
		"org.opencontainers.image.title":       "team/hello",
		"org.opencontainers.image.description": "says hello",
		"org.opencontainers.image.source":      "https://example.com",
		"org.opencontainers.image.version":     "2",
		"org.opencontainers.image.licenses":    "Apache-2.0",
	}
	if diff := cmp.Diff(wantLabels, config.Config.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if !slices.Equal(config.Config.Entrypoint, []string{"/usr/local/bin/hello"}) || config.Config.User != "5:5" {
		t.Errorf("runs %q as %q", config.Config.Entrypoint, config.Config.User)
	}
	reader := tar.NewReader(bytes.NewReader(readFile(t, b.Dir, "blobs/sha256/"+manifest.Layers[0].Digest.Encoded())))
	for header, err := reader.Next(); ; header, err = reader.Next() {
		if err != nil {
			t.Fatalf("program: %v", err)
		}
		if header.Name != "usr/local/bin/hello" {
			continue
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		file, err := elf.NewFile(bytes.NewReader(content))
		if err != nil || file.Machine != machine || file.Section(".interp") != nil {
			t.Errorf("program: %v, %v, want a static one for %v", file, err, machine)
		}
		return
	}
}

func TestRevision(t *testing.T) {
	dir := t.TempDir()
	if got := revision(t.Context(), dir); got != "" {
		t.Errorf("without git: %q", got)
	}
	put(t, dir, "file", "x")
	git(t, dir, "init", "-q")
	git(t, dir, "add", "file")
	git(t, dir, "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-q", "-m", "x")
	clean := revision(t.Context(), dir)
	if len(clean) != 40 {
		t.Errorf("clean: %q, want a commit", clean)
	}
	put(t, dir, "new", "x")
	if got := revision(t.Context(), dir); got != clean+"-dirty" {
		t.Errorf("with a new file: %q, want %s-dirty", got, clean)
	}
}

// TestRecipes holds the table to what other parts rely on.
func TestRecipes(t *testing.T) {
	selected, err := Select(nil, Sets)
	if err != nil || len(selected) != len(Recipes) {
		t.Fatalf("all sets: %d images, %v, want %d", len(selected), err, len(Recipes))
	}
	dirs := map[string]bool{}
	for _, r := range selected {
		if dirs[r.Dir()] {
			t.Errorf("two images in %s", r.Dir())
		}
		dirs[r.Dir()] = true
		if (Build{Hub: "ambit-mesh", Tag: "1", Archs: Archs}).check([]Recipe{r}) != nil {
			t.Errorf("%s: no valid name", r.Name)
		}
		for _, name := range r.Packages {
			if path, ours := strings.CutPrefix(name, "./"); ours {
				if _, err := os.Stat(filepath.Join("..", "..", path, "main.go")); err != nil {
					t.Errorf("%s: %v", r.Name, err)
				}
			}
		}
	}
	two, err := Select([]string{"waypoint", "istiod"}, nil)
	if err != nil || len(two) != 2 || two[0].Name != "istiod" {
		t.Errorf("by name: %v, %v, want istiod and waypoint", two, err)
	}
	_, err = Select([]string{"pilot"}, nil)
	refused(t, err, `no image "pilot"; there are istiod, ztunnel`)
	_, err = Select(nil, []Set{"all"})
	refused(t, err, `no set of images "all"; there are [product bookinfo conformance]`)
}

func parse(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}
