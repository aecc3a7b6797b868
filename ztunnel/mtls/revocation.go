package mtls

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// Revocations are the certificate revocation lists of the mesh
// (spec/ztunnel.md §10.4). What no list names is not revoked: an authority that
// has published none, or whose list has expired, cuts nobody off. A list counts
// only for the authority that has signed it.
//
// Whoever owns the file calls Set; every handshake calls Check.
type Revocations struct {
	roots   func() []*x509.Certificate
	lists   atomic.Pointer[map[string][]*revocationList] // by the issuer's raw name
	changed atomic.Pointer[chan struct{}]
}

// revocationList is one list.
type revocationList struct {
	*x509.RevocationList
	serials map[string]bool

	mu     sync.Mutex
	signed map[string]bool // by raw certificate: whether it has signed the list
}

// NewRevocations returns an empty set. Roots returns the authorities that peers
// are verified against, since what peers show does not include them.
func NewRevocations(roots func() []*x509.Certificate) *Revocations {
	r := &Revocations{roots: roots}
	r.lists.Store(&map[string][]*revocationList{})
	c := make(chan struct{})
	r.changed.Store(&c)
	return r
}

// Set replaces all lists by those in data: PEM, of which blocks of other types
// are ignored, or DER of a single list. Data without any list is none. On an
// error nothing changes.
func (r *Revocations) Set(data []byte) error {
	parsed, err := parseRevocations(data)
	if err != nil {
		return fmt.Errorf("certificate revocation list: %w", err)
	}
	r.lists.Store(&parsed)
	c := make(chan struct{})
	close(*r.changed.Swap(&c))
	return nil
}

// Changed returns a channel that is closed by the next Set. To miss nothing,
// take it before what is to be checked again.
func (r *Revocations) Changed() <-chan struct{} { return *r.changed.Load() }

// Len returns how many certificates are revoked.
func (r *Revocations) Len() int {
	n := 0
	for _, lists := range *r.lists.Load() {
		for _, l := range lists {
			n += len(l.serials)
		}
	}
	return n
}

// Check returns an error that wraps ErrRevoked when a certificate of the chain
// is revoked by its issuer. The chain is what a verified peer has shown.
func (r *Revocations) Check(chain []*x509.Certificate) error {
	lists := *r.lists.Load()
	if len(lists) == 0 {
		return nil
	}
	for _, cert := range chain {
		for _, list := range lists[string(cert.RawIssuer)] {
			if list.serials[string(cert.SerialNumber.Bytes())] && list.signedByAny(slices.Concat(chain, r.roots())) {
				return fmt.Errorf("%w: serial %s of %s", ErrRevoked, cert.SerialNumber, cert.Issuer)
			}
		}
	}
	return nil
}

// signedByAny reports whether one of the candidates has signed the list.
func (l *revocationList) signedByAny(candidates []*x509.Certificate) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range candidates {
		if !bytes.Equal(c.RawSubject, l.RawIssuer) {
			continue
		}
		signed, known := l.signed[string(c.Raw)]
		if !known {
			signed = l.CheckSignatureFrom(c) == nil
			l.signed[string(c.Raw)] = signed
		}
		if signed {
			return true
		}
	}
	return false
}

// parseRevocations reads the contents of a file.
func parseRevocations(data []byte) (map[string][]*revocationList, error) {
	out := map[string][]*revocationList{}
	add := func(der []byte) error {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return err
		}
		l := &revocationList{RevocationList: list, serials: make(map[string]bool, len(list.RevokedCertificateEntries)), signed: map[string]bool{}}
		for _, e := range list.RevokedCertificateEntries {
			l.serials[string(e.SerialNumber.Bytes())] = true
		}
		list.RevokedCertificateEntries = nil // the serials are all that is needed
		out[string(list.RawIssuer)] = append(out[string(list.RawIssuer)], l)
		return nil
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return out, nil
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return out, add(data)
	}
	for ; block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			continue
		}
		if err := add(block.Bytes); err != nil {
			return nil, err
		}
	}
	if bytes.Contains(rest, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("PEM text is cut off after %d bytes", len(data)-len(rest))
	}
	return out, nil
}
