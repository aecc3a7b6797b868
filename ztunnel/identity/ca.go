package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

const (
	defaultTTL     = 24 * time.Hour
	defaultTimeout = 10 * time.Second
)

// CAConfig configures a client of the certificate authority.
type CAConfig struct {
	Conn grpc.ClientConnInterface
	// TTL of the certificates to ask for; 24 h when zero.
	TTL time.Duration
	// Impersonate names the wanted identity in the request, for a caller whose
	// token is not the workload's own.
	Impersonate bool
	// AnyIdentity takes a certificate for another identity than the one asked
	// for: on a VM, the authority knows better than us who the token's owner is.
	AnyIdentity bool
	// Timeout of one request; 10 s when zero.
	Timeout time.Duration
}

// A CA asks a certificate authority for certificates (spec/ztunnel.md §5.2,
// §5.3). The key is made here, anew each time, and never leaves.
type CA struct {
	cfg    CAConfig
	client securityv1alpha1.IstioCertificateServiceClient
}

// NewCA returns a client of the authority behind cfg.Conn.
func NewCA(cfg CAConfig) *CA {
	if cfg.TTL <= 0 {
		cfg.TTL = defaultTTL
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	return &CA{cfg: cfg, client: securityv1alpha1.NewIstioCertificateServiceClient(cfg.Conn)}
}

// Fetch gets a certificate for id, and refuses one that would be of no use.
func (a *CA) Fetch(ctx context.Context, id spiffe.ID) (*mtls.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	csr, err := newCSR(key, id)
	if err != nil {
		return nil, err
	}
	req := &securityv1alpha1.IstioCertificateRequest{
		Csr:              csr,
		ValidityDuration: max(int64(a.cfg.TTL/time.Second), 1),
	}
	if a.cfg.Impersonate {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			mesh.ImpersonatedIdentity: structpb.NewStringValue(id.String()),
		}}
	}
	res, err := a.client.CreateCertificate(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return a.readResponse(key, id, res.GetCertChain())
}

// readResponse checks what the authority has sent: for the identity asked for
// (or any), with our key, and acceptable to peers with the same roots.
func (a *CA) readResponse(key *ecdsa.PrivateKey, id spiffe.ID, chain []string) (*mtls.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("certificate authority has sent an empty chain")
	}
	c, err := mtls.NewCertificate(key, chain)
	if err != nil {
		return nil, err
	}
	if c.ID != id && !a.cfg.AnyIdentity {
		return nil, fmt.Errorf("certificate is for %s", c.ID)
	}
	if err := c.Verify(); err != nil {
		return nil, fmt.Errorf("certificate is not usable: %w", err)
	}
	return c, nil
}

// oidSubjectAltName is id-ce-subjectAltName, RFC 5280 §4.2.1.6.
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// newCSR returns a PEM certificate request with an empty subject and id as the
// one URI name. The extension is critical, because the subject is empty:
//
// "If the subject field contains an empty sequence, then the issuing CA MUST
// include a subjectAltName extension that is marked as critical."
// https://www.rfc-editor.org/rfc/rfc5280#section-4.2.1.6
func newCSR(key *ecdsa.PrivateKey, id spiffe.ID) (string, error) {
	const uniformResourceIdentifier = 6 // GeneralName's tag
	names, err := asn1.Marshal([]asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: uniformResourceIdentifier, Bytes: []byte(id.String())},
	})
	if err != nil {
		return "", fmt.Errorf("make certificate request: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		ExtraExtensions:    []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: names}},
	}, key)
	if err != nil {
		return "", fmt.Errorf("make certificate request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}
