package images

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// registry is a registry for pushing, of
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#push:
// content by digest, and tags. It takes nothing whose parts it does not have.
type registry struct {
	user, password string // asked for, when set

	mu      sync.Mutex
	content map[digest.Digest][]byte
	types   map[digest.Digest]string // of manifests
	tags    map[string]digest.Digest
	uploads int
}

func newRegistry(t *testing.T) (r *registry, host string) {
	t.Helper()
	r = &registry{content: map[digest.Digest][]byte{}, types: map[digest.Digest]string{}, tags: map[string]digest.Digest{}}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	return r, strings.TrimPrefix(server.URL, "http://")
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if user, password, _ := q.BasicAuth(); user != r.user || password != r.password {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	switch {
	case strings.HasSuffix(q.URL.Path, "/blobs/uploads/"):
		w.Header().Set("Location", q.URL.Path+"1")
		w.WriteHeader(http.StatusAccepted)
	case strings.HasSuffix(q.URL.Path, "/blobs/uploads/1") && q.Method == http.MethodPut:
		r.uploads++
		r.put(w, q, digest.Digest(q.URL.Query().Get("digest")))
	case q.Method == http.MethodPut:
		r.putManifest(w, q)
	default:
		r.get(w, q)
	}
}

func (r *registry) put(w http.ResponseWriter, q *http.Request, want digest.Digest) {
	content, err := io.ReadAll(q.Body)
	if err != nil || digest.FromBytes(content) != want {
		http.Error(w, "another digest", http.StatusBadRequest)
		return
	}
	r.content[want] = content
	w.Header().Set("Docker-Content-Digest", want.String())
	w.WriteHeader(http.StatusCreated)
}

func (r *registry) putManifest(w http.ResponseWriter, q *http.Request) {
	content, err := io.ReadAll(q.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, part := range strings.Split(string(content), `"digest":"`)[1:] {
		name, _, _ := strings.Cut(part, `"`)
		if _, there := r.content[digest.Digest(name)]; !there {
			http.Error(w, "no blob "+name, http.StatusNotFound)
			return
		}
	}
	name := digest.FromBytes(content)
	r.content[name], r.types[name] = content, q.Header.Get("Content-Type")
	if repository, tag, _ := strings.Cut(strings.TrimPrefix(q.URL.Path, "/v2/"), "/manifests/"); !strings.Contains(tag, ":") {
		r.tags[repository+":"+tag] = name
	}
	w.Header().Set("Docker-Content-Digest", name.String())
	w.WriteHeader(http.StatusCreated)
}

func (r *registry) get(w http.ResponseWriter, q *http.Request) {
	repository, last, _ := strings.Cut(strings.TrimPrefix(q.URL.Path, "/v2/"), "/manifests/")
	name, tagged := r.tags[repository+":"+last]
	if !tagged {
		name = digest.Digest(q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:])
	}
	content, there := r.content[name]
	if !there {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", r.types[name])
	w.Header().Set("Docker-Content-Digest", name.String())
	_, _ = w.Write(content)
}

func TestPush(t *testing.T) {
	r, host := newRegistry(t)
	r.user, r.password = "me", "secret"
	dir := t.TempDir()
	a, b := sample(t, "amd64"), sample(t, "arm64")
	a.Compress, b.Compress = true, true
	if err := Write(t.Context(), dir, host+"/team/sample:7", a, b); err != nil {
		t.Fatal(err)
	}

	for name, credential := range map[string]auth.CredentialFunc{
		"without credentials": nil,
		"with wrong ones":     auth.StaticCredential(host, auth.Credential{Username: "me", Password: "guess"}),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Push(t.Context(), dir, credential)
			if !errors.Is(err, ErrUnauthorized) {
				t.Errorf("error %v, want %v", err, ErrUnauthorized)
			}
			refused(t, err, "push "+host+"/team/sample:7: not authorized by "+host+": log in with \"docker login "+host+"\"")
		})
	}

	credential := auth.StaticCredential(host, auth.Credential{Username: "me", Password: "secret"})
	layout, err := Push(t.Context(), dir, credential)
	if err != nil {
		t.Fatal(err)
	}
	if r.tags["team/sample:7"] != layout.Digest || r.types[layout.Digest] != "application/vnd.oci.image.index.v1+json" {
		t.Errorf("the registry has %s of type %s, want %s", r.tags["team/sample:7"], r.types[layout.Digest], layout.Digest)
	}
	wanted, err := layout.wanted(nil)
	if err != nil {
		t.Fatal(err)
	}
	for blob := range wanted {
		if got := string(r.content[blob]); got == "" || got != string(readFile(t, dir, "blobs/sha256/"+blob.Encoded())) {
			t.Errorf("the registry has %d bytes of %s, not those of the layout", len(got), blob)
		}
	}

	before := r.uploads
	if _, err := Push(t.Context(), dir, credential); err != nil || r.uploads != before {
		t.Errorf("pushed again: %d blobs sent, %v, want none", r.uploads-before, err)
	}
}

func TestPushRefused(t *testing.T) {
	_, err := Push(t.Context(), t.TempDir(), nil)
	refused(t, err, "not an OCI image layout")

	dir := t.TempDir()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	t.Cleanup(server.Close)
	if err := Write(t.Context(), dir, strings.TrimPrefix(server.URL, "http://")+"/a:1", sample(t, "amd64")); err != nil {
		t.Fatal(err)
	}
	_, err = Push(t.Context(), dir, func(context.Context, string) (auth.Credential, error) { return auth.EmptyCredential, nil })
	if !errors.Is(err, ErrUnauthorized) {
		t.Errorf("error %v, want %v", err, ErrUnauthorized)
	}
}

func TestIsLocal(t *testing.T) {
	for registry, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:1": true, "[::1]:5000": true,
		"docker.io": false, "10.0.0.1:5000": false, "localhost.example.com": false,
	} {
		if isLocal(registry) != want {
			t.Errorf("%s: %v, want %v", registry, !want, want)
		}
	}
}
