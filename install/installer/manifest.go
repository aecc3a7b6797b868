package installer

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const (
	kindCRD        = "CustomResourceDefinition"
	kindDeployment = "Deployment"
	kindDaemonSet  = "DaemonSet"
)

// decode reads a multi-document YAML stream of objects.
func decode(manifest []byte) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := decoder.Decode(&o.Object)
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("manifest: %w", err)
		case len(o.Object) == 0: // only comments
			continue
		case o.GetKind() == "" || o.GetName() == "":
			return nil, errors.New("manifest: an object has no kind or no name")
		}
		out = append(out, o)
	}
}

// names returns the names of the objects of a kind.
func names(objects []*unstructured.Unstructured, kind string) []string {
	var out []string
	for _, o := range objects {
		if o.GetKind() == kind {
			out = append(out, o.GetName())
		}
	}
	return out
}
