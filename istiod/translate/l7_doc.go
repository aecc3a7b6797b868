// Package translate turns values of istiod/model into the messages that the
// data plane reads. It is pure: no I/O, no clock, no shared state; the same
// inputs give the same bytes, which collections rely on to suppress updates.
//
// # L7
//
// The files l7_*.go make the Envoy v3 messages for waypoints (DESIGN.md §3.4).
// For each service S that is attached to a waypoint of namespace W, and each
// of its ports P:
//
//	listener := Listener(S, P)              // nil for UDP
//	routes, notices := Routes(S, P, in)     // nil for UDP, TCP and TLS
//	for _, r := range References(routes) {  // S itself and the services that it routes to
//		T, port := service(r.Hostname), r.Port
//		subsets := Subsets(T, in)
//		clusters := Clusters(T, port, subsets)
//		assignments := LoadAssignments(T, port, subsets, endpoints of T's port)
//	}
//
// The clusters of S itself are sent always. Listeners and RouteConfigurations
// are named by ListenerName (hostname:port), clusters and their load
// assignments by ClusterName (outbound|port|subset|hostname); one object of the
// user changes the RouteConfigurations of the services whose host it names, and
// nothing else. Scope of all messages: waypoint/W/name.
//
// What concerns S: RouteInputs takes a superset, the functions select. To index
// objects by the hostnames they are about, use VirtualServiceHosts,
// HTTPRouteParents and DestinationRuleHost; wildcard hosts have to be asked for
// apart. VirtualServices and HTTPRoutes count when they are in namespace W or
// in S's, DestinationRules also in the root namespace.
//
// A waypoint refuses a resource with a field that it does not know, and then
// the routes of all objects of that service stand still. So nothing is put into
// a message that waypoint/config does not honour: it becomes a notice.
//
// Routes returns the notices that depend on other objects (a host or a subset
// that does not exist). Those that an object deserves by itself, attached or
// not, come from VirtualServiceNotices, HTTPRouteNotices and
// DestinationRuleNotices; model.MergeNotices joins them for the status.
package translate
