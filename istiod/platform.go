package istiod

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/authn"
	"github.com/ambit-mesh/ambit/istiod/source"
	"github.com/ambit-mesh/ambit/istiod/status"
)

// platform is everything that differs between a directory of manifests
// (platform_dir.go) and a cluster (platform_kube.go): where objects come from,
// who knows callers, and where istiod writes.
type platform struct {
	source   source.Source
	verify   authn.Verify
	objects  objectStore
	secrets  secretStore
	statuses status.Store
	watched  func() any // dump of how the source is read; may be nil

	// lead runs work while this istiod is the one that writes, again and again
	// until ctx is done.
	lead func(ctx context.Context, work func(ctx context.Context) error) error
	// remembered returns the host names of waypoints that have been ready in an
	// earlier life of istiod, by Gateway. A directory's Gateways have no status
	// of their own; those of a cluster do, see views.addressed.
	remembered func() (map[string]string, error)
	// cluster says that an API server is behind all this: it collects what
	// belongs to a Gateway or a namespace that is gone, and it wants an object
	// for each GatewayClass.
	cluster bool
}

// objectStore is where generated objects are: files, or an API server.
type objectStore interface {
	// Apply makes the object what it should be. What others have added to it
	// stays, and so does a whole object that is not ours.
	Apply(ctx context.Context, o *unstructured.Unstructured) error
	// Create makes an object unless one of its name exists.
	Create(ctx context.Context, o *unstructured.Unstructured) error
	// Delete removes an object; one that is gone is no error.
	Delete(ctx context.Context, key manifest.Key) error
	// List returns the generated objects of waypoints that have these labels,
	// too; those of all namespaces when namespace is empty.
	List(ctx context.Context, namespace string, with map[string]string) ([]*unstructured.Unstructured, error)
}

// secretStore keeps the Secrets of the certificate authority, in the system
// namespace.
type secretStore interface {
	Get(ctx context.Context, name string) (*corev1.Secret, error) // fs.ErrNotExist
	Create(ctx context.Context, secret *corev1.Secret) error      // fs.ErrExist
}

// managedKinds are those of the objects that run waypoints, by group. Pods carry
// their label too but are the cluster's.
var managedKinds = map[string]string{"Deployment": "apps", "Service": "", "ServiceAccount": ""}

// managed reports whether istiod has made the object.
func managed(o metav1.Object) bool {
	return o.GetLabels()[mesh.LabelGatewayManaged] == mesh.ManagedMeshController
}

// foreign reports whether an object that exists is the user's although istiod
// wants one of its name: what is not marked as managed is left alone,
// spec/control-plane.md §6.2.
func foreign(existing, wanted metav1.Object) bool { return managed(wanted) && !managed(existing) }

// platformOf wires what the configuration asks for.
func (i *Istiod) platformOf(cfg Config) (platform, error) {
	if cfg.ConfigDir != "" {
		return i.directory(cfg)
	}
	return i.cluster(cfg)
}
