package source

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/collection"
)

// Groups of the kinds that are read.
const (
	groupNetworking = "networking.istio.io"
	groupSecurity   = "security.istio.io"
)

// groupKind is a kind whatever its version.
type groupKind struct{ group, kind string }

// String returns the form "Kind.group".
func (g groupKind) String() string {
	if g.group == "" {
		return g.kind
	}
	return g.kind + "." + g.group
}

// kind says how objects of one kind are read.
type kind struct {
	// versions are those accepted. The first is the one that objects of the
	// others are converted to, by name alone: their fields are the same.
	versions   []string
	namespaced bool
	// decode returns the typed object, strictly; served does so with one from an
	// API server, and what its type does not know.
	decode func(manifest.Object) (any, error)
	served func(*unstructured.Unstructured) (o any, unknown []string, err error)
	// same reports whether an equal object is in the collection; set and remove
	// change it.
	same   func(key string, o any) bool
	set    func(tx *collection.Tx, o any)
	remove func(tx *collection.Tx, key string)
}

// typed makes the kind of one collection. P is *T.
func typed[T any, P interface {
	*T
	object
	runtime.Object
}](in *collection.Input[P], namespaced bool, versions ...string) kind {
	return kind{
		versions: versions, namespaced: namespaced,
		decode: func(o manifest.Object) (any, error) {
			into := P(new(T))
			if err := manifest.Decode(o, into); err != nil {
				return nil, err
			}
			return into, nil
		},
		served: func(body *unstructured.Unstructured) (any, []string, error) {
			into := P(new(T))
			unknown, err := decodeServed(body, into)
			return into, unknown, err
		},
		same: func(key string, o any) bool {
			there, ok := in.Get(key)
			return ok && equality.Semantic.DeepEqual(there, o)
		},
		set: func(tx *collection.Tx, o any) {
			if typed, ok := o.(P); ok {
				in.Set(tx, typed)
			}
		},
		remove: func(tx *collection.Tx, key string) { in.Delete(tx, key) },
	}
}

// kinds is every kind that is read.
func kinds(o *Objects) map[groupKind]kind {
	const gateway, networking, security = gatewayv1.GroupName, groupNetworking, groupSecurity
	return map[groupKind]kind{
		{"", "Namespace"}:                        typed[corev1.Namespace](o.Namespaces, false, "v1"),
		{"", "Node"}:                             typed[corev1.Node](o.Nodes, false, "v1"),
		{"", "ConfigMap"}:                        typed[corev1.ConfigMap](o.ConfigMaps, true, "v1"),
		{"", "ServiceAccount"}:                   typed[corev1.ServiceAccount](o.ServiceAccounts, true, "v1"),
		{"", "Pod"}:                              typed[corev1.Pod](o.Pods, true, "v1"),
		{"", "Service"}:                          typed[corev1.Service](o.Services, true, "v1"),
		{discoveryv1.GroupName, "EndpointSlice"}: typed[discoveryv1.EndpointSlice](o.EndpointSlices, true, "v1"),
		{appsv1.GroupName, "Deployment"}:         typed[appsv1.Deployment](o.Deployments, true, "v1"),
		{gateway, "GatewayClass"}:                typed[gatewayv1.GatewayClass](o.GatewayClasses, false, "v1", "v1beta1"),
		{gateway, "Gateway"}:                     typed[gatewayv1.Gateway](o.Gateways, true, "v1", "v1beta1"),
		{gateway, "HTTPRoute"}:                   typed[gatewayv1.HTTPRoute](o.HTTPRoutes, true, "v1", "v1beta1"),
		{networking, "VirtualService"}:           typed[networkingv1.VirtualService](o.VirtualServices, true, "v1", "v1beta1", "v1alpha3"),
		{networking, "DestinationRule"}:          typed[networkingv1.DestinationRule](o.DestinationRules, true, "v1", "v1beta1", "v1alpha3"),
		{networking, "ServiceEntry"}:             typed[networkingv1.ServiceEntry](o.ServiceEntries, true, "v1", "v1beta1", "v1alpha3"),
		{networking, "WorkloadEntry"}:            typed[networkingv1.WorkloadEntry](o.WorkloadEntries, true, "v1", "v1beta1", "v1alpha3"),
		{security, "PeerAuthentication"}:         typed[securityv1.PeerAuthentication](o.PeerAuthentications, true, "v1", "v1beta1"),
		{security, "AuthorizationPolicy"}:        typed[securityv1.AuthorizationPolicy](o.AuthorizationPolicies, true, "v1", "v1beta1"),
	}
}

// meshGroups are those whose objects are there for the mesh. What chart istiod
// lets istiod read is the same; other groups of Istio's, such as that of its
// operator, say nothing to a control plane.
var meshGroups = []string{gatewayv1.GroupName, groupNetworking, groupSecurity, "telemetry.istio.io", "extensions.istio.io"}

// ForMesh reports whether a group's objects are there for the mesh, so that
// their authors expect an effect.
func ForMesh(group string) bool { return slices.Contains(meshGroups, group) }

// convert returns o in the version that is read, or false when its version is
// not served.
func (k kind) convert(o manifest.Object, group string) (manifest.Object, bool) {
	version := o.Body.GroupVersionKind().Version
	if !slices.Contains(k.versions, version) {
		return manifest.Object{}, false
	}
	if version != k.versions[0] {
		o.Body = o.Body.DeepCopy()
		o.Body.SetAPIVersion(group + "/" + k.versions[0])
	}
	return o, true
}
