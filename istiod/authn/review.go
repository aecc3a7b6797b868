package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/peer"
	authenticationv1 "k8s.io/api/authentication/v1"
)

// Limits of the TokenReview verifier.
const (
	reviewTimeout = 10 * time.Second // for all who wait for the same review
	rememberFor   = time.Minute      // a revoked token is accepted no longer than this; what it is for, the live pod, is looked at each time
	rememberMost  = 8192             // tokens, and peers
	refusedWithin = time.Minute      // in which the API server is asked refusedMost times
	refusedMost   = 20               // about tokens of one peer that it refuses
)

// What a TokenReview says of a token besides its service account.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// reviewed are the algorithms with which clusters sign. Here nothing is
// verified: the API server does, by its own rules.
var reviewed = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// TokenReviewConfig says whom to ask about tokens, and what for.
type TokenReviewConfig struct {
	// Review asks an API server; its error is that none has answered.
	Review   func(ctx context.Context, spec authenticationv1.TokenReviewSpec) (authenticationv1.TokenReviewStatus, error)
	Audience string // one of the token's aud
	Now      func() time.Time
}

// TokenReview verifies tokens by asking the cluster that has issued them. Good
// answers are remembered for a minute at most, refusals are not; callers with
// the same token share one question.
type TokenReview struct {
	cfg   TokenReviewConfig
	group singleflight.Group

	mu    sync.Mutex
	known map[tokenHash]review
	peers map[string]questions // by IP address
}

// questions are how often the API server has been asked in vain for a peer.
type questions struct {
	count int
	until time.Time
}

type tokenHash [sha256.Size]byte

// review is a good answer and how long it may be used.
type review struct {
	caller Caller
	until  time.Time
}

// NewTokenReview returns a TokenReview that has asked nothing.
func NewTokenReview(cfg TokenReviewConfig) (*TokenReview, error) {
	if cfg.Review == nil || cfg.Audience == "" {
		return nil, errors.New("token review: whom to ask and the audience are both needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &TokenReview{cfg: cfg, known: map[tokenHash]review{}, peers: map[string]questions{}}, nil
}

// Verify implements the type of the same name.
//
//  1. What the token itself says against it, it is refused for: it costs the
//     API server nothing. What it says for itself counts for nothing.
//  2. A good answer of the last minute is used.
//  3. Who has brought many tokens that were refused has to wait.
//  4. The API server is asked, once for all who bring the token now. The
//     question does not end with the caller who happened to be first.
func (t *TokenReview) Verify(ctx context.Context, token string) (Caller, error) {
	expiry, err := t.plausible(token)
	if err != nil {
		return Caller{}, err
	}
	hash := tokenHash(sha256.Sum256([]byte(token)))
	if caller, ok := t.remembered(hash); ok {
		return caller, nil
	}
	answer, err, _ := t.group.Do(string(hash[:]), func() (any, error) {
		from := peerOf(ctx)
		if !t.mayAsk(from) {
			return Caller{}, &Error{ReasonUnavailable, fmt.Errorf("%d tokens of this peer were refused within %s", refusedMost, refusedWithin)}
		}
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTimeout)
		defer cancel()
		caller, err := t.ask(asking, token)
		if err == nil || ReasonOf(err) == ReasonUnavailable {
			t.cleared(from)
		}
		if err != nil {
			return Caller{}, err
		}
		t.remember(hash, caller, expiry)
		return caller, nil
	})
	if err != nil {
		return Caller{}, err
	}
	caller, _ := answer.(Caller)
	return caller, nil
}

// plausible reads a token without verifying it, and returns its expiry.
func (t *TokenReview) plausible(text string) (time.Time, error) {
	if len(text) > maxTokenBytes {
		return time.Time{}, refuse(ReasonMalformed, "larger than any token of ours")
	}
	token, err := jwt.ParseSigned(text, reviewed)
	if err != nil {
		return time.Time{}, &Error{ReasonMalformed, err}
	}
	var c jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&c); err != nil {
		return time.Time{}, &Error{ReasonMalformed, fmt.Errorf("claims: %w", err)}
	}
	if !slices.Contains(c.Audience, t.cfg.Audience) {
		return time.Time{}, &Error{ReasonAudience, fmt.Errorf("audience %q does not include %q", clip(strings.Join(c.Audience, " ")), t.cfg.Audience)}
	}
	switch {
	case c.Expiry == nil || *c.Expiry < 0 || *c.Expiry > maxUnixTime:
		return time.Time{}, refuse(ReasonExpired, "no expiry")
	case !t.cfg.Now().Before(c.Expiry.Time().Add(skew)):
		return time.Time{}, &Error{ReasonExpired, fmt.Errorf("expired at %s", c.Expiry.Time().UTC().Format(time.RFC3339))}
	}
	return c.Expiry.Time(), nil
}

func (t *TokenReview) ask(ctx context.Context, token string) (Caller, error) {
	status, err := t.cfg.Review(ctx, authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{t.cfg.Audience}})
	switch {
	case err != nil:
		return Caller{}, &Error{ReasonUnavailable, err}
	case !status.Authenticated:
		return Caller{}, &Error{ReasonReview, fmt.Errorf("the API server refuses it: %s", clip(status.Error))}
	case !slices.Contains(status.Audiences, t.cfg.Audience):
		// A server that knows no audiences ignores them: then the token says nothing about us.
		return Caller{}, &Error{ReasonAudience, fmt.Errorf("the API server vouches for audience %q, not %q", clip(strings.Join(status.Audiences, " ")), t.cfg.Audience)}
	}
	return reviewedCaller(status.User)
}

// reviewedCaller reads who the API server says a token belongs to.
func reviewedCaller(user authenticationv1.UserInfo) (Caller, error) {
	namespace, account, ok := serviceAccount(user.Username)
	if !ok {
		return Caller{}, &Error{ReasonSubject, fmt.Errorf("user %q is not a service account", clip(user.Username))}
	}
	out := Caller{Namespace: namespace, ServiceAccount: account}
	for name, into := range map[string]*string{extraPodName: &out.Pod.Name, extraPodUID: &out.Pod.UID, extraNodeName: &out.Node} {
		switch values := user.Extra[name]; len(values) {
		case 0:
		case 1:
			*into = values[0]
		default:
			return Caller{}, &Error{ReasonSubject, fmt.Errorf("%d values of %s", len(values), name)}
		}
	}
	if (out.Pod.Name == "") != (out.Pod.UID == "") {
		return Caller{}, refuse(ReasonSubject, "pod lacks its name or uid")
	}
	return out, nil
}

func (t *TokenReview) remembered(hash tokenHash) (Caller, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, ok := t.known[hash]
	if !ok || !t.cfg.Now().Before(known.until) {
		delete(t.known, hash)
		return Caller{}, false
	}
	return known.caller, true
}

// remember keeps an answer, but not beyond the token's life.
func (t *TokenReview) remember(hash tokenHash, caller Caller, expiry time.Time) {
	now := t.cfg.Now()
	until := now.Add(rememberFor)
	if expiry.Before(until) {
		until = expiry
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	makeRoom(t.known, func(r review) bool { return !now.Before(r.until) })
	t.known[hash] = review{caller: caller, until: until}
}

// mayAsk counts a question about a token of a peer, which is in vain until
// cleared takes it back: many may be asked at once.
func (t *TokenReview) mayAsk(peer string) bool {
	now := t.cfg.Now()
	over := func(q questions) bool { return !now.Before(q.until) }
	t.mu.Lock()
	defer t.mu.Unlock()
	q, ok := t.peers[peer]
	if !ok || over(q) {
		makeRoom(t.peers, over)
		q = questions{until: now.Add(refusedWithin)}
	}
	if q.count >= refusedMost {
		return false
	}
	q.count++
	t.peers[peer] = q
	return true
}

func (t *TokenReview) cleared(peer string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q := t.peers[peer]; q.count > 0 {
		q.count--
		t.peers[peer] = q
	}
}

// peerOf is the address of a gRPC request's peer, whatever its port.
func peerOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}

// makeRoom takes out of a full map what is over, and if nothing is, all: the API
// server then answers once more for each.
func makeRoom[K comparable, V any](m map[K]V, over func(V) bool) {
	if len(m) < rememberMost {
		return
	}
	maps.DeleteFunc(m, func(_ K, v V) bool { return over(v) })
	if len(m) >= rememberMost {
		clear(m)
	}
}
