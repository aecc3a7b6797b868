package route

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
)

// Condition is a set of reasons to try again.
type Condition uint32

// Conditions, named as in Envoy's retry_on.
const (
	OnConnectFailure     Condition = 1 << iota // connect-failure: no connection to the endpoint
	OnRefusedStream                            // refused-stream: the tunnel's peer refused it unseen
	OnReset                                    // reset: connected, no response came
	OnResetBeforeRequest                       // reset-before-request: broke before the request was sent
	On5xx                                      // 5xx, which includes the reasons above and a timeout of the try
	OnGatewayError                             // gateway-error: 502, 503, 504
	OnRetriable4xx                             // retriable-4xx: 409
	OnStatus                                   // retriable-status-codes
	OnRateLimited                              // envoy-ratelimited
	OnGRPC                                     // any of the gRPC conditions, see Retry.GRPC
)

var conditions = map[string]Condition{
	"connect-failure":        OnConnectFailure,
	"refused-stream":         OnRefusedStream,
	"reset":                  OnReset,
	"reset-before-request":   OnResetBeforeRequest,
	"5xx":                    On5xx,
	"gateway-error":          OnGatewayError,
	"retriable-4xx":          OnRetriable4xx,
	"retriable-status-codes": OnStatus,
	"envoy-ratelimited":      OnRateLimited,
}

var grpcConditions = map[string]string{
	"cancelled":          "1",
	"deadline-exceeded":  "4",
	"resource-exhausted": "8",
	"internal":           "13",
	"unavailable":        "14",
}

// Retry says when a request is sent again. The zero Retry never does.
type Retry struct {
	On         Condition
	Attempts   int // after the first
	PerTry     time.Duration
	Statuses   []int    // for OnStatus
	GRPC       []string // grpc-status values for OnGRPC
	Base, Most time.Duration
}

// DefaultBase is the interval before the first retry when none is configured.
const DefaultBase = 25 * time.Millisecond

// ParseRetryOn reads a comma separated list of conditions. A word that it does
// not know is an error: a retry that people count on must not silently not be.
func (r *Retry) ParseRetryOn(list string) error {
	for word := range strings.SplitSeq(list, ",") {
		word = strings.TrimSpace(word)
		if word == "" {
			continue
		}
		if status, ok := grpcConditions[word]; ok {
			r.On |= OnGRPC
			r.GRPC = append(r.GRPC, status)
			continue
		}
		if code, err := strconv.Atoi(word); err == nil && code >= 100 && code <= 599 {
			r.On |= OnStatus
			r.Statuses = append(r.Statuses, code)
			continue
		}
		condition, ok := conditions[word]
		if !ok {
			return fmt.Errorf("retry_on %q is not supported", word)
		}
		r.On |= condition
	}
	return nil
}

// Failed reports whether a try that gave no response is repeated; cause is one
// of the conditions.
func (r *Retry) Failed(cause Condition) bool {
	on := r.On
	if on&(On5xx|OnGatewayError) != 0 {
		on |= OnConnectFailure | OnRefusedStream | OnReset | OnResetBeforeRequest
	}
	if on&OnReset != 0 {
		on |= OnResetBeforeRequest
	}
	return on&cause != 0
}

// TimedOut reports whether a try that ran into PerTry is repeated.
func (r *Retry) TimedOut() bool { return r.On&(On5xx|OnGatewayError|OnReset) != 0 }

// Answered reports whether a response is thrown away for another try.
func (r *Retry) Answered(res *codec.Response) bool {
	if r.On&(On5xx|OnGatewayError|OnRetriable4xx|OnStatus|OnRateLimited|OnGRPC) == 0 {
		return false
	}
	switch s := res.Status; {
	case r.On&On5xx != 0 && s >= 500,
		r.On&OnGatewayError != 0 && s >= 502 && s <= 504,
		r.On&OnRetriable4xx != 0 && s == 409,
		r.On&OnStatus != 0 && slices.Contains(r.Statuses, s):
		return true
	}
	if r.On&OnRateLimited != 0 {
		if _, limited := codec.Get(res.Fields, "x-envoy-ratelimited"); limited {
			return true
		}
	}
	if r.On&OnGRPC != 0 {
		status, ok := codec.Get(res.Fields, "grpc-status")
		return ok && slices.Contains(r.GRPC, status)
	}
	return false
}

// Pause returns how long to wait before a retry, the first being number 1: a
// random part of an interval that doubles and is bounded.
func (r *Retry) Pause(number int, random uint64) time.Duration {
	base, most := r.Base, r.Most
	if base <= 0 {
		base = DefaultBase
	}
	base = min(base, time.Hour) // so that nothing below overflows
	if most <= 0 {
		most = 10 * base
	}
	interval := min(base<<min(number-1, 20), most)
	return time.Duration(random % uint64(interval))
}
