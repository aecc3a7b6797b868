package translate

import (
	"fmt"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/model"
)

const meshGateway = "mesh"

// VirtualServiceHosts returns the hostnames, some perhaps with a leading "*",
// that the VirtualService is about.
func VirtualServiceHosts(vs *networkingv1.VirtualService, clusterDomain string) []string {
	out := make([]string, 0, len(vs.Spec.Hosts))
	for _, host := range vs.Spec.Hosts {
		out = append(out, model.ResolveHost(host, vs.Namespace, clusterDomain))
	}
	return out
}

// VirtualServiceNotices returns what of the VirtualService has no effect,
// whatever service it applies to.
func VirtualServiceNotices(vs *networkingv1.VirtualService, clusterDomain string) []model.Notice {
	c := &routeCompiler{in: RouteInputs{ClusterDomain: clusterDomain}}
	c.virtualService(vs)
	object := vsCompiler{routeCompiler: c, vs: vs}
	for i, gateway := range vs.Spec.Gateways {
		if gateway != meshGateway {
			object.unsupported(at("spec.gateways", i), "gateways other than mesh are not supported yet")
		}
	}
	if len(vs.Spec.Tls) > 0 {
		object.unsupported("spec.tls", "TLS routes are not supported yet")
	}
	if len(vs.Spec.Tcp) > 0 {
		object.unsupported("spec.tcp", "TCP routes are not supported yet")
	}
	if len(vs.Spec.Hosts) == 0 {
		object.unsupported("spec", "delegation is not supported yet: no other VirtualService can use this one")
	}
	for i, host := range vs.Spec.Hosts {
		if host == "*" {
			object.unsupported(at("spec.hosts", i), "the host * stands for no service in the mesh")
		}
	}
	return model.MergeNotices(c.ownNotices)
}

// classifyVirtualService says whether the VirtualService applies to the
// service, and in which class of the order, spec/control-plane.md §4.5.
func (c *routeCompiler) classifyVirtualService(vs *networkingv1.VirtualService) (int, bool) {
	waypoint := c.in.waypointNamespace(c.svc)
	if vs.Namespace != waypoint && vs.Namespace != c.svc.Name.Namespace {
		return 0, false
	}
	if len(vs.Spec.Http) == 0 || !boundToMesh(vs.Spec.Gateways) {
		return 0, false
	}
	named := slices.ContainsFunc(VirtualServiceHosts(vs, c.in.ClusterDomain), func(host string) bool {
		return host != "*" && model.HostMatches(host, c.svc.Hostname)
	})
	if !named {
		return 0, false
	}
	return exportClass(vs.Spec.ExportTo, vs.Namespace, waypoint)
}

// exportClass reads exportTo; its default is everybody.
func exportClass(exportTo []string, namespace, waypoint string) (int, bool) {
	if len(exportTo) == 0 || slices.Contains(exportTo, "*") {
		return classPublic, true
	}
	if namespace == waypoint && (slices.Contains(exportTo, ".") || slices.Contains(exportTo, namespace)) {
		return classPrivate, true
	}
	return classExported, slices.Contains(exportTo, waypoint)
}

func boundToMesh(gateways []string) bool {
	return len(gateways) == 0 || slices.Contains(gateways, meshGateway)
}

// vsCompiler adds to a routeCompiler the object that notices are about.
type vsCompiler struct {
	*routeCompiler
	vs *networkingv1.VirtualService
}

func (c vsCompiler) key() manifest.Key {
	return manifest.Key{Group: "networking.istio.io", Kind: "VirtualService", Namespace: c.vs.Namespace, Name: c.vs.Name}
}

func (c vsCompiler) unsupported(field, message string) {
	c.ownNotices = append(c.ownNotices, model.Notice{Object: c.key(), Field: field, Message: message})
}

func (c vsCompiler) unresolved(field, message string) {
	c.dependentNotices = append(c.dependentNotices, model.Notice{Object: c.key(), Field: field, Message: message})
}

func (c *routeCompiler) virtualService(vs *networkingv1.VirtualService) []*routev3.Route {
	var out []*routev3.Route
	for i, route := range vs.Spec.Http {
		if route == nil {
			continue
		}
		out = append(out, vsCompiler{routeCompiler: c, vs: vs}.route(route, at("spec.http", i))...)
	}
	return out
}

// route returns one Envoy route for each entry of the match list that concerns
// the port. It is none when the route, or each of its matches, needs something
// that cannot be honoured: then the requests go on to the next route.
func (c vsCompiler) route(r *networking.HTTPRoute, field string) []*routev3.Route {
	c.reportIgnored(r, field)
	name := c.vs.Namespace + "/" + c.vs.Name
	if r.Name != "" {
		name += "." + r.Name
	}
	if r.Delegate != nil {
		c.unsupported(field+".delegate", "delegation is not supported yet: the route is left out")
		return nil
	}
	base := c.action(r, field)
	if base == nil {
		return nil
	}
	if len(r.Match) == 0 {
		base.Name, base.Match = name, anyRequest()
		return []*routev3.Route{base}
	}
	var out []*routev3.Route
	for i, m := range r.Match {
		compiled := c.match(m, at(field+".match", i))
		if compiled == nil {
			continue
		}
		route := proto.CloneOf(base)
		route.Name, route.Match = name, compiled
		if m.Name != "" {
			route.Name += "." + m.Name
		}
		out = append(out, route)
	}
	return out
}

// match returns nil when the entry is for other ports or cannot be honoured.
func (c vsCompiler) match(m *networking.HTTPMatchRequest, field string) *routev3.RouteMatch {
	if m == nil {
		return nil
	}
	refused := false
	refuse := func(name, message string) {
		refused = true
		c.unsupported(field+"."+name, message+": requests are not matched by this entry")
	}
	if len(m.SourceLabels) > 0 {
		refuse("sourceLabels", "matching on the caller's labels is not supported yet")
	}
	if m.SourceNamespace != "" {
		refuse("sourceNamespace", "matching on the caller's namespace is not supported yet")
	}
	if len(m.Gateways) > 0 && !slices.Contains(m.Gateways, meshGateway) {
		refuse("gateways", "gateways other than mesh are not supported yet")
	}
	if m.IgnoreUriCase && m.Uri.GetRegex() != "" {
		c.unsupported(field+".ignoreUriCase", "an expression matches case as it says itself: write (?i)")
	}
	if m.StatPrefix != "" {
		c.unsupported(field+".statPrefix", "statistics by route are not supported yet")
	}
	out, err := match(m)
	if err != nil {
		refuse(err.path, err.message)
	}
	if refused || (m.Port != 0 && c.port.Port != 0 && m.Port != c.port.Port) {
		return nil
	}
	return out
}

// reportIgnored tells what of the route has no effect while the rest has.
func (c vsCompiler) reportIgnored(r *networking.HTTPRoute, field string) {
	for _, part := range []struct {
		name string
		set  bool
		what string
	}{
		{"fault", r.Fault != nil, "fault injection"},
		{"mirror", r.Mirror != nil, "mirroring"},
		{"mirrors", len(r.Mirrors) > 0, "mirroring"},
		{"mirrorPercent", r.GetMirrorPercent() != nil, "mirroring"}, //nolint:staticcheck // deprecated, but users still write it
		{"mirrorPercentage", r.MirrorPercentage != nil, "mirroring"},
		{"corsPolicy", r.CorsPolicy != nil, "answering CORS preflight requests"},
		{"retries.retryRemoteLocalities", r.Retries.GetRetryRemoteLocalities() != nil, "choosing endpoints by locality"},
	} {
		if part.set {
			c.unsupported(field+"."+part.name, part.what+" is not supported yet")
		}
	}
	if _, _, unknown := splitRetryOn(r.Retries.GetRetryOn()); len(unknown) > 0 {
		c.unsupported(field+".retries.retryOn", fmt.Sprintf("%q is not supported", strings.Join(unknown, ",")))
	}
}

// action returns the route without name and match, or nil when there is nothing
// to do with a request.
func (c vsCompiler) action(r *networking.HTTPRoute, field string) *routev3.Route {
	out := &routev3.Route{}
	request := c.requestHeaders(r.Headers.GetRequest(), field+".headers.request")
	response := c.responseHeaders(r.Headers.GetResponse(), field+".headers.response")
	out.RequestHeadersToAdd, out.RequestHeadersToRemove = request.add, request.remove
	out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = response.add, response.remove
	switch {
	case r.Redirect != nil:
		action, err := redirect(r.Redirect, c.port.Port)
		if err != nil {
			c.unsupported(field+".redirect."+err.path, err.message+": the route is left out")
			return nil
		}
		out.Action = &routev3.Route_Redirect{Redirect: action}
	case r.DirectResponse != nil:
		if r.DirectResponse.Status < 200 || r.DirectResponse.Status > 599 {
			c.unsupported(field+".directResponse.status", "not a status from 200 to 599: the route is left out")
			return nil
		}
		out.Action = &routev3.Route_DirectResponse{DirectResponse: directResponse(r.DirectResponse.Status, r.DirectResponse.Body)}
	case len(r.Route) > 0:
		action := newRouteAction()
		rewritten := c.rewrite(action, r.Rewrite, request.host, field)
		weighted := c.destinations(out, action, r.Route, field)
		if !rewritten || !weighted {
			out.Action = answer(500)
			return out
		}
		if timeout, ok := c.duration(r.Timeout, field+".timeout"); ok {
			action.Timeout = timeout
		}
		action.RetryPolicy = retries(r.Retries)
		out.Action = &routev3.Route_Route{Route: action}
	default:
		c.unsupported(field, "has neither route, redirect nor directResponse: the route is left out")
		return nil
	}
	return out
}

// duration reports false for one that is not given or cannot be.
func (c vsCompiler) duration(d *durationpb.Duration, field string) (*durationpb.Duration, bool) {
	if d == nil {
		return nil, false
	}
	if d.AsDuration() < 0 || !d.IsValid() {
		c.unsupported(field, "not a duration of 0 or more")
		return nil, false
	}
	return proto.CloneOf(d), true
}

// rewrite changes the host, which the header operations may have set, and the
// path. It reports false when requests cannot be changed as they should.
func (c vsCompiler) rewrite(action *routev3.RouteAction, r *networking.HTTPRewrite, host, field string) bool {
	if r.GetAuthority() != "" {
		host = r.Authority
	}
	if !validHost(host) || !httpguts.ValidHeaderFieldValue(r.GetUri()) {
		c.unsupported(field+".rewrite", notRewritable)
		return false
	}
	if host != "" {
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: host}
	}
	switch {
	case r.GetUri() != "":
		action.PrefixRewrite = r.Uri
	case r.GetUriRegexRewrite() != nil:
		pattern, err := regex(r.UriRegexRewrite.Match)
		if err != nil {
			c.unsupported(field+".rewrite.uriRegexRewrite.match", err.message+": requests are answered with status 500")
			return false
		}
		action.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: pattern, Substitution: r.UriRegexRewrite.Rewrite}
	}
	return true
}

const notRewritable = "the value has characters that no request can have: requests are answered with status 500"

// validHost reports whether the value, which may be empty, can be a request's
// authority.
func validHost(host string) bool {
	return httpguts.ValidHostHeader(host) && httpguts.ValidHeaderFieldValue(host)
}

// destinations sets the cluster or weighted clusters. It reports false when
// every destination has weight 0, or requests cannot be changed as they should.
func (c vsCompiler) destinations(route *routev3.Route, action *routev3.RouteAction, list []*networking.HTTPRouteDestination, field string) bool {
	weighted := &routev3.WeightedCluster{}
	for i, destination := range list {
		at := at(field+".route", i)
		request := c.requestHeaders(destination.GetHeaders().GetRequest(), at+".headers.request")
		response := c.responseHeaders(destination.GetHeaders().GetResponse(), at+".headers.response")
		if !validHost(request.host) {
			c.unsupported(at+".headers.request.set", notRewritable)
			return false
		}
		cluster := c.cluster(destination.GetDestination(), at)
		if len(list) == 1 {
			action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: cluster}
			route.RequestHeadersToAdd = append(request.add, route.RequestHeadersToAdd...)
			route.RequestHeadersToRemove = append(request.remove, route.RequestHeadersToRemove...)
			route.ResponseHeadersToAdd = append(response.add, route.ResponseHeadersToAdd...)
			route.ResponseHeadersToRemove = append(response.remove, route.ResponseHeadersToRemove...)
			if request.host != "" {
				action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: request.host}
			}
			return true
		}
		if destination.GetWeight() > 0 {
			weighted.Clusters = append(weighted.Clusters, clusterWeight(cluster, uint32(destination.Weight), request, response))
		}
	}
	if len(weighted.Clusters) == 0 {
		c.unsupported(field+".route", "the weights are all 0: requests are answered with status 500")
		return false
	}
	action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	return true
}

func clusterWeight(cluster string, weight uint32, request, response headerChanges) *routev3.WeightedCluster_ClusterWeight {
	out := &routev3.WeightedCluster_ClusterWeight{
		Name:                    cluster,
		Weight:                  wrapperspb.UInt32(weight),
		RequestHeadersToAdd:     request.add,
		RequestHeadersToRemove:  request.remove,
		ResponseHeadersToAdd:    response.add,
		ResponseHeadersToRemove: response.remove,
	}
	if request.host != "" {
		out.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: request.host}
	}
	return out
}

// cluster names the destination's cluster whether or not it exists: requests to
// one that does not are answered by the waypoint with 503.
func (c vsCompiler) cluster(d *networking.Destination, field string) string {
	hostname := model.ResolveHost(d.GetHost(), c.vs.Namespace, c.in.ClusterDomain)
	port := d.GetPort().GetNumber()
	var service model.Service
	known := true
	if c.in.Service != nil {
		service, known = c.in.Service(hostname)
	}
	if port == 0 {
		port = c.port.Port
		if len(service.Ports) == 1 {
			port = service.Ports[0].Port
		}
	}
	switch {
	case c.in.Service == nil:
	case !known:
		c.unresolved(field+".destination.host", fmt.Sprintf("service %s does not exist", hostname))
	case !hasPort(service, port):
		c.unresolved(field+".destination.port", fmt.Sprintf("service %s has no port %d", hostname, port))
	case d.GetSubset() != "" && c.in.HasSubset != nil && !c.in.HasSubset(hostname, d.GetSubset()):
		c.unresolved(field+".destination.subset", fmt.Sprintf("no DestinationRule defines subset %q of %s", d.GetSubset(), hostname))
	}
	return ClusterName(hostname, port, d.GetSubset())
}

func hasPort(svc model.Service, number uint32) bool {
	return slices.ContainsFunc(svc.Ports, func(p model.ServicePort) bool { return p.Port == number })
}

// at returns the path of an element of a list.
func at(field string, index int) string { return fmt.Sprintf("%s[%d]", field, index) }
