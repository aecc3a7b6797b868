// Package manifest reads and writes Kubernetes objects as files: a directory
// of manifests stands in for the API server. Parse reads one file, Watcher
// turns directories into changes of objects, and Store writes generated
// objects, one file each.
//
// It knows no kinds: an object is its key and its unstructured body, with the
// file and line where it was read. Validation against schemas is the readers'
// work, and so is what an object means. It serves istiod's directory source,
// the node agent and the lab; the rules of the two directories are in
// DESIGN.md §4.
package manifest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"
)

// Key identifies an object whatever version of its kind it is written in.
type Key struct {
	Group     string
	Kind      string
	Namespace string // empty for cluster-scoped kinds
	Name      string
}

// String returns the form "Kind.group namespace/name".
func (k Key) String() string {
	text := k.Kind
	if k.Group != "" {
		text += "." + k.Group
	}
	if k.Namespace == "" {
		return text + " " + k.Name
	}
	return text + " " + k.Namespace + "/" + k.Name
}

func compareKeys(a, b Key) int {
	return cmp.Or(
		cmp.Compare(a.Group, b.Group), cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// KeyOf returns the key of an unstructured object as it is written.
func KeyOf(o *unstructured.Unstructured) Key {
	kind := o.GroupVersionKind()
	return Key{Group: kind.Group, Kind: kind.Kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// Object is one object and where it was read. Readers must not change Body.
type Object struct {
	Key  Key
	File string
	Line int // of the document's first key in File, from 1
	Body *unstructured.Unstructured
}

// Error says where in a file, and why, no objects could be read.
type Error struct {
	File   string
	Line   int // 0 when the whole file is meant
	Reason string
}

// Error returns the form "file:line: reason".
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Reason
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Reason)
}

// Decode converts the body into a typed object. It is strict: an unknown or
// repeated field and a value of the wrong type are errors that name the
// field's path.
func Decode(o Object, into runtime.Object) error {
	data, err := json.Marshal(o.Body.Object)
	if err != nil {
		return err
	}
	strict, err := kjson.UnmarshalStrict(data, into)
	if err != nil {
		return fmt.Errorf("%s:%d: %s: %w", o.File, o.Line, o.Key, err)
	}
	if len(strict) > 0 {
		reasons := make([]string, len(strict))
		for i, reason := range strict {
			reasons[i] = reason.Error()
		}
		return fmt.Errorf("%s:%d: %s: %s", o.File, o.Line, o.Key, strings.Join(reasons, "; "))
	}
	return nil
}

// ToUnstructured converts a typed object, whose kind and version must be set.
// The zero creationTimestamp and an empty status, which typed objects always
// print, are left out.
func ToUnstructured(o runtime.Object) (*unstructured.Unstructured, error) {
	if o.GetObjectKind().GroupVersionKind().Kind == "" {
		return nil, fmt.Errorf("%T has no kind set", o)
	}
	body, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	result := &unstructured.Unstructured{Object: body}
	if result.GetCreationTimestamp().Time.IsZero() {
		unstructured.RemoveNestedField(body, "metadata", "creationTimestamp")
		unstructured.RemoveNestedField(body, "spec", "template", "metadata", "creationTimestamp")
	}
	if status, ok := body["status"].(map[string]any); ok && len(status) == 0 {
		delete(body, "status")
	}
	return result, nil
}
