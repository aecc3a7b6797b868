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

// Register adds the service to a gRPC server. Its method is registered as a
// stream, which has the same form on the wire: of a unary one gRPC reads the
// message before anybody can ask who is calling.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	description := securityv1.IstioCertificateService_ServiceDesc
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: description.ServiceName, HandlerType: (*any)(nil), Metadata: description.Metadata,
		Streams: []grpc.StreamDesc{{
			StreamName: description.Methods[0].MethodName,
			Handler:    func(_ any, stream grpc.ServerStream) error { return s.createCertificate(stream) },
		}},
	}, s)
}

// createCertificate is istio.v1.auth.IstioCertificateService/CreateCertificate.
//
//  1. Who is calling: a token of ours, bound to a pod that lives.
//  2. Only then the request is read, up to a limit.
//  3. Which identity: its own, or another that it may ask for.
//  4. The request itself is parsed, and signed.
//
// Every refusal is counted and logged once, and tells the caller no details.
func (s *Service) createCertificate(stream grpc.ServerStream) error {
	ctx := stream.Context()
	s.metrics.requests.Inc()
	caller, pod, err := Authenticate(ctx, s.cfg.Verify, s.cfg.Pods)
	if err != nil {
		return s.refuse(ctx, caller, nil, err)
	}
	req, err := receive(ctx)
	if err != nil {
		return s.refuse(ctx, caller, nil, err)
	}
	wanted, present := req.GetMetadata().GetFields()[mesh.ImpersonatedIdentity]
	id, err := s.identity(caller, pod, wanted, present)
	if err != nil {
		return s.refuse(ctx, caller, wanted, err)
	}
	if req.GetMetadata().GetFields()[certSigner].GetStringValue() != "" {
		return s.refuse(ctx, caller, wanted, &Refusal{ReasonCertSigner, errors.New("no other signer than our own")})
	}
	chain, err := s.sign(req, id)
	if err != nil {
		return s.refuse(ctx, caller, wanted, err)
	}
	s.metrics.issued.Inc()
	s.cfg.Log.Debug("certificate issued", "caller", caller.String(), "identity", id.String())
	return stream.SendMsg(&securityv1.IstioCertificateResponse{CertChain: chain})
}

// Authenticate returns who is calling, by the token of a gRPC request, and the
// live pod that the token is bound to. An error is a *Refusal.
func Authenticate(ctx context.Context, verify authn.Verify, pods Pods) (authn.Caller, Pod, error) {
	token, err := authn.BearerToken(ctx)
	if err != nil {
		return authn.Caller{}, Pod{}, &Refusal{Reason(authn.ReasonOf(err)), err}
	}
	caller, err := verify(ctx, token)
	if err != nil {
		return authn.Caller{}, Pod{}, &Refusal{Reason(authn.ReasonOf(err)), err}
	}
	pod, err := livePod(caller, pods)
	return caller, pod, err
}

func livePod(caller authn.Caller, pods Pods) (Pod, error) {
	if !caller.Bound() {
		return Pod{}, &Refusal{ReasonUnbound, errors.New("token is bound to no pod")}
	}
	pod, ok := pods.Pod(caller.Namespace, caller.Pod.Name)
	switch {
	case !ok:
		return Pod{}, &Refusal{ReasonPodGone, errors.New("caller's pod does not exist")}
	case pod.UID != caller.Pod.UID:
		return Pod{}, &Refusal{ReasonPodGone, fmt.Errorf("caller's pod is now another one, uid %s", pod.UID)}
	case pod.ServiceAccount != caller.ServiceAccount:
		return Pod{}, &Refusal{ReasonPodAccount, fmt.Errorf("caller's pod runs as %q", pod.ServiceAccount)}
	case pod.ended():
		return Pod{}, &Refusal{ReasonPodEnded, fmt.Errorf("caller's pod is %s", pod.Phase)}
	case caller.Node != "" && caller.Node != pod.Node:
		return Pod{}, &Refusal{ReasonPodNode, fmt.Errorf("caller's pod is on node %q", pod.Node)}
	}
	return pod, nil
}

// identity decides whose name the certificate bears. Without a wanted identity
// it is the caller's own. With one, all of DESIGN §4 must hold: a trusted node
// account, a token that names the node of the caller's pod, our trust domain,
// and a pod of the wanted identity on that node.
func (s *Service) identity(caller authn.Caller, pod Pod, wanted *structpb.Value, present bool) (spiffe.ID, error) {
	trustDomain := s.cfg.TrustDomain()
	if !present {
		id, err := spiffe.New(trustDomain, caller.Namespace, caller.ServiceAccount)
		if err != nil {
			return spiffe.ID{}, &Refusal{ReasonIdentity, err}
		}
		return id, nil
	}
	if !slices.Contains(s.cfg.TrustedNodeAccounts, caller.Namespace+"/"+caller.ServiceAccount) {
		return spiffe.ID{}, &Refusal{ReasonNotTrusted, errors.New("caller may not impersonate; see CA_TRUSTED_NODE_ACCOUNTS")}
	}
	if caller.Node == "" || pod.Node == "" {
		return spiffe.ID{}, &Refusal{ReasonPodNode, errors.New("token or pod names no node")}
	}
	id, err := spiffe.Parse(wanted.GetStringValue())
	switch {
	case err != nil:
		return spiffe.ID{}, &Refusal{ReasonIdentity, errors.New("wanted identity is not a SPIFFE id of a service account")}
	case id.TrustDomain() != trustDomain:
		return spiffe.ID{}, &Refusal{ReasonTrustDomain, fmt.Errorf("trust domain is %q", trustDomain)}
	case !s.cfg.Pods.RunsOn(pod.Node, id.Namespace(), id.ServiceAccount()):
		return spiffe.ID{}, &Refusal{ReasonNotOnNode, fmt.Errorf("no running pod of that identity on node %q", pod.Node)}
	}
	return id, nil
}

func (s *Service) sign(req *securityv1.IstioCertificateRequest, id spiffe.ID) ([]string, error) {
	seconds := req.GetValidityDuration()
	if seconds > int64(maxTTL/time.Second) { // before the product below can overflow
		return nil, &Refusal{ReasonTTL, fmt.Errorf("life of %d s is more than %s", seconds, maxTTL)}
	}
	return s.cfg.Authority.Sign(req.GetCsr(), id, time.Duration(max(0, seconds))*time.Second)
}

// refuse is the one place where a request ends without a certificate. An error
// that is no fault of the request's is the authority's.
func (s *Service) refuse(ctx context.Context, caller authn.Caller, wanted *structpb.Value, err error) error {
	reason := ReasonAuthority
	if no, ok := errors.AsType[*Refusal](err); ok {
		reason = no.Reason
	}
	s.metrics.refuse(reason)
	from := ""
	if p, ok := peer.FromContext(ctx); ok {
		from = p.Addr.String()
	}
	s.cfg.Log.Warn("certificate request refused", "reason", string(reason), "caller", caller.String(),
		"wanted", clip(wanted.GetStringValue()), "peer", from, "error", err)
	code := reason.Code()
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
