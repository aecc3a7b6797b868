// Package authntest issues service-account tokens as a Kubernetes API server
// does, for tests of who may call. It never leaves a test binary.
package authntest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// What the tokens of an Issuer say unless a test changes it.
const (
	URL      = "https://kubernetes.default.svc.cluster.local"
	Audience = "istio-ca"
)

// Issuer signs tokens and publishes its key in File.
type Issuer struct {
	File  string
	Key   *ecdsa.PrivateKey
	KeyID string
	t     testing.TB
}

// New returns an issuer whose key set is a file in a directory of the test.
func New(tb testing.TB) *Issuer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("generate key: %v", err)
	}
	issuer := &Issuer{File: filepath.Join(tb.TempDir(), "jwks.json"), Key: key, KeyID: "key-1", t: tb}
	issuer.Publish(jose.JSONWebKey{Key: key.Public(), KeyID: issuer.KeyID, Algorithm: "ES256", Use: "sig"})
	return issuer
}

// Publish replaces the key set.
func (i *Issuer) Publish(keys ...jose.JSONWebKey) {
	i.t.Helper()
	data, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		i.t.Fatalf("encode key set: %v", err)
	}
	if err := os.WriteFile(i.File, data, 0o600); err != nil {
		i.t.Fatalf("write key set: %v", err)
	}
}

// Claims are a token's body.
type Claims map[string]any

// Bound returns the claims of a token that is bound to a running pod.
func Bound(namespace, account, pod, uid, node string, now time.Time) Claims {
	claims := Unbound(namespace, account, now)
	k8s := claims["kubernetes.io"].(map[string]any)
	k8s["pod"] = map[string]any{"name": pod, "uid": uid}
	k8s["node"] = map[string]any{"name": node, "uid": "uid-of-" + node}
	return claims
}

// Unbound returns the claims of a token that no pod's end invalidates.
func Unbound(namespace, account string, now time.Time) Claims {
	return Claims{
		"iss": URL,
		"aud": []string{Audience},
		"sub": "system:serviceaccount:" + namespace + ":" + account,
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{
			"namespace":      namespace,
			"serviceaccount": map[string]any{"name": account, "uid": "uid-of-" + account},
		},
	}
}

// With returns a copy with one claim changed; a nil value removes it.
func (c Claims) With(name string, value any) Claims {
	changed := maps.Clone(c)
	if value == nil {
		delete(changed, name)
	} else {
		changed[name] = value
	}
	return changed
}

// Token signs claims with the issuer's key.
func (i *Issuer) Token(claims Claims) string {
	i.t.Helper()
	return Sign(i.t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.Key, KeyID: i.KeyID}}, claims)
}

// Sign signs claims with any key.
func Sign(tb testing.TB, key jose.SigningKey, claims Claims) string {
	tb.Helper()
	signer, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		tb.Fatalf("signer: %v", err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		tb.Fatalf("encode claims: %v", err)
	}
	signed, err := signer.Sign(body)
	if err != nil {
		tb.Fatalf("sign: %v", err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		tb.Fatalf("serialize: %v", err)
	}
	return text
}
