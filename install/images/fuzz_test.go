package images

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/opencontainers/go-digest"
)

func TestParseReference(t *testing.T) {
	for name, want := range map[string]string{
		"ambit-mesh/istiod:1":             "docker.io/ambit-mesh/istiod:1",
		"pause":                           "docker.io/library/pause:latest",
		"docker.io/pause:3":               "docker.io/library/pause:3",
		"index.docker.io/a/b":             "docker.io/a/b:latest",
		"localhost/a:x":                   "localhost/a:x",
		"localhost:5000/a":                "localhost:5000/a:latest",
		"registry.example.com/t/a/b__c":   "registry.example.com/t/a/b__c:latest",
		"[::1]:5000/a:v1":                 "[::1]:5000/a:v1",
		"registry.k8s.io/g/echo:v0.1.0":   "registry.k8s.io/g/echo:v0.1.0",
		"":                                `"" is not a repository`,
		"/a":                              "not a repository",
		"a b":                             "not a repository",
		"A/b":                             "not a repository",
		"a//b":                            "not a repository",
		"http://r.example.com/a":          "not a registry",
		"r.example.com/a:":                `"" is not a tag`,
		"a:b:c":                           `"b:c" is not a tag`,
		"a@sha256:0":                      "a tag is wanted, not a digest",
		"-.example.com/a":                 "not a registry",
		"a:" + strings.Repeat("x", 129):   "not a tag",
		strings.Repeat("a", 256) + "/b:1": "not a repository",
	} {
		got, err := ParseReference(name)
		if err != nil && strings.Contains(err.Error(), want) {
			continue
		}
		if err != nil || got.String() != want {
			t.Errorf("%q: %s, %v, want %s", name, got, err, want)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{"ambit-mesh/istiod:1", "localhost:5000/a", "[::1]:5000/a:v1", "pause", "docker.io/library/a", "a:b:c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		reference, err := ParseReference(name)
		if err != nil {
			return
		}
		again, err := ParseReference(reference.String())
		if err != nil || again != reference {
			t.Errorf("%q is %q, which is %q, %v", name, reference, again, err)
		}
	})
}

// FuzzRead reads layouts with any documents: the digests are made right, so
// that what is behind them is reached.
func FuzzRead(f *testing.F) {
	const entry = `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"INDEX","size":1,"annotations":{"io.containerd.image.name":"docker.io/a/b:1"}}]}`
	f.Add([]byte(entry),
		[]byte(`{"manifests":[{"digest":"MANIFEST","size":99,"platform":{"architecture":"amd64","os":"linux"}}]}`),
		[]byte(`{"config":{"digest":"MANIFEST","size":99},"layers":[]}`))
	f.Add([]byte(entry), []byte(`{"manifests":[{"digest":"sha256:../../x","size":-1}]}`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, top, index, manifest []byte) {
		replace := func(text []byte, word string, by digest.Digest) []byte {
			return []byte(strings.ReplaceAll(string(text), word, by.String()))
		}
		index = replace(index, "MANIFEST", digest.FromBytes(manifest))
		top = replace(top, "INDEX", digest.FromBytes(index))
		layout := fstest.MapFS{
			"oci-layout": {Data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
			"index.json": {Data: top},
			"blobs/sha256/" + digest.FromBytes(index).Encoded():    {Data: index},
			"blobs/sha256/" + digest.FromBytes(manifest).Encoded(): {Data: manifest},
		}
		found, err := Read(layout)
		if err == nil && (found.Digest != digest.FromBytes(index) || found.Reference.Tag == "") {
			t.Errorf("read %v of another index, or without a name", found)
		}
	})
}
