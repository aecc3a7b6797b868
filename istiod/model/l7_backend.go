package model

import (
	"fmt"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Kinds that a route of the Gateway API can point to, spec/control-plane.md
// §4.9.
const (
	kindService  = "Service"
	kindHostname = "Hostname"
	groupIstio   = "networking.istio.io"
)

// Backend is where a backendRef of a route leads, or why it leads nowhere.
type Backend struct {
	Hostname string
	Port     uint32
	// Reason is one of the Gateway API for the condition ResolvedRefs; empty
	// when the backend is valid.
	Reason  string
	Message string
}

// Valid reports whether requests can be sent there.
func (b Backend) Valid() bool { return b.Reason == "" }

// ResolveBackend returns the backend that a reference in a route of the
// namespace means. Mesh routes may refer to Services of other namespaces
// without a ReferenceGrant. A nil service skips the check that it exists.
func ResolveBackend(ref gatewayv1.BackendObjectReference, namespace, clusterDomain string, service func(hostname string) (Service, bool)) Backend {
	group, kind := textOr(ref.Group, ""), textOr(ref.Kind, kindService)
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	var out Backend
	switch {
	case group == "" && kind == kindService:
		out.Hostname = L7Hostname(namespace, string(ref.Name), clusterDomain)
	case group == groupIstio && kind == kindHostname:
		out.Hostname = string(ref.Name)
	default:
		out.Reason = string(gatewayv1.RouteReasonInvalidKind)
		out.Message = fmt.Sprintf("backends of kind %q in group %q are not supported", kind, group)
		return out
	}
	if ref.Port == nil {
		out.Reason = string(gatewayv1.RouteReasonUnsupportedValue)
		out.Message = fmt.Sprintf("backend %s has no port", out.Hostname)
		return out
	}
	out.Port = portNumber(*ref.Port)
	if service == nil {
		return out
	}
	target, known := service(out.Hostname)
	switch {
	case !known:
		out.Reason = string(gatewayv1.RouteReasonBackendNotFound)
		out.Message = fmt.Sprintf("service %s does not exist", out.Hostname)
	case !slices.ContainsFunc(target.Ports, func(p ServicePort) bool { return p.Port == out.Port }):
		out.Reason = string(gatewayv1.RouteReasonBackendNotFound)
		out.Message = fmt.Sprintf("service %s has no port %d", out.Hostname, out.Port)
	}
	return out
}

// ParentService returns the Service that a parentRef of a mesh route in the
// namespace names; it reports false for other kinds.
func ParentService(ref gatewayv1.ParentReference, namespace string) (Name, bool) {
	// The group's default is the Gateway API's own, so that a Service must be
	// named with its group.
	if textOr(ref.Group, gatewayv1.GroupName) != "" || textOr(ref.Kind, "Gateway") != kindService {
		return Name{}, false
	}
	if ref.Namespace != nil {
		namespace = string(*ref.Namespace)
	}
	return Name{Namespace: namespace, Name: string(ref.Name)}, true
}

// ParentMatchesPort reports whether a parentRef that names a Service includes
// the port: by number, by name, or by naming none.
func ParentMatchesPort(ref gatewayv1.ParentReference, port ServicePort) bool {
	if ref.Port != nil && portNumber(*ref.Port) != port.Port {
		return false
	}
	return ref.SectionName == nil || string(*ref.SectionName) == port.Name
}

func textOr[T ~string](value *T, otherwise string) string {
	if value == nil {
		return otherwise
	}
	return string(*value)
}
