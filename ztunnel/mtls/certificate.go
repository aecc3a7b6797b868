package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// A Certificate is a workload's identity document with its private key and the
// roots against which its peers are verified. Immutable.
type Certificate struct {
	ID    spiffe.ID
	Chain [][]byte            // DER, leaf first, without the roots
	Leaf  *x509.Certificate   // Chain[0]; says from when until when it is valid
	Roots []*x509.Certificate // never empty
	Key   crypto.Signer

	tls tls.Certificate
}

// NewCertificate reads what a CA answers (spec/ztunnel.md §5.2): PEM texts,
// the leaf first, then intermediates of one certificate each, and as the last
// element the root bundle, which may hold several certificates. The key must
// be the leaf's. Whether the chain leads to a root is not checked here, see
// [Certificate.Verify].
func NewCertificate(key crypto.Signer, chainPEM []string) (*Certificate, error) {
	if len(chainPEM) < 2 {
		return nil, fmt.Errorf("certificate chain has %d elements, want at least a leaf and the roots", len(chainPEM))
	}
	last := len(chainPEM) - 1
	c := &Certificate{Key: key}
	for i, text := range chainPEM[:last] {
		certs, err := parsePEM(text)
		if err != nil {
			return nil, fmt.Errorf("certificate chain element %d: %w", i, err)
		}
		if len(certs) != 1 {
			return nil, fmt.Errorf("certificate chain element %d has %d certificates, want 1", i, len(certs))
		}
		if i == 0 {
			c.Leaf = certs[0]
		}
		c.Chain = append(c.Chain, certs[0].Raw)
	}
	var err error
	if c.Roots, err = parsePEM(chainPEM[last]); err != nil {
		return nil, fmt.Errorf("root certificates: %w", err)
	}
	if c.ID, err = spiffe.FromCertificate(c.Leaf); err != nil {
		return nil, err
	}
	if err := sameKey(key.Public(), c.Leaf.PublicKey); err != nil {
		return nil, err
	}
	c.tls = tls.Certificate{Certificate: c.Chain, PrivateKey: key, Leaf: c.Leaf}
	return c, nil
}

// Verify reports whether the certificate would pass at a peer that has the
// same roots: valid now, for both ends of a connection, chained to a root.
func (c *Certificate) Verify() error {
	chain := make([]*x509.Certificate, len(c.Chain))
	for i, der := range c.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate chain element %d: %w", i, err)
		}
		chain[i] = cert
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if err := verifyChain(chain, c.Roots, usage); err != nil {
			return err
		}
	}
	return nil
}

// parsePEM reads one or more certificates, and nothing else.
func parsePEM(text string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %q, want CERTIFICATE", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM text")
	}
	return certs, nil
}

func sameKey(ours, theirs crypto.PublicKey) error {
	equal := false
	switch k := ours.(type) {
	case *ecdsa.PublicKey:
		equal = k.Equal(theirs)
	case *rsa.PublicKey:
		equal = k.Equal(theirs)
	case ed25519.PublicKey:
		equal = k.Equal(theirs)
	default:
		return fmt.Errorf("private key of type %T is not supported", ours)
	}
	if !equal {
		return errors.New("certificate is for another key")
	}
	return nil
}
