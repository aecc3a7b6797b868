package translate

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// unknownCluster stands for backends that are not valid: no cluster has this
// name, so that its share of the requests is answered with status 500.
const unknownCluster = "UnknownService"

// HTTPRouteParents returns the hostnames of the Services that the HTTPRoute is
// attached to.
func HTTPRouteParents(route *gatewayv1.HTTPRoute, clusterDomain string) []string {
	var out []string
	for _, parent := range route.Spec.ParentRefs {
		if name, ok := model.ParentService(parent, route.Namespace); ok {
			out = append(out, model.L7Hostname(name.Namespace, name.Name, clusterDomain))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// HTTPRouteNotices returns what of the HTTPRoute has no effect, whatever
// service it is attached to. A route without a Service among its parents has no
// effect in the mesh and no notices: its status as a route says so.
func HTTPRouteNotices(route *gatewayv1.HTTPRoute, clusterDomain string) []model.Notice {
	if len(HTTPRouteParents(route, clusterDomain)) == 0 {
		return nil
	}
	c := &routeCompiler{in: RouteInputs{ClusterDomain: clusterDomain}}
	c.httpRoutes([]*gatewayv1.HTTPRoute{route})
	if len(route.Spec.Hostnames) > 0 {
		routeObject{routeCompiler: c, route: route}.unsupported("spec.hostnames",
			"a route of a Service matches whatever host the request names")
	}
	return model.MergeNotices(c.ownNotices)
}

// httpRouteGroups returns the HTTPRoutes that are attached to the service port,
// those of one namespace together: they are matched as one list.
func (c *routeCompiler) httpRouteGroups() []routeGroup {
	waypoint := c.in.waypointNamespace(c.svc)
	byNamespace := map[string][]*gatewayv1.HTTPRoute{}
	for _, route := range c.in.HTTPRoutes {
		if c.attached(route) && !slices.Contains(byNamespace[route.Namespace], route) {
			byNamespace[route.Namespace] = append(byNamespace[route.Namespace], route)
		}
	}
	var out []routeGroup
	add := func(namespace string, class int) {
		routes := byNamespace[namespace]
		delete(byNamespace, namespace)
		if len(routes) == 0 {
			return
		}
		slices.SortFunc(routes, func(a, b *gatewayv1.HTTPRoute) int { return compareObjects(a, b) })
		oldest := routes[0]
		out = append(out, routeGroup{
			class: class, created: oldest.CreationTimestamp.Time, namespace: namespace, name: oldest.Name, httpRoutes: routes,
		})
	}
	// The service's owner speaks for every caller. Other namespaces speak for
	// themselves only, and of those a waypoint serves just its own.
	if c.svc.Name.Namespace == waypoint {
		add(waypoint, classProducer)
	} else {
		add(waypoint, classPrivate)
		add(c.svc.Name.Namespace, classPublic)
	}
	return out
}

func (c *routeCompiler) attached(route *gatewayv1.HTTPRoute) bool {
	return slices.ContainsFunc(route.Spec.ParentRefs, func(parent gatewayv1.ParentReference) bool {
		name, ok := model.ParentService(parent, route.Namespace)
		return ok && name == c.svc.Name && model.ParentMatchesPort(parent, c.port)
	})
}

// routeObject adds to a routeCompiler the HTTPRoute that notices are about.
type routeObject struct {
	*routeCompiler
	route *gatewayv1.HTTPRoute
}

func (c routeObject) key() manifest.Key {
	return manifest.Key{Group: gatewayv1.GroupName, Kind: "HTTPRoute", Namespace: c.route.Namespace, Name: c.route.Name}
}

func (c routeObject) unsupported(field, message string) {
	c.ownNotices = append(c.ownNotices, model.Notice{Object: c.key(), Field: field, Message: message})
}

func (c routeObject) unresolved(field, message string) {
	c.dependentNotices = append(c.dependentNotices, model.Notice{Object: c.key(), Field: field, Message: message})
}

// rankedRoute is a route with what decides its place, spec/control-plane.md
// §4.9.
type rankedRoute struct {
	route   *routev3.Route
	kind    int // of path match
	length  int // of a prefix
	method  bool
	headers int
	queries int
}

const (
	pathExact = iota
	pathPrefix
	pathRegex
)

func (r rankedRoute) compare(other rankedRoute) int {
	return cmp.Or(
		cmp.Compare(r.kind, other.kind),
		cmp.Compare(other.length, r.length),
		compareBool(r.method, other.method),
		cmp.Compare(other.headers, r.headers),
		cmp.Compare(other.queries, r.queries))
}

// compareBool puts true first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// httpRoutes returns the routes of all rules, most specific match first, and
// among equals in the order of the objects (oldest first) and of their rules.
func (c *routeCompiler) httpRoutes(list []*gatewayv1.HTTPRoute) []*routev3.Route {
	var ranked []rankedRoute
	for _, route := range list {
		object := routeObject{routeCompiler: c, route: route}
		for i := range route.Spec.Rules {
			ranked = append(ranked, object.rule(&route.Spec.Rules[i], i)...)
		}
	}
	slices.SortStableFunc(ranked, rankedRoute.compare)
	out := make([]*routev3.Route, len(ranked))
	for i, r := range ranked {
		out[i] = r.route
	}
	return out
}

func (c routeObject) rule(rule *gatewayv1.HTTPRouteRule, index int) []rankedRoute {
	field := at("spec.rules", index)
	name := c.route.Namespace + "/" + c.route.Name + "."
	if rule.Name != nil {
		name += string(*rule.Name)
	} else {
		name += strconv.Itoa(index)
	}
	matches := rule.Matches
	if len(matches) == 0 {
		matches = []gatewayv1.HTTPRouteMatch{{}}
	}
	var out []rankedRoute
	for i := range matches {
		r, err := rankMatch(&matches[i])
		if err != nil {
			c.unsupported(at(field+".matches", i)+"."+err.path, err.message+": requests are not matched by this entry")
			continue
		}
		match := r.route.Match
		r.route = c.action(rule, &matches[i], field)
		r.route.Name, r.route.Match = name, match
		out = append(out, r)
	}
	return out
}

// action returns the route without name and match. What replaces a path's
// prefix depends on the match.
func (c routeObject) action(rule *gatewayv1.HTTPRouteRule, match *gatewayv1.HTTPRouteMatch, field string) *routev3.Route {
	out := &routev3.Route{}
	action := newRouteAction()
	filters := c.filters(rule.Filters, match, field)
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = filters.request.add, filters.request.remove
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = filters.response.add, filters.response.remove
	if rule.SessionPersistence != nil { //nolint:staticcheck // deprecated, but users still write it
		c.unsupported(field+".sessionPersistence", "session persistence is not supported yet")
	}
	c.backends(action, rule.BackendRefs, filters.redirect != nil, field)
	switch {
	case filters.refused:
		out.Action = answer(500)
		return out
	case filters.redirect != nil:
		out.Action = &routev3.Route_Redirect{Redirect: filters.redirect}
		return out
	case action.ClusterSpecifier == nil:
		out.Action = answer(500)
		return out
	}
	filters.rewrite.apply(action)
	action.RetryPolicy = c.retry(rule.Retry)
	c.timeouts(action, rule, field)
	out.Action = &routev3.Route_Route{Route: action}
	return out
}

func (c routeObject) retry(r *gatewayv1.HTTPRouteRetry) *routev3.RetryPolicy {
	if r == nil {
		return defaultRetryPolicy()
	}
	attempts := uint32(defaultAttempts)
	if r.Attempts != nil {
		attempts = uint32(max(0, min(*r.Attempts, math.MaxInt32)))
	}
	if attempts == 0 {
		return nil
	}
	out := retryPolicy(attempts, gatewayAPIRetryOn)
	for _, code := range r.Codes {
		if code > 0 {
			out.RetriableStatusCodes = append(out.RetriableStatusCodes, uint32(code))
		}
	}
	if len(out.RetriableStatusCodes) > 0 {
		out.RetryOn += "," + retriableStatusCodes
	}
	if r.Backoff != nil {
		if base, err := time.ParseDuration(string(*r.Backoff)); err == nil && base > 0 {
			out.RetryBackOff = backOff(base)
		}
	}
	return out
}

// timeouts: backendRequest bounds a single try where there can be several, and
// else the whole request, spec/control-plane.md §4.9.
func (c routeObject) timeouts(action *routev3.RouteAction, rule *gatewayv1.HTTPRouteRule, field string) {
	if rule.Timeouts == nil {
		return
	}
	request, hasRequest := c.duration(rule.Timeouts.Request, field+".timeouts.request")
	try, hasTry := c.duration(rule.Timeouts.BackendRequest, field+".timeouts.backendRequest")
	if hasRequest {
		action.Timeout = request
	}
	switch {
	case !hasTry:
	case action.RetryPolicy != nil && (rule.Retry != nil || hasRequest):
		action.RetryPolicy.PerTryTimeout = try
	case !hasRequest:
		action.Timeout = try
	}
}

func (c routeObject) duration(d *gatewayv1.Duration, field string) (*durationpb.Duration, bool) {
	if d == nil {
		return nil, false
	}
	value, err := time.ParseDuration(string(*d))
	if err != nil || value < 0 {
		c.unsupported(field, fmt.Sprintf("%q is not a duration", string(*d)))
		return nil, false
	}
	return durationpb.New(value), true
}

// backends sets the cluster or weighted clusters; none when no request can be
// answered by a backend. A redirect needs no backends.
func (c routeObject) backends(action *routev3.RouteAction, refs []gatewayv1.HTTPBackendRef, redirected bool, field string) {
	weighted := &routev3.WeightedCluster{}
	valid := false
	for i := range refs {
		ref := &refs[i]
		refField := at(field+".backendRefs", i)
		weight := uint32(1)
		if ref.Weight != nil {
			weight = uint32(max(0, *ref.Weight))
		}
		backend := model.ResolveBackend(ref.BackendObjectReference, c.route.Namespace, c.in.ClusterDomain, c.in.Service)
		if !backend.Valid() {
			c.unresolved(refField, backend.Message+": its share of the requests is answered with status 500")
		}
		filters := c.filters(ref.Filters, nil, refField)
		if weight == 0 {
			continue
		}
		name := unknownCluster
		if backend.Valid() && !filters.refused {
			name, valid = ClusterName(backend.Hostname, backend.Port, ""), true
		}
		filters.request.host = filters.rewrite.host
		weighted.Clusters = append(weighted.Clusters, clusterWeight(name, weight, filters.request, filters.response))
	}
	switch {
	case len(weighted.Clusters) == 0 && !redirected:
		c.unsupported(field+".backendRefs", "no backend has a weight: requests are answered with status 500")
	case !valid:
	case len(weighted.Clusters) == 1 && plain(weighted.Clusters[0]):
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: weighted.Clusters[0].Name}
	default:
		action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
		action.ClusterNotFoundResponseCode = routev3.RouteAction_INTERNAL_SERVER_ERROR
	}
}

// plain reports whether nothing but name and weight is set.
func plain(c *routev3.WeightedCluster_ClusterWeight) bool {
	return proto.Equal(c, &routev3.WeightedCluster_ClusterWeight{Name: c.Name, Weight: c.Weight})
}
