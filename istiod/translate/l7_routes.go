package translate

import (
	"cmp"
	"slices"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// RouteInputs is what the routes of a service may depend on.
type RouteInputs struct {
	ClusterDomain     string
	WaypointNamespace string // of the Gateway that serves the routes; empty = the service's

	// VirtualServices and HTTPRoutes may hold more than those that name the
	// service, and one of them twice; order does not matter.
	VirtualServices []*networkingv1.VirtualService
	HTTPRoutes      []*gatewayv1.HTTPRoute

	// Service finds a destination by hostname.
	Service func(hostname string) (model.Service, bool)

	// HasSubset tells whether a DestinationRule defines the subset. Nil skips
	// the check; a missing subset is only noticed, its cluster does not exist.
	HasSubset func(hostname, subset string) bool
}

func (in RouteInputs) waypointNamespace(svc model.Service) string {
	return cmp.Or(in.WaypointNamespace, svc.Name.Namespace)
}

// Routes returns the routes of one port of a service: those of the
// VirtualServices and HTTPRoutes that apply, in the order of
// spec/control-plane.md §4.5, and one catch-all route to the service itself
// when none applies. It is nil for ports on which no requests are routed.
func Routes(svc model.Service, port model.ServicePort, in RouteInputs) (*routev3.RouteConfiguration, []model.Notice) {
	if !port.Protocol.Routable() {
		return nil, nil
	}
	c := &routeCompiler{svc: svc, port: port, in: in}
	var routes []*routev3.Route
	groups := c.groups()
	for _, g := range groups {
		if g.virtualService != nil {
			routes = append(routes, c.virtualService(g.virtualService)...)
		} else {
			routes = append(routes, c.httpRoutes(g.httpRoutes)...)
		}
	}
	if len(groups) == 0 {
		routes = []*routev3.Route{c.defaultRoute()}
	}
	return &routev3.RouteConfiguration{
		Name: ListenerName(svc, port),
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    ListenerName(svc, port),
			Domains: []string{"*"},
			Routes:  routes,
		}},
	}, model.MergeNotices(c.dependentNotices)
}

// routeCompiler makes the routes of one service port. With a zero port it makes
// those for any port.
type routeCompiler struct {
	svc  model.Service
	port model.ServicePort
	in   RouteInputs

	ownNotices       []model.Notice // depend on the object alone
	dependentNotices []model.Notice // depend on other objects, too
}

// routeGroup is one VirtualService, or the HTTPRoutes that are matched as one
// list, with their place in the order of all groups.
type routeGroup struct {
	class          int // of the order in groups
	created        time.Time
	namespace      string
	name           string
	virtualService *networkingv1.VirtualService
	httpRoutes     []*gatewayv1.HTTPRoute
}

// The classes of spec/control-plane.md §4.5, first match wins.
const (
	classPrivate  = iota // visible in the waypoint's namespace only
	classExported        // exported to the waypoint's namespace by name
	classProducer        // public, of the Gateway API, in the waypoint's namespace
	classPublic
)

// groups returns what applies to the service, in order of precedence: by class,
// then oldest first, then by name.
func (c *routeCompiler) groups() []routeGroup {
	var list []routeGroup
	for _, vs := range c.in.VirtualServices {
		if class, ok := c.classifyVirtualService(vs); ok {
			list = append(list, routeGroup{
				class: class, created: vs.CreationTimestamp.Time, namespace: vs.Namespace, name: vs.Name, virtualService: vs,
			})
		}
	}
	list = append(list, c.httpRouteGroups()...)
	slices.SortFunc(list, func(a, b routeGroup) int {
		return cmp.Or(cmp.Compare(a.class, b.class), compareAge(a.created, b.created),
			cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	// An object that was found by two of its hosts counts once.
	return slices.CompactFunc(list, func(a, b routeGroup) bool {
		return a.virtualService != nil && a.virtualService == b.virtualService
	})
}

// compareAge puts the older first. Objects from files have no time of creation
// and count as equally old.
func compareAge(a, b time.Time) int { return a.Compare(b) }

func compareObjects(a, b metav1.Object) int {
	return cmp.Or(
		compareAge(a.GetCreationTimestamp().Time, b.GetCreationTimestamp().Time),
		cmp.Compare(a.GetNamespace(), b.GetNamespace()),
		cmp.Compare(a.GetName(), b.GetName()))
}

// defaultRoute sends everything to the service's own endpoints.
func (c *routeCompiler) defaultRoute() *routev3.Route {
	action := newRouteAction()
	action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: ClusterName(c.svc.Hostname, c.port.Port, "")}
	action.RetryPolicy = defaultRetryPolicy()
	return &routev3.Route{
		Name:   "default",
		Match:  anyRequest(),
		Action: &routev3.Route_Route{Route: action},
	}
}
