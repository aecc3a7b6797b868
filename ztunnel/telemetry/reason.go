package telemetry

// Reason says why a connection was refused or failed. One value serves the
// access log (String), the metric label response_flags (Flag) and tests.
type Reason uint8

// The reasons. The zero Reason is success.
const (
	OK Reason = iota

	// Before a plan: nothing was dialled.
	SelfCall            // the target is one of ztunnel's own ports
	UnknownSource       // the pod's own workload has not arrived
	HoldLimit           // too many connections of the pod are held already
	BadRequest          // a CONNECT that is none, or whose authority does not parse
	IPMismatch          // the authority is not the address that was connected to
	UnknownDestination  // the authority's service, port or address is not known
	NoHealthyEndpoint   // the service has no endpoint that may be used
	WaypointUnavailable // a waypoint must be passed and cannot be reached
	GatewayUnavailable  // the gateway to another network cannot be reached
	NotSupported        // by this version

	// Policy.
	PolicyDenied  // by a policy, or no ALLOW policy matched
	PolicyMissing // a policy that applies has not arrived
	PolicyInvalid // a policy that applies has arrived and could not be read
	PolicyChanged // allowed when it was opened, denied by the policies of now

	// Connecting.
	IdentityUnavailable // no certificate
	ConnectFailed
	ConnectTimeout   // maybe a NetworkPolicy blocks port 15008
	HandshakeTimeout // the peer did not finish the TLS handshake
	TLSFailure
	CertRevoked   // the peer's certificate is on a revocation list, now or since it was verified
	TunnelFailure // HTTP/2
	ReplyTimeout  // the CONNECT was not answered
	PeerRefused   // the CONNECT was answered with another status than 200; the peer's line says why

	// After both ends were joined.
	Broken      // reading or writing failed
	PeerTimeout // the peer's host does not acknowledge any more
	Shutdown    // the pod or the process ended

	reasons // how many there are
)

type reasonText struct{ name, flag string }

var reasonTexts = [...]reasonText{
	OK:                  {"", "-"},
	SelfCall:            {"self-call", "CONNECT"},
	UnknownSource:       {"unknown-source", "CONNECT"},
	HoldLimit:           {"hold-limit", "CONNECT"},
	BadRequest:          {"bad-request", "CONNECT"},
	IPMismatch:          {"ip-mismatch", "CONNECT"},
	UnknownDestination:  {"unknown-destination", "CONNECT"},
	NoHealthyEndpoint:   {"no-healthy-upstream", "CONNECT"},
	WaypointUnavailable: {"waypoint-unavailable", "CONNECT"},
	GatewayUnavailable:  {"gateway-unavailable", "CONNECT"},
	NotSupported:        {"not-supported", "CONNECT"},
	PolicyDenied:        {"policy-denied", "DENY"},
	PolicyMissing:       {"policy-missing", "DENY"},
	PolicyInvalid:       {"policy-invalid", "DENY"},
	PolicyChanged:       {"policy-changed", "DENY"},
	IdentityUnavailable: {"identity-unavailable", "IDENTITY_ERROR"},
	ConnectFailed:       {"connect-failed", "CONNECT"},
	ConnectTimeout:      {"connect-timeout", "NETWORK_POLICY"},
	HandshakeTimeout:    {"handshake-timeout", "CONNECT"},
	TLSFailure:          {"tls-failure", "TLS_FAILURE"},
	TunnelFailure:       {"tunnel-failure", "H2_HANDSHAKE_FAILURE"},
	CertRevoked:         {"cert-revoked", "CERT_REVOKED"},
	ReplyTimeout:        {"reply-timeout", "CONNECT"},
	PeerRefused:         {"refused-by-peer", "CONNECT"},
	Broken:              {"broken", "CONNECT"},
	PeerTimeout:         {"peer-timeout", "CONNECT"},
	Shutdown:            {"shutdown", "CONNECT"},
}

// String returns the name in the access log's error field; "" for OK.
func (r Reason) String() string { return reasonTexts[r].name }

// Flag returns the value of the metric label response_flags, spec/ztunnel.md
// §8.1: what existing alerts look for.
func (r Reason) Flag() string { return reasonTexts[r].flag }

// Refusal is an error that carries its reason.
type Refusal struct {
	Reason Reason
	Err    error // the detail; may be nil
	// Policy says which policies decided; nil when none did.
	Policy *PolicyRef
}

// PolicyRef is the part of policies in a refusal.
type PolicyRef struct {
	Policy  string       `json:"policy,omitempty"`  // "namespace/name" of the one that refused
	Rule    int          `json:"rule"`              // that matched, of Policy
	Closest []NearPolicy `json:"closest,omitempty"` // when no ALLOW policy matched
	Missing []string     `json:"missing,omitempty"` // named by the workload and not here
}

// NearPolicy is an ALLOW policy that nearly matched.
type NearPolicy struct {
	Policy string `json:"policy"`
	Rule   int    `json:"rule"`  // -1: it has none
	Unmet  string `json:"unmet"` // what of the connection would have to be different
}

// Error returns "reason: detail".
func (e *Refusal) Error() string {
	if e.Err == nil {
		return e.Reason.String()
	}
	return e.Reason.String() + ": " + e.Err.Error()
}

// Unwrap returns the detail.
func (e *Refusal) Unwrap() error { return e.Err }
