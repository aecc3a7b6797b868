package status

import (
	"iter"
	"strings"

	metaistio "istio.io/api/meta/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/source"
)

// readKind reads the statuses of one kind out of what the source has read.
type readKind struct {
	Group, Kind string
	how         shape
	get         func(o *source.Objects, key manifest.Key) (body, bool)
	all         func(o *source.Objects) iter.Seq2[manifest.Key, body]
}

// items is the part of a collection that is used.
type items[T any] interface {
	Get(key string) (T, bool)
	List() []T
}

func readable[T metav1.Object, C items[T]](group, kind string, from func(*source.Objects) C, status func(T) body) readKind {
	return readKind{
		Group: group, Kind: kind, how: shapeOf(manifest.Key{Group: group, Kind: kind}),
		get: func(o *source.Objects, key manifest.Key) (body, bool) {
			item, ok := from(o).Get(strings.TrimPrefix(key.Namespace+"/"+key.Name, "/"))
			if !ok {
				return body{}, false
			}
			return status(item), true
		},
		all: func(o *source.Objects) iter.Seq2[manifest.Key, body] {
			return func(yield func(manifest.Key, body) bool) {
				for _, item := range from(o).List() {
					key := manifest.Key{Group: group, Kind: kind, Namespace: item.GetNamespace(), Name: item.GetName()}
					if !yield(key, status(item)) {
						return
					}
				}
			}
		},
	}
}

// readKinds are the kinds that are read and get a status.
var readKinds = []readKind{
	readable("", "Service", func(o *source.Objects) items[*corev1.Service] { return o.Services },
		func(s *corev1.Service) body { return body{Conditions: s.Status.Conditions} }),
	readable(gatewayv1.GroupName, "GatewayClass", func(o *source.Objects) items[*gatewayv1.GatewayClass] { return o.GatewayClasses },
		func(c *gatewayv1.GatewayClass) body {
			return body{Conditions: c.Status.Conditions, SupportedFeatures: c.Status.SupportedFeatures, gateway: true}
		}),
	readable(gatewayv1.GroupName, "Gateway", func(o *source.Objects) items[*gatewayv1.Gateway] { return o.Gateways },
		func(g *gatewayv1.Gateway) body {
			return body{Conditions: g.Status.Conditions, Listeners: g.Status.Listeners, Addresses: g.Status.Addresses, gateway: true}
		}),
	readable(gatewayv1.GroupName, "HTTPRoute", func(o *source.Objects) items[*gatewayv1.HTTPRoute] { return o.HTTPRoutes },
		func(r *gatewayv1.HTTPRoute) body { return body{Parents: r.Status.Parents} }),
	readable("networking.istio.io", "VirtualService", func(o *source.Objects) items[*networkingv1.VirtualService] { return o.VirtualServices },
		func(s *networkingv1.VirtualService) body { return istioBody(&s.Status) }),
	readable("networking.istio.io", "DestinationRule", func(o *source.Objects) items[*networkingv1.DestinationRule] { return o.DestinationRules },
		func(r *networkingv1.DestinationRule) body { return istioBody(&r.Status) }),
	readable("networking.istio.io", "ServiceEntry", func(o *source.Objects) items[*networkingv1.ServiceEntry] { return o.ServiceEntries },
		func(e *networkingv1.ServiceEntry) body { return body{Conditions: istioConditions(e.Status.Conditions)} }),
	readable("networking.istio.io", "WorkloadEntry", func(o *source.Objects) items[*networkingv1.WorkloadEntry] { return o.WorkloadEntries },
		func(e *networkingv1.WorkloadEntry) body { return istioBody(&e.Status) }),
	readable("security.istio.io", "PeerAuthentication", func(o *source.Objects) items[*securityv1.PeerAuthentication] { return o.PeerAuthentications },
		func(p *securityv1.PeerAuthentication) body { return istioBody(&p.Status) }),
	readable("security.istio.io", "AuthorizationPolicy", func(o *source.Objects) items[*securityv1.AuthorizationPolicy] { return o.AuthorizationPolicies },
		func(p *securityv1.AuthorizationPolicy) body { return istioBody(&p.Status) }),
}

func istioBody(s *metaistio.IstioStatus) body {
	return body{Conditions: istioConditions(s.GetConditions())}
}

func istioConditions(list []*metaistio.IstioCondition) []metav1.Condition {
	var out []metav1.Condition
	for _, c := range list {
		out = append(out, metav1.Condition{
			Type: c.GetType(), Status: metav1.ConditionStatus(c.GetStatus()), Reason: c.GetReason(), Message: c.GetMessage(),
			ObservedGeneration: c.GetObservedGeneration(), LastTransitionTime: metav1.NewTime(c.GetLastTransitionTime().AsTime()),
		})
	}
	return out
}
