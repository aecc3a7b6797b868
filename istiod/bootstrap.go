package istiod

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/ca"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
)

// DefaultWaypointImage is the image of generated waypoints.
const DefaultWaypointImage = "ambit-mesh/waypoint:1"

// caSecretType is what Istio gives the Secret, so that either can take over.
const caSecretType = "istio.io/ca-root"

// authority loads the signer from its Secret, or makes both on the first
// start.
func (i *Istiod) authority() (*ca.Authority, error) {
	key := manifest.Key{Kind: "Secret", Namespace: mesh.DefaultSystemNamespace, Name: mesh.CASecretName}
	body, err := i.generatedIn.Get(key)
	switch {
	case err == nil:
		return loadAuthority(key, body)
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	authority, err := ca.NewSelfSigned(i.mesh().TrustDomain, time.Now())
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	certPEM, keyPEM := authority.PEM()
	secret, err := manifest.ToUnstructured(&corev1.Secret{
		APIVersion: "v1", Kind: "Secret", Namespace: key.Namespace, Name: key.Name,
		Type: caSecretType,
		Data: map[string][]byte{
			mesh.CASecretCertKey: certPEM, mesh.CASecretKeyKey: keyPEM,
			"cert-chain.pem": {}, "key.pem": {}, "root-cert.pem": {},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if err := i.generatedIn.Apply(secret); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	i.log.Info("certificate authority created", slog.String("secret", key.String()))
	return authority, nil
}

func loadAuthority(key manifest.Key, body *unstructured.Unstructured) (*ca.Authority, error) {
	var secret corev1.Secret
	if err := manifest.Decode(manifest.Object{Key: key, Body: body}, &secret); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	authority, err := ca.Load(secret.Data[mesh.CASecretCertKey], secret.Data[mesh.CASecretKeyKey])
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %s: %w", key, err)
	}
	return authority, nil
}

// places knows the namespaces: those that have an object, and those that
// merely have pods or service accounts.
type places struct {
	namespaces *collection.Derived[model.Namespace]
	pods       *collection.Index[model.Pod]
	accounts   *collection.Index[*corev1.ServiceAccount]
}

func newPlaces(v *views, o *source.Objects) places {
	return places{
		namespaces: v.namespaces,
		pods:       collection.NewIndex(v.pods, "namespace", func(p model.Pod) []string { return []string{p.Name.Namespace} }),
		accounts: collection.NewIndex(o.ServiceAccounts, "namespace", func(a *corev1.ServiceAccount) []string {
			return []string{a.Namespace}
		}),
	}
}

func (p places) has(namespace string) bool {
	_, ok := p.namespaces.Get(namespace)
	return ok || len(p.pods.Get(namespace)) > 0 || len(p.accounts.Get(namespace)) > 0
}

// distribute has the root certificate written into every namespace that comes
// up, and again where somebody changes it. It works with what Run hands to
// generator.setRoot.
func (i *Istiod) distribute() {
	at := newPlaces(i.views, i.objects)
	check := func(namespace string) { i.generated.root(namespace, at.has) }
	collection.Sink(i.views.namespaces, func(events []collection.Event[model.Namespace]) {
		for _, event := range events {
			check(event.Key)
		}
	})
	collection.Sink(i.views.pods, func(events []collection.Event[model.Pod]) {
		for _, event := range events {
			if event.Old == nil || event.New == nil {
				namespace, _ := splitKey(event.Key)
				check(namespace)
			}
		}
	})
	collection.Sink(i.objects.ServiceAccounts, func(events []collection.Event[*corev1.ServiceAccount]) {
		for _, event := range events {
			namespace, _ := splitKey(event.Key)
			check(namespace)
		}
	})
	collection.Sink(i.objects.ConfigMaps, func(events []collection.Event[*corev1.ConfigMap]) {
		for _, event := range events {
			if namespace, name := splitKey(event.Key); name == mesh.RootCertConfig {
				check(namespace)
			}
		}
	})
}
