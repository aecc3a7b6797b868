// Package model holds the control plane's view of the mesh as plain values:
// services, workloads, waypoints, policies, each built from one Kubernetes or
// Istio object by a pure function of this package, or resolved from several of
// them by package translate.
//
// The package does no I/O and knows neither collections nor wire formats.
// Values are immutable once they have been built: maps and slices inside them
// may be shared, nobody writes to them. It is safe for concurrent use. The
// meaning of every field follows spec/control-plane.md §1 and §2.
package model

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Name is the namespace and the name of an object.
type Name = types.NamespacedName

// Key returns "namespace/name", the key of namespaced objects in collections.
func Key(namespace, name string) string { return namespace + "/" + name }

// Mesh is what the whole mesh agrees on: MeshConfig and istiod's own flags.
type Mesh struct {
	TrustDomain     string
	RootNamespace   string
	ClusterDomain   string
	ClusterID       string
	SystemNamespace string
	// Network is the label topology.istio.io/network of the system namespace,
	// "" when it has none.
	Network string
}

// Namespace is what other objects inherit from their namespace.
type Namespace struct {
	Name        string
	Labels      map[string]string
	Annotations map[string]string
}

// Locality is where a node stands. The zero Locality is unknown.
type Locality struct{ Region, Zone, Subzone string }

// Node is a node's name and place.
type Node struct {
	Name     string
	Locality Locality
}

// Age orders objects by creation time, then by name, so that "the oldest wins"
// has one answer even for objects from files, which carry no creation time.
type Age struct {
	Created time.Time
	Name    Name
}

// Before reports whether a is older than b.
func (a Age) Before(b Age) bool {
	if !a.Created.Equal(b.Created) {
		return a.Created.Before(b.Created)
	}
	return a.Name.String() < b.Name.String()
}

// NewNamespace reads a Kubernetes Namespace.
func NewNamespace(n *corev1.Namespace) Namespace {
	return Namespace{Name: n.Name, Labels: n.Labels, Annotations: n.Annotations}
}

// NewNode reads a Kubernetes Node.
func NewNode(n *corev1.Node) Node {
	return Node{Name: n.Name, Locality: Locality{
		Region:  n.Labels[corev1.LabelTopologyRegion],
		Zone:    n.Labels[corev1.LabelTopologyZone],
		Subzone: n.Labels["topology.istio.io/subzone"],
	}}
}
