package source

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/collection"
)

// run is one life of a source: it calls during once everything that is there
// has been taken.
func run(t *testing.T, config string, accepted *manifest.Store, during func(objects *Objects)) {
	t.Helper()
	objects := NewObjects(collection.NewGraph())
	loaded := make(chan struct{})
	dir, err := NewDir(DirConfig{
		Objects: objects, Dirs: []string{config}, Accepted: accepted,
		Loaded: func() { close(loaded) }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- dir.Run(ctx) }()
	<-loaded
	during(objects)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func names(objects *Objects) (names []string) {
	for _, policy := range objects.AuthorizationPolicies.List() {
		names = append(names, policy.Name+":"+policy.Spec.Action.String())
	}
	return names
}

func TestLastGoodVersionOutlivesARestart(t *testing.T) {
	policy := func(name, action string) string {
		return head("security.istio.io/v1", "AuthorizationPolicy", "{name: "+name+", namespace: shop}") + "spec: {action: " + action + "}\n---\n"
	}
	config, accepted := t.TempDir(), manifest.NewStore(t.TempDir())
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(config, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, objects *Objects, want ...string) {
		t.Helper()
		if got := names(objects); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	write("one.yaml", policy("broken", "DENY")+policy("gone", "DENY"))
	write("two.yaml", policy("invalid", "DENY"))
	write("three.yaml", policy("deleted", "DENY"))
	run(t, config, accepted, func(o *Objects) {
		want("first life", o, "broken:DENY", "deleted:DENY", "gone:DENY", "invalid:DENY")
	})

	write("one.yaml", "kind: [")
	write("two.yaml", policy("invalid", "DENIED"))
	if err := os.Remove(filepath.Join(config, "three.yaml")); err != nil {
		t.Fatal(err)
	}
	run(t, config, accepted, func(o *Objects) {
		want("second life: what is refused now counts as it was", o, "broken:DENY", "gone:DENY", "invalid:DENY")

		changed := make(chan struct{}, 16)
		collection.Sink(o.AuthorizationPolicies, func([]collection.Event[*securityv1.AuthorizationPolicy]) { changed <- struct{}{} })
		write("one.yaml", policy("broken", "ALLOW"))
		<-changed
		want("a mended file holds what it says, and nothing else", o, "broken:ALLOW", "invalid:DENY")
	})
	run(t, config, accepted, func(o *Objects) {
		want("third life", o, "broken:ALLOW", "invalid:DENY")
	})
}
