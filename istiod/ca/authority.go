package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// Lives of certificates, spec/control-plane.md §7.1–7.2.
const (
	rootTTL    = 10 * 365 * 24 * time.Hour
	defaultTTL = 24 * time.Hour
	maxTTL     = 90 * 24 * time.Hour
	servingTTL = 90 * 24 * time.Hour
	// backdate is how far the clock of a peer may be behind ours; a short-lived
	// certificate is dated back by half its life at most, so that "half of its
	// life" does not lie in the past when it arrives.
	backdate = 2 * time.Minute
)

const (
	pemCertificate = "CERTIFICATE"
	pemPrivateKey  = "PRIVATE KEY"
)

// errSigner is a signer that cannot sign now, whatever is asked of it.
var errSigner = errors.New("the authority's own certificate is not valid now")

// Authority signs certificates. It is immutable.
type Authority struct {
	key    crypto.Signer
	signer *x509.Certificate
	chain  []*x509.Certificate // what a peer needs between leaf and root: the signer and above; empty when the signer is a root
	roots  []*x509.Certificate
}

// NewSelfSigned makes a root for a trust domain, valid from now for ten years.
func NewSelfSigned(trustDomain string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{trustDomain}},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(rootTTL),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:     true, BasicConstraintsValid: true,
	}
	root, err := create(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return &Authority{key: key, signer: root, roots: []*x509.Certificate{root}}, nil
}

// Load reads a signer: certPEM holds its certificate first, then intermediates
// and roots in any order; keyPEM its RSA or ECDSA key. A signer that has expired
// loads, and signs nothing.
func Load(certPEM, keyPEM []byte) (*Authority, error) {
	certs, err := parseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("authority: certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("authority: key: %w", err)
	}
	a := &Authority{key: key, signer: certs[0]}
	for _, cert := range certs {
		if selfSigned(cert) {
			a.roots = append(a.roots, cert)
		} else {
			a.chain = append(a.chain, cert)
		}
	}
	if selfSigned(a.signer) {
		a.chain = nil
	}
	if err := a.validate(); err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return a, nil
}

// validate checks that key, signer and roots belong together.
func (a *Authority) validate() error {
	public, ok := a.signer.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(a.key.Public()) {
		return errors.New("the key is not that of the first certificate")
	}
	if !a.signer.IsCA || (a.signer.KeyUsage != 0 && a.signer.KeyUsage&x509.KeyUsageCertSign == 0) {
		return errors.New("the first certificate may not sign certificates")
	}
	if len(a.roots) == 0 {
		return errors.New("no self-signed root among the certificates")
	}
	// The moment at which all of them have begun: expiry is checked when signing.
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: a.signer.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, cert := range a.roots {
		options.Roots.AddCert(cert)
	}
	for _, cert := range a.chain {
		options.Intermediates.AddCert(cert)
	}
	for _, cert := range slices.Concat(a.roots, a.chain) {
		if cert.NotBefore.After(options.CurrentTime) {
			options.CurrentTime = cert.NotBefore
		}
	}
	if _, err := a.signer.Verify(options); err != nil {
		return fmt.Errorf("the first certificate does not lead to a root: %w", err)
	}
	return nil
}

// PEM returns what Load reads. The key is a secret.
func (a *Authority) PEM() (cert, key []byte) {
	certs := a.chain
	if len(certs) == 0 {
		certs = []*x509.Certificate{a.signer}
	}
	for _, c := range certs {
		cert = append(cert, encode(c)...)
	}
	for _, root := range a.roots {
		if !root.Equal(a.signer) {
			cert = append(cert, encode(root)...)
		}
	}
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		panic(err) // parseKey and NewSelfSigned let in only kinds that can be encoded
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: der})
}

// RootPEM returns the root bundle that peers trust.
func (a *Authority) RootPEM() []byte {
	var bundle []byte
	for _, root := range a.roots {
		bundle = append(bundle, encode(root)...)
	}
	return bundle
}

// String names the authority without its key.
func (a *Authority) String() string {
	return fmt.Sprintf("authority %q until %s", a.signer.Subject, a.signer.NotAfter.UTC().Format(time.RFC3339))
}

// Sign issues a certificate for id, good as client and server. Of the request
// only the public key is taken; that the requester holds the private one is
// proved by its signature. A ttl of 0 or less means the default; more than the
// maximum is refused; the signer's own end limits all. A request that is at
// fault is a *Refusal.
//
// chain is in the order of spec/ztunnel.md §5.2: leaf, intermediates one by
// one, and the whole root bundle as the last element.
func (a *Authority) Sign(csrPEM string, id spiffe.ID, ttl time.Duration) (chain []string, err error) {
	if id.IsZero() {
		return nil, errors.New("sign: no identity")
	}
	public, err := publicKey(csrPEM)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	leaf, err := a.issue(&x509.Certificate{URIs: []*url.URL{uri}}, public, ttl)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	chain = append(chain, string(encode(leaf)))
	for _, cert := range a.chain {
		chain = append(chain, string(encode(cert)))
	}
	return append(chain, string(a.RootPEM())), nil
}

// ServingCertificate issues a certificate for istiod's own server with a new
// key. It lives for 90 days; see ServingSource for a server that outlives it.
func (a *Authority) ServingCertificate(dnsNames []string, ips []netip.Addr) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("serving certificate: %w", err)
	}
	template := &x509.Certificate{DNSNames: dnsNames}
	for _, ip := range ips {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	leaf, err := a.issue(template, key.Public(), servingTTL)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("serving certificate: %w", err)
	}
	cert := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, above := range a.chain {
		cert.Certificate = append(cert.Certificate, above.Raw)
	}
	return cert, nil
}

// ServingSource returns a function for tls.Config.GetCertificate that issues a
// serving certificate when first asked and again at half of its life.
func (a *Authority) ServingSource(dnsNames []string, ips []netip.Addr) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	var current *tls.Certificate
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if current != nil && now.Before(halfLife(current.Leaf)) {
			return current, nil
		}
		next, err := a.ServingCertificate(dnsNames, ips)
		if err == nil {
			current = &next
		}
		if current != nil && now.Before(current.Leaf.NotAfter) {
			return current, nil
		}
		return nil, err
	}
}

func halfLife(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
}

// issue signs an end-entity certificate; template brings the names.
func (a *Authority) issue(template *x509.Certificate, public crypto.PublicKey, ttl time.Duration) (*x509.Certificate, error) {
	switch {
	case ttl <= 0:
		ttl = defaultTTL
	case ttl > maxTTL:
		return nil, &Refusal{ReasonTTL, fmt.Errorf("life of %s is more than %s", ttl, maxTTL)}
	}
	now := time.Now()
	notAfter := now.Add(ttl)
	for _, cert := range append([]*x509.Certificate{a.signer}, a.chain...) {
		if now.Before(cert.NotBefore) || !now.Before(cert.NotAfter) {
			return nil, errSigner
		}
		if notAfter.After(cert.NotAfter) {
			notAfter = cert.NotAfter
		}
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = now.Add(-min(backdate, notAfter.Sub(now)/2))
	template.NotAfter = notAfter
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if _, ok := public.(*rsa.PublicKey); ok {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.BasicConstraintsValid = true // with IsCA false
	// The subject stays empty, so crypto/x509 marks the names critical, as
	// RFC 5280 §4.2.1.6 wants it.
	return create(template, a.signer, public, a.key)
}

func create(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial returns 127 random bits: positive, and within the 20 octets of
// RFC 5280 §4.1.2.2.
func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func selfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, cert.RawSubject) && cert.CheckSignatureFrom(cert) == nil
}

func encode(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: cert.Raw})
}
