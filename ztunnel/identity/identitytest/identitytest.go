// Package identitytest is a certificate authority in memory, for the tests of
// whoever uses package identity or mtls. Its certificates are valid from the
// time at which they are made, on the clock of the test: inside a synctest
// bubble make the authority there, too.
package identitytest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

// DefaultTTL is how long what Fetch returns is valid.
const DefaultTTL = time.Hour

// skew is how far certificates are set back, as istiod does.
const skew = 2 * time.Minute

// A CA issues certificates of one trust domain. It is safe for concurrent use.
type CA struct {
	TrustDomain string

	t      testing.TB
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	serial atomic.Int64
}

// New makes an authority with a root that is valid for ten years.
func New(tb testing.TB, trustDomain string) *CA {
	tb.Helper()
	ca := &CA{TrustDomain: trustDomain, t: tb, key: Key(tb)}
	root := authority(trustDomain, "root", 10)
	cert, err := ca.sign(root, root, ca.key.Public(), ca.key)
	if err != nil {
		tb.Fatalf("make root: %v", err)
	}
	ca.cert = cert
	return ca
}

// ID returns the identity of a service account in the authority's domain.
func (ca *CA) ID(namespace, serviceAccount string) spiffe.ID {
	ca.t.Helper()
	id, err := spiffe.New(ca.TrustDomain, namespace, serviceAccount)
	if err != nil {
		ca.t.Fatalf("identity: %v", err)
	}
	return id
}

// Root returns the root certificate.
func (ca *CA) Root() *x509.Certificate { return ca.cert }

// RootPEM returns the root certificate as a file would hold it.
func (ca *CA) RootPEM() string { return PEM(ca.cert) }

// Issue returns a certificate for id, of any trust domain, that expires after
// ttl.
func (ca *CA) Issue(id spiffe.ID, ttl time.Duration) *mtls.Certificate {
	ca.t.Helper()
	c, err := ca.issue(id, ttl)
	if err != nil {
		ca.t.Fatalf("issue %s: %v", id, err)
	}
	return c
}

// Fetch issues like an authority that is asked over the network.
func (ca *CA) Fetch(ctx context.Context, id spiffe.ID) (*mtls.Certificate, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return ca.issue(id, DefaultTTL)
}

func (ca *CA) issue(id spiffe.ID, ttl time.Duration) (*mtls.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	leaf, err := ca.sign(Leaf(id, ttl), ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	return mtls.NewCertificate(key, []string{PEM(leaf), ca.RootPEM()})
}

// Leaf returns the template of a good certificate, for tests that need a bad
// one.
func Leaf(id spiffe.ID, ttl time.Duration) *x509.Certificate {
	return &x509.Certificate{
		NotBefore:             time.Now().Add(-skew),
		NotAfter:              time.Now().Add(ttl),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: id.TrustDomain(), Path: "/ns/" + id.Namespace() + "/sa/" + id.ServiceAccount()}},
	}
}

// Sign completes a template with a serial number and a signature by the root.
func (ca *CA) Sign(template *x509.Certificate, key crypto.PublicKey) *x509.Certificate {
	ca.t.Helper()
	cert, err := ca.sign(template, ca.cert, key, ca.key)
	if err != nil {
		ca.t.Fatalf("sign: %v", err)
	}
	return cert
}

// Intermediate returns an authority below this one. A chain of its
// certificates has its Root as an intermediate.
func (ca *CA) Intermediate() *CA {
	ca.t.Helper()
	sub := &CA{TrustDomain: ca.TrustDomain, t: ca.t, key: Key(ca.t)}
	sub.cert = ca.Sign(authority(ca.TrustDomain, "intermediate", 1), sub.key.Public())
	return sub
}

// Key makes a private key.
func Key(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := newKey()
	if err != nil {
		tb.Fatalf("make key: %v", err)
	}
	return key
}

// PEM returns a certificate as text.
func PEM(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func authority(trustDomain, name string, years int) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{trustDomain}, CommonName: name},
		NotBefore:             time.Now().Add(-skew),
		NotAfter:              time.Now().AddDate(years, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// CRL returns a revocation list of the authority in DER. It has expired, which
// must make no difference.
func (ca *CA) CRL(serials ...*big.Int) []byte {
	ca.t.Helper()
	template := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-48 * time.Hour), NextUpdate: time.Now().Add(-24 * time.Hour),
	}
	for _, s := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.cert, ca.key)
	if err != nil {
		ca.t.Fatalf("make revocation list: %v", err)
	}
	return der
}

func (ca *CA) sign(template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	template.SerialNumber = big.NewInt(ca.serial.Add(1))
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
