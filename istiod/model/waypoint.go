package model

import (
	"cmp"
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// Waypoint is a Gateway that other objects can name as their waypoint.
type Waypoint struct {
	Name  Name
	Class string
	// For is which traffic it serves: service, workload, all or none.
	For string
	// Service is the Kubernetes Service of its pods.
	Service Name
	// ServiceAccount is that of its pods, as istiod/deploy names it.
	ServiceAccount string
	// Hostname or Address is where it is reached. Both are empty while it is
	// not ready.
	Hostname string
	Address  netip.Addr
	// Allowed says from which namespaces objects may attach.
	Allowed Allowed
}

// Allowed is the allowedRoutes of the listener that a waypoint is reached by.
// The zero value is the Gateway's own namespace only.
type Allowed struct {
	All      bool
	None     bool
	Selector labels.Selector // by labels of the namespace, when not nil
}

// Ready reports whether the waypoint has an address.
func (w Waypoint) Ready() bool { return w.Hostname != "" || w.Address.IsValid() }

// Scope is the name under which resources of this waypoint are sent to it and
// to nobody else.
func (w Waypoint) Scope() string { return WaypointScope(w.Name) }

// WaypointScope is the Scope of the waypoint with this name.
func WaypointScope(name Name) string { return "waypoint/" + name.Namespace + "/" + name.Name }

// Serves reports whether the waypoint takes traffic of a kind:
// mesh.WaypointForService or mesh.WaypointForWorkload.
func (w Waypoint) Serves(kind string) bool {
	return w.For == kind || w.For == mesh.WaypointForAll
}

// Admits reports whether objects of a namespace may attach.
func (w Waypoint) Admits(namespace Namespace) bool {
	switch {
	case w.Allowed.All:
		return true
	case w.Allowed.None:
		return false
	case w.Allowed.Selector != nil:
		return w.Allowed.Selector.Matches(labels.Set(namespace.Labels))
	}
	return namespace.Name == w.Name.Namespace
}

// NewWaypoint reads a Gateway. class may be nil. The result is not ready: for
// the class istio-waypoint the address follows from the pods behind its
// Service, see WithAddress; any other Gateway qualifies by the addresses that
// its own controller has reported.
func NewWaypoint(g *gatewayv1.Gateway, class *gatewayv1.GatewayClass) Waypoint {
	name := Name{Namespace: g.Namespace, Name: g.Name}
	out := Waypoint{
		Name:    name,
		Class:   string(g.Spec.GatewayClassName),
		For:     mesh.WaypointForService,
		Service: name,
		Allowed: listenerAllows(g),
	}
	if override := g.Annotations["gateway.istio.io/name-override"]; override != "" {
		out.Service.Name = override
	}
	out.ServiceAccount = cmp.Or(g.Annotations["gateway.istio.io/service-account"], out.Service.Name)
	if class != nil && class.Labels[mesh.LabelWaypointFor] != "" {
		out.For = class.Labels[mesh.LabelWaypointFor]
	}
	if value := g.Labels[mesh.LabelWaypointFor]; value != "" {
		out.For = value
	}
	if out.Class == mesh.WaypointGatewayClass {
		return out
	}
	for _, address := range g.Status.Addresses {
		kind := gatewayv1.IPAddressType
		if address.Type != nil {
			kind = *address.Type
		}
		switch ip, err := netip.ParseAddr(address.Value); {
		case kind == gatewayv1.HostnameAddressType:
			out.Hostname = address.Value
			return out
		case err == nil && !out.Address.IsValid():
			out.Address = ip
		}
	}
	return out
}

// WithAddress returns w as reached by the hostname of its Service.
func (w Waypoint) WithAddress(clusterDomain string) Waypoint {
	w.Hostname = L7Hostname(w.Service.Namespace, w.Service.Name, clusterDomain)
	return w
}

// listenerAllows reads whom the listener HBONE/15008 admits. A waypoint of ours
// without one has a mistake in it, which its status names: whom its first listener
// admits stays attached, as its deployment stays, since to detach is to go past
// the waypoint.
func listenerAllows(g *gatewayv1.Gateway) Allowed {
	for _, listener := range g.Spec.Listeners {
		if string(listener.Protocol) == mesh.ProtocolHBONE && listener.Port == mesh.PortHBONE {
			return admits(listener.AllowedRoutes)
		}
	}
	if string(g.Spec.GatewayClassName) == mesh.WaypointGatewayClass && len(g.Spec.Listeners) > 0 {
		return admits(g.Spec.Listeners[0].AllowedRoutes)
	}
	return Allowed{}
}

// admits reads allowedRoutes. The default, and the answer for a selector that does
// not parse, is the same namespace only.
func admits(routes *gatewayv1.AllowedRoutes) Allowed {
	if routes == nil || routes.Namespaces == nil || routes.Namespaces.From == nil {
		return Allowed{}
	}
	switch *routes.Namespaces.From {
	case gatewayv1.NamespacesFromAll:
		return Allowed{All: true}
	case gatewayv1.NamespacesFromSelector:
		selector, err := metav1.LabelSelectorAsSelector(routes.Namespaces.Selector)
		if err != nil {
			return Allowed{}
		}
		return Allowed{Selector: selector}
	case gatewayv1.NamespacesFromNone:
		return Allowed{None: true}
	case gatewayv1.NamespacesFromSame:
	}
	return Allowed{}
}

// Binding is the waypoint of a service or workload, or why it has none.
type Binding struct {
	// Wanted is the Gateway that was asked for, zero when none was.
	Wanted Name
	// Waypoint is nil when there is none: not wanted, or refused by Reason.
	Waypoint *Waypoint
	// Reason and Message are those of the condition istio.io/WaypointBound;
	// Reason is empty when nothing was wanted.
	Reason  string
	Message string
}

// The reasons of a Binding.
const (
	ReasonWaypointAccepted       = "WaypointAccepted"
	ReasonWaypointNotReady       = "WaypointIsNotReady"
	ReasonAttachmentDenied       = "AttachmentDenied"
	ReasonUnsupportedTrafficType = "UnsupportedTrafficType"
)
