package installer

import (
	"context"
	"fmt"
	"slices"
	"strings"

	release "helm.sh/helm/v4/pkg/release/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

func ownerOf(o metav1.Object) owner {
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

// owners are the releases as what belongs to them names them.
func owners(releases map[string]*release.Release) map[owner]bool {
	out := map[owner]bool{}
	for _, rel := range releases {
		out[owner{rel.Namespace, rel.Name}] = true
	}
	return out
}

// definitions returns those of Istio's definitions that the cluster has: free
// ones belong to mine or to a release that is gone, the others to a release that
// exists, or to none at all.
func (i *Installer) definitions(ctx context.Context, mine map[owner]bool) (free, others []definition, err error) {
	ours, err := decode(crds.Istio)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names(ours, kindCRD) {
		there, err := i.dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("definition %s: %w", name, err)
		}
		if d := (definition{name, ownerOf(there)}); mine[d.owner] || i.orphan(ctx, d.owner) {
			free = append(free, d)
		} else {
			others = append(others, d)
		}
	}
	return free, others, nil
}

// orphan reports whether objects of the owner belong to nobody any more, because
// its release is gone: Helm keeps definitions then.
func (i *Installer) orphan(ctx context.Context, o owner) bool {
	if o == (owner{}) {
		return false
	}
	releases, err := i.releaseNames(ctx, o.namespace, "secrets", "configmaps")
	if err != nil {
		return false // whose it is is not known, so it is not ours
	}
	return !slices.Contains(releases, o.release)
}

func join(words []string) string { return strings.Join(words, ", ") }
