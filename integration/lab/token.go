package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// maxTokenLifetime bounds what a pod may ask for.
const maxTokenLifetime = time.Hour

// Claims are those of a projected service-account token, as a kubelet gets it
// from the API server.
type Claims struct {
	Issuer     string           `json:"iss"`
	Subject    string           `json:"sub"`
	Audience   []string         `json:"aud"`
	Expires    int64            `json:"exp"` // seconds since 1970, as the two below
	IssuedAt   int64            `json:"iat"`
	NotBefore  int64            `json:"nbf"`
	ID         string           `json:"jti"`
	Kubernetes KubernetesClaims `json:"kubernetes.io"`
}

// KubernetesClaims bind a token to a pod. A nil Pod makes it unbound.
type KubernetesClaims struct {
	Namespace      string   `json:"namespace"`
	Node           *Binding `json:"node,omitempty"`
	Pod            *Binding `json:"pod,omitempty"`
	ServiceAccount Binding  `json:"serviceaccount"`
}

// Binding names one object.
type Binding struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// NewClaims returns claims for a service account without a pod.
func NewClaims(namespace, account string, audience []string, now time.Time, lifetime time.Duration) Claims {
	return Claims{
		Issuer:  Issuer,
		Subject: "system:serviceaccount:" + namespace + ":" + account, Audience: audience,
		Expires: now.Add(lifetime).Unix(), IssuedAt: now.Unix(), NotBefore: now.Unix(), ID: newUID(),
		Kubernetes: KubernetesClaims{
			Namespace:      namespace,
			ServiceAccount: Binding{Name: account, UID: derivedUID("ServiceAccount", namespace, account)},
		},
	}
}

// issuer signs tokens.
type issuer struct {
	key    *ecdsa.PrivateKey
	id     string
	signer jose.Signer
}

// newIssuer makes a key, and publishes its public half.
func newIssuer(stateDir string) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	file := keyFile(stateDir)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err // an old one's mode would stay
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return nil, err
	}
	i, err := issuerOf(key)
	if err != nil {
		return nil, err
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: i.id, Algorithm: string(jose.ES256), Use: "sig"}}}
	data, err := json.MarshalIndent(set, "", "  ")
	if err != nil {
		return nil, err
	}
	return i, replaceFile(jwksFile(stateDir), data, 0o644)
}

// openIssuer reads the key that newIssuer made.
func openIssuer(stateDir string) (*issuer, error) {
	data, err := os.ReadFile(keyFile(stateDir))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block", keyFile(stateDir))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile(stateDir), err)
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: %T, want an ECDSA key", keyFile(stateDir), key)
	}
	return issuerOf(private)
}

func issuerOf(key *ecdsa.PrivateKey) (*issuer, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	id := base64.RawURLEncoding.EncodeToString(sum[:])
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, err
	}
	return &issuer{key: key, id: id, signer: signer}, nil
}

func (i *issuer) sign(claims any) (string, error) {
	token, err := jwt.Signed(i.signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return token, nil
}

func keyFile(stateDir string) string {
	return filepath.Join(stateDir, "keys", "service-account.pem")
}

// replaceFile writes the file so that readers see the old or the new one.
func replaceFile(path string, data []byte, mode os.FileMode) error {
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temporary, data, mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// newUID is a random UUID, RFC 9562 section 5.4.
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return formatUID(b, 4)
}

// derivedUID is the UID of an object that the manifests give none: always the
// same one, RFC 9562 section 5.8.
func derivedUID(kind, namespace, name string) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + namespace + "\x00" + name))
	return formatUID([16]byte(sum[:16]), 8)
}

func formatUID(b [16]byte, version byte) string {
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
