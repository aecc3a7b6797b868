package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/identity"
	"github.com/ambit-mesh/ambit/ztunnel/identity/identitytest"
)

// service answers with whatever a test wants.
type service struct {
	securityv1alpha1.UnimplementedIstioCertificateServiceServer
	answer func(req *securityv1alpha1.IstioCertificateRequest, csr *x509.CertificateRequest) ([]string, error)
}

func (s *service) CreateCertificate(_ context.Context, req *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	block, _ := pem.Decode([]byte(req.GetCsr()))
	if block == nil {
		return nil, errors.New("no PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	chain, err := s.answer(req, csr)
	return &securityv1alpha1.IstioCertificateResponse{CertChain: chain}, err
}

func connect(t *testing.T, s *service) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(64 << 10)
	server := grpc.NewServer()
	securityv1alpha1.RegisterIstioCertificateServiceServer(server, s)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///ca",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatalf("client: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestFetch(t *testing.T) {
	ca := identitytest.New(t, "cluster.local")
	id := ca.ID("ns", "a")
	for _, impersonate := range []bool{true, false} {
		s := &service{answer: func(req *securityv1alpha1.IstioCertificateRequest, csr *x509.CertificateRequest) ([]string, error) {
			key, ok := csr.PublicKey.(*ecdsa.PublicKey)
			if !ok || key.Curve != elliptic.P256() || csr.SignatureAlgorithm != x509.ECDSAWithSHA256 {
				t.Errorf("key %T, signature %v", csr.PublicKey, csr.SignatureAlgorithm)
			}
			if len(csr.RawSubject) != 2 || len(csr.URIs) != 1 || csr.URIs[0].String() != id.String() {
				t.Errorf("subject %x, names %v", csr.RawSubject, csr.URIs)
			}
			if len(csr.Extensions) != 1 || !csr.Extensions[0].Critical {
				t.Errorf("extensions: %+v", csr.Extensions)
			}
			if req.GetValidityDuration() != 3600 {
				t.Errorf("validity: got %d, want 3600", req.GetValidityDuration())
			}
			want := ""
			if impersonate {
				want = id.String()
			}
			if got := req.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue(); got != want {
				t.Errorf("impersonated identity: got %q, want %q", got, want)
			}
			return []string{identitytest.PEM(ca.Sign(identitytest.Leaf(id, time.Hour), csr.PublicKey)), ca.RootPEM()}, nil
		}}
		c, err := identity.NewCA(identity.CAConfig{Conn: connect(t, s), TTL: time.Hour, Impersonate: impersonate}).Fetch(t.Context(), id)
		if err != nil || c.ID != id {
			t.Errorf("fetch: got %v, %v", c, err)
		}
	}
}

func TestFetchRefuses(t *testing.T) {
	ca := identitytest.New(t, "cluster.local")
	id, other := ca.ID("ns", "a"), ca.ID("ns", "b")
	leaf := func(id spiffe.ID, key any, change func(*x509.Certificate)) string {
		template := identitytest.Leaf(id, time.Hour)
		change(template)
		return identitytest.PEM(ca.Sign(template, key))
	}
	keep := func(*x509.Certificate) {}
	tests := []struct {
		name   string
		answer func(key any) ([]string, error)
		want   string
	}{
		{"error", func(any) ([]string, error) { return nil, status.Error(codes.Unauthenticated, "not on this node") }, "sign: rpc error: code = Unauthenticated desc = not on this node"},
		{"empty chain", func(any) ([]string, error) { return nil, nil }, "empty chain"},
		{"no roots", func(key any) ([]string, error) { return []string{leaf(id, key, keep)}, nil }, "at least a leaf and the roots"},
		{"another identity", func(key any) ([]string, error) { return []string{leaf(other, key, keep), ca.RootPEM()}, nil }, "certificate is for spiffe://cluster.local/ns/ns/sa/b"},
		{"another key", func(any) ([]string, error) {
			return []string{leaf(id, identitytest.Key(t).Public(), keep), ca.RootPEM()}, nil
		}, "another key"},
		{"other roots", func(key any) ([]string, error) {
			return []string{leaf(id, key, keep), identitytest.New(t, "cluster.local").RootPEM()}, nil
		}, "unknown authority"},
		{"expired", func(key any) ([]string, error) {
			return []string{leaf(id, key, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), ca.RootPEM()}, nil
		}, "expired"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := &service{answer: func(_ *securityv1alpha1.IstioCertificateRequest, csr *x509.CertificateRequest) ([]string, error) {
				return test.answer(csr.PublicKey)
			}}
			_, err := identity.NewCA(identity.CAConfig{Conn: connect(t, s)}).Fetch(t.Context(), id)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestFetchTimesOut(t *testing.T) {
	ca := identitytest.New(t, "cluster.local")
	release := make(chan struct{})
	s := &service{answer: func(*securityv1alpha1.IstioCertificateRequest, *x509.CertificateRequest) ([]string, error) {
		<-release
		return nil, nil
	}}
	_, err := identity.NewCA(identity.CAConfig{Conn: connect(t, s), Timeout: 10 * time.Millisecond}).Fetch(t.Context(), ca.ID("ns", "a"))
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	close(release)
}

// TestFetchAnyIdentity: on a VM, the authority says who we are.
func TestFetchAnyIdentity(t *testing.T) {
	ca := identitytest.New(t, "cluster.local")
	given := ca.ID("ns", "given")
	s := &service{answer: func(_ *securityv1alpha1.IstioCertificateRequest, csr *x509.CertificateRequest) ([]string, error) {
		return []string{identitytest.PEM(ca.Sign(identitytest.Leaf(given, time.Hour), csr.PublicKey)), ca.RootPEM()}, nil
	}}
	conn := connect(t, s)
	if _, err := identity.NewCA(identity.CAConfig{Conn: conn}).Fetch(t.Context(), ca.ID("ns", "asked")); err == nil {
		t.Error("a certificate for another identity was accepted")
	}
	c, err := identity.NewCA(identity.CAConfig{Conn: conn, AnyIdentity: true}).Fetch(t.Context(), ca.ID("ns", "asked"))
	if err != nil || c.ID != given {
		t.Errorf("got %v, %v", c, err)
	}
}
