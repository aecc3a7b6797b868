package source

import (
	"maps"

	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// A cluster's definitions can be newer than ours. What its API server has
// accepted counts for its author, and of a policy that we cannot read we know
// that it restricts: without it more would pass than is meant to, with the
// strictest of its kind less. A directory is another matter: there we are the
// API server, and what we refuse has never counted.

// standInEffect is what the stand-in of a kind does.
var standInEffect = map[string]string{
	"AuthorizationPolicy": "everything is denied",
	"PeerAuthentication":  "mutual TLS is required",
}

// standIn returns the strictest object with name and scope of one that cannot be
// read; nil for kinds that do not restrict. A selector that cannot be read
// selects everything.
func standIn(key manifest.Key, body *unstructured.Unstructured) any {
	if key.Group != groupSecurity || standInEffect[key.Kind] == "" {
		return nil
	}
	meta := metav1.ObjectMeta{
		Namespace: key.Namespace, Name: key.Name, UID: body.GetUID(), Generation: body.GetGeneration(),
		CreationTimestamp: body.GetCreationTimestamp(), Labels: body.GetLabels(), Annotations: map[string]string{},
	}
	maps.Copy(meta.Annotations, body.GetAnnotations())
	meta.Annotations[model.AnnotationUnreadable] = "true"
	var selector *typeapi.WorkloadSelector
	if labels, ok, err := unstructured.NestedStringMap(body.Object, "spec", "selector", "matchLabels"); ok && err == nil {
		selector = &typeapi.WorkloadSelector{MatchLabels: labels}
	}
	if key.Kind == "PeerAuthentication" {
		return &securityv1.PeerAuthentication{ObjectMeta: meta, Spec: securityapi.PeerAuthentication{
			Selector: selector, Mtls: &securityapi.PeerAuthentication_MutualTLS{Mode: securityapi.PeerAuthentication_MutualTLS_STRICT},
		}}
	}
	out := &securityv1.AuthorizationPolicy{ObjectMeta: meta, Spec: securityapi.AuthorizationPolicy{
		Selector: selector, Action: securityapi.AuthorizationPolicy_DENY, Rules: []*securityapi.Rule{{}},
	}}
	for _, field := range []string{"targetRef", "targetRefs"} {
		if _, ok, _ := unstructured.NestedFieldNoCopy(body.Object, "spec", field); ok {
			out.Spec.TargetRefs = []*typeapi.PolicyTargetReference{{}} // a waypoint's: ztunnel does not enforce it
		}
	}
	return out
}
