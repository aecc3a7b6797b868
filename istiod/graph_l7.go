package istiod

import (
	"maps"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/xds"
)

// Type URLs of the messages for waypoints.
const (
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeRoute    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	typeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
)

// anyWildcard is the index value of objects whose host has a wildcard.
const anyWildcard = "*"

// l7Views are the collections behind the messages for waypoints. What a
// waypoint needs falls into what belongs to one of its services (served) and
// what any service that is routed to gives (clusters and endpoints), which is
// the same for all waypoints that are sent it.
type l7Views struct {
	*views

	servicesByHost  *collection.Index[model.BoundService]
	virtualServices *collection.Index[*networkingv1.VirtualService]  // by hostname
	httpRoutes      *collection.Index[*gatewayv1.HTTPRoute]          // by parent
	rules           *collection.Index[*networkingv1.DestinationRule] // by host

	served         *collection.Derived[servedPort]
	servedByNotice *collection.Index[servedPort] // by the object of a notice
	wants          *collection.Derived[want]
	wantsByHost    *collection.Index[want]
}

// servedPort is one port of a service as its waypoint serves it.
type servedPort struct {
	name     string // of the listener
	scope    string
	hostname string
	listener *listenerv3.Listener
	routes   *routev3.RouteConfiguration // nil for a port without requests
	notices  []model.Notice
}

func (s servedPort) key() string { return s.name }

func (s servedPort) equal(o servedPort) bool {
	return s.name == o.name && s.scope == o.scope && s.hostname == o.hostname &&
		proto.Equal(s.listener, o.listener) && proto.Equal(s.routes, o.routes) && slices.Equal(s.notices, o.notices)
}

// want says that a waypoint needs the clusters of a service.
type want struct{ by, hostname, scope string }

func newL7Views(o *source.Objects, v *views) *l7Views {
	l := &l7Views{views: v}
	g := o.Graph
	l.servicesByHost = collection.NewIndex(v.boundServices, "hostname", func(s model.BoundService) []string {
		return []string{s.Hostname}
	})
	l.virtualServices = collection.NewIndex(o.VirtualServices, "hostname", func(s *networkingv1.VirtualService) []string {
		return wildcards(translate.VirtualServiceHosts(s, v.clusterDomain))
	})
	l.httpRoutes = collection.NewIndex(o.HTTPRoutes, "parent", func(r *gatewayv1.HTTPRoute) []string {
		return wildcards(translate.HTTPRouteParents(r, v.clusterDomain))
	})
	l.rules = collection.NewIndex(o.DestinationRules, "host", func(r *networkingv1.DestinationRule) []string {
		return wildcards([]string{translate.DestinationRuleHost(r, v.clusterDomain)})
	})
	l.served = collection.Derive(g, "served ports", v.boundServices,
		collection.Options[servedPort]{Key: servedPort.key, Equal: servedPort.equal}, l.serve)
	l.servedByNotice = collection.NewIndex(l.served, "notice", func(s servedPort) []string {
		var out []string
		for _, notice := range s.notices {
			out = append(out, notice.Object.String())
		}
		return out
	})
	l.wants = collection.Derive(g, "wanted clusters", l.served,
		collection.Options[want]{Key: func(w want) string { return w.by + " " + w.hostname }}, wanted)
	l.wantsByHost = collection.NewIndex(l.wants, "hostname", func(w want) []string { return []string{w.hostname} })
	return l
}

// wildcards replaces hosts with a wildcard by one value for them all: they are
// few, and each service asks for them.
func wildcards(hosts []string) []string {
	out := make([]string, len(hosts))
	for i, host := range hosts {
		out[i] = host
		if len(host) > 0 && host[0] == '*' {
			out[i] = anyWildcard
		}
	}
	return out
}

// concerning looks up what names a host exactly or by wildcard.
func concerning[T any](c *collection.Context, ix *collection.Index[T], hostname string) []T {
	return slices.Concat(collection.Lookup(c, ix, hostname), collection.Lookup(c, ix, anyWildcard))
}

// serve makes listeners and routes for the ports of a service that has a
// waypoint.
func (l *l7Views) serve(c *collection.Context, s model.BoundService) []servedPort {
	waypoint := s.Binding.Waypoint
	if waypoint == nil {
		return nil
	}
	in := translate.RouteInputs{
		ClusterDomain:     l.clusterDomain,
		WaypointNamespace: waypoint.Name.Namespace,
		VirtualServices:   concerning(c, l.virtualServices, s.Hostname),
		HTTPRoutes:        collection.Lookup(c, l.httpRoutes, s.Hostname),
		Service: func(hostname string) (model.Service, bool) {
			found, ok := l.service(c, hostname)
			return found.Service, ok
		},
		HasSubset: func(hostname, subset string) bool {
			found, ok := l.service(c, hostname)
			return ok && slices.ContainsFunc(l.subsets(c, found), func(s translate.Subset) bool { return s.Name == subset })
		},
	}
	var out []servedPort
	for _, port := range s.Ports {
		listener := translate.Listener(s.Service, port)
		if listener == nil {
			continue
		}
		routes, notices := translate.Routes(s.Service, port, in)
		out = append(out, servedPort{
			name: translate.ListenerName(s.Service, port), scope: waypoint.Scope(), hostname: s.Hostname,
			listener: listener, routes: routes, notices: notices,
		})
	}
	return out
}

func (l *l7Views) service(c *collection.Context, hostname string) (model.BoundService, bool) {
	found := collection.Lookup(c, l.servicesByHost, hostname)
	if len(found) == 0 {
		return model.BoundService{}, false
	}
	return found[0], true
}

// subsets of a service are those that its own waypoint sees, whoever routes to
// it: a cluster has one meaning.
func (l *l7Views) subsets(c *collection.Context, s model.BoundService) []translate.Subset {
	in := translate.SubsetInputs{
		ClusterDomain:    l.clusterDomain,
		RootNamespace:    l.mesh(c).RootNamespace,
		DestinationRules: concerning(c, l.rules, s.Hostname),
	}
	if s.Binding.Waypoint != nil {
		in.WaypointNamespace = s.Binding.Waypoint.Name.Namespace
	}
	return translate.Subsets(s.Service, in)
}

func wanted(_ *collection.Context, s servedPort) []want {
	out := []want{{by: s.name, hostname: s.hostname, scope: s.scope}}
	for _, reference := range translate.References(s.routes) {
		out = append(out, want{by: s.name, hostname: reference.Hostname, scope: s.scope})
	}
	return out
}

// scopes are the waypoints that need a service's clusters.
func (l *l7Views) scopes(c *collection.Context, hostname string) []string {
	set := map[string]bool{}
	for _, w := range collection.Lookup(c, l.wantsByHost, hostname) {
		set[w.scope] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// resources makes the messages for waypoints. Reads the served ports and what
// they want, produces Listener, RouteConfiguration, Cluster and
// ClusterLoadAssignment.
func (l *l7Views) resources(g *collection.Graph) resources {
	return resources{
		collection.Derive(g, "listeners", l.served, resourceOptions(),
			func(_ *collection.Context, s servedPort) []xds.Resource {
				return scoped([]string{s.scope}, pack(typeListener, s.name, s.listener))
			}),
		collection.Derive(g, "routes", l.served, resourceOptions(),
			func(_ *collection.Context, s servedPort) []xds.Resource {
				if s.routes == nil {
					return nil
				}
				return scoped([]string{s.scope}, pack(typeRoute, s.routes.GetName(), s.routes))
			}),
		collection.Derive(g, "clusters", l.boundServices, resourceOptions(), l.clusters),
		collection.Derive(g, "load assignments", l.boundServices, resourceOptions(), l.assignments),
	}
}

func scoped(scopes []string, list ...xds.Resource) []xds.Resource {
	for i := range list {
		list[i].Scopes = scopes
	}
	return list
}

func (l *l7Views) clusters(c *collection.Context, s model.BoundService) []xds.Resource {
	scopes := l.scopes(c, s.Hostname)
	if len(scopes) == 0 {
		return nil
	}
	subsets := l.subsets(c, s)
	var out []xds.Resource
	for _, port := range s.Ports {
		for _, cluster := range translate.Clusters(s.Service, port, subsets) {
			out = append(out, pack(typeCluster, cluster.GetName(), cluster))
		}
	}
	return scoped(scopes, out...)
}

func (l *l7Views) assignments(c *collection.Context, s model.BoundService) []xds.Resource {
	scopes := l.scopes(c, s.Hostname)
	if len(scopes) == 0 {
		return nil
	}
	subsets := l.subsets(c, s)
	members := slices.Concat(collection.Lookup(c, l.workloadsByService, s.Key()), collection.Lookup(c, l.endpointWorkloadsFor, s.Key()))
	var out []xds.Resource
	for _, port := range s.Ports {
		var endpoints []model.L7Endpoint
		for _, w := range members {
			endpoints = append(endpoints, optional(l7Endpoint(w, s.Key(), port.Port))...)
		}
		for _, assignment := range translate.LoadAssignments(s.Service, port, subsets, endpoints) {
			out = append(out, pack(typeEndpoint, assignment.GetClusterName(), assignment))
		}
	}
	return scoped(scopes, out...)
}

// l7Endpoint is a workload as an endpoint of one port of a service; false when
// it does not have the port.
func l7Endpoint(w model.Workload, service string, port uint32) (model.L7Endpoint, bool) {
	target, ok := w.Target(service, port)
	if !ok || len(w.Addresses) == 0 {
		return model.L7Endpoint{}, false
	}
	out := model.L7Endpoint{
		Address: w.Addresses[0], Port: target, Ready: w.Healthy, Labels: w.Labels,
		Protocol: mesh.EndpointProtocolTCP, WorkloadUID: w.UID, Weight: w.Capacity,
	}
	if id := w.Identity(); id != "" {
		out.SPIFFEIDs = []string{id}
		if w.Tunnel == model.TunnelHBONE {
			out.Protocol = mesh.EndpointProtocolHBONE
		}
	}
	return out, true
}
