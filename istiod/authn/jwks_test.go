package authn_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/metadata"

	"github.com/ambit-mesh/ambit/istiod/authn"
	"github.com/ambit-mesh/ambit/istiod/authn/authntest"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func bound() authntest.Claims {
	return authntest.Bound("shop", "cart", "cart-7f", "uid-1", "n1", now)
}

func newJWKS(tb testing.TB, issuer *authntest.Issuer, clock func() time.Time) *authn.JWKS {
	tb.Helper()
	j, err := authn.NewJWKS(authn.JWKSConfig{File: issuer.File, Issuer: authntest.URL, Audience: authntest.Audience, Now: clock})
	if err != nil {
		tb.Fatalf("NewJWKS: %v", err)
	}
	return j
}

func fixed() time.Time { return now }

func rsaKey(tb testing.TB, bits int) *rsa.PrivateKey {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		tb.Fatalf("rsa: %v", err)
	}
	return key
}

// none is a token without a signature, in the two forms that are tried.
func none(tb testing.TB, alg, signature string) string {
	tb.Helper()
	header, err := json.Marshal(map[string]string{"alg": alg, "kid": "key-1", "typ": "JWT"})
	if err != nil {
		tb.Fatal(err)
	}
	body, err := json.Marshal(bound())
	if err != nil {
		tb.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return b64(header) + "." + b64(body) + "." + signature
}

func TestVerifyAccepts(t *testing.T) {
	issuer := authntest.New(t)
	rs := rsaKey(t, 2048)
	issuer.Publish(
		jose.JSONWebKey{Key: issuer.Key.Public(), KeyID: issuer.KeyID},
		jose.JSONWebKey{Key: rs.Public(), KeyID: "rsa", Algorithm: "RS256"},
		jose.JSONWebKey{Key: []byte("a shared secret of thirty-two byt"), KeyID: "hmac"},
	)
	j := newJWKS(t, issuer, fixed)
	want := authn.Caller{
		Namespace: "shop", ServiceAccount: "cart", Pod: authn.Pod{Name: "cart-7f", UID: "uid-1"}, Node: "n1",
	}
	cases := map[string]struct {
		token string
		want  authn.Caller
	}{
		"ES256":                      {issuer.Token(bound()), want},
		"RS256":                      {authntest.Sign(t, jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: rs, KeyID: "rsa"}}, bound()), want},
		"audience as a string":       {issuer.Token(bound().With("aud", "istio-ca")), want},
		"one of several audiences":   {issuer.Token(bound().With("aud", []string{"vault", "istio-ca"})), want},
		"expired within the skew":    {issuer.Token(bound().With("exp", now.Add(-59*time.Second).Unix())), want},
		"not yet valid within skew":  {issuer.Token(bound().With("nbf", now.Add(time.Minute).Unix())), want},
		"without nbf and iat":        {issuer.Token(bound().With("nbf", nil).With("iat", nil)), want},
		"unbound: caller has no pod": {issuer.Token(authntest.Unbound("shop", "cart", now)), authn.Caller{Namespace: "shop", ServiceAccount: "cart"}},
		"pod without node: node is ''": {issuer.Token(authntest.Bound("shop", "cart", "cart-7f", "uid-1", "", now)), authn.Caller{
			Namespace: "shop", ServiceAccount: "cart", Pod: want.Pod,
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := j.Verify(t.Context(), c.token)
			if err != nil || got != c.want {
				t.Errorf("got %v, %v; want %v", got, err, c.want)
			}
		})
	}
}

func TestVerifyRefuses(t *testing.T) {
	issuer := authntest.New(t)
	rs := rsaKey(t, 2048)
	issuer.Publish(
		jose.JSONWebKey{Key: issuer.Key.Public(), KeyID: issuer.KeyID},
		jose.JSONWebKey{Key: rs.Public(), KeyID: "rsa"},
	)
	j := newJWKS(t, issuer, fixed)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k8s := func(change map[string]any) authntest.Claims {
		claims := map[string]any{
			"namespace": "shop", "serviceaccount": map[string]any{"name": "cart", "uid": "u"},
			"pod": map[string]any{"name": "cart-7f", "uid": "uid-1"},
		}
		maps.Copy(claims, change)
		return bound().With("kubernetes.io", claims)
	}
	sign := func(alg jose.SignatureAlgorithm, key any, kid string) string {
		return authntest.Sign(t, jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, bound())
	}
	valid := issuer.Token(bound())
	parts := strings.Split(valid, ".")
	admin := issuer.Token(authntest.Unbound("istio-system", "ztunnel", now))
	cases := map[string]struct {
		token string
		want  authn.Reason
	}{
		"empty":                    {"", authn.ReasonMalformed},
		"garbage":                  {"a.b.c", authn.ReasonMalformed},
		"too large":                {strings.Repeat("a", 1<<20), authn.ReasonMalformed},
		"JSON serialization":       {`{"payload":"e30","protected":"e30","signature":""}`, authn.ReasonMalformed},
		"alg none":                 {none(t, "none", ""), authn.ReasonAlgorithm},
		"alg None":                 {none(t, "None", ""), authn.ReasonAlgorithm},
		"alg none, signature kept": {none(t, "none", parts[2]), authn.ReasonAlgorithm},
		"HS256 with our key's name": {
			sign(jose.HS256, []byte("0123456789abcdef0123456789abcdef"), issuer.KeyID), authn.ReasonAlgorithm,
		},
		"PS256":                 {sign(jose.PS256, rs, "rsa"), authn.ReasonAlgorithm},
		"RS512":                 {sign(jose.RS512, rs, "rsa"), authn.ReasonAlgorithm},
		"RS256 by an EC key id": {sign(jose.RS256, rs, issuer.KeyID), authn.ReasonAlgorithm},
		"no key id":             {sign(jose.ES256, issuer.Key, ""), authn.ReasonUnknownKey},
		"unknown key id":        {sign(jose.ES256, issuer.Key, "other"), authn.ReasonUnknownKey},
		"another's signature":   {sign(jose.ES256, stranger, issuer.KeyID), authn.ReasonSignature},
		"body changed":          {parts[0] + "." + strings.Split(admin, ".")[1] + "." + parts[2], authn.ReasonSignature},
		"expired":               {issuer.Token(bound().With("exp", now.Add(-time.Minute).Unix())), authn.ReasonExpired},
		"no exp":                {issuer.Token(bound().With("exp", nil)), authn.ReasonExpired},
		"exp is no date":        {issuer.Token(bound().With("exp", 1e30)), authn.ReasonMalformed},
		"nbf ahead":             {issuer.Token(bound().With("nbf", now.Add(61*time.Second).Unix())), authn.ReasonNotYetValid},
		"iat ahead":             {issuer.Token(bound().With("iat", now.Add(61*time.Second).Unix())), authn.ReasonNotYetValid},
		"issuer":                {issuer.Token(bound().With("iss", authntest.URL+"/")), authn.ReasonIssuer},
		"no issuer":             {issuer.Token(bound().With("iss", nil)), authn.ReasonIssuer},
		"wrong audience":        {issuer.Token(bound().With("aud", []string{"https://kubernetes.default.svc"})), authn.ReasonAudience},
		"audience's prefix":     {issuer.Token(bound().With("aud", "istio-ca2")), authn.ReasonAudience},
		"no audience":           {issuer.Token(bound().With("aud", nil)), authn.ReasonAudience},
		"a user's subject":      {issuer.Token(bound().With("sub", "system:admin")), authn.ReasonSubject},
		"five-part subject":     {issuer.Token(bound().With("sub", "system:serviceaccount:shop:cart:x")), authn.ReasonSubject},
		"no account":            {issuer.Token(bound().With("sub", "system:serviceaccount:shop:")), authn.ReasonSubject},
		"no kubernetes claims":  {issuer.Token(bound().With("kubernetes.io", nil)), authn.ReasonSubject},
		"other namespace":       {issuer.Token(k8s(map[string]any{"namespace": "bank"})), authn.ReasonSubject},
		"other account":         {issuer.Token(k8s(map[string]any{"serviceaccount": map[string]any{"name": "root"}})), authn.ReasonSubject},
		"pod without uid":       {issuer.Token(k8s(map[string]any{"pod": map[string]any{"name": "cart-7f"}})), authn.ReasonSubject},
		"claims of wrong type":  {issuer.Token(bound().With("kubernetes.io", "shop")), authn.ReasonMalformed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := j.Verify(t.Context(), c.token)
			if err == nil {
				t.Fatalf("accepted as %v", got)
			}
			if reason := authn.ReasonOf(err); reason != c.want {
				t.Errorf("reason %q (%v), want %q", reason, err, c.want)
			}
			if got != (authn.Caller{}) {
				t.Errorf("caller %v beside an error", got)
			}
			if len(c.token) > 100 && strings.Contains(err.Error(), c.token) {
				t.Errorf("the error holds the token: %v", err)
			}
		})
	}
}

func TestKeySetIsReadAgain(t *testing.T) {
	clock := now
	issuer := authntest.New(t)
	j := newJWKS(t, issuer, func() time.Time { return clock })
	first := issuer.Token(bound())
	verify := func(what, token string, want authn.Reason) {
		t.Helper()
		_, err := j.Verify(t.Context(), token)
		got := authn.Reason("")
		if err != nil {
			got = authn.ReasonOf(err)
		}
		if got != want {
			t.Errorf("%s: %v, want reason %q", what, err, want)
		}
	}
	verify("first key", first, "")

	next := *issuer
	next.Key, next.KeyID = mustKey(t), "key-2"
	second := next.Token(bound())
	next.Publish(jose.JSONWebKey{Key: next.Key.Public(), KeyID: next.KeyID})
	verify("new key within the read interval", second, authn.ReasonUnknownKey)
	clock = clock.Add(time.Second)
	verify("new key", second, "")
	verify("key that left the file", first, authn.ReasonUnknownKey)

	for what, content := range map[string]string{
		"empty file": "", "half a file": `{"keys":[{"kty":"EC",`, "no keys": `{"keys":[]}`,
		"only a secret": `{"keys":[{"kty":"oct","kid":"key-2","k":"AAAA"}]}`,
	} {
		if err := os.WriteFile(issuer.File, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(time.Second)
		verify(what+": the last good keys stay", second, "")
	}
	if err := os.Remove(issuer.File); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(time.Second)
	verify("file gone: the last good keys stay", second, "")

	issuer.Publish(jose.JSONWebKey{Key: issuer.Key.Public(), KeyID: issuer.KeyID})
	clock = clock.Add(time.Second)
	verify("repaired with the first key", first, "")
	verify("second key is gone", second, authn.ReasonUnknownKey)
}

func mustKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func TestKeySetRefused(t *testing.T) {
	good := jose.JSONWebKey{Key: mustKey(t).Public(), KeyID: "a"}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]jose.JSONWebKey{
		"no name":         {{Key: mustKey(t).Public()}},
		"encryption":      {{Key: mustKey(t).Public(), KeyID: "a", Use: "enc"}},
		"other alg":       {{Key: mustKey(t).Public(), KeyID: "a", Algorithm: "RS256"}},
		"P-384":           {{Key: p384.Public(), KeyID: "a"}},
		"private key":     {{Key: mustKey(t), KeyID: "a"}},
		"name used twice": {good, {Key: mustKey(t).Public(), KeyID: "a"}},
	}
	for name, keys := range cases {
		t.Run(name, func(t *testing.T) {
			issuer := authntest.New(t)
			issuer.Publish(keys...)
			_, err := authn.NewJWKS(authn.JWKSConfig{File: issuer.File, Issuer: "i", Audience: "a"})
			if err == nil {
				t.Error("accepted")
			}
		})
	}
	if _, err := authn.NewJWKS(authn.JWKSConfig{File: "/does/not/exist", Issuer: "i", Audience: "a"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := authn.NewJWKS(authn.JWKSConfig{File: authntest.New(t).File, Issuer: "i"}); err == nil {
		t.Error("accepted without an audience")
	}
}

func TestBearerToken(t *testing.T) {
	cases := map[string]struct {
		values []string
		want   string
		reason authn.Reason
	}{
		"one":              {[]string{"Bearer abc"}, "abc", ""},
		"lower case":       {[]string{"bearer abc"}, "abc", ""},
		"none":             {nil, "", authn.ReasonMissing},
		"another scheme":   {[]string{"Basic abc"}, "", authn.ReasonMissing},
		"nothing after it": {[]string{"Bearer  "}, "", authn.ReasonMissing},
		"two":              {[]string{"Bearer abc", "Bearer def"}, "", authn.ReasonMalformed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			ctx := metadata.NewIncomingContext(t.Context(), metadata.MD{"authorization": c.values})
			got, err := authn.BearerToken(ctx)
			if got != c.want || (err != nil && authn.ReasonOf(err) != c.reason) || (err == nil) != (c.reason == "") {
				t.Errorf("got %q, %v; want %q, reason %q", got, err, c.want, c.reason)
			}
		})
	}
	if _, err := authn.BearerToken(t.Context()); authn.ReasonOf(err) != authn.ReasonMissing {
		t.Errorf("no metadata: %v", err)
	}
}

// FuzzVerify: whatever the bytes, no panic, and nobody becomes anyone but the
// holder of the one token that was issued.
func FuzzVerify(f *testing.F) {
	issuer := authntest.New(f)
	j := newJWKS(f, issuer, fixed)
	token := issuer.Token(bound())
	want, err := j.Verify(f.Context(), token)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add(none(f, "none", ""))
	f.Add("..")
	f.Add(strings.Repeat(".", 1000))
	f.Fuzz(func(t *testing.T, token string) {
		if got, err := j.Verify(t.Context(), token); err == nil && got != want {
			t.Errorf("accepted as %v", got)
		}
	})
}
