package model

import (
	"maps"
	"slices"

	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// AnnotationUnreadable is on what istiod/source takes in the place of a policy
// that it cannot read: the strictest with its name and scope.
const AnnotationUnreadable = "ambit-mesh.io/unreadable"

// Policy is an AuthorizationPolicy.
type Policy struct {
	Name Name
	Age  Age
	// Selector is empty for a policy that applies to a whole namespace.
	Selector map[string]string
	// Targets is empty for a policy that ztunnel enforces; otherwise waypoints
	// do.
	Targets []*typeapi.PolicyTargetReference
	DryRun  bool
	// Unreadable policies are stand-ins, see AnnotationUnreadable.
	Unreadable bool
	// Spec is shared; nobody writes to it.
	Spec *securityapi.AuthorizationPolicy
}

// Key is the policy's resource name and its key in collections.
func (p Policy) Key() string { return p.Name.String() }

// NewPolicy reads an AuthorizationPolicy.
func NewPolicy(p *securityv1.AuthorizationPolicy) Policy {
	name := Name{Namespace: p.Namespace, Name: p.Name}
	out := Policy{
		Name:       name,
		Age:        Age{Created: p.CreationTimestamp.Time, Name: name},
		Selector:   p.Spec.GetSelector().GetMatchLabels(),
		Targets:    p.Spec.GetTargetRefs(),
		DryRun:     p.Annotations["istio.io/dry-run"] == "true",
		Spec:       &p.Spec,
		Unreadable: p.Annotations[AnnotationUnreadable] == "true",
	}
	if ref := p.Spec.GetTargetRef(); ref != nil {
		out.Targets = append(slices.Clone(out.Targets), ref)
	}
	return out
}

// MutualTLS is how strictly a peer must identify itself.
type MutualTLS int

// The modes. DISABLE is read as permissive: in ambient a workload cannot turn
// its tunnel off, spec/control-plane.md §2.7.
const (
	MutualTLSUnset MutualTLS = iota
	MutualTLSPermissive
	MutualTLSStrict
)

// PeerAuthentication is the object of that name.
type PeerAuthentication struct {
	Name     Name
	Age      Age
	Selector map[string]string
	Mode     MutualTLS
	// Ports are the target ports with a mode of their own.
	Ports map[uint32]MutualTLS
}

// Key is the object's key in collections.
func (p PeerAuthentication) Key() string { return p.Name.String() }

// NewPeerAuthentication reads a PeerAuthentication.
func NewPeerAuthentication(p *securityv1.PeerAuthentication) PeerAuthentication {
	name := Name{Namespace: p.Namespace, Name: p.Name}
	out := PeerAuthentication{
		Name:     name,
		Age:      Age{Created: p.CreationTimestamp.Time, Name: name},
		Selector: p.Spec.GetSelector().GetMatchLabels(),
		Mode:     mutualTLS(p.Spec.GetMtls()),
		Ports:    map[uint32]MutualTLS{},
	}
	for port, mode := range p.Spec.GetPortLevelMtls() {
		out.Ports[port] = mutualTLS(mode)
	}
	return out
}

func mutualTLS(m *securityapi.PeerAuthentication_MutualTLS) MutualTLS {
	switch m.GetMode() {
	case securityapi.PeerAuthentication_MutualTLS_STRICT:
		return MutualTLSStrict
	case securityapi.PeerAuthentication_MutualTLS_PERMISSIVE, securityapi.PeerAuthentication_MutualTLS_DISABLE:
		return MutualTLSPermissive
	case securityapi.PeerAuthentication_MutualTLS_UNSET:
	}
	return MutualTLSUnset
}

// Selects reports whether every label of selector is among labels.
func Selects(selector, labels map[string]string) bool {
	for key, value := range selector {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// SelectorIndex returns the value under which an object of a namespace with
// this selector is indexed: by one of its labels, so that a change of it
// concerns only what carries that label.
func SelectorIndex(namespace string, selector map[string]string) string {
	keys := slices.Sorted(maps.Keys(selector))
	if len(keys) == 0 {
		return namespace + "/"
	}
	return namespace + "/" + keys[0] + "=" + selector[keys[0]]
}

// SelectorValues returns every SelectorIndex value under which an object with
// these labels may be selected.
func SelectorValues(namespace string, labels map[string]string) []string {
	out := make([]string, 0, len(labels)+1)
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, namespace+"/"+key+"="+labels[key])
	}
	return out
}
