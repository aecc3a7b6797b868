package istiod

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/deploy"
	"github.com/ambit-mesh/ambit/istiod/gateway"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
)

// deployment is what a waypoint Gateway needs to run, or why it cannot be made.
type deployment struct {
	gateway string
	objects []runtime.Object
	users   []string // objects of the user under the names of ours
	err     error
}

func sameDeployment(a, b deployment) bool {
	return a.gateway == b.gateway && sameError(a.err, b.err) &&
		slices.Equal(a.users, b.users) && reflect.DeepEqual(a.objects, b.objects)
}

func sameError(a, b error) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Error() == b.Error()
}

// deployments derives the objects of waypoints. Reads Gateways and the
// ConfigMaps with their overlays, produces what has to exist.
func (v *views) deployments(o *source.Objects, image string) *collection.Derived[deployment] {
	options := collection.Options[deployment]{Key: func(d deployment) string { return d.gateway }, Equal: sameDeployment}
	return collection.Derive(o.Graph, "deployments", o.Gateways, options,
		func(c *collection.Context, g *gatewayv1.Gateway) []deployment {
			if !gateway.Deployable(g) {
				return nil
			}
			m := v.mesh(c)
			out := deployment{gateway: g.Namespace + "/" + g.Name}
			opts := deploy.Options{
				Image: image, ClusterDomain: m.ClusterDomain, ClusterID: m.ClusterID, TrustDomain: m.TrustDomain,
				Network: m.Network, SystemNamespace: m.SystemNamespace,
			}
			name, err := deploy.ParametersRef(g)
			if name != "" {
				config, ok := collection.Fetch(c, o.ConfigMaps, g.Namespace+"/"+name)
				if !ok {
					err = fmt.Errorf("spec.infrastructure.parametersRef: ConfigMap %s/%s does not exist", g.Namespace, name)
				} else {
					opts.Overlays = []deploy.Overlay{{Source: "ConfigMap " + g.Namespace + "/" + name, Data: config.Data}}
				}
			}
			var objects deploy.Objects
			if err == nil {
				err = gateway.Listens(g)
			}
			if err == nil {
				objects, err = deploy.Waypoint(g, opts)
			}
			if out.err = err; err == nil {
				claim(c, &out, objects.ServiceAccount, o.ServiceAccounts)
				claim(c, &out, objects.Deployment, o.Deployments)
				claim(c, &out, objects.Service, o.Services)
			}
			return []deployment{out}
		})
}

// claim takes an object into the deployment unless the user has one of that
// name: what is not marked as managed is left alone, spec/control-plane.md §6.2.
func claim[T interface {
	runtime.Object
	metav1.Object
}](c *collection.Context, d *deployment, wanted T, existing collection.Collection[T]) {
	name := model.Key(wanted.GetNamespace(), wanted.GetName())
	if there, ok := collection.Fetch(c, existing, name); ok && !managed(there) {
		d.users = append(d.users, wanted.GetObjectKind().GroupVersionKind().Kind+" "+name)
		return
	}
	d.objects = append(d.objects, wanted)
}

func splitKey(key string) (namespace, name string) {
	namespace, name, _ = strings.Cut(key, "/")
	return namespace, name
}
