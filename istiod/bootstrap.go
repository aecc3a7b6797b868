package istiod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/ca"
)

// DefaultWaypointImage is the image of generated waypoints.
const DefaultWaypointImage = "ambit-mesh/waypoint:1"

// caSecretType is what Istio gives the Secret, so that either can take over.
const caSecretType = "istio.io/ca-root"

// pluggedIn is the Secret with an authority of the user's own.
const pluggedIn = "cacerts"

// authority returns the signer: that of the Secret cacerts if the user has made
// one; else that of our own Secret, which is made on the first start. Several
// istiods that start at once all take what the first of them has made.
func (i *Istiod) authority(ctx context.Context) (*ca.Authority, error) {
	authority, err := i.loadAuthority(ctx, pluggedIn)
	if errors.Is(err, fs.ErrNotExist) {
		authority, err = i.ownAuthority(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return authority, nil
}

func (i *Istiod) loadAuthority(ctx context.Context, name string) (*ca.Authority, error) {
	secret, err := i.platform.secrets.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	authority, err := ca.LoadSecret(secret.Data)
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", mesh.DefaultSystemNamespace, name, err)
	}
	i.log.Info("certificate authority loaded", slog.String("secret", name), slog.String("authority", authority.String()))
	return authority, nil
}

func (i *Istiod) ownAuthority(ctx context.Context) (*ca.Authority, error) {
	authority, err := i.loadAuthority(ctx, mesh.CASecretName)
	if !errors.Is(err, fs.ErrNotExist) {
		return authority, err
	}
	authority, err = ca.NewSelfSigned(i.mesh().TrustDomain, time.Now())
	if err != nil {
		return nil, err
	}
	certPEM, keyPEM := authority.PEM()
	err = i.platform.secrets.Create(ctx, &corev1.Secret{
		APIVersion: "v1", Kind: "Secret", Namespace: mesh.DefaultSystemNamespace, Name: mesh.CASecretName,
		Type: caSecretType,
		Data: map[string][]byte{
			mesh.CASecretCertKey: certPEM, mesh.CASecretKeyKey: keyPEM,
			"cert-chain.pem": {}, "key.pem": {}, "root-cert.pem": {},
		},
	})
	if errors.Is(err, fs.ErrExist) {
		return i.loadAuthority(ctx, mesh.CASecretName)
	}
	if err != nil {
		return nil, err
	}
	i.log.Info("certificate authority created", slog.String("secret", mesh.CASecretName), slog.String("authority", authority.String()))
	return authority, nil
}
