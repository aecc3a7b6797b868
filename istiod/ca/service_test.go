package ca_test

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/istiod/authn"
	"github.com/ambit-mesh/ambit/istiod/authn/authntest"
	"github.com/ambit-mesh/ambit/istiod/ca"
)

// pods are live pods by "namespace/name".
type pods map[string]ca.Pod

func (p pods) Pod(namespace, name string) (ca.Pod, bool) {
	pod, ok := p[namespace+"/"+name]
	return pod, ok
}

func (p pods) RunsOn(node, namespace, account string) bool {
	for name, pod := range p {
		if strings.HasPrefix(name, namespace+"/") && pod.ServiceAccount == account && pod.Node == node &&
			pod.Phase != "Failed" && pod.Phase != "Succeeded" {
			return true
		}
	}
	return false
}

type rig struct {
	t        *testing.T
	issuer   *authntest.Issuer
	pods     pods
	service  *ca.Service
	registry *prometheus.Registry
	log      *bytes.Buffer
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, issuer: authntest.New(t), registry: prometheus.NewRegistry(), log: &bytes.Buffer{}}
	r.pods = pods{
		"istio-system/ztunnel-1": {UID: "u-z1", ServiceAccount: "ztunnel", Node: "n1", Phase: "Running"},
		"istio-system/ztunnel-2": {UID: "u-z2", ServiceAccount: "ztunnel", Node: "n2", Phase: "Running"},
		"shop/cart-1":            {UID: "u-c1", ServiceAccount: "cart", Node: "n1", Phase: "Running"},
		"shop/pay-1":             {UID: "u-p1", ServiceAccount: "pay", Node: "n2", Phase: "Pending"},
		"shop/job-1":             {UID: "u-j1", ServiceAccount: "job", Node: "n1", Phase: "Succeeded"},
		"shop/broken-1":          {UID: "u-b1", ServiceAccount: "broken", Node: "n1", Phase: "Failed"},
		"shop/waiting-1":         {UID: "u-w1", ServiceAccount: "waiting", Phase: "Pending"},
	}
	keys := must(authn.NewJWKS(authn.JWKSConfig{File: r.issuer.File, Issuer: authntest.URL, Audience: authntest.Audience}))
	r.service = ca.NewService(ca.ServiceConfig{
		Authority: must(ca.NewSelfSigned("cluster.local", time.Now())), Verify: keys.Verify, Pods: r.pods,
		TrustDomain: func() string { return "cluster.local" }, TrustedNodeAccounts: []string{"istio-system/ztunnel"},
		Log: slog.New(slog.NewTextHandler(r.log, nil)), Metrics: r.registry,
	})
	return r
}

// claims are those of the token in a pod of the rig.
func (r *rig) claims(name string) authntest.Claims {
	r.t.Helper()
	namespace, pod, _ := strings.Cut(name, "/")
	live := r.pods[name]
	return authntest.Bound(namespace, live.ServiceAccount, pod, live.UID, live.Node, time.Now())
}

func (r *rig) token(name string) string { return r.issuer.Token(r.claims(name)) }

func request(wanted any) *securityv1.IstioCertificateRequest {
	req := &securityv1.IstioCertificateRequest{Csr: plainCSR(), ValidityDuration: 3600}
	if wanted != nil {
		req.Metadata = must(structpb.NewStruct(map[string]any{mesh.ImpersonatedIdentity: wanted}))
	}
	return req
}

func (r *rig) call(token string, req *securityv1.IstioCertificateRequest) ([]string, error) {
	r.t.Helper()
	return call(r.t, r.service, token, req)
}

// call asks a service over gRPC.
func call(t *testing.T, service *ca.Service, token string, req *securityv1.IstioCertificateRequest) ([]string, error) {
	t.Helper()
	ctx := t.Context()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	response, err := securityv1.NewIstioCertificateServiceClient(dial(t, service)).CreateCertificate(ctx, req)
	return response.GetCertChain(), err
}

func dial(t *testing.T, service *ca.Service) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	service.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn := must(grpc.NewClient("passthrough:///ca", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) })))
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn
}

// Who may not have a certificate is told so before anything of the request is
// read, and nobody's request is read when it is too large.
func TestNothingIsReadThatNeedNotBe(t *testing.T) {
	r := newRig(t)
	open := func(token string) grpc.ClientStream {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
		return must(dial(t, r.service).NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, securityv1.IstioCertificateService_CreateCertificate_FullMethodName))
	}
	// Nothing is sent after the headers: a service that waits for the message
	// would wait for ever.
	if err := open("x").RecvMsg(&securityv1.IstioCertificateResponse{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a stranger is told %v, want Unauthenticated", err)
	}
	large := request(nil)
	large.Csr = strings.Repeat("x", 1<<20)
	if _, err := r.call(r.token("shop/cart-1"), large); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a request of 1 MiB: %v, want InvalidArgument", err)
	}
	if line := r.log.String(); !strings.Contains(line, "request of 10485") { // and not: CSR of
		t.Errorf("log: %s", line)
	}
	compressed := securityv1.NewIstioCertificateServiceClient(dial(t, r.service))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+r.token("shop/cart-1"))
	if _, err := compressed.CreateCertificate(ctx, request(nil), grpc.UseCompressor(gzip.Name)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a compressed request: %v, want InvalidArgument", err)
	}
}

// metric returns a counter, of a reason if that is not "".
func (r *rig) metric(name, reason string) float64 {
	r.t.Helper()
	for _, family := range must(r.registry.Gather()) {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && (reason == "" || m.GetLabel()[0].GetValue() == reason) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	r.t.Errorf("no metric %s %s", name, reason)
	return -1
}

func TestCreateCertificate(t *testing.T) {
	cases := map[string]struct {
		caller string
		wanted any
		want   string
	}{
		"a pod's own":                     {"shop/cart-1", nil, "spiffe://cluster.local/ns/shop/sa/cart"},
		"a pending pod's own":             {"shop/pay-1", nil, "spiffe://cluster.local/ns/shop/sa/pay"},
		"ztunnel's own":                   {"istio-system/ztunnel-1", nil, "spiffe://cluster.local/ns/istio-system/sa/ztunnel"},
		"ztunnel for a pod of its node":   {"istio-system/ztunnel-1", "spiffe://cluster.local/ns/shop/sa/cart", "spiffe://cluster.local/ns/shop/sa/cart"},
		"ztunnel for a pod that starts":   {"istio-system/ztunnel-2", "spiffe://cluster.local/ns/shop/sa/pay", "spiffe://cluster.local/ns/shop/sa/pay"},
		"ztunnel for itself, by its name": {"istio-system/ztunnel-1", "spiffe://cluster.local/ns/istio-system/sa/ztunnel", "spiffe://cluster.local/ns/istio-system/sa/ztunnel"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			chain, err := r.call(r.token(c.caller), request(c.wanted))
			if err != nil {
				t.Fatalf("refused: %v\n%s", err, r.log)
			}
			leaf := verify(t, chain)
			if id, err := spiffe.FromCertificate(leaf); err != nil || id.String() != c.want {
				t.Errorf("issued for %v (%v), want %s", id, err, c.want)
			}
			if life := time.Until(leaf.NotAfter); life > time.Hour || life < time.Hour-time.Minute {
				t.Errorf("life %s, want the hour that was asked for", life)
			}
			if r.metric("citadel_server_csr_count", "") != 1 || r.metric("citadel_server_success_cert_issuance_count", "") != 1 {
				t.Error("not counted")
			}
			if r.log.Len() != 0 {
				t.Errorf("log: %s", r.log)
			}
		})
	}
}

// TestForeignNamesAreIgnored: what a request says about names has no effect.
func TestForeignNamesAreIgnored(t *testing.T) {
	r := newRig(t)
	req := request(nil)
	uri := must(url.Parse("spiffe://cluster.local/ns/shop/sa/pay"))
	req.Csr = csr(ecKey(elliptic.P256()), &x509.CertificateRequest{URIs: []*url.URL{uri}, DNSNames: []string{"pay.shop.svc"}})
	leaf := verify(t, must(r.call(r.token("shop/cart-1"), req)))
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/shop/sa/cart" || len(leaf.DNSNames) != 0 {
		t.Errorf("issued for %v %v", leaf.URIs, leaf.DNSNames)
	}
}

// refusals are the requests of issue #2, "Bad input", and their kin.
var refusals = map[string]struct {
	token  func(r *rig) string
	change func(r *rig, req *securityv1.IstioCertificateRequest)
	wanted any
	reason ca.Reason
	code   codes.Code
}{
	"an application's token asks for a neighbour": {
		pod("shop/cart-1"), nil, "spiffe://cluster.local/ns/shop/sa/pay", ca.ReasonNotTrusted, codes.PermissionDenied,
	},
	"an application's token impersonates itself": {
		pod("shop/cart-1"), nil, "spiffe://cluster.local/ns/shop/sa/cart", ca.ReasonNotTrusted, codes.PermissionDenied,
	},
	"unbound token, own identity": {
		unbound("shop", "cart"), nil, nil, ca.ReasonUnbound, codes.Unauthenticated,
	},
	"unbound token of ztunnel impersonates": {
		unbound("istio-system", "ztunnel"), nil, "spiffe://cluster.local/ns/shop/sa/cart", ca.ReasonUnbound, codes.Unauthenticated,
	},
	"deleted caller": {
		gone("shop/cart-1"), nil, nil, ca.ReasonPodGone, codes.Unauthenticated,
	},
	"deleted ztunnel impersonates": {
		gone("istio-system/ztunnel-1"), nil, "spiffe://cluster.local/ns/shop/sa/cart", ca.ReasonPodGone, codes.Unauthenticated,
	},
	"caller's pod was made again": {
		replaced("shop/cart-1", func(p *ca.Pod) { p.UID = "u-new" }), nil, nil, ca.ReasonPodGone, codes.Unauthenticated,
	},
	"caller's pod runs as another": {
		replaced("shop/cart-1", func(p *ca.Pod) { p.ServiceAccount = "pay" }), nil, nil, ca.ReasonPodAccount, codes.Unauthenticated,
	},
	"caller succeeded": {
		pod("shop/job-1"), nil, nil, ca.ReasonPodEnded, codes.Unauthenticated,
	},
	"caller failed": {
		pod("shop/broken-1"), nil, nil, ca.ReasonPodEnded, codes.Unauthenticated,
	},
	"the token's node is not the pod's": {
		replaced("istio-system/ztunnel-1", func(p *ca.Pod) { p.Node = "n2" }), nil, "spiffe://cluster.local/ns/shop/sa/pay",
		ca.ReasonPodNode, codes.Unauthenticated,
	},
	"the token names no node": {
		func(r *rig) string {
			return r.issuer.Token(authntest.Bound("istio-system", "ztunnel", "ztunnel-1", "u-z1", "", time.Now()))
		}, nil, "spiffe://cluster.local/ns/shop/sa/cart", ca.ReasonPodNode, codes.Unauthenticated,
	},
	"another node's identity": {
		pod("istio-system/ztunnel-1"), nil, "spiffe://cluster.local/ns/shop/sa/pay", ca.ReasonNotOnNode, codes.PermissionDenied,
	},
	"nobody's identity": {
		pod("istio-system/ztunnel-1"), nil, "spiffe://cluster.local/ns/kube-system/sa/admin", ca.ReasonNotOnNode, codes.PermissionDenied,
	},
	"identity of a pod that succeeded": {
		pod("istio-system/ztunnel-1"), nil, "spiffe://cluster.local/ns/shop/sa/job", ca.ReasonNotOnNode, codes.PermissionDenied,
	},
	"identity of a pod that failed": {
		pod("istio-system/ztunnel-1"), nil, "spiffe://cluster.local/ns/shop/sa/broken", ca.ReasonNotOnNode, codes.PermissionDenied,
	},
	"identity of a pod on no node yet": {
		pod("istio-system/ztunnel-1"), nil, "spiffe://cluster.local/ns/shop/sa/waiting", ca.ReasonNotOnNode, codes.PermissionDenied,
	},
	"foreign trust domain": {
		pod("istio-system/ztunnel-1"), nil, "spiffe://evil.example/ns/shop/sa/cart", ca.ReasonTrustDomain, codes.PermissionDenied,
	},
	"not a SPIFFE id": {
		pod("istio-system/ztunnel-1"), nil, "https://cluster.local/ns/shop/sa/cart", ca.ReasonIdentity, codes.InvalidArgument,
	},
	"path beyond the identity": {
		pod("istio-system/ztunnel-1"), nil, "spiffe://cluster.local/ns/shop/sa/cart/..", ca.ReasonIdentity, codes.InvalidArgument,
	},
	"empty identity": {
		pod("istio-system/ztunnel-1"), nil, "", ca.ReasonIdentity, codes.InvalidArgument,
	},
	"identity is a number": {
		pod("istio-system/ztunnel-1"), nil, 7, ca.ReasonIdentity, codes.InvalidArgument,
	},
	"alg none": {
		algNone, nil, "spiffe://cluster.local/ns/shop/sa/cart", ca.Reason(authn.ReasonAlgorithm), codes.Unauthenticated,
	},
	"HS256": {
		func(r *rig) string {
			key := jose.JSONWebKey{Key: []byte("0123456789abcdef0123456789abcdef"), KeyID: r.issuer.KeyID}
			return authntest.Sign(r.t, jose.SigningKey{Algorithm: jose.HS256, Key: key}, r.claims("shop/cart-1"))
		}, nil, nil, ca.Reason(authn.ReasonAlgorithm), codes.Unauthenticated,
	},
	"another issuer's key": {
		func(r *rig) string { return authntest.New(r.t).Token(r.claims("shop/cart-1")) }, nil, nil,
		ca.Reason(authn.ReasonSignature), codes.Unauthenticated,
	},
	"wrong audience": {
		claim("aud", []string{"https://kubernetes.default.svc"}), nil, nil, ca.Reason(authn.ReasonAudience), codes.Unauthenticated,
	},
	"expired": {
		claim("exp", time.Now().Add(-2*time.Minute).Unix()), nil, nil, ca.Reason(authn.ReasonExpired), codes.Unauthenticated,
	},
	"no token": {
		func(*rig) string { return "" }, nil, nil, ca.Reason(authn.ReasonMissing), codes.Unauthenticated,
	},
	"garbage token": {
		func(*rig) string { return "x" }, nil, nil, ca.Reason(authn.ReasonMalformed), codes.Unauthenticated,
	},
	"garbage CSR": {
		pod("shop/cart-1"), func(_ *rig, req *securityv1.IstioCertificateRequest) { req.Csr = "garbage" }, nil, ca.ReasonCSR, codes.InvalidArgument,
	},
	"weak key": {
		pod("shop/cart-1"), func(_ *rig, req *securityv1.IstioCertificateRequest) {
			req.Csr = csr(ecKey(elliptic.P224()), &x509.CertificateRequest{})
		}, nil, ca.ReasonCSRKey, codes.InvalidArgument,
	},
	"life too long": {
		pod("shop/cart-1"), func(_ *rig, req *securityv1.IstioCertificateRequest) { req.ValidityDuration = 90*24*3600 + 1 },
		nil, ca.ReasonTTL, codes.InvalidArgument,
	},
	"life that overflows": {
		pod("shop/cart-1"), func(_ *rig, req *securityv1.IstioCertificateRequest) { req.ValidityDuration = 1<<63 - 1 },
		nil, ca.ReasonTTL, codes.InvalidArgument,
	},
	"another signer": {
		pod("shop/cart-1"), func(_ *rig, req *securityv1.IstioCertificateRequest) {
			req.Metadata = must(structpb.NewStruct(map[string]any{"CertSigner": "vault"}))
		}, nil, ca.ReasonCertSigner, codes.InvalidArgument,
	},
}

func TestRefusals(t *testing.T) {
	for name, c := range refusals {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			token, req := c.token(r), request(c.wanted)
			if c.change != nil {
				c.change(r, req)
			}
			chain, err := r.call(token, req)
			if err == nil {
				t.Fatalf("issued for %v", certificates(t, chain[0])[0].URIs)
			}
			if got := status.Code(err); got != c.code {
				t.Errorf("code %v, want %v\n%s", got, c.code, r.log)
			}
			if text := status.Convert(err).Message(); !slices.Contains([]string{
				"caller is not authenticated", "identity is not permitted", "certificate request is not acceptable",
			}, text) {
				t.Errorf("the caller is told %q", text)
			}
			if got := r.metric("ambit_ca_refused_total", string(c.reason)); got != 1 {
				t.Errorf("reason %s counted %v times\n%s", c.reason, got, r.log)
			}
			sum := r.metric("citadel_server_authentication_failure_count", "") + r.metric("citadel_server_id_extraction_err_count", "") +
				r.metric("citadel_server_csr_parsing_err_count", "") + r.metric("citadel_server_csr_sign_err_count", "")
			if sum != 1 || r.metric("citadel_server_success_cert_issuance_count", "") != 0 {
				t.Errorf("counted as %v refusals", sum)
			}
			line := r.log.String()
			if strings.Count(line, "\n") != 1 || !strings.Contains(line, "reason="+string(c.reason)+" ") {
				t.Errorf("log: %s", line)
			}
			if len(token) > 20 && strings.Contains(line, token) {
				t.Errorf("the log holds the token: %s", line)
			}
		})
	}
}

func pod(name string) func(*rig) string { return func(r *rig) string { return r.token(name) } }

func unbound(namespace, account string) func(*rig) string {
	return func(r *rig) string { return r.issuer.Token(authntest.Unbound(namespace, account, time.Now())) }
}

func gone(name string) func(*rig) string {
	return func(r *rig) string {
		token := r.token(name)
		delete(r.pods, name)
		return token
	}
}

func replaced(name string, change func(*ca.Pod)) func(*rig) string {
	return func(r *rig) string {
		token, live := r.token(name), r.pods[name]
		change(&live)
		r.pods[name] = live
		return token
	}
}

func claim(name string, value any) func(*rig) string {
	return func(r *rig) string { return r.issuer.Token(r.claims("shop/cart-1").With(name, value)) }
}

func algNone(r *rig) string {
	header := must(json.Marshal(map[string]string{"alg": "none", "kid": r.issuer.KeyID}))
	body := must(json.Marshal(r.claims("istio-system/ztunnel-1")))
	b64 := base64.RawURLEncoding.EncodeToString
	return b64(header) + "." + b64(body) + "."
}

func TestAuthorityThatCannotSign(t *testing.T) {
	r := newRig(t)
	registry := prometheus.NewRegistry()
	service := ca.NewService(ca.ServiceConfig{
		Authority:   must(ca.NewSelfSigned("cluster.local", time.Now().Add(-11*365*24*time.Hour))),
		Verify:      func(context.Context, string) (authn.Caller, error) { return cart, nil },
		Pods:        r.pods,
		TrustDomain: func() string { return "cluster.local" }, Metrics: registry,
	})
	_, err := call(t, service, rand.Text(), request(nil))
	if status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	r.registry = registry
	if got := r.metric("citadel_server_csr_sign_err_count", ""); got != 1 {
		t.Errorf("csr_sign_err_count = %v", got)
	}
	if got := r.metric("citadel_server_root_cert_expiry_seconds", ""); got >= 0 {
		t.Errorf("root expiry in %v s", got)
	}
}

var cart = authn.Caller{Namespace: "shop", ServiceAccount: "cart", Pod: authn.Pod{Name: "cart-1", UID: "u-c1"}, Node: "n1"}

func TestVerifierAway(t *testing.T) {
	r := newRig(t)
	service := ca.NewService(ca.ServiceConfig{
		Authority:   must(ca.NewSelfSigned("cluster.local", time.Now())),
		Verify:      func(context.Context, string) (authn.Caller, error) { return authn.Caller{}, context.DeadlineExceeded },
		Pods:        r.pods,
		TrustDomain: func() string { return "cluster.local" },
	})
	if _, err := call(t, service, rand.Text(), request(nil)); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}
