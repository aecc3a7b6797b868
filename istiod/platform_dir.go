package istiod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/authn"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
	"github.com/ambit-mesh/ambit/istiod/status"
)

// directory reads manifests from files and writes into the state directory.
func (i *Istiod) directory(cfg Config) (platform, error) {
	// Reads the key file, produces who is calling.
	jwks, err := authn.NewJWKS(authn.JWKSConfig{File: cfg.JWKSFile, Issuer: cfg.JWTIssuer, Audience: cfg.JWTAudience, Log: i.log})
	if err != nil {
		return platform{}, err
	}
	// Reads manifests in the configuration and state directories, produces objects.
	objects := filepath.Join(cfg.StateDir, "objects")
	dir, err := source.NewDir(source.DirConfig{
		Objects:  i.objects,
		Dirs:     []string{cfg.ConfigDir, objects},
		Accepted: manifest.NewStore(filepath.Join(cfg.StateDir, "accepted")),
		Report:   i.report,
		Loaded:   func() { close(i.loaded) },
		Log:      i.log,
	})
	if err != nil {
		return platform{}, err
	}
	statuses := manifest.NewStore(filepath.Join(cfg.StateDir, "status"))
	return platform{
		source: dir, verify: jwks.Verify,
		objects: fileObjects{manifest.NewStore(objects)}, secrets: fileSecrets{manifest.NewStore(objects)}, statuses: status.Files(statuses),
		lead:       func(ctx context.Context, work func(ctx context.Context) error) error { return work(ctx) }, // there is no other
		remembered: func() (map[string]string, error) { return readyBefore(statuses) },
	}, nil
}

// readyBefore reads which waypoints have been ready: their Gateways' statuses
// have a host name. Traffic must not go around one of them because istiod starts
// while its pod is away (DESIGN.md §9.2). What cannot be read is an error: to
// start without it could open a bypass.
func readyBefore(statuses *manifest.Store) (map[string]string, error) {
	stored, err := statuses.List()
	if err != nil {
		return nil, fmt.Errorf("waypoints that have been ready: %w", err)
	}
	out := map[string]string{}
	for _, o := range stored {
		key := manifest.KeyOf(o)
		if key.Group != gatewayv1.GroupName || key.Kind != "Gateway" {
			continue
		}
		for _, address := range status.Addresses(o) {
			if address.Type != nil && *address.Type == gatewayv1.HostnameAddressType {
				out[model.Key(key.Namespace, key.Name)] = address.Value
			}
		}
	}
	return out, nil
}

// fileObjects are generated objects in the state directory.
type fileObjects struct{ store *manifest.Store }

// kept is what the cluster adds to a generated object.
var kept = [][]string{
	{"metadata", "uid"},
	{"metadata", "creationTimestamp"},
	{"metadata", "resourceVersion"},
	{"metadata", "generation"},
	{"status"},
	{"spec", "clusterIP"},
	{"spec", "clusterIPs"},
	{"spec", "ipFamilies"},
}

// Apply implements objectStore: it writes an object when it differs from what is
// stored.
func (s fileObjects) Apply(_ context.Context, body *unstructured.Unstructured) error {
	err := s.store.Update(manifest.KeyOf(body), func(o *unstructured.Unstructured) error {
		if foreign(o, body) {
			return nil // the Gateway's status will say so
		}
		merged := body.DeepCopy()
		for _, path := range kept {
			_, wanted, _ := unstructured.NestedFieldNoCopy(merged.Object, path...)
			value, there, _ := unstructured.NestedFieldCopy(o.Object, path...)
			if !there || wanted {
				continue
			}
			if err := unstructured.SetNestedField(merged.Object, value, path...); err != nil {
				return err
			}
		}
		if !sameBody(o, merged) {
			o.Object = merged.Object
		}
		return nil
	})
	if errors.Is(err, os.ErrNotExist) {
		return s.store.Apply(body)
	}
	return err
}

// Create implements objectStore.
func (s fileObjects) Create(_ context.Context, body *unstructured.Unstructured) error {
	if _, err := s.store.Get(manifest.KeyOf(body)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return s.store.Apply(body)
}

// Delete implements objectStore.
func (s fileObjects) Delete(_ context.Context, key manifest.Key) error { return s.store.Delete(key) }

// List implements objectStore.
func (s fileObjects) List(_ context.Context, namespace string, with map[string]string) ([]*unstructured.Unstructured, error) {
	stored, err := s.store.List()
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, o := range stored {
		key := manifest.KeyOf(o)
		group, made := managedKinds[key.Kind]
		ours := made && group == key.Group && managed(o) && (namespace == "" || namespace == key.Namespace)
		for name, value := range with {
			ours = ours && o.GetLabels()[name] == value
		}
		if ours {
			out = append(out, o)
		}
	}
	return out, nil
}

// sameBody compares as text: one side may hold numbers of another Go type.
func sameBody(a, b *unstructured.Unstructured) bool {
	left, leftErr := json.Marshal(a.Object)
	right, rightErr := json.Marshal(b.Object)
	return leftErr == nil && rightErr == nil && bytes.Equal(left, right)
}

// fileSecrets are the certificate authority's Secrets in the state directory.
type fileSecrets struct{ store *manifest.Store }

func secretKey(name string) manifest.Key {
	return manifest.Key{Kind: "Secret", Namespace: mesh.DefaultSystemNamespace, Name: name}
}

// Get implements secretStore.
func (s fileSecrets) Get(_ context.Context, name string) (*corev1.Secret, error) {
	body, err := s.store.Get(secretKey(name))
	if err != nil {
		return nil, err
	}
	var secret corev1.Secret
	if err := manifest.Decode(manifest.Object{Key: secretKey(name), Body: body}, &secret); err != nil {
		return nil, err
	}
	return &secret, nil
}

// Create implements secretStore. Nobody else writes into the state directory.
func (s fileSecrets) Create(_ context.Context, secret *corev1.Secret) error {
	body, err := manifest.ToUnstructured(secret)
	if err != nil {
		return err
	}
	return s.store.Apply(body)
}
