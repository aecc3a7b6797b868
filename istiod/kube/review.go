package kube

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	client "k8s.io/client-go/kubernetes/typed/authentication/v1"
	"k8s.io/client-go/rest"
)

// Proxies come back all at once after an interruption, and each brings a token.
const (
	reviewRate  = 200
	reviewBurst = 400
)

// Reviewer asks the API server about tokens.
type Reviewer struct{ client client.TokenReviewInterface }

// NewReviewer returns a Reviewer.
func NewReviewer(cfg *rest.Config) (*Reviewer, error) {
	cfg = timed(cfg)
	cfg.QPS, cfg.Burst = reviewRate, reviewBurst
	c, err := client.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("token reviews: %w", err)
	}
	return &Reviewer{client: c.TokenReviews()}, nil
}

// Review asks about one token. The error is that nobody could be asked.
func (r *Reviewer) Review(ctx context.Context, spec authenticationv1.TokenReviewSpec) (authenticationv1.TokenReviewStatus, error) {
	review, err := r.client.Create(ctx, &authenticationv1.TokenReview{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.TokenReviewStatus{}, fmt.Errorf("token review: %w", err)
	}
	return review.Status, nil
}
