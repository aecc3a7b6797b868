// Package gateway says what objects of the Gateway API mean in the mesh and
// what their status has to tell: whether a waypoint's Gateway is valid, has
// been deployed and where it is reached, and what a route is attached to.
//
// It is pure: inputs are typed objects and values of istiod/model, results are
// statuses. Conditions carry no lastTransitionTime; whoever writes them knows
// when they changed. It translates no routes (istiod/translate) and creates no
// objects (istiod/deploy). Every function takes any object, valid or not. The
// rules are those of spec/control-plane.md §4.9, §6.1 and §6.3.
package gateway

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Inputs is what the status of a Gateway depends on.
type Inputs struct {
	Gateway *gatewayv1.Gateway

	// Service is the one in front of the waypoint's pods; nil while it is not
	// there. Ready tells whether it has a ready endpoint.
	Service *model.Service
	Ready   bool

	// Parameters is why the Gateway could not be deployed as it asks to be; nil
	// when it could.
	Parameters error

	// Users are objects of the user that have the names of the waypoint's and
	// are left as they are.
	Users []string

	// Reported are the addresses that the status has by now: once reported they
	// stay, so that a restart of the waypoint does not detach its services.
	Reported []gatewayv1.GatewayStatusAddress
}

// Status returns the status of a Gateway. It reports false for a class that is
// not ours to speak about.
func Status(in Inputs) (gatewayv1.GatewayStatus, bool) {
	class, ours := classOf(in.Gateway)
	if !ours {
		return gatewayv1.GatewayStatus{}, false
	}
	g := in.Gateway
	conditions := conditionList{generation: g.Generation}
	listeners, valid := listenerStatuses(g, class.supported)
	out := gatewayv1.GatewayStatus{Listeners: listeners}
	switch {
	case !class.supported:
		message := "gateways of class " + string(g.Spec.GatewayClassName) + " are not supported yet"
		conditions.add(string(gatewayv1.GatewayConditionAccepted), false, string(gatewayv1.GatewayReasonInvalid), message)
		conditions.add(string(gatewayv1.GatewayConditionProgrammed), false, string(gatewayv1.GatewayReasonInvalid), message)
		out.Conditions = conditions.list
		return out, true
	case valid == 0:
		conditions.add(string(gatewayv1.GatewayConditionAccepted), false, string(gatewayv1.GatewayReasonListenersNotValid), ErrNoListener.Error())
	case in.Parameters != nil:
		conditions.add(string(gatewayv1.GatewayConditionAccepted), false, string(gatewayv1.GatewayReasonInvalidParameters), in.Parameters.Error())
	case valid < len(g.Spec.Listeners):
		conditions.add(string(gatewayv1.GatewayConditionAccepted), true, string(gatewayv1.GatewayReasonListenersNotValid), "some listeners are not valid")
	default:
		conditions.add(string(gatewayv1.GatewayConditionAccepted), true, string(gatewayv1.GatewayReasonAccepted), "Resource accepted"+leftAlone(in.Users))
	}
	out.Addresses = addresses(in)
	programmed(&conditions, in, valid > 0, len(out.Addresses) > 0)
	out.Conditions = conditions.list
	return out, true
}

func leftAlone(users []string) string {
	if len(users) == 0 {
		return ""
	}
	return "; not deployed, because without the label " + mesh.LabelGatewayManaged + " they are the user's: " + strings.Join(users, ", ")
}

// programmed tells whether traffic can reach the waypoint.
func programmed(conditions *conditionList, in Inputs, valid, assigned bool) {
	const kind = string(gatewayv1.GatewayConditionProgrammed)
	service := in.Gateway.Namespace + "/" + in.Gateway.Name
	if in.Service != nil {
		service = in.Service.Name.String()
	}
	switch {
	case !valid:
		conditions.add(kind, false, string(gatewayv1.GatewayReasonInvalid), ErrNoListener.Error())
	case in.Service == nil:
		conditions.add(kind, false, string(gatewayv1.GatewayReasonAddressNotAssigned), "service "+service+" does not exist yet")
	case !in.Ready:
		reason := gatewayv1.GatewayReasonAddressNotAssigned
		if assigned {
			reason = gatewayv1.GatewayReasonAddressNotUsable
		}
		conditions.add(kind, false, string(reason), "service "+service+" has no ready endpoints: look at the pods of the waypoint")
	default:
		conditions.add(kind, true, string(gatewayv1.GatewayReasonProgrammed), "Resource programmed, assigned to service "+service)
	}
}

// addresses of a waypoint are its Service's IP addresses and host name.
func addresses(in Inputs) []gatewayv1.GatewayStatusAddress {
	if in.Service == nil || (!in.Ready && len(in.Reported) == 0) {
		return in.Reported
	}
	var out []gatewayv1.GatewayStatusAddress
	for _, ip := range in.Service.Addresses {
		out = append(out, address(gatewayv1.IPAddressType, ip.String()))
	}
	return append(out, address(gatewayv1.HostnameAddressType, in.Service.Hostname))
}

func address(kind gatewayv1.AddressType, value string) gatewayv1.GatewayStatusAddress {
	return gatewayv1.GatewayStatusAddress{Type: &kind, Value: value}
}

// Deployable reports whether istiod creates the pods of the Gateway: it is a
// waypoint whose addresses are not given by the user, apart from one IP address,
// spec/control-plane.md §6.2. Any other addresses mean that the user has deployed
// it.
func Deployable(g *gatewayv1.Gateway) bool {
	if class, ours := classOf(g); !ours || !class.supported {
		return false
	}
	return len(g.Spec.Addresses) == 0 || len(g.Spec.Addresses) == 1 && isIP(g.Spec.Addresses[0])
}

// ErrNoListener is why a waypoint cannot be deployed anew: what runs of it goes
// on, since its services are still sent to it.
var ErrNoListener = errors.New("no listener is valid")

// Listens returns ErrNoListener when no listener of a waypoint is valid.
func Listens(g *gatewayv1.Gateway) error {
	if _, valid := listenerStatuses(g, true); valid == 0 {
		return ErrNoListener
	}
	return nil
}

func isIP(a gatewayv1.GatewaySpecAddress) bool {
	if a.Type != nil && *a.Type != gatewayv1.IPAddressType {
		return false
	}
	_, err := netip.ParseAddr(a.Value)
	return err == nil
}

// class is what istiod does with the Gateways of a GatewayClass.
type class struct {
	controller string
	supported  bool
}

// classes are the GatewayClasses of spec/control-plane.md §6.1. They exist
// whether or not there are objects for them.
var classes = map[gatewayv1.ObjectName]class{
	mesh.WaypointGatewayClass: {controller: mesh.MeshControllerName, supported: true},
	"istio":                   {controller: mesh.GatewayControllerName},
	"istio-east-west":         {controller: "istio.io/eastwest-controller"},
}

func classOf(g *gatewayv1.Gateway) (class, bool) {
	if g == nil {
		return class{}, false
	}
	c, ours := classes[g.Spec.GatewayClassName]
	return c, ours
}

// ClassStatus returns the status of a GatewayClass; it reports false for one
// that another controller handles.
func ClassStatus(c *gatewayv1.GatewayClass) (gatewayv1.GatewayClassStatus, bool) {
	known := func(k class) bool { return k.controller == string(c.Spec.ControllerName) }
	conditions := conditionList{generation: c.Generation}
	const kind = string(gatewayv1.GatewayClassConditionStatusAccepted)
	for _, k := range classes {
		if !known(k) {
			continue
		}
		out := gatewayv1.GatewayClassStatus{}
		if k.supported {
			conditions.add(kind, true, string(gatewayv1.GatewayClassReasonAccepted), "Handled by Istio controller")
			out.SupportedFeatures = meshFeatures()
		} else {
			conditions.add(kind, false, string(gatewayv1.GatewayClassReasonUnsupported), "gateways of this controller are not supported yet")
		}
		out.Conditions = conditions.list
		return out, true
	}
	return gatewayv1.GatewayClassStatus{}, false
}

// conditionList collects the conditions of one object.
type conditionList struct {
	generation int64
	list       []metav1.Condition
}

func (l *conditionList) add(kind string, is bool, reason, message string) {
	status := metav1.ConditionFalse
	if is {
		status = metav1.ConditionTrue
	}
	l.list = append(l.list, metav1.Condition{
		Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: l.generation,
	})
}

// listenerStatuses returns the status of every listener and how many are valid.
func listenerStatuses(g *gatewayv1.Gateway, supported bool) ([]gatewayv1.ListenerStatus, int) {
	out := make([]gatewayv1.ListenerStatus, 0, len(g.Spec.Listeners))
	valid := 0
	for i := range g.Spec.Listeners {
		listener := &g.Spec.Listeners[i]
		p := checkListener(listener, supported)
		if p == nil && slices.ContainsFunc(g.Spec.Listeners[:i], func(earlier gatewayv1.Listener) bool {
			return checkListener(&earlier, supported) == nil
		}) {
			p = &problem{
				reason: gatewayv1.ListenerReasonHostnameConflict, conflict: true,
				message: "an earlier listener has the same port",
			}
		}
		if p == nil {
			valid++
		}
		out = append(out, listenerStatus(listener, p, g.Generation))
	}
	return out, valid
}

// problem is why a listener is not valid.
type problem struct {
	reason   gatewayv1.ListenerConditionReason
	message  string
	conflict bool
}

func checkListener(l *gatewayv1.Listener, supported bool) *problem {
	if !supported {
		return &problem{reason: gatewayv1.ListenerReasonUnsupportedProtocol, message: "gateways of this class are not supported yet"}
	}
	if l.Port != mesh.PortHBONE || string(l.Protocol) != mesh.ProtocolHBONE {
		return &problem{
			reason:  gatewayv1.ListenerReasonUnsupportedProtocol,
			message: `Expected a single listener on port 15008 with protocol "HBONE"`,
		}
	}
	if l.AllowedRoutes == nil || l.AllowedRoutes.Namespaces == nil {
		return nil
	}
	if selector := l.AllowedRoutes.Namespaces.Selector; selector != nil {
		if _, err := metav1.LabelSelectorAsSelector(selector); err != nil {
			return &problem{
				reason:  gatewayv1.ListenerReasonUnsupportedValue,
				message: "allowedRoutes.namespaces.selector: " + err.Error(),
			}
		}
	}
	return nil
}

func listenerStatus(l *gatewayv1.Listener, p *problem, generation int64) gatewayv1.ListenerStatus {
	conditions := conditionList{generation: generation}
	if p == nil {
		p = &problem{reason: gatewayv1.ListenerReasonAccepted, message: "No errors found"}
	}
	ok := p.reason == gatewayv1.ListenerReasonAccepted
	programmedReason := gatewayv1.ListenerReasonInvalid
	if ok {
		programmedReason = gatewayv1.ListenerReasonProgrammed
	}
	conflictReason := gatewayv1.ListenerReasonNoConflicts
	if p.conflict {
		conflictReason = p.reason
	}
	conditions.add(string(gatewayv1.ListenerConditionAccepted), ok, string(p.reason), p.message)
	conditions.add(string(gatewayv1.ListenerConditionConflicted), p.conflict, string(conflictReason), p.message)
	conditions.add(string(gatewayv1.ListenerConditionProgrammed), ok, string(programmedReason), p.message)
	conditions.add(string(gatewayv1.ListenerConditionResolvedRefs), true, string(gatewayv1.ListenerReasonResolvedRefs), "No errors found")
	return gatewayv1.ListenerStatus{
		Name:           l.Name,
		SupportedKinds: []gatewayv1.RouteGroupKind{},
		Conditions:     conditions.list,
	}
}
