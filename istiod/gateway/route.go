package gateway

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Names of the Istio extension of a route's status, spec/control-plane.md §4.9.
const (
	conditionResolvedWaypoints = "ResolvedWaypoints"
	reasonInvalidFilter        = "InvalidFilter"
	kindGateway                = "Gateway"
	kindServiceEntry           = "ServiceEntry"
	groupIstioNetworking       = "networking.istio.io"
)

// RouteInputs is what the status of an HTTPRoute depends on.
type RouteInputs struct {
	ClusterDomain string

	// Service finds a Service of the mesh by hostname.
	Service func(hostname string) (model.Service, bool)

	// Gateway finds a Gateway.
	Gateway func(name model.Name) (*gatewayv1.Gateway, bool)

	// Waypoint returns the waypoint that a Service is bound to; nil is none.
	Waypoint func(service model.Name) *model.Waypoint

	// Notices are those about the route; they become a condition.
	Notices []model.Notice
}

// HTTPRouteStatus returns the status of a route for each parent that is ours to
// speak about, in the order of its parentRefs.
func HTTPRouteStatus(route *gatewayv1.HTTPRoute, in RouteInputs) []gatewayv1.RouteParentStatus {
	var out []gatewayv1.RouteParentStatus
	for _, ref := range route.Spec.ParentRefs {
		said := func(s gatewayv1.RouteParentStatus) bool { return sameParent(s.ParentRef, ref) }
		if slices.ContainsFunc(out, said) {
			continue
		}
		if conditions := in.parent(route, ref); conditions != nil {
			out = append(out, gatewayv1.RouteParentStatus{
				ParentRef: ref, ControllerName: mesh.GatewayControllerName, Conditions: conditions,
			})
		}
	}
	return out
}

func sameParent(a, b gatewayv1.ParentReference) bool {
	return equal(a.Group, b.Group) && equal(a.Kind, b.Kind) && equal(a.Namespace, b.Namespace) && a.Name == b.Name &&
		equal(a.SectionName, b.SectionName) && equal(a.Port, b.Port)
}

func equal[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// parent returns nil for a parent of another controller.
func (in RouteInputs) parent(route *gatewayv1.HTTPRoute, ref gatewayv1.ParentReference) []metav1.Condition {
	conditions := conditionList{generation: route.Generation}
	refused := func(message string) []metav1.Condition {
		conditions.add(string(gatewayv1.RouteConditionAccepted), false, string(gatewayv1.RouteReasonNoMatchingParent), message)
		in.resolvedRefs(&conditions, route)
		return conditions.list
	}
	name, isService := model.ParentService(ref, route.Namespace)
	if !isService {
		message := in.otherParent(route, ref)
		if message == "" {
			return nil
		}
		return refused(message)
	}
	service, exists := in.Service(model.L7Hostname(name.Namespace, name.Name, in.ClusterDomain))
	if !exists {
		return refused("service " + name.String() + " does not exist")
	}
	if !slices.ContainsFunc(service.Ports, func(p model.ServicePort) bool { return model.ParentMatchesPort(ref, p) }) {
		return refused("service " + name.String() + " has no such port")
	}
	waypoint := in.Waypoint(name)
	if waypoint != nil && waypoint.Class != mesh.WaypointGatewayClass {
		return nil
	}
	if waypoint != nil && route.Namespace != name.Namespace && route.Namespace != waypoint.Name.Namespace {
		conditions.add(string(gatewayv1.RouteConditionAccepted), false, string(gatewayv1.RouteReasonUnsupportedValue),
			"waypoint "+waypoint.Name.String()+" serves callers of all namespaces: routes for those of "+route.Namespace+" alone are not supported yet")
		in.resolvedRefs(&conditions, route)
		return conditions.list
	}
	conditions.add(string(gatewayv1.RouteConditionAccepted), true, string(gatewayv1.RouteReasonAccepted), "Route was valid")
	in.resolvedRefs(&conditions, route)
	message := "service " + name.String() + " has no waypoint: the route has no effect until the label " + mesh.LabelUseWaypoint + " names one that is ready"
	if waypoint != nil {
		message = "Route is served by waypoint " + waypoint.Name.String()
	}
	conditions.add(conditionResolvedWaypoints, true, conditionResolvedWaypoints, message)
	conditions.list = append(conditions.list, model.FieldsHonoured(in.Notices, route.Generation)...)
	return conditions.list
}

// otherParent says why a parent that is no Service takes no routes, or nothing
// when it belongs to someone else.
func (in RouteInputs) otherParent(route *gatewayv1.HTTPRoute, ref gatewayv1.ParentReference) string {
	group, kind, namespace := gatewayv1.GroupName, kindGateway, route.Namespace
	if ref.Group != nil {
		group = string(*ref.Group)
	}
	if ref.Kind != nil {
		kind = string(*ref.Kind)
	}
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	if group == groupIstioNetworking && kind == kindServiceEntry {
		return "routes of a ServiceEntry are not supported yet"
	}
	if group != gatewayv1.GroupName || kind != kindGateway {
		return ""
	}
	g, exists := in.Gateway(model.Name{Namespace: namespace, Name: string(ref.Name)})
	if !exists {
		return ""
	}
	switch class, ours := classOf(g); {
	case !ours:
		return ""
	case !class.supported:
		return "gateways of class " + string(g.Spec.GatewayClassName) + " are not supported yet"
	}
	return "a waypoint takes no routes of its own: name a Service in parentRefs"
}

// resolvedRefs adds the condition for what the route points to. The first
// problem gives the reason, the message has them all.
func (in RouteInputs) resolvedRefs(conditions *conditionList, route *gatewayv1.HTTPRoute) {
	reason, messages := "", []string(nil)
	problem := func(why, message string) {
		if reason == "" {
			reason = why
		}
		if !slices.Contains(messages, message) {
			messages = append(messages, message)
		}
	}
	checkFilters := func(filters []gatewayv1.HTTPRouteFilter) {
		for _, filter := range filters {
			if !knownFilter(filter.Type) {
				problem(reasonInvalidFilter, "filters of type "+string(filter.Type)+" are not supported")
			}
		}
	}
	for i := range route.Spec.Rules {
		rule := &route.Spec.Rules[i]
		checkFilters(rule.Filters)
		for j := range rule.BackendRefs {
			ref := &rule.BackendRefs[j]
			checkFilters(ref.Filters)
			backend := model.ResolveBackend(ref.BackendObjectReference, route.Namespace, in.ClusterDomain, in.Service)
			if !backend.Valid() {
				problem(backend.Reason, backend.Message)
			}
		}
	}
	const kind = string(gatewayv1.RouteConditionResolvedRefs)
	if reason != "" {
		conditions.add(kind, false, reason, strings.Join(messages, "; "))
		return
	}
	conditions.add(kind, true, string(gatewayv1.RouteReasonResolvedRefs), "All references resolved")
}

// knownFilter reports whether requests pass the filter; those that translate
// leaves out without harm count, too, and have a notice.
func knownFilter(kind gatewayv1.HTTPRouteFilterType) bool {
	switch kind {
	case gatewayv1.HTTPRouteFilterRequestHeaderModifier, gatewayv1.HTTPRouteFilterResponseHeaderModifier,
		gatewayv1.HTTPRouteFilterRequestRedirect, gatewayv1.HTTPRouteFilterURLRewrite,
		gatewayv1.HTTPRouteFilterRequestMirror, gatewayv1.HTTPRouteFilterCORS:
		return true
	case gatewayv1.HTTPRouteFilterExtensionRef, gatewayv1.HTTPRouteFilterExternalAuth:
	}
	return false
}
