package istiod

import (
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/gateway"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
	"github.com/ambit-mesh/ambit/istiod/status"
	"github.com/ambit-mesh/ambit/istiod/translate"
)

// Groups of the kinds that get a status.
const (
	groupNetworking = "networking.istio.io"
	groupSecurity   = "security.istio.io"
)

// statement is what one writer says about one object.
type statement struct {
	writer string
	object manifest.Key
	status status.Status
}

func (s statement) key() string { return s.writer + " " + s.object.String() }

func say(writer, group, kind string, o metav1.Object, s status.Status) []statement {
	return []statement{{
		writer: writer,
		object: manifest.Key{Group: group, Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()},
		status: s,
	}}
}

// statements derives what istiod says about the user's objects. Reads the
// objects and the views, produces statuses.
func (l *l7Views) statements(o *source.Objects, deployments *collection.Derived[deployment]) []*collection.Derived[statement] {
	g := o.Graph
	options := collection.Options[statement]{Key: statement.key}
	fields := func(c *collection.Context, kind string, o metav1.Object, own []model.Notice) []statement {
		return say(status.WriterFields, groupNetworking, kind, o,
			status.Fields(o.GetGeneration(), l.notices(c, groupNetworking, kind, o, own)))
	}
	return []*collection.Derived[statement]{
		collection.Derive(g, "status of services", l.boundServices, options,
			func(_ *collection.Context, s model.BoundService) []statement {
				key := manifest.Key{Kind: "Service", Namespace: s.Name.Namespace, Name: s.Name.Name}
				return []statement{{status.WriterService, key, status.WaypointBound(0, s.Binding)}}
			}),
		collection.Derive(g, "status of policies", l.policies, options,
			func(c *collection.Context, p model.Policy) []statement {
				key := manifest.Key{Group: groupSecurity, Kind: "AuthorizationPolicy", Namespace: p.Name.Namespace, Name: p.Name.Name}
				out := policyStatement(key, p, l.mesh(c).RootNamespace)
				if object, ok := collection.Fetch(c, o.AuthorizationPolicies, p.Key()); ok {
					out.status.Generation = object.Generation
				}
				return []statement{out}
			}),
		collection.Derive(g, "status of virtual services", o.VirtualServices, options,
			func(c *collection.Context, s *networkingv1.VirtualService) []statement {
				return fields(c, "VirtualService", s, translate.VirtualServiceNotices(s, l.clusterDomain))
			}),
		collection.Derive(g, "status of destination rules", o.DestinationRules, options,
			func(c *collection.Context, r *networkingv1.DestinationRule) []statement {
				return fields(c, "DestinationRule", r, translate.DestinationRuleNotices(r))
			}),
		collection.Derive(g, "status of service entries", o.ServiceEntries, options,
			func(c *collection.Context, e *networkingv1.ServiceEntry) []statement {
				return fields(c, "ServiceEntry", e, notHonoured("ServiceEntry", e))
			}),
		collection.Derive(g, "status of workload entries", o.WorkloadEntries, options,
			func(c *collection.Context, e *networkingv1.WorkloadEntry) []statement {
				return fields(c, "WorkloadEntry", e, notHonoured("WorkloadEntry", e))
			}),
		collection.Derive(g, "status of routes", o.HTTPRoutes, options,
			func(c *collection.Context, r *gatewayv1.HTTPRoute) []statement {
				return say(status.WriterGateway, gatewayv1.GroupName, "HTTPRoute", r, l.routeStatus(c, o, r))
			}),
		collection.Derive(g, "status of gateways", o.Gateways, options,
			func(c *collection.Context, in *gatewayv1.Gateway) []statement {
				return say(status.WriterGateway, gatewayv1.GroupName, "Gateway", in, l.gatewayStatus(c, in, deployments))
			}),
		collection.Derive(g, "status of gateway classes", o.GatewayClasses, options,
			func(_ *collection.Context, in *gatewayv1.GatewayClass) []statement {
				s, ours := gateway.ClassStatus(in)
				if !ours {
					return nil
				}
				return say(status.WriterGateway, gatewayv1.GroupName, "GatewayClass", in, status.GatewayClass(in.Generation, s))
			}),
		collection.Derive(g, "status of objects with warnings", l.warnings, options,
			func(_ *collection.Context, w warning) []statement {
				if slices.Contains(noticed, w.object.Kind) {
					return nil // joined with what else there is to say
				}
				return []statement{{status.WriterFields, w.object, status.Fields(w.generation, w.notices)}}
			}),
	}
}

// noticed are the kinds whose status has all the notices about an object.
var noticed = []string{"VirtualService", "DestinationRule", "ServiceEntry", "WorkloadEntry", "HTTPRoute"}

// notices joins what an object deserves by itself, what the source has found in
// it, and what it deserves because of others.
func (l *l7Views) notices(c *collection.Context, group, kind string, o metav1.Object, own []model.Notice) []model.Notice {
	key := manifest.Key{Group: group, Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
	if w, ok := collection.Fetch(c, l.warnings, key.String()); ok {
		own = append(own, w.notices...)
	}
	for _, port := range collection.Lookup(c, l.servedByNotice, key.String()) {
		for _, notice := range port.notices {
			if notice.Object == key {
				own = append(own, notice)
			}
		}
	}
	return model.MergeNotices(own)
}

func notHonoured(kind string, o metav1.Object) []model.Notice {
	return []model.Notice{{
		Object:  manifest.Key{Group: groupNetworking, Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()},
		Field:   "spec",
		Message: kind + " is not supported yet and has no effect",
	}}
}

// policyStatement says what an AuthorizationPolicy comes to. No waypoint
// enforces one yet.
func policyStatement(key manifest.Key, p model.Policy, rootNamespace string) statement {
	if len(p.Targets) > 0 {
		return statement{status.WriterWaypointPolicy, key, status.Status{Conditions: []metav1.Condition{status.Condition(
			status.ConditionWaypointAccepted, false, translate.ReasonUnsupportedValue,
			"policies with targetRefs are not enforced yet: this one has no effect")}}}
	}
	result := translate.Authorization(p, rootNamespace)
	return statement{status.WriterZtunnelPolicy, key, status.Status{Conditions: []metav1.Condition{status.Condition(
		status.ConditionZtunnelAccepted, result.Accepted, result.Reason, result.Text)}}}
}

func (l *l7Views) routeStatus(c *collection.Context, o *source.Objects, r *gatewayv1.HTTPRoute) status.Status {
	own := translate.HTTPRouteNotices(r, l.clusterDomain)
	return status.Status{Generation: r.Generation, Parents: gateway.HTTPRouteStatus(r, gateway.RouteInputs{
		ClusterDomain: l.clusterDomain,
		Service: func(hostname string) (model.Service, bool) {
			s, ok := l.service(c, hostname)
			return s.Service, ok
		},
		Gateway: func(name model.Name) (*gatewayv1.Gateway, bool) {
			return collection.Fetch(c, o.Gateways, name.String())
		},
		Waypoint: func(name model.Name) *model.Waypoint {
			for _, s := range collection.Lookup(c, l.servicesByHost, model.L7Hostname(name.Namespace, name.Name, l.clusterDomain)) {
				return s.Binding.Waypoint
			}
			return nil
		},
		Notices: l.notices(c, gatewayv1.GroupName, "HTTPRoute", r, own),
	})}
}

func (l *l7Views) gatewayStatus(c *collection.Context, in *gatewayv1.Gateway, deployments *collection.Derived[deployment]) status.Status {
	key := in.Namespace + "/" + in.Name
	inputs := gateway.Inputs{Gateway: in}
	if deployed, ok := collection.Fetch(c, deployments, key); ok {
		inputs.Parameters, inputs.Users = deployed.err, deployed.users
	}
	waypoint, _ := collection.Fetch(c, l.waypoints, key)
	if s, ok := collection.Fetch(c, l.services, waypoint.Service.String()); ok {
		inputs.Service = &s
	}
	inputs.Ready = slices.ContainsFunc(collection.Lookup(c, l.endpointsByService, waypoint.Service.String()), model.Endpoints.Ready)
	if waypoint.Hostname != "" {
		kind := gatewayv1.HostnameAddressType
		inputs.Reported = []gatewayv1.GatewayStatusAddress{{Type: &kind, Value: waypoint.Hostname}}
	}
	s, ours := gateway.Status(inputs)
	if !ours {
		return status.Status{}
	}
	return status.Gateway(in.Generation, s)
}
