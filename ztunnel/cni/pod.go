package cni

import (
	"context"
	"net/netip"
	"slices"
	"strconv"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// Pod is what the agent needs to know of a pod of its node.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string
	Labels, NamespaceLabels              map[string]string
	Annotations                          map[string]string
	IPs                                  []netip.Addr // as the API server knows them; the container runtime knows them earlier
	HostNetwork                          bool
	Ended                                bool // phase Succeeded or Failed: its addresses are not its own any more
}

// capturesDNS says whether what the pod asks of resolvers is redirected: what its
// annotation mesh.AnnotationDNSCapture says, else the agent's default.
func (p *Pod) capturesDNS(preset bool) bool {
	wanted, err := strconv.ParseBool(p.Annotations[mesh.AnnotationDNSCapture])
	if err != nil {
		return preset
	}
	return wanted
}

// Source knows the pods of the node.
type Source interface {
	// Run calls update, from one goroutine, with all pods of the node: first when it
	// knows them all, then after every change. It blocks until ctx is done.
	Run(ctx context.Context, update func([]Pod)) error
}

// Annotate sets the pod's annotation mesh.AnnotationRedirection, or removes it when
// value is empty. A pod that is gone, or was replaced by one of the same name, is no
// error.
type Annotate func(ctx context.Context, pod Pod, value string) error

// Scope is what is never captured, whatever the labels.
type Scope struct {
	SystemNamespace    string   // where ztunnel runs
	ExcludedNamespaces []string // such as kube-system
}

// verdict says whether a pod is captured; a note is what an operator should know.
type verdict struct {
	captured bool
	note     string
}

// captures decides by labels whether the pod is part of the mesh, spec/control-plane.md
// §1.2: the pod's label beats its namespace's.
func (s Scope) captures(p Pod) verdict {
	namespace := p.NamespaceLabels[mesh.LabelDataplaneMode] == mesh.DataplaneModeAmbient
	_, sidecar := p.Annotations[mesh.AnnotationSidecarStatus]
	switch own := p.Labels[mesh.LabelDataplaneMode]; {
	case own == mesh.DataplaneModeNone, own != mesh.DataplaneModeAmbient && !namespace:
		return verdict{}
	case slices.Contains(s.ExcludedNamespaces, p.Namespace):
		return verdict{note: "labelled, but its namespace is excluded"}
	case p.HostNetwork, sidecar, p.Ended:
		return verdict{}
	case p.Namespace == s.SystemNamespace && p.Labels["app"] == mesh.AccountZtunnel:
		return verdict{}
	}
	return verdict{captured: true}
}
