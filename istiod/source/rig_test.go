package source

import (
	"context"
	"log/slog"
	"testing"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
)

type coreService = corev1.Service

func meshConfigMap(text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{Data: map[string]string{mesh.MeshConfigKey: text}}
}

func splitFieldOf(err error) (path, reason string) {
	if err == nil {
		return "", ""
	}
	return splitField(err)
}

// runInBackground runs a Dir until the test ends, and waits for it.
func runInBackground(t *testing.T, cfg DirConfig) {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	dir, err := NewDir(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- dir.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// Short names for types of tests.
type (
	authorizationPolicy = securityv1.AuthorizationPolicy
	manifestKey         = manifest.Key
)

// anyObject parses JSON as an API server's answer is.
func anyObject(data []byte) (*unstructured.Unstructured, bool) {
	var body map[string]any
	if json.Unmarshal(data, &body) != nil || body == nil {
		return nil, false
	}
	return &unstructured.Unstructured{Object: body}, true
}
