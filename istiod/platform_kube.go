package istiod

import (
	"cmp"
	"crypto/rand"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/authn"
	"github.com/ambit-mesh/ambit/istiod/kube"
	"github.com/ambit-mesh/ambit/istiod/source"
	"github.com/ambit-mesh/ambit/istiod/status"
)

// leaseName is the Lease of the one istiod that writes.
const leaseName = "istiod-leader"

// cluster reads from an API server and writes to it.
func (i *Istiod) cluster(cfg Config) (platform, error) {
	out := platform{cluster: true, remembered: func() (map[string]string, error) { return nil, nil }}
	rest, err := kube.Config(cfg.Kubeconfig)
	if err != nil {
		return platform{}, err
	}

	// Reads tokens, asks the API server, produces who is calling.
	reviewer, err := kube.NewReviewer(rest)
	if err != nil {
		return platform{}, err
	}
	reviews, err := authn.NewTokenReview(authn.TokenReviewConfig{
		Review: reviewer.Review, Audience: cmp.Or(cfg.JWTAudience, mesh.TokenAudience),
	})
	if err != nil {
		return platform{}, err
	}
	out.verify = reviews.Verify

	// Reads the API server's objects, produces objects.
	from, err := source.NewKubernetes(source.KubernetesConfig{
		Objects: i.objects, Config: rest, Report: i.report, Loaded: func() { close(i.loaded) }, Log: i.log,
	})
	if err != nil {
		return platform{}, err
	}
	i.metrics.MustRegister(from)
	out.source, out.watched = from, func() any { return from.Watched() }
	if out.statuses, err = status.NewKubernetes(status.KubernetesConfig{Objects: i.objects, Resource: from.Resource, Config: rest}); err != nil {
		return platform{}, err
	}

	// Where istiod writes, and which one of several does.
	if out.objects, err = kube.NewObjects(rest, kube.ObjectsConfig{
		FieldManager: mesh.GatewayControllerName, Foreign: foreign, Kinds: managedGroupKinds(),
		Labels: map[string]string{mesh.LabelGatewayManaged: mesh.ManagedMeshController},
	}); err != nil {
		return platform{}, err
	}
	if out.secrets, err = kube.NewSecrets(rest, mesh.DefaultSystemNamespace, i.log); err != nil {
		return platform{}, err
	}
	lease, err := kube.NewLease(rest, kube.LeaseConfig{
		Namespace: mesh.DefaultSystemNamespace, Name: leaseName,
		Identity: cmp.Or(cfg.PodName, mesh.ServiceIstiod) + "_" + rand.Text(), // a pod's name can come back
		Log:      i.log,
	})
	if err != nil {
		return platform{}, err
	}
	out.lead = lease.Lead
	return out, nil
}

func managedGroupKinds() []schema.GroupKind {
	var out []schema.GroupKind
	for _, kind := range slices.Sorted(maps.Keys(managedKinds)) {
		out = append(out, schema.GroupKind{Group: managedKinds[kind], Kind: kind})
	}
	return out
}
