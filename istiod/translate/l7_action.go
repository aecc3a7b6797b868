package translate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

// Retries when the user says nothing, spec/control-plane.md §5.2.
const (
	defaultAttempts      = 2
	gatewayAPIRetryOn    = "connect-failure,refused-stream,unavailable,cancelled"
	defaultRetryOn       = gatewayAPIRetryOn + "," + retriableStatusCodes
	retriableStatusCodes = "retriable-status-codes"
	previousHosts        = "envoy.retry_host_predicates.previous_hosts"
	hostSelections       = 5
	defaultRedirectCode  = 301
)

// newRouteAction has no timeout: requests may last for ever unless the user
// says otherwise, spec/control-plane.md §5.1.
func newRouteAction() *routev3.RouteAction {
	return &routev3.RouteAction{Timeout: durationpb.New(0)}
}

func defaultRetryPolicy() *routev3.RetryPolicy {
	return retryPolicy(defaultAttempts, defaultRetryOn)
}

func retryPolicy(attempts uint32, retryOn string) *routev3.RetryPolicy {
	return &routev3.RetryPolicy{
		RetryOn:    retryOn,
		NumRetries: wrapperspb.UInt32(attempts),
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       previousHosts,
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: mustAny(&previoushostsv3.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: hostSelections,
	}
}

// retries translates a VirtualService's retries; nil is the default policy and
// attempts: 0 is none.
func retries(r *networking.HTTPRetry) *routev3.RetryPolicy {
	if r == nil {
		return defaultRetryPolicy()
	}
	if r.Attempts <= 0 {
		return nil
	}
	conditions, codes, _ := splitRetryOn(r.RetryOn)
	out := retryPolicy(uint32(r.Attempts), conditions)
	out.RetriableStatusCodes = codes
	if r.PerTryTimeout != nil {
		out.PerTryTimeout = proto.CloneOf(r.PerTryTimeout)
	}
	if r.Backoff != nil {
		out.RetryBackOff = backOff(r.Backoff.AsDuration())
	}
	if r.RetryIgnorePreviousHosts != nil && !r.RetryIgnorePreviousHosts.Value {
		out.RetryHostPredicate, out.HostSelectionRetryMaxAttempts = nil, 0
	}
	return out
}

func backOff(base time.Duration) *routev3.RetryPolicy_RetryBackOff {
	return &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(base)}
}

// retryConditions are those that a waypoint knows, spec/control-plane.md §5.2.
var retryConditions = map[string]bool{
	"5xx": true, "gateway-error": true, "reset": true, "reset-before-request": true, "connect-failure": true,
	"envoy-ratelimited": true, "retriable-4xx": true, "refused-stream": true, retriableStatusCodes: true,
	"cancelled": true, "deadline-exceeded": true, "internal": true, "resource-exhausted": true, "unavailable": true,
}

// splitRetryOn takes the HTTP status codes out of the list of conditions, and
// the words that no waypoint knows.
func splitRetryOn(retryOn string) (conditions string, codes []uint32, unknown []string) {
	if strings.TrimSpace(retryOn) == "" {
		return defaultRetryOn, nil, nil
	}
	var words []string
	for word := range strings.SplitSeq(retryOn, ",") {
		word = strings.TrimSpace(word)
		code, err := strconv.ParseUint(word, 10, 16)
		switch {
		case err == nil && code >= 100 && code <= 599:
			codes = append(codes, uint32(code))
		case retryConditions[word]:
			words = append(words, word)
		case word != "":
			unknown = append(unknown, word)
		}
	}
	if len(codes) > 0 && !slices.Contains(words, retriableStatusCodes) {
		words = append(words, retriableStatusCodes)
	}
	return strings.Join(words, ","), codes, unknown
}

// redirectCodes are the statuses that a redirect can have.
var redirectCodes = map[int]routev3.RedirectAction_RedirectResponseCode{
	301: routev3.RedirectAction_MOVED_PERMANENTLY,
	302: routev3.RedirectAction_FOUND,
	303: routev3.RedirectAction_SEE_OTHER,
	307: routev3.RedirectAction_TEMPORARY_REDIRECT,
	308: routev3.RedirectAction_PERMANENT_REDIRECT,
}

// redirect translates a VirtualService's redirect; port is the one that the
// request came to. A port_redirect that is the scheme's own is not to be
// printed in the location, spec/control-plane.md §5.1.
func redirect(r *networking.HTTPRedirect, port uint32) (*routev3.RedirectAction, *fieldError) {
	status := int(r.RedirectCode)
	if status == 0 {
		status = defaultRedirectCode
	}
	code, known := redirectCodes[status]
	if !known {
		return nil, &fieldError{path: "redirectCode", message: fmt.Sprintf("status %d is not one of 301, 302, 303, 307, 308", status)}
	}
	if !validHost(r.Authority) || !httpguts.ValidHeaderFieldValue(r.Scheme+r.Uri+r.PrefixRewrite) {
		return nil, &fieldError{path: "uri", message: "the location would have characters that no header can have"}
	}
	out := &routev3.RedirectAction{ResponseCode: code, HostRedirect: r.Authority}
	if r.Scheme != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: r.Scheme}
	}
	switch {
	case r.PrefixRewrite != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: r.PrefixRewrite}
	case r.Uri != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: r.Uri}
	}
	switch p := r.RedirectPort.(type) {
	case *networking.HTTPRedirect_Port:
		out.PortRedirect = p.Port
	case *networking.HTTPRedirect_DerivePort:
		if p.DerivePort == networking.HTTPRedirect_FROM_REQUEST_PORT {
			out.PortRedirect = port
		} else {
			out.PortRedirect = schemePort(r.Scheme)
		}
	}
	return out, nil
}

func schemePort(scheme string) uint32 {
	if scheme == "https" {
		return 443
	}
	return 80
}

func directResponse(status uint32, body *networking.HTTPBody) *routev3.DirectResponseAction {
	out := &routev3.DirectResponseAction{Status: status}
	switch b := body.GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: b.String_}}
	case *networking.HTTPBody_Bytes:
		out.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b.Bytes}}
	}
	return out
}

// answer responds to the request without asking anybody.
func answer(status uint32) *routev3.Route_DirectResponse {
	return &routev3.Route_DirectResponse{DirectResponse: directResponse(status, nil)}
}

// mustAny packs a message of ours; it fails only on invalid UTF-8, which the
// manifests that it comes from cannot hold.
func mustAny(m proto.Message) *anypb.Any {
	packed := &anypb.Any{}
	if err := anypb.MarshalFrom(packed, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic("translate: marshal " + string(m.ProtoReflect().Descriptor().FullName()) + ": " + err.Error())
	}
	return packed
}
