// Package bed is a small test bed for ztunnel: nodes and pods as network
// namespaces on this machine, and around them just what a ztunnel process
// needs of a cluster. It starts ztunnel binaries, ours or another one that
// speaks the same protocols, all in the same way.
//
//	Bed    the wire between the nodes, and the control plane: istiod's own xDS
//	       server and certificate authority, whose contents the caller sets
//	Node   a namespace with a ztunnel in it and the node agent that hands pods to it
//	       (ZDS, in the order of Istio's agent: rules first, then the pod)
//	Pod    a namespace with an address in which the caller listens, dials and
//	       runs programs
//
// Unlike integration/lab, which plays a whole kubelet for the whole mesh from
// manifests, a bed has no kubelet, no istiod process and no manifests: what the
// proxies are told is what the caller says, message by message.
//
// Namespaces have no names: nothing of a bed outlives its process. It needs
// CAP_SYS_ADMIN and CAP_NET_ADMIN. A Bed is safe for concurrent use.
//
// Who calls it: integration/bench, integration/interop, scenario tests.
package bed
