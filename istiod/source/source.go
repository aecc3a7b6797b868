// Package source fills collections with the objects that users and the cluster
// write: typed, defaulted and validated, so that everything behind it is the
// same code wherever the objects come from. It translates nothing.
//
// Objects holds one input collection per kind that istiod reads. A Source
// feeds it: Dir reads directories of manifests, Kubernetes watches an API server
// (DESIGN.md §4). What cannot be taken is not an error but a
// Report, for the log and for the object's status: the last good version of the
// object stays, and no other object is affected.
//
// A Source changes the collections from one goroutine; reading them is safe
// from any.
package source

import (
	"context"
	"sync/atomic"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/collection"
)

// Source feeds collections until ctx is done.
type Source interface {
	Run(ctx context.Context) error
	// Missing says why the first load is not complete, from any goroutine.
	Missing() string
}

// missing is what keeps a first load from being complete.
type missing struct{ text atomic.Pointer[string] }

func (m *missing) set(text string) { m.text.Store(&text) }

func (m *missing) get() string {
	if text := m.text.Load(); text != nil {
		return *text
	}
	return ""
}

// Objects is what istiod reads, each kind under its key: "namespace/name", or
// "name" for kinds without namespace. Objects are never changed once they are
// in a collection: a new version is a new pointer.
type Objects struct {
	Graph *collection.Graph

	Namespaces      *collection.Input[*corev1.Namespace]
	Nodes           *collection.Input[*corev1.Node]
	ConfigMaps      *collection.Input[*corev1.ConfigMap]
	ServiceAccounts *collection.Input[*corev1.ServiceAccount]
	Pods            *collection.Input[*corev1.Pod]
	Services        *collection.Input[*corev1.Service]
	EndpointSlices  *collection.Input[*discoveryv1.EndpointSlice]
	Deployments     *collection.Input[*appsv1.Deployment]

	GatewayClasses *collection.Input[*gatewayv1.GatewayClass]
	Gateways       *collection.Input[*gatewayv1.Gateway]
	HTTPRoutes     *collection.Input[*gatewayv1.HTTPRoute]

	VirtualServices       *collection.Input[*networkingv1.VirtualService]
	DestinationRules      *collection.Input[*networkingv1.DestinationRule]
	ServiceEntries        *collection.Input[*networkingv1.ServiceEntry]
	WorkloadEntries       *collection.Input[*networkingv1.WorkloadEntry]
	PeerAuthentications   *collection.Input[*securityv1.PeerAuthentication]
	AuthorizationPolicies *collection.Input[*securityv1.AuthorizationPolicy]
}

// NewObjects makes the empty collections.
func NewObjects(g *collection.Graph) *Objects {
	return &Objects{
		Graph:           g,
		Namespaces:      input[*corev1.Namespace](g, "Namespace"),
		Nodes:           input[*corev1.Node](g, "Node"),
		ConfigMaps:      input[*corev1.ConfigMap](g, "ConfigMap"),
		ServiceAccounts: input[*corev1.ServiceAccount](g, "ServiceAccount"),
		Pods:            input[*corev1.Pod](g, "Pod"),
		Services:        input[*corev1.Service](g, "Service"),
		EndpointSlices:  input[*discoveryv1.EndpointSlice](g, "EndpointSlice"),
		Deployments:     input[*appsv1.Deployment](g, "Deployment"),

		GatewayClasses: input[*gatewayv1.GatewayClass](g, "GatewayClass"),
		Gateways:       input[*gatewayv1.Gateway](g, "Gateway"),
		HTTPRoutes:     input[*gatewayv1.HTTPRoute](g, "HTTPRoute"),

		VirtualServices:       input[*networkingv1.VirtualService](g, "VirtualService"),
		DestinationRules:      input[*networkingv1.DestinationRule](g, "DestinationRule"),
		ServiceEntries:        input[*networkingv1.ServiceEntry](g, "ServiceEntry"),
		WorkloadEntries:       input[*networkingv1.WorkloadEntry](g, "WorkloadEntry"),
		PeerAuthentications:   input[*securityv1.PeerAuthentication](g, "PeerAuthentication"),
		AuthorizationPolicies: input[*securityv1.AuthorizationPolicy](g, "AuthorizationPolicy"),
	}
}

// OnChange has f called, without waiting and inside the batch, with the key of
// every object that has come or changed, of the kinds that get a status. It must
// be called before the first batch.
func (o *Objects) OnChange(f func(key manifest.Key)) {
	onChange(o.Services, "", "Service", f)
	onChange(o.GatewayClasses, gatewayv1.GroupName, "GatewayClass", f)
	onChange(o.Gateways, gatewayv1.GroupName, "Gateway", f)
	onChange(o.HTTPRoutes, gatewayv1.GroupName, "HTTPRoute", f)
	onChange(o.VirtualServices, groupNetworking, "VirtualService", f)
	onChange(o.DestinationRules, groupNetworking, "DestinationRule", f)
	onChange(o.ServiceEntries, groupNetworking, "ServiceEntry", f)
	onChange(o.WorkloadEntries, groupNetworking, "WorkloadEntry", f)
	onChange(o.PeerAuthentications, groupSecurity, "PeerAuthentication", f)
	onChange(o.AuthorizationPolicies, groupSecurity, "AuthorizationPolicy", f)
}

func onChange[T object](in *collection.Input[T], group, kind string, f func(key manifest.Key)) {
	collection.Sink(in, func(events []collection.Event[T]) {
		for _, event := range events {
			if event.New != nil {
				o := *event.New
				f(manifest.Key{Group: group, Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()})
			}
		}
	})
}

// object is a pointer to a typed Kubernetes object.
type object interface {
	comparable
	metav1.Object
}

// input compares pointers: whoever sets an object has seen that it differs.
func input[T object](g *collection.Graph, name string) *collection.Input[T] {
	return collection.NewInput(g, name, keyOf[T], func(a, b T) bool { return a == b })
}

func keyOf[T object](o T) string { return objectKey(o.GetNamespace(), o.GetName()) }

func objectKey(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// Invalid says why an object, or a part of it, is not taken.
type Invalid struct {
	Key  manifest.Key
	File string // "" when the object comes from no file
	Line int
	// Generation is of the object that is meant; 0 in files.
	Generation int64
	Field      string // path, "" for the object as a whole
	Reason     string
}

// FileError says why a file is not taken.
type FileError struct {
	File   string
	Line   int
	Reason string
}

// Report is what one batch of changes means besides the collections.
type Report struct {
	// Invalid objects were refused; their last good versions stay.
	Invalid []Invalid
	// Valid objects were refused before and are now accepted, or gone.
	Valid []manifest.Key
	// Warnings are parts of accepted objects that have no effect.
	Warnings []Invalid
	// Unwarned objects have been warned about before and are fine now, or gone.
	Unwarned []manifest.Key
	// Unread objects are of kinds that istiod does not read.
	Unread []Invalid
	// Broken files were not taken; Mended are fine again, or gone.
	Broken []FileError
	Mended []string
}
