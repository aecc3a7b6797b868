// Package ca is the mesh's certificate authority: it decides who may have a
// certificate for which identity, and signs it.
//
// Authority holds the signing key and knows how a certificate looks; it takes
// nothing from a request but a public key. Service answers
// istio.v1.auth.IstioCertificateService: it asks authn who is calling, checks
// that the caller's pod lives, and decides whose name goes into the
// certificate. It never sees a private key of a workload, keeps no certificate
// and knows no Kubernetes: the consumer gives it Pods. Both are safe for
// concurrent use.
//
// Spec: DESIGN §4 (CA), spec/control-plane.md §7.1–7.2, spec/ztunnel.md §5.
package ca

// Pod is what the CA must know of a live pod.
type Pod struct {
	UID            string
	ServiceAccount string
	Node           string // "" until it is scheduled
	Phase          string // as in Kubernetes: Pending, Running, Succeeded, Failed, Unknown
}

// Pods knows the pods as they are now.
type Pods interface {
	// Pod returns the pod of that name; false when there is none.
	Pod(namespace, name string) (Pod, bool)
	// RunsOn reports whether a pod with this namespace and service account is
	// scheduled on the node and its phase is neither Failed nor Succeeded.
	RunsOn(node, namespace, serviceAccount string) bool
}

// ended reports whether nothing of the pod runs any more.
func (p Pod) ended() bool { return p.Phase == "Failed" || p.Phase == "Succeeded" }
