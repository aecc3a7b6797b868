package deploy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// object is what the three kinds have in common.
type object interface {
	runtime.Object
	metav1.Object
}

// apply patches the objects with the entries of the overlay.
func (o Overlay) apply(objects *Objects) error {
	for _, key := range slices.Sorted(maps.Keys(o.Data)) {
		var err error
		switch key {
		case "deployment":
			err = patch(objects.Deployment, o.Data[key])
		case "service":
			err = patch(objects.Service, o.Data[key])
		case "serviceAccount":
			err = patch(objects.ServiceAccount, o.Data[key])
		case "horizontalPodAutoscaler", "podDisruptionBudget":
			err = errors.New("not supported yet")
		default:
			err = errors.New("unknown key; known are deployment, service and serviceAccount")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// patch changes target by a strategic merge patch in YAML. What identifies the
// object and its owner cannot be changed.
func patch[T object](target T, text string) error {
	change, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return err
	}
	if string(change) == "null" {
		return nil // an empty text
	}
	before, err := json.Marshal(target)
	if err != nil {
		return err
	}
	after, err := strategicpatch.StrategicMergePatch(before, change, target)
	if err != nil {
		return err
	}
	fresh, ok := reflect.TypeAssert[T](reflect.New(reflect.TypeOf(target).Elem()))
	if !ok {
		return fmt.Errorf("%T is no object", target)
	}
	strict, err := kjson.UnmarshalStrict(after, fresh)
	if err = errors.Join(append(strict, err)...); err != nil {
		return err
	}
	if err := unchanged(target, fresh); err != nil {
		return err
	}
	reflect.ValueOf(target).Elem().Set(reflect.ValueOf(fresh).Elem())
	return nil
}

func unchanged(before, after object) error {
	switch {
	case before.GetObjectKind().GroupVersionKind() != after.GetObjectKind().GroupVersionKind():
		return errors.New("the kind cannot be changed")
	case before.GetName() != after.GetName():
		return errors.New("metadata.name cannot be changed; use the annotation " + annotationName)
	case before.GetNamespace() != after.GetNamespace():
		return errors.New("metadata.namespace cannot be changed")
	case !reflect.DeepEqual(before.GetOwnerReferences(), after.GetOwnerReferences()):
		return errors.New("metadata.ownerReferences cannot be changed")
	}
	for _, label := range []string{mesh.LabelGatewayName, mesh.LabelGatewayManaged} {
		if before.GetLabels()[label] != after.GetLabels()[label] {
			return errors.New("label " + label + " cannot be changed")
		}
	}
	return nil
}
