package source

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// MeshConfig is what is read of Istio's configuration of the whole mesh.
type MeshConfig struct {
	TrustDomain   string
	RootNamespace string
}

// MeshConfigKey is the key of the ConfigMap that holds the MeshConfig.
const MeshConfigKey = mesh.DefaultSystemNamespace + "/" + mesh.MeshConfigName

// ParseMeshConfig reads the ConfigMap; nil is the default. unread are the keys
// that have no effect, sorted.
func ParseMeshConfig(c *corev1.ConfigMap) (config MeshConfig, unread []string, err error) {
	config = MeshConfig{TrustDomain: mesh.DefaultTrustDomain, RootNamespace: mesh.DefaultSystemNamespace}
	if c == nil {
		return config, nil, nil
	}
	path := "data." + mesh.MeshConfigKey
	var values map[string]any
	if err := yaml.UnmarshalStrict([]byte(c.Data[mesh.MeshConfigKey]), &values); err != nil {
		return config, nil, &fieldError{path, err.Error()}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		var into *string
		switch name {
		case "trustDomain":
			into = &config.TrustDomain
		case "rootNamespace":
			into = &config.RootNamespace
		default:
			unread = append(unread, name)
			continue
		}
		text, ok := values[name].(string)
		if !ok {
			return config, nil, &fieldError{path + "." + name, fmt.Sprintf("%v is not a string", values[name])}
		}
		if text != "" {
			*into = text
		}
	}
	// Any namespace and service account serve to check the other part.
	if _, err := spiffe.New(config.TrustDomain, config.RootNamespace, "default"); err != nil {
		return config, nil, &fieldError{path, err.Error()}
	}
	return config, unread, nil
}
