// Package authn answers one question: which pod of which service account is
// calling? It owns the meaning of a Kubernetes service-account token. It does
// not decide what the caller may do; istiod/ca and the xDS server's Authorize
// function do.
//
// Verify is the one interface, with one implementation per place that knows the
// truth: JWKS for a file of public keys, TokenReview for a cluster. An error of
// either says precisely what is wrong and is for our own log only; what goes
// back to a caller is opaque. Values are safe for concurrent use.
//
// Spec: spec/control-plane.md §3.1 and §7.2, DESIGN §4.
package authn

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/metadata"
)

// Caller is who presented a token.
type Caller struct {
	Namespace      string
	ServiceAccount string
	// Pod is the pod that the token is bound to; zero when it is bound to none.
	Pod Pod
	// Node is where the token says its pod runs, "" when it does not say.
	Node string
}

// Pod names one life of a pod: a pod created again under its name has another UID.
type Pod struct{ Name, UID string }

// Bound reports whether the token was issued to a pod and ends with it.
func (c Caller) Bound() bool { return c.Pod != Pod{} }

// String is the caller as log lines show it.
func (c Caller) String() string {
	if c == (Caller{}) {
		return ""
	}
	text := c.Namespace + "/" + c.ServiceAccount
	if c.Bound() {
		text += " pod " + c.Pod.Name + " uid " + c.Pod.UID
	}
	if c.Node != "" {
		text += " node " + c.Node
	}
	return text
}

// Verify returns who a token was issued to. A refusal is an *Error.
type Verify func(ctx context.Context, token string) (Caller, error)

// Reason is why a token was refused, for logs, metrics and tests.
type Reason string

// The reasons. ReasonUnavailable alone is not the token's fault: nobody could
// be asked.
const (
	ReasonMissing     Reason = "token-missing"
	ReasonMalformed   Reason = "token-malformed"
	ReasonAlgorithm   Reason = "token-algorithm"
	ReasonUnknownKey  Reason = "token-unknown-key"
	ReasonSignature   Reason = "token-signature"
	ReasonExpired     Reason = "token-expired"
	ReasonNotYetValid Reason = "token-not-yet-valid"
	ReasonIssuer      Reason = "token-issuer"
	ReasonAudience    Reason = "token-audience"
	ReasonSubject     Reason = "token-subject"
	ReasonReview      Reason = "token-review" // the API server says no
	ReasonUnavailable Reason = "token-unverifiable"
)

// Error is a refused token. It never contains the token.
type Error struct {
	Reason Reason
	Err    error
}

// Error implements error.
func (e *Error) Error() string { return "token: " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf returns the reason of a refused token; an error that carries none is
// a fault of the verifier.
func ReasonOf(err error) Reason {
	if refused, ok := errors.AsType[*Error](err); ok {
		return refused.Reason
	}
	return ReasonUnavailable
}

func refuse(reason Reason, text string) error {
	return &Error{Reason: reason, Err: errors.New(text)}
}

const bearer = "bearer "

// BearerToken returns the token of a gRPC request's authorization metadata.
// More than one is refused: two readers could pick different ones.
func BearerToken(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	switch {
	case len(values) == 0:
		return "", refuse(ReasonMissing, "no authorization metadata")
	case len(values) > 1:
		return "", refuse(ReasonMalformed, "more than one authorization value")
	}
	value := values[0]
	if len(value) < len(bearer) || !strings.EqualFold(value[:len(bearer)], bearer) {
		return "", refuse(ReasonMissing, "authorization is not a bearer token")
	}
	token := strings.TrimSpace(value[len(bearer):])
	if token == "" {
		return "", refuse(ReasonMissing, "bearer token is empty")
	}
	return token, nil
}
