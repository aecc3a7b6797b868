package authn_test

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/peer"
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/ambit-mesh/ambit/istiod/authn"
	"github.com/ambit-mesh/ambit/istiod/authn/authntest"
)

// apiServer answers TokenReviews.
type apiServer struct {
	answer func(authenticationv1.TokenReviewSpec) (authenticationv1.TokenReviewStatus, error)
	asked  atomic.Int32
}

func (a *apiServer) review(_ context.Context, spec authenticationv1.TokenReviewSpec) (authenticationv1.TokenReviewStatus, error) {
	a.asked.Add(1)
	return a.answer(spec)
}

// vouched is the answer about the token that bound and authntest issue.
func vouched() authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{authntest.Audience},
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:shop:cart",
			Extra: map[string]authenticationv1.ExtraValue{
				"authentication.kubernetes.io/pod-name":  {"cart-7f"},
				"authentication.kubernetes.io/pod-uid":   {"uid-1"},
				"authentication.kubernetes.io/node-name": {"n1"},
				"authentication.kubernetes.io/node-uid":  {"uid-of-n1"},
			},
		},
	}
}

func always(s authenticationv1.TokenReviewStatus) func(authenticationv1.TokenReviewSpec) (authenticationv1.TokenReviewStatus, error) {
	return func(authenticationv1.TokenReviewSpec) (authenticationv1.TokenReviewStatus, error) { return s, nil }
}

func newReview(tb testing.TB, server *apiServer, clock func() time.Time) *authn.TokenReview {
	tb.Helper()
	r, err := authn.NewTokenReview(authn.TokenReviewConfig{Review: server.review, Audience: authntest.Audience, Now: clock})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func TestTokenReview(t *testing.T) {
	issuer := authntest.New(t)
	good := issuer.Token(bound())
	changed := func(change func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
		s := vouched()
		change(&s)
		return s
	}
	extra := func(name string, values ...string) authenticationv1.TokenReviewStatus {
		return changed(func(s *authenticationv1.TokenReviewStatus) {
			s.User.Extra["authentication.kubernetes.io/"+name] = values
		})
	}
	tests := []struct {
		name   string
		token  string
		status authenticationv1.TokenReviewStatus
		want   string // the caller, or a reason
		asked  bool
	}{
		{"a pod's token", good, vouched(), "shop/cart pod cart-7f uid uid-1 node n1", true},
		{"a token without a node", good, extra("node-name"), "shop/cart pod cart-7f uid uid-1", true},
		{"a token bound to no pod", good, changed(func(s *authenticationv1.TokenReviewStatus) { s.User.Extra = nil }), "shop/cart", true},
		{"refused", good, authenticationv1.TokenReviewStatus{Error: "token has been invalidated"}, "token-review", true},
		{"refused, although it names someone", good, changed(func(s *authenticationv1.TokenReviewStatus) { s.Authenticated = false }), "token-review", true},
		{"for another audience", good, changed(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"api"} }), "token-audience", true},
		{"for no audience", good, changed(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil }), "token-audience", true},
		{"a person", good, changed(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "jane" }), "token-subject", true},
		{"a name in four parts", good, changed(func(s *authenticationv1.TokenReviewStatus) { s.User.Username += ":x" }), "token-subject", true},
		{"a pod without uid", good, extra("pod-uid"), "token-subject", true},
		{"two pods", good, extra("pod-name", "a", "b"), "token-subject", true},

		{"not a token", "x", vouched(), "token-malformed", false},
		{"too long", strings.Repeat("x", 1<<20), vouched(), "token-malformed", false},
		{"unsigned", none(t, "none", ""), vouched(), "token-malformed", false},
		{"says itself that it is for another", issuer.Token(bound().With("aud", []string{"api"})), vouched(), "token-audience", false},
		{"says itself that it has expired", issuer.Token(bound().With("exp", now.Add(-2*time.Minute).Unix())), vouched(), "token-expired", false},
		{"without an end", issuer.Token(bound().With("exp", nil)), vouched(), "token-expired", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server := &apiServer{answer: always(test.status)}
			caller, err := newReview(t, server, fixed).Verify(t.Context(), test.token)
			got := caller.String()
			if err != nil {
				got = string(authn.ReasonOf(err))
				if caller != (authn.Caller{}) {
					t.Errorf("%s: refused, and yet it is %s", test.name, caller)
				}
			}
			if got != test.want {
				t.Errorf("%s: got %s (%v), want %s", test.name, got, err, test.want)
			}
			if asked := server.asked.Load() > 0; asked != test.asked {
				t.Errorf("%s: API server asked: %t, want %t", test.name, asked, test.asked)
			}
			if err != nil && len(test.token) > 10 && strings.Contains(err.Error(), test.token) {
				t.Errorf("%s: the error shows the token", test.name)
			}
		})
	}
}

func TestTokenReviewAsksForOurAudience(t *testing.T) {
	var got authenticationv1.TokenReviewSpec
	server := &apiServer{answer: func(spec authenticationv1.TokenReviewSpec) (authenticationv1.TokenReviewStatus, error) {
		got = spec
		return vouched(), nil
	}}
	token := authntest.New(t).Token(bound())
	if _, err := newReview(t, server, fixed).Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	if got.Token != token || len(got.Audiences) != 1 || got.Audiences[0] != authntest.Audience {
		t.Errorf("asked for audiences %v, want %s and the token itself", got.Audiences, authntest.Audience)
	}
}

func TestTokenReviewRemembersGoodAnswersOnly(t *testing.T) {
	at := now
	clock := func() time.Time { return at }
	server := &apiServer{answer: always(vouched())}
	r := newReview(t, server, clock)
	issuer := authntest.New(t)
	token := issuer.Token(bound().With("exp", now.Add(90*time.Second).Unix()))
	verify := func(want int32) {
		t.Helper()
		if _, err := r.Verify(t.Context(), token); err != nil {
			t.Fatal(err)
		}
		if got := server.asked.Load(); got != want {
			t.Errorf("at +%s: asked %d times, want %d", at.Sub(now), got, want)
		}
	}
	verify(1)
	at = now.Add(59 * time.Second)
	verify(1)
	at = now.Add(60 * time.Second)
	verify(2)
	at = now.Add(89 * time.Second) // the token's life ends before the minute does
	verify(2)
	at = now.Add(90 * time.Second)
	verify(3)

	server.answer = always(authenticationv1.TokenReviewStatus{})
	for want := int32(4); want < 7; want++ {
		if _, err := r.Verify(t.Context(), token); authn.ReasonOf(err) != authn.ReasonReview {
			t.Errorf("a token that was good before is refused with %v", err)
		}
		if got := server.asked.Load(); got != want {
			t.Errorf("a refusal was remembered: asked %d times, want %d", got, want)
		}
	}
}

// A server that does not answer is no fault of the caller's.
func TestTokenReviewWithoutServer(t *testing.T) {
	server := &apiServer{answer: func(authenticationv1.TokenReviewSpec) (authenticationv1.TokenReviewStatus, error) {
		return authenticationv1.TokenReviewStatus{}, errors.New("connection refused")
	}}
	r := newReview(t, server, fixed)
	token := authntest.New(t).Token(bound())
	if _, err := r.Verify(t.Context(), token); authn.ReasonOf(err) != authn.ReasonUnavailable {
		t.Errorf("reason %s (%v), want %s", authn.ReasonOf(err), err, authn.ReasonUnavailable)
	}
	server.answer = always(vouched())
	if _, err := r.Verify(t.Context(), token); err != nil {
		t.Errorf("once the server is back: %v", err)
	}
}

func TestTokenReviewIsSharedAndOutlivesItsFirstCaller(t *testing.T) {
	token := authntest.New(t).Token(bound().With("exp", now.Add(1000000*time.Hour).Unix()))
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		server := &apiServer{answer: func(authenticationv1.TokenReviewSpec) (authenticationv1.TokenReviewStatus, error) {
			<-release
			return vouched(), nil
		}}
		r := newReview(t, server, fixed)
		first, cancel := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		var failed atomic.Int32
		for n := range 100 {
			ctx := t.Context()
			if n == 0 {
				ctx = first
			}
			wait.Go(func() {
				if _, err := r.Verify(ctx, token); err != nil {
					failed.Add(1)
				}
			})
		}
		synctest.Wait()
		cancel()
		close(release)
		wait.Wait()
		if failed.Load() != 0 || server.asked.Load() != 1 {
			t.Errorf("%d of 100 callers with one token failed after %d reviews, want none after one", failed.Load(), server.asked.Load())
		}
	})
}

// TestTokenReviewIsBounded: whatever comes, no more than so many are remembered.
func TestTokenReviewIsBounded(t *testing.T) {
	server := &apiServer{answer: always(vouched())}
	r := newReview(t, server, fixed)
	issuer := authntest.New(t)
	for n := range authn.RememberMost + 10 {
		if _, err := r.Verify(t.Context(), issuer.Token(bound().With("jti", strconv.Itoa(n)))); err != nil {
			t.Fatal(err)
		}
		if got := r.Remembered(); got > authn.RememberMost {
			t.Fatalf("%d answers are remembered, want %d at most", got, authn.RememberMost)
		}
	}
}

func FuzzTokenReview(f *testing.F) {
	issuer := authntest.New(f)
	f.Add(issuer.Token(bound()))
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJFUzI1NiJ9.e30.AA")
	r := newReview(f, &apiServer{answer: always(authenticationv1.TokenReviewStatus{})}, fixed)
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := r.Verify(t.Context(), token); err == nil {
			t.Errorf("%q is accepted although the API server refuses it", token)
		}
	})
}

// Each forged token would be a question to the API server.
func TestForgedTokensAreNotAskedAboutForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := authntest.New(t)
		forged := func(n int) string {
			return issuer.Token(authntest.Bound("shop", "cart", "cart-"+strconv.Itoa(n), "u", "n1", time.Now()))
		}
		server := &apiServer{answer: always(authenticationv1.TokenReviewStatus{})}
		reviews := newReview(t, server, time.Now)
		from := func(port int) context.Context {
			return peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: port}})
		}
		for n := range 100 {
			if _, err := reviews.Verify(from(n), forged(n)); err == nil {
				t.Fatal("a forged token is good")
			}
		}
		if asked := server.asked.Load(); asked != 20 {
			t.Errorf("asked %d times about 100 forged tokens of a peer, want 20", asked)
		}
		if _, err := reviews.Verify(from(1), forged(1)); authn.ReasonOf(err) != authn.ReasonUnavailable {
			t.Errorf("the peer is told %v, want to come again", err)
		}
		// Another peer is served, however often, and so is this one after a while.
		server.answer = always(vouched())
		other := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2)}})
		for n := range 100 {
			if _, err := reviews.Verify(other, forged(n)); err != nil {
				t.Fatalf("token %d of another peer: %v", n, err)
			}
		}
		time.Sleep(time.Minute)
		if _, err := reviews.Verify(from(2), forged(200)); err != nil {
			t.Errorf("after a minute: %v", err)
		}
	})
}
