// Package xds is the ADS server: it knows who wants what, what they have, and
// sends the difference. It owns subscriptions, versions, nonces and the order
// of pushes. It knows no message type: bodies are opaque, translate makes them
// and istiod.go puts them into the Store.
//
// How a change travels:
//
//  1. Store.Update swaps resources under one lock and notes, for each stream
//     that may see it, the name of each that changed. It never waits for a proxy.
//  2. The stream's sender takes all names noted since its last turn, looks up
//     their present resources in one consistent view of the store, and sends
//     them in the order of pushOrder, in messages of about messageBytes.
//  3. What the proxy accepts or rejects is kept for Debug.
//
// A stream that does not read keeps at most one such view (pointers to shared
// resources) and a set of names: however often a resource changes meanwhile, it
// is queued once.
//
// Both the delta and the state-of-the-world protocol are served from the same
// store. Store and Server are safe for concurrent use. Locks: Store.mu before
// stream.mu.
//
// Spec: spec/control-plane.md §3, spec/ztunnel.md §4, and
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol.
package xds

import "github.com/ambit-mesh/ambit/apis/mesh"

// Type URLs whose order matters beside those of apis/mesh.
const (
	typeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeRoute    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// pushOrder is the order of types on one stream, so that what is named arrives
// before what names it. Types that are not listed follow, by URL.
var pushOrder = []string{typeCluster, typeEndpoint, typeListener, typeRoute, mesh.TypeAddress, mesh.TypeAuthorization}

// removedLast reports whether removals of the type wait until everything else
// has been sent: a route must let go of its cluster first.
func removedLast(typeURL string) bool { return typeURL == typeCluster || typeURL == typeEndpoint }

// rank is the position of a type in pushOrder.
func rank(typeURL string) int {
	for i, known := range pushOrder {
		if typeURL == known {
			return i
		}
	}
	return len(pushOrder)
}

// Bounds of one stream and one message.
const (
	// messageBytes keeps a response well under the 4 MB that gRPC clients accept
	// by default. A resource that is larger goes alone.
	messageBytes = 1 << 20
	maxTypes     = 32      // type URLs on one stream
	maxNames     = 1 << 17 // explicit names of one type on one stream
	wildcardName = "*"
)
