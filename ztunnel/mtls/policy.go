package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// ErrRevoked says that a certificate of the peer's chain is on a revocation
// list.
var ErrRevoked = errors.New("certificate is revoked")

// A Policy is what a process asks of its TLS connections beyond the peer's
// identity (spec/ztunnel.md §10.1). The zero Policy is TLS 1.3 with the key
// exchanges that crypto/tls prefers, and no revocations.
type Policy struct {
	// TLS12 allows TLS 1.2 as well, with ECDHE and AES-GCM only.
	TLS12 bool
	// PQC allows no key exchange but X25519MLKEM768, which exists in TLS 1.3
	// only, whatever TLS12 says.
	PQC bool
	// Revoked returns an error that wraps ErrRevoked if a certificate of a
	// verified chain, leaf first, is revoked; nil: none is. It must not wait.
	Revoked func(chain []*x509.Certificate) error
}

// Apply sets the versions, cipher suites and key exchanges of a configuration,
// and returns it.
func (p Policy) Apply(c *tls.Config) *tls.Config {
	c.MinVersion = tls.VersionTLS13
	switch {
	case p.PQC:
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	case p.TLS12:
		c.MinVersion = tls.VersionTLS12
		c.CipherSuites = []uint16{ // of TLS 1.2; those of 1.3 are not configurable
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		}
	}
	return c
}

// revoked checks the chain of a connection whose peer has been verified.
func (p Policy) revoked(s tls.ConnectionState, id spiffe.ID) error {
	if p.Revoked == nil {
		return nil
	}
	if err := p.Revoked(s.PeerCertificates); err != nil {
		return fmt.Errorf("peer %s: %w", id, err)
	}
	return nil
}
