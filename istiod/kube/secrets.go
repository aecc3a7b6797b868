package kube

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// secretRetry is how long a request for a Secret that was not answered waits.
const secretRetry = 2 * time.Second

// Secrets are those of one namespace. istiod cannot do without its signing key,
// so requests are repeated, with a warning each, until they are answered.
type Secrets struct {
	client client.SecretInterface
	log    *slog.Logger
}

// NewSecrets returns the Secrets of a namespace.
func NewSecrets(cfg *rest.Config, namespace string, log *slog.Logger) (*Secrets, error) {
	c, err := client.NewForConfig(timed(cfg))
	if err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	return &Secrets{client: c.Secrets(namespace), log: log}, nil
}

// Get returns a Secret; fs.ErrNotExist when there is none.
func (s *Secrets) Get(ctx context.Context, name string) (*corev1.Secret, error) {
	var out *corev1.Secret
	err := s.repeat(ctx, name, func() error {
		secret, err := s.client.Get(ctx, name, metav1.GetOptions{})
		out = secret
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("secret %s: %w", name, fs.ErrNotExist)
	}
	return out, err
}

// Create makes a Secret; fs.ErrExist when somebody was quicker.
func (s *Secrets) Create(ctx context.Context, secret *corev1.Secret) error {
	err := s.repeat(ctx, secret.Name, func() error {
		_, err := s.client.Create(ctx, secret, metav1.CreateOptions{FieldManager: userAgent})
		return err
	})
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("secret %s: %w", secret.Name, fs.ErrExist)
	}
	return err
}

func (s *Secrets) repeat(ctx context.Context, name string, request func() error) error {
	for {
		err := request()
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) || apierrors.IsInvalid(err) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.log.Warn("secret of the certificate authority: the API server has not answered; asking again",
			slog.String("secret", name), slog.Any("error", err))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(secretRetry):
		}
	}
}
