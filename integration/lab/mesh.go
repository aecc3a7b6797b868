package lab

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
)

const systemNamespace = mesh.DefaultSystemNamespace

// meshManifest are the mesh's own parts, as the charts install them. Their pods
// may refer to the lab's directories, see cluster.placeholders.
//
//go:embed mesh.yaml
var meshManifest []byte

// writeMesh puts the mesh's parts among the generated objects; the environment
// is for ztunnel.
func writeMesh(store *manifest.Store, environment map[string]string) error {
	objects, err := manifest.Parse("mesh.yaml", meshManifest)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if o.Key.Kind == "DaemonSet" && o.Key.Name == mesh.AccountZtunnel {
			if o, err = withEnvironment(o, environment); err != nil {
				return err
			}
		}
		if err := store.Apply(o.Body); err != nil {
			return fmt.Errorf("%s: %w", o.Key, err)
		}
	}
	return nil
}

// withEnvironment sets variables in the containers of a DaemonSet.
func withEnvironment(o manifest.Object, environment map[string]string) (manifest.Object, error) {
	set := &appsv1.DaemonSet{}
	if err := manifest.Decode(o, set); err != nil {
		return o, err
	}
	containers := set.Spec.Template.Spec.Containers
	for i := range containers {
		env := slices.DeleteFunc(containers[i].Env, func(v corev1.EnvVar) bool {
			_, replaced := environment[v.Name]
			return replaced
		})
		for _, name := range slices.Sorted(maps.Keys(environment)) {
			env = append(env, corev1.EnvVar{Name: name, Value: environment[name]})
		}
		containers[i].Env = env
	}
	body, err := manifest.ToUnstructured(set)
	o.Body = body
	return o, err
}
