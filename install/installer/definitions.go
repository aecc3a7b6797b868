package installer

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/install/crds"
)

// Annotations by which Helm marks what belongs to a release.
const (
	annotationRelease          = "meta.helm.sh/release-name"
	annotationReleaseNamespace = "meta.helm.sh/release-namespace"
)

// owner is the release that an object belongs to; zero when it belongs to none.
type owner struct{ namespace, release string }

func (o owner) String() string {
	if o == (owner{}) {
		return "no release"
	}
	return fmt.Sprintf("release %s in %s", o.release, o.namespace)
}

func ownerOf(o *unstructured.Unstructured) owner {
	a := o.GetAnnotations()
	if o.GetLabels()[labelManagedBy] != "Helm" {
		return owner{}
	}
	return owner{a[annotationReleaseNamespace], a[annotationRelease]}
}

// definition is one of Istio's that the cluster has.
type definition struct {
	name  string
	owner owner
}

// definitions returns those of Istio's definitions that the cluster has.
func (i *Installer) definitions(ctx context.Context) ([]definition, error) {
	ours, err := decode(crds.Istio)
	if err != nil {
		return nil, err
	}
	var out []definition
	for _, name := range names(ours, kindCRD) {
		there, err := i.dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("definition %s: %w", name, err)
		}
		out = append(out, definition{name, ownerOf(there)})
	}
	return out, nil
}

// orphan reports whether objects of the owner belong to nobody any more, because
// its release is gone: Helm keeps definitions then.
func (i *Installer) orphan(ctx context.Context, o owner) bool {
	if o == (owner{}) {
		return false
	}
	releases, err := i.releaseNames(ctx, o.namespace)
	if err != nil {
		return false // whose it is is not known, so it is not ours
	}
	return !slices.Contains(releases, o.release)
}

func join(words []string) string { return strings.Join(words, ", ") }
