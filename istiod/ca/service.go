package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/istiod/authn"
)

// certSigner is the metadata key by which Istio's clients choose a Kubernetes
// signer. There is none here, and a certificate of another authority than the
// one asked for would be a silent surprise.
const certSigner = "CertSigner"

// ServiceConfig is all that a Service needs.
type ServiceConfig struct {
	Authority *Authority
	Verify    authn.Verify
	Pods      Pods
	// TrustDomain returns the mesh's current trust domain.
	TrustDomain func() string
	// TrustedNodeAccounts are the service accounts, as namespace/name, that may
	// ask for the identities of the pods on their own node.
	TrustedNodeAccounts []string
	Log                 *slog.Logger
	Metrics             prometheus.Registerer // nil: not exported
}

// Service answers certificate requests.
type Service struct {
	securityv1.UnimplementedIstioCertificateServiceServer

	cfg     ServiceConfig
	metrics *metrics
}

// NewService returns a Service.
func NewService(cfg ServiceConfig) *Service {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{cfg: cfg, metrics: newMetrics(cfg.Metrics, cfg.Authority)}
}

// Register adds the service to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	securityv1.RegisterIstioCertificateServiceServer(r, s)
}

// CreateCertificate implements istio.v1.auth.IstioCertificateService.
//
//  1. Who is calling: a token of ours, bound to a pod that lives.
//  2. Which identity: its own, or another that it may ask for.
//  3. Only then the request itself is parsed, and signed.
//
// Every refusal is counted and logged once, and tells the caller no details.
func (s *Service) CreateCertificate(
	ctx context.Context, req *securityv1.IstioCertificateRequest,
) (*securityv1.IstioCertificateResponse, error) {
	s.metrics.requests.Inc()
	wanted, present := req.GetMetadata().GetFields()[mesh.ImpersonatedIdentity]
	caller, pod, no := s.authenticate(ctx)
	if no != nil {
		return nil, s.refuse(ctx, caller, wanted, no)
	}
	id, no := s.identity(caller, pod, wanted, present)
	if no != nil {
		return nil, s.refuse(ctx, caller, wanted, no)
	}
	if req.GetMetadata().GetFields()[certSigner].GetStringValue() != "" {
		return nil, s.refuse(ctx, caller, wanted, &refusal{ReasonCertSigner, errors.New("no other signer than our own")})
	}
	chain, err := s.sign(req, id)
	if err != nil {
		reason := ReasonAuthority
		if fault, ok := errors.AsType[*RequestError](err); ok {
			reason = fault.Reason
		}
		return nil, s.refuse(ctx, caller, wanted, &refusal{reason, err})
	}
	s.metrics.issued.Inc()
	s.cfg.Log.Debug("certificate issued", "caller", caller.String(), "identity", id.String())
	return &securityv1.IstioCertificateResponse{CertChain: chain}, nil
}

// authenticate returns the caller and its live pod.
func (s *Service) authenticate(ctx context.Context) (authn.Caller, Pod, *refusal) {
	token, err := authn.BearerToken(ctx)
	if err != nil {
		return authn.Caller{}, Pod{}, &refusal{Reason(authn.ReasonOf(err)), err}
	}
	caller, err := s.cfg.Verify(ctx, token)
	if err != nil {
		return authn.Caller{}, Pod{}, &refusal{Reason(authn.ReasonOf(err)), err}
	}
	if !caller.Bound() {
		return caller, Pod{}, &refusal{ReasonUnbound, errors.New("token is bound to no pod")}
	}
	pod, ok := s.cfg.Pods.Pod(caller.Namespace, caller.Pod.Name)
	switch {
	case !ok:
		return caller, Pod{}, &refusal{ReasonPodGone, errors.New("caller's pod does not exist")}
	case pod.UID != caller.Pod.UID:
		return caller, Pod{}, &refusal{ReasonPodGone, fmt.Errorf("caller's pod is now another one, uid %s", pod.UID)}
	case pod.ServiceAccount != caller.ServiceAccount:
		return caller, Pod{}, &refusal{ReasonPodAccount, fmt.Errorf("caller's pod runs as %q", pod.ServiceAccount)}
	case pod.ended():
		return caller, Pod{}, &refusal{ReasonPodEnded, fmt.Errorf("caller's pod is %s", pod.Phase)}
	case caller.Node != "" && caller.Node != pod.Node:
		return caller, Pod{}, &refusal{ReasonPodNode, fmt.Errorf("caller's pod is on node %q", pod.Node)}
	}
	return caller, pod, nil
}

// identity decides whose name the certificate bears. Without a wanted identity
// it is the caller's own. With one, all of DESIGN §4 must hold: a trusted node
// account, a token that names the node of the caller's pod, our trust domain,
// and a pod of the wanted identity on that node.
func (s *Service) identity(caller authn.Caller, pod Pod, wanted *structpb.Value, present bool) (spiffe.ID, *refusal) {
	trustDomain := s.cfg.TrustDomain()
	if !present {
		id, err := spiffe.New(trustDomain, caller.Namespace, caller.ServiceAccount)
		if err != nil {
			return spiffe.ID{}, &refusal{ReasonIdentity, err}
		}
		return id, nil
	}
	if !slices.Contains(s.cfg.TrustedNodeAccounts, caller.Namespace+"/"+caller.ServiceAccount) {
		return spiffe.ID{}, &refusal{ReasonNotTrusted, errors.New("caller may not impersonate; see CA_TRUSTED_NODE_ACCOUNTS")}
	}
	if caller.Node == "" || pod.Node == "" {
		return spiffe.ID{}, &refusal{ReasonPodNode, errors.New("token or pod names no node")}
	}
	id, err := spiffe.Parse(wanted.GetStringValue())
	switch {
	case err != nil:
		return spiffe.ID{}, &refusal{ReasonIdentity, errors.New("wanted identity is not a SPIFFE id of a service account")}
	case id.TrustDomain() != trustDomain:
		return spiffe.ID{}, &refusal{ReasonTrustDomain, fmt.Errorf("trust domain is %q", trustDomain)}
	case !s.cfg.Pods.RunsOn(pod.Node, id.Namespace(), id.ServiceAccount()):
		return spiffe.ID{}, &refusal{ReasonNotOnNode, fmt.Errorf("no running pod of that identity on node %q", pod.Node)}
	}
	return id, nil
}

func (s *Service) sign(req *securityv1.IstioCertificateRequest, id spiffe.ID) ([]string, error) {
	seconds := req.GetValidityDuration()
	if seconds > int64(maxTTL/time.Second) { // before the product below can overflow
		return nil, &RequestError{ReasonTTL, fmt.Errorf("life of %d s is more than %s", seconds, maxTTL)}
	}
	return s.cfg.Authority.Sign(req.GetCsr(), id, time.Duration(max(0, seconds))*time.Second)
}

// refuse is the one place where a request ends without a certificate.
func (s *Service) refuse(ctx context.Context, caller authn.Caller, wanted *structpb.Value, no *refusal) error {
	s.metrics.refuse(no.reason)
	from := ""
	if p, ok := peer.FromContext(ctx); ok {
		from = p.Addr.String()
	}
	s.cfg.Log.Warn("certificate request refused", "reason", string(no.reason), "caller", caller.String(),
		"wanted", clip(wanted.GetStringValue()), "peer", from, "error", no.err)
	code := no.reason.code()
	return status.Error(code, opaque(code))
}

// clip keeps what a stranger sent from filling the log.
func clip(text string) string {
	const most = 256
	if len(text) <= most {
		return text
	}
	return text[:most] + "…"
}
