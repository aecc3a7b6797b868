package deploy

import (
	"maps"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// filledIn are the fields that a cluster, or the lab in its place, sets on
// objects that it is given. Whoever replaces an object whole has to keep them.
var filledIn = [][]string{
	{"status"},
	{"metadata", "uid"},
	{"metadata", "creationTimestamp"},
	{"metadata", "generation"},
	{"metadata", "resourceVersion"},
	{"spec", "clusterIP"},
	{"spec", "clusterIPs"},
	{"spec", "ipFamilies"},
}

// annotationPrefixDeployment is of annotations that the Deployment's controller
// writes.
const annotationPrefixDeployment = "deployment.kubernetes.io/"

// Adopt gives the desired object what has been filled in on the existing one of
// the same name, so that it can be written in its place. It reports false for
// an existing object that is not ours, which is to be left alone
// (spec/control-plane.md §6.2). Only desired is changed.
func Adopt(desired, existing *unstructured.Unstructured) bool {
	if existing.GetLabels()[mesh.LabelGatewayManaged] == "" {
		return false
	}
	for _, path := range filledIn {
		value, present, err := unstructured.NestedFieldCopy(existing.Object, path...)
		if err != nil || !present {
			continue
		}
		if _, set, _ := unstructured.NestedFieldNoCopy(desired.Object, path...); set && path[0] != "status" {
			continue // the user wants another one
		}
		_ = unstructured.SetNestedField(desired.Object, value, path...) // its parents are maps in every typed object
	}
	annotations := maps.Clone(desired.GetAnnotations())
	for name, value := range existing.GetAnnotations() {
		if strings.HasPrefix(name, annotationPrefixDeployment) {
			if annotations == nil {
				annotations = map[string]string{}
			}
			annotations[name] = value
		}
	}
	if len(annotations) > 0 {
		desired.SetAnnotations(annotations)
	}
	return true
}
