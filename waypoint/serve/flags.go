package serve

import "strings"

// Flags say why a request did not end well, with Envoy's names, which people's
// dashboards and alerts know. One value serves log, metric and test.
type Flags uint16

// The flags.
const (
	FlagUH  Flags = 1 << iota // no healthy endpoint
	FlagUF                    // connecting to the endpoint failed
	FlagUC                    // the endpoint closed before its response was whole
	FlagUPE                   // the endpoint's response is not valid HTTP
	FlagUT                    // the route's timeout passed
	FlagNR                    // no route
	FlagNC                    // the route names a cluster that is not known
	FlagURX                   // retries used up
	FlagDC                    // the client is gone
	FlagDPE                   // the request is not valid HTTP
)

var flagNames = [...]string{"UH", "UF", "UC", "UPE", "UT", "NR", "NC", "URX", "DC", "DPE"}

// String returns the names joined by commas, "-" for none.
func (f Flags) String() string {
	if f == 0 {
		return "-"
	}
	var names []string
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// Details of a response, with Envoy's names.
const (
	viaEndpoint        = "via_upstream"
	routeNotFound      = "route_not_found"
	clusterNotFound    = "cluster_not_found"
	noHealthyEndpoint  = "no_healthy_upstream"
	connectFailed      = "upstream_reset_before_response_started{connection_failure}"
	endpointClosed     = "upstream_reset_before_response_started{connection_termination}"
	endpointProtocol   = "upstream_reset_before_response_started{protocol_error}"
	endpointTimeout    = "upstream_response_timeout"
	endpointClosedLate = "upstream_reset_after_response_started{connection_termination}"
	endpointLate       = "upstream_max_stream_duration_reached"
	clientGone         = "downstream_remote_disconnect"
	clientProtocol     = "http1.codec_error"
	clientLate         = "request_header_timeout"
	directResponse     = "direct_response"
)
