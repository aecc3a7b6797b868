package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// maxNodes bounds what aliases may expand to, so that a small file cannot
// become a large one.
const maxNodes = 1 << 18

// clusterScoped are the kinds that have no namespace; an object of any other
// kind without one is in "default", as with kubectl.
var clusterScoped = map[string]bool{
	"Namespace": true, "Node": true, "PersistentVolume": true, "StorageClass": true, "PriorityClass": true,
	"ClusterRole": true, "ClusterRoleBinding": true, "CustomResourceDefinition": true, "GatewayClass": true,
	"MutatingWebhookConfiguration": true, "ValidatingWebhookConfiguration": true, "ValidatingAdmissionPolicy": true,
	"ValidatingAdmissionPolicyBinding": true, "RuntimeClass": true, "CSIDriver": true, "APIService": true, "IngressClass": true,
}

// Parse reads all documents of a YAML or JSON file, which is named in errors
// only. A List is replaced by its items. Documents without content are passed
// over. The error is an *Error; objects are returned only without one.
func Parse(file string, data []byte) ([]Object, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var objects []Object
	for {
		var document yaml.Node
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, syntaxError(file, err)
		}
		c := converter{budget: maxNodes}
		value, err := c.value(&document)
		if err != nil {
			return nil, &Error{File: file, Line: c.line, Reason: err.Error()}
		}
		if value == nil {
			continue
		}
		line := firstLine(&document)
		found, err := toObjects(value)
		if err != nil {
			return nil, &Error{File: file, Line: line, Reason: err.Error()}
		}
		for _, object := range found {
			object.File, object.Line = file, line
			objects = append(objects, object)
		}
	}
}

// yamlMessage always matches.
var yamlMessage = regexp.MustCompile(`(?s)^(?:yaml: )?(?:line (\d+): )?(.*)$`)

func syntaxError(file string, err error) error {
	match := yamlMessage.FindStringSubmatch(err.Error())
	line, _ := strconv.Atoi(match[1]) // 0 when the message names none
	return &Error{File: file, Line: line, Reason: match[2]}
}

func firstLine(document *yaml.Node) int {
	if document.Kind == yaml.DocumentNode && len(document.Content) > 0 {
		return document.Content[0].Line
	}
	return document.Line
}

// toObjects checks that a document is an object, or a list of them.
func toObjects(value any) ([]Object, error) {
	body, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("the document is not an object")
	}
	kind, _ := body["kind"].(string)
	version, _ := body["apiVersion"].(string)
	if kind == "" || version == "" {
		return nil, errors.New("apiVersion and kind must be set")
	}
	if items, ok := body["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		var objects []Object
		for i, item := range items {
			found, err := toObjects(item)
			if err != nil {
				return nil, fmt.Errorf("items[%d]: %w", i, err)
			}
			objects = append(objects, found...)
		}
		return objects, nil
	}
	object, err := toObject(body, kind, version)
	if err != nil {
		return nil, err
	}
	return []Object{object}, nil
}

func toObject(body map[string]any, kind, version string) (Object, error) {
	groupVersion, err := schema.ParseGroupVersion(version)
	if err != nil {
		return Object{}, fmt.Errorf("apiVersion: %w", err)
	}
	metadata, ok := body["metadata"].(map[string]any)
	if !ok {
		return Object{}, fmt.Errorf("%s: metadata must be set", kind)
	}
	name, ok := metadata["name"].(string)
	if !ok || name == "" {
		return Object{}, fmt.Errorf("%s: metadata.name must be set", kind)
	}
	if reasons := content.IsPathSegmentName(name); len(reasons) > 0 {
		return Object{}, fmt.Errorf("%s: metadata.name %q %s", kind, name, strings.Join(reasons, ", "))
	}
	namespace, ok := metadata["namespace"].(string)
	if !ok && metadata["namespace"] != nil {
		return Object{}, fmt.Errorf("%s %s: metadata.namespace is not a string", kind, name)
	}
	switch {
	case clusterScoped[kind]:
		namespace = ""
		delete(metadata, "namespace")
	case namespace == "":
		namespace = "default"
		metadata["namespace"] = namespace
	}
	if reasons := content.IsPathSegmentName(namespace); len(reasons) > 0 {
		return Object{}, fmt.Errorf("%s %s: metadata.namespace %q %s", kind, name, namespace, strings.Join(reasons, ", "))
	}
	return Object{
		Key:  Key{Group: groupVersion.Group, Kind: kind, Namespace: namespace, Name: name},
		Body: &unstructured.Unstructured{Object: body},
	}, nil
}

// converter turns YAML nodes into what encoding/json makes of the same text in
// JSON, numbers excepted: those are int64 or float64, as the Kubernetes
// libraries expect.
type converter struct {
	budget int
	line   int // of the node that is being converted
}

func (c *converter) value(node *yaml.Node) (any, error) {
	c.budget--
	if c.budget < 0 {
		return nil, errors.New("aliases expand to too much")
	}
	if node.Line > 0 {
		c.line = node.Line
	}
	switch node.Kind {
	case yaml.DocumentNode:
		return c.value(node.Content[0])
	case yaml.AliasNode:
		return c.value(node.Alias)
	case yaml.SequenceNode:
		list := make([]any, len(node.Content))
		for i, item := range node.Content {
			var err error
			if list[i], err = c.value(item); err != nil {
				return nil, err
			}
		}
		return list, nil
	case yaml.MappingNode:
		return c.mapping(node)
	case yaml.ScalarNode:
		return scalar(node)
	}
	return nil, nil // an empty document
}

func (c *converter) mapping(node *yaml.Node) (map[string]any, error) {
	result := make(map[string]any, len(node.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		if name.ShortTag() == "!!merge" {
			merges = append(merges, value)
			continue
		}
		c.line = name.Line
		if name.Kind != yaml.ScalarNode {
			return nil, errors.New("a key is not a string")
		}
		if _, repeated := result[name.Value]; repeated {
			return nil, fmt.Errorf("key %q is repeated", name.Value)
		}
		converted, err := c.value(value)
		if err != nil {
			return nil, err
		}
		result[name.Value] = converted
	}
	for _, merge := range merges {
		if err := c.merge(result, merge); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// merge adds what a "<<" key names; keys that are there already win.
func (c *converter) merge(into map[string]any, node *yaml.Node) error {
	value, err := c.value(node)
	if err != nil {
		return err
	}
	sources, ok := value.([]any)
	if !ok {
		sources = []any{value}
	}
	for _, source := range sources {
		fields, ok := source.(map[string]any)
		if !ok {
			return errors.New("what << merges is not an object")
		}
		for name, field := range fields {
			if _, present := into[name]; !present {
				into[name] = field
			}
		}
	}
	return nil
}

func scalar(node *yaml.Node) (any, error) {
	switch node.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		var value bool
		err := node.Decode(&value)
		return value, err
	case "!!int":
		var value int64
		if err := node.Decode(&value); err == nil {
			return value, nil
		}
		return decodeFloat(node)
	case "!!float":
		return decodeFloat(node)
	}
	return node.Value, nil // strings, and timestamps as they are written
}

func decodeFloat(node *yaml.Node) (any, error) {
	var value float64
	if err := node.Decode(&value); err != nil {
		return nil, fmt.Errorf("%q is not a number", node.Value)
	}
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return nil, fmt.Errorf("%q has no JSON form", node.Value)
	}
	return value, nil
}
