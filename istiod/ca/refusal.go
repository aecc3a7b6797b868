package ca

import (
	"google.golang.org/grpc/codes"

	"github.com/ambit-mesh/ambit/istiod/authn"
)

// Reason is why no certificate was issued. The same word is in the log, in the
// metric and in tests. Beside these, every authn.Reason is one.
type Reason string

// The reasons.
const (
	ReasonUnbound         Reason = "caller-unbound"                // the token is bound to no pod
	ReasonPodGone         Reason = "caller-pod-gone"               // no such pod, or another of the same name
	ReasonPodEnded        Reason = "caller-pod-ended"              // Failed or Succeeded
	ReasonPodAccount      Reason = "caller-pod-account"            // the pod runs as another service account
	ReasonPodNode         Reason = "caller-pod-node"               // the token names no node or not the pod's
	ReasonIdentity        Reason = "identity-malformed"            // the wanted identity is none
	ReasonTrustDomain     Reason = "identity-trust-domain"         // of another trust domain
	ReasonNotTrusted      Reason = "impersonation-not-trusted"     // the caller may have only its own
	ReasonNotOnNode       Reason = "identity-not-on-node"          // no such pod runs on the caller's node
	ReasonCertSigner      Reason = "cert-signer-unsupported"       // another signer was asked for
	ReasonCSR             Reason = "csr-malformed"                 // not a certificate request
	ReasonCSRKey          Reason = "csr-key-weak"                  // its key is not acceptable
	ReasonCSRSignature    Reason = "csr-signature"                 // it does not prove possession of the key
	ReasonTTL             Reason = "ttl-too-long"                  // more than the maximum
	ReasonAuthority       Reason = "authority-unavailable"         // our own certificate or key fails
	reasonTokenUnknowable        = Reason(authn.ReasonUnavailable) // nobody could be asked about the token
)

// reasons are all of them, so that a metric starts at zero.
func reasons() []Reason {
	return []Reason{
		Reason(authn.ReasonMissing), Reason(authn.ReasonMalformed), Reason(authn.ReasonAlgorithm), Reason(authn.ReasonUnknownKey),
		Reason(authn.ReasonSignature), Reason(authn.ReasonExpired), Reason(authn.ReasonNotYetValid), Reason(authn.ReasonIssuer),
		Reason(authn.ReasonAudience), Reason(authn.ReasonSubject), Reason(authn.ReasonReview), reasonTokenUnknowable,
		ReasonUnbound, ReasonPodGone, ReasonPodEnded, ReasonPodAccount, ReasonPodNode, ReasonIdentity, ReasonTrustDomain,
		ReasonNotTrusted, ReasonNotOnNode, ReasonCertSigner, ReasonCSR, ReasonCSRKey, ReasonCSRSignature, ReasonTTL, ReasonAuthority,
	}
}

// Code is what the caller gets to know: whether to bring another token, to stop
// asking for this identity, to mend the request, or to come again.
func (r Reason) Code() codes.Code {
	switch r {
	case ReasonNotTrusted, ReasonTrustDomain, ReasonNotOnNode:
		return codes.PermissionDenied
	case ReasonIdentity, ReasonCertSigner, ReasonCSR, ReasonCSRKey, ReasonCSRSignature, ReasonTTL:
		return codes.InvalidArgument
	case ReasonAuthority:
		return codes.Internal
	case reasonTokenUnknowable:
		return codes.Unavailable
	default: // about the token, or about the pod that it speaks for
		return codes.Unauthenticated
	}
}

// opaque is all that a caller is told: the same text for every reason of a code.
func opaque(code codes.Code) string {
	switch code {
	case codes.PermissionDenied:
		return "identity is not permitted"
	case codes.InvalidArgument:
		return "certificate request is not acceptable"
	case codes.Internal, codes.Unavailable:
		return "certificate authority is not ready"
	default:
		return "caller is not authenticated"
	}
}

// Refusal is a decision against a caller, or a request that is itself at fault.
// What it says is for our log.
type Refusal struct {
	Reason Reason
	Err    error
}

// Error implements error.
func (e *Refusal) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong.
func (e *Refusal) Unwrap() error { return e.Err }
