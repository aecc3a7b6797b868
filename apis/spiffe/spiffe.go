// Package spiffe holds the identity of a workload: a value that is parsed once
// and valid for ever after. Only the shape that Istio gives an id is accepted,
//
//	spiffe://<trust domain>/ns/<namespace>/sa/<service account>
//
// (spec/ztunnel.md §5.1); the grammar below it is that of the SPIFFE-ID
// standard, checked by go-spiffe. Values are comparable and immutable.
package spiffe

import (
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ID is the identity of a workload. The zero ID is no identity: IsZero reports
// it and String is empty.
type ID struct {
	trustDomain    string
	namespace      string
	serviceAccount string
}

// New returns the ID of a service account. The error names the part that does
// not fit the grammar of a SPIFFE id.
func New(trustDomain, namespace, serviceAccount string) (ID, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil || td.Name() != trustDomain {
		return ID{}, fmt.Errorf("trust domain %q is not valid", trustDomain)
	}
	for what, segment := range map[string]string{"namespace": namespace, "service account": serviceAccount} {
		if err := spiffeid.ValidatePathSegment(segment); err != nil {
			return ID{}, fmt.Errorf("%s %q: %w", what, segment, err)
		}
	}
	return ID{trustDomain: trustDomain, namespace: namespace, serviceAccount: serviceAccount}, nil
}

// Parse reads the text form.
func Parse(text string) (ID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return ID{}, fmt.Errorf("identity %q: %w", text, err)
	}
	segments := strings.Split(id.Path(), "/")
	if len(segments) != 5 || segments[1] != "ns" || segments[3] != "sa" {
		return ID{}, fmt.Errorf("identity %q: path is not /ns/<namespace>/sa/<service account>", text)
	}
	return New(id.TrustDomain().Name(), segments[2], segments[4])
}

// FromCertificate returns the identity of a leaf certificate, which must have
// exactly one URI name (X509-SVID standard §2).
func FromCertificate(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 {
		return ID{}, fmt.Errorf("certificate has %d URI names, want 1", len(cert.URIs))
	}
	return Parse(cert.URIs[0].String())
}

// TrustDomain returns the trust domain's name, without a scheme.
func (id ID) TrustDomain() string { return id.trustDomain }

// Namespace returns the Kubernetes namespace.
func (id ID) Namespace() string { return id.namespace }

// ServiceAccount returns the Kubernetes service account.
func (id ID) ServiceAccount() string { return id.serviceAccount }

// IsZero reports whether id is no identity.
func (id ID) IsZero() bool { return id == ID{} }

// String returns the URI, or "" for the zero ID.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return "spiffe://" + id.Principal()
}

// Principal returns the id without its scheme, the form in which authorization
// policies name it, or "" for the zero ID.
func (id ID) Principal() string {
	if id.IsZero() {
		return ""
	}
	return id.trustDomain + "/ns/" + id.namespace + "/sa/" + id.serviceAccount
}
