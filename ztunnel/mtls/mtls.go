// Package mtls makes TLS configurations in which both sides prove a SPIFFE
// identity (spec/ztunnel.md §2.8, §3.1, §10.1). It verifies; it neither
// fetches nor stores certificates, and opens no connection. ztunnel's proxy and
// the waypoint call it. Everything here is immutable once made and safe for
// concurrent use.
//
// Verification is always in VerifyConnection, which also runs on a resumed
// session; resumption is off all the same, because a session would outlive the
// certificate it was made with.
package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// alpn is the one protocol spoken inside a mesh connection.
const alpn = "h2"

// A Source gives the certificate that is current at the time of the call. It
// may wait for the first one until ctx ends.
type Source func(ctx context.Context) (*Certificate, error)

// ClientConfig is that of the zero Policy.
func ClientConfig(c *Certificate, peers []spiffe.ID) *tls.Config {
	return Policy{}.ClientConfig(c, peers)
}

// ServerConfig is that of the zero Policy.
func ServerConfig(ctx context.Context, source Source) *tls.Config {
	return Policy{}.ServerConfig(ctx, source)
}

// ClientConfig returns the configuration of a connection from the workload
// that c names to a server that must be one of peers. Without peers every
// server is refused: there is no "any".
func (p Policy) ClientConfig(c *Certificate, peers []spiffe.ID) *tls.Config {
	peers = slices.Clone(peers)
	return p.Apply(&tls.Config{
		NextProtos:             []string{alpn},
		Certificates:           []tls.Certificate{c.tls},
		SessionTicketsDisabled: true,
		// Tunnels carry bulk; small first records only cost.
		DynamicRecordSizingDisabled: true,
		// The server has an identity, not a host name, and no SNI is sent.
		// VerifyConnection below does all that is skipped here, and more.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(s tls.ConnectionState) error {
			id, err := verify(s, c, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			if len(peers) == 0 {
				return fmt.Errorf("peer is %s, and no identity is acceptable", id)
			}
			if !slices.Contains(peers, id) {
				return fmt.Errorf("peer is %s, want %s", id, list(peers))
			}
			return p.revoked(s, id)
		},
	})
}

// ServerConfig returns the configuration of a server whose certificate is
// asked of source at each handshake, so that a renewed one is used at once. A
// client must prove an identity of the server's own trust domain. ctx bounds
// every handshake, beside the handshake's own.
func (p Policy) ServerConfig(ctx context.Context, source Source) *tls.Config {
	return p.Apply(&tls.Config{
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true,
		// Tunnels carry bulk; small first records only cost.
		DynamicRecordSizingDisabled: true,
		ClientAuth:                  tls.RequireAnyClientCert,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			both, cancel := context.WithCancelCause(hello.Context())
			defer cancel(nil)
			defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
			c, err := source(both)
			if err != nil {
				return nil, fmt.Errorf("own certificate: %w", err)
			}
			return p.serverConfig(c), nil
		},
	})
}

// serverConfig is the configuration of one connection.
func (p Policy) serverConfig(c *Certificate) *tls.Config {
	return p.Apply(&tls.Config{
		NextProtos:             []string{alpn},
		Certificates:           []tls.Certificate{c.tls},
		SessionTicketsDisabled: true,
		// Tunnels carry bulk; small first records only cost.
		DynamicRecordSizingDisabled: true,
		ClientAuth:                  tls.RequireAnyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			id, err := verify(s, c, x509.ExtKeyUsageClientAuth)
			if err != nil {
				return err
			}
			if id.TrustDomain() != c.ID.TrustDomain() {
				return fmt.Errorf("peer is %s, want trust domain %s", id, c.ID.TrustDomain())
			}
			return p.revoked(s, id)
		},
	})
}

// PeerID returns the identity that the peer of an established connection has
// proved.
func PeerID(s tls.ConnectionState) (spiffe.ID, error) {
	if len(s.PeerCertificates) == 0 {
		return spiffe.ID{}, errors.New("peer has shown no certificate")
	}
	return spiffe.FromCertificate(s.PeerCertificates[0])
}

// verify checks the peer's chain against the roots that came with our own
// certificate c, and returns the peer's identity.
func verify(s tls.ConnectionState, c *Certificate, usage x509.ExtKeyUsage) (spiffe.ID, error) {
	if s.NegotiatedProtocol != alpn {
		return spiffe.ID{}, fmt.Errorf("peer speaks %q, want %q", s.NegotiatedProtocol, alpn)
	}
	id, err := PeerID(s)
	if err != nil {
		return spiffe.ID{}, err
	}
	if err := verifyChain(s.PeerCertificates, c.Roots, usage); err != nil {
		return spiffe.ID{}, fmt.Errorf("peer %s: %w", id, err)
	}
	return id, nil
}

// verifyChain checks a chain, leaf first, against roots.
//
// go-spiffe checks the leaf's form (not a CA, no signing usages) and the path,
// but accepts any extended key usage; usage must appear in the leaf itself.
// The identity standard leaves EKU optional ("should be included"), and so
// does crypto/x509 when there is none at all; the mesh does not.
func verifyChain(chain, roots []*x509.Certificate, usage x509.ExtKeyUsage) error {
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return err
	}
	// Roots come with our certificate and are not per trust domain: the
	// bundle is made for whatever domain the leaf claims, and callers compare
	// the identity.
	_, paths, err := x509svid.Verify(chain, bundleOf(id.TrustDomain(), roots))
	if err != nil {
		return err
	}
	if !slices.Contains(chain[0].ExtKeyUsage, usage) {
		return fmt.Errorf("certificate is not for %s", usageName(usage))
	}
	if !slices.ContainsFunc(paths, func(path []*x509.Certificate) bool { return permits(path, usage) }) {
		return fmt.Errorf("an intermediate certificate is not for %s", usageName(usage))
	}
	return nil
}

// permits reports whether no intermediate of a path forbids usage.
func permits(path []*x509.Certificate, usage x509.ExtKeyUsage) bool {
	for _, cert := range path[1:] {
		limited := len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0
		if limited && !slices.Contains(cert.ExtKeyUsage, usage) && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) {
			return false
		}
	}
	return true
}

func bundleOf(td spiffeid.TrustDomain, roots []*x509.Certificate) *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(td, roots)
}

func usageName(usage x509.ExtKeyUsage) string {
	if usage == x509.ExtKeyUsageServerAuth {
		return "serverAuth"
	}
	return "clientAuth"
}

// list writes identities for an error text: all of a few, the first of many.
func list(ids []spiffe.ID) string {
	const most = 4
	text := ""
	for i, id := range ids {
		if i == most {
			return fmt.Sprintf("%s or %d more", text, len(ids)-most)
		}
		if i > 0 {
			text += " or "
		}
		text += id.String()
	}
	return text
}
