package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// algorithms are all that is accepted: "none" and the HMAC family (where a
// public key would do as the secret) are refused before any key is looked up.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256}

const (
	minRSABits    = 2048
	maxRSABits    = 8192 // more costs us time and makes nobody safer
	subjectPrefix = "system:serviceaccount:"
	maxUnixTime   = 1 << 40 // beyond it a date is nonsense and arithmetic may overflow
)

// keySet is an immutable JWKS.
type keySet struct {
	source []byte
	byID   map[string]publicKey
}

// publicKey is a key with the only algorithm that it verifies.
type publicKey struct {
	algorithm jose.SignatureAlgorithm
	key       crypto.PublicKey
}

// parseJWKS takes the keys that can verify RS256 or ES256. Others are left out:
// an issuer may publish what we do not need. A key id that stands for two keys,
// or nothing usable, is an error.
func parseJWKS(data []byte) (*keySet, error) {
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("not a key set: %w", err)
	}
	set := &keySet{source: data, byID: map[string]publicKey{}}
	for i, raw := range document.Keys {
		var key jose.JSONWebKey
		if err := key.UnmarshalJSON(raw); err != nil {
			continue // a type of key that the library does not know
		}
		usable, ok := newPublicKey(key)
		if !ok {
			continue
		}
		if _, twice := set.byID[key.KeyID]; twice {
			return nil, fmt.Errorf("key %d: id %q was given before", i, clip(key.KeyID))
		}
		set.byID[key.KeyID] = usable
	}
	if len(set.byID) == 0 {
		return nil, fmt.Errorf("none of %d keys is a named RS256 or ES256 key", len(document.Keys))
	}
	return set, nil
}

func newPublicKey(jwk jose.JSONWebKey) (publicKey, bool) {
	if jwk.KeyID == "" || (jwk.Use != "" && jwk.Use != "sig") || !jwk.IsPublic() {
		return publicKey{}, false
	}
	usable := publicKey{key: jwk.Key}
	switch key := jwk.Key.(type) {
	case *rsa.PublicKey:
		bits := key.N.BitLen()
		if bits < minRSABits || bits > maxRSABits {
			return publicKey{}, false
		}
		usable.algorithm = jose.RS256
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return publicKey{}, false
		}
		usable.algorithm = jose.ES256
	default:
		return publicKey{}, false
	}
	return usable, jwk.Algorithm == "" || jwk.Algorithm == string(usable.algorithm)
}

// parsedToken is a token whose signature has not been looked at.
type parsedToken struct {
	token     *jwt.JSONWebToken
	keyID     string
	algorithm string
}

func parseToken(text string) (parsedToken, error) {
	if len(text) > maxTokenBytes {
		return parsedToken{}, refuse(ReasonMalformed, "larger than any token of ours")
	}
	token, err := jwt.ParseSigned(text, algorithms)
	if err != nil {
		if unexpected, ok := errors.AsType[*jose.ErrUnexpectedSignatureAlgorithm](err); ok {
			return parsedToken{}, &Error{ReasonAlgorithm, fmt.Errorf("signature algorithm %q is not accepted", clip(string(unexpected.Got)))}
		}
		return parsedToken{}, &Error{ReasonMalformed, err}
	}
	if len(token.Headers) != 1 {
		return parsedToken{}, refuse(ReasonMalformed, "not exactly one signature")
	}
	header := token.Headers[0]
	if header.KeyID == "" {
		return parsedToken{}, refuse(ReasonUnknownKey, "no key id")
	}
	return parsedToken{token: token, keyID: header.KeyID, algorithm: header.Algorithm}, nil
}

func (p parsedToken) verify(key publicKey) (claims, error) {
	if p.algorithm != string(key.algorithm) {
		return claims{}, &Error{ReasonAlgorithm, fmt.Errorf("key %q is for %s, not %s", clip(p.keyID), key.algorithm, p.algorithm)}
	}
	var c claims
	err := p.token.Claims(key.key, &c)
	switch {
	case errors.Is(err, jose.ErrCryptoFailure):
		return claims{}, &Error{ReasonSignature, fmt.Errorf("signature by key %q does not match", clip(p.keyID))}
	case err != nil:
		return claims{}, &Error{ReasonMalformed, fmt.Errorf("claims: %w", err)}
	}
	return c, nil
}

// claims are what Kubernetes puts into a projected service-account token.
type claims struct {
	jwt.Claims

	Kubernetes struct {
		Namespace      string `json:"namespace"`
		ServiceAccount object `json:"serviceaccount"`
		Pod            object `json:"pod"`
		Node           object `json:"node"`
	} `json:"kubernetes.io"`
}

type object struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// check compares everything but the subject.
func (c claims) check(cfg JWKSConfig, now time.Time) error {
	if c.Issuer != cfg.Issuer {
		return &Error{ReasonIssuer, fmt.Errorf("issuer %q, want %q", clip(c.Issuer), cfg.Issuer)}
	}
	if !slices.Contains(c.Audience, cfg.Audience) {
		return &Error{ReasonAudience, fmt.Errorf("audience %q does not include %q", clip(strings.Join(c.Audience, " ")), cfg.Audience)}
	}
	for name, date := range map[string]*jwt.NumericDate{"exp": c.Expiry, "nbf": c.NotBefore, "iat": c.IssuedAt} {
		if date != nil && (*date < 0 || *date > maxUnixTime) {
			return &Error{ReasonMalformed, fmt.Errorf("%s is not a date", name)}
		}
	}
	switch {
	case c.Expiry == nil:
		return refuse(ReasonExpired, "no expiry")
	case !now.Before(c.Expiry.Time().Add(skew)):
		return &Error{ReasonExpired, fmt.Errorf("expired at %s", c.Expiry.Time().UTC().Format(time.RFC3339))}
	case c.NotBefore != nil && now.Add(skew).Before(c.NotBefore.Time()):
		return &Error{ReasonNotYetValid, fmt.Errorf("not valid before %s", c.NotBefore.Time().UTC().Format(time.RFC3339))}
	case c.IssuedAt != nil && now.Add(skew).Before(c.IssuedAt.Time()):
		return &Error{ReasonNotYetValid, fmt.Errorf("issued in the future, at %s", c.IssuedAt.Time().UTC().Format(time.RFC3339))}
	}
	return nil
}

// caller reads the subject and compares it with what Kubernetes says beside it.
func (c claims) caller() (Caller, error) {
	namespace, account, ok := serviceAccount(c.Subject)
	if !ok {
		return Caller{}, &Error{ReasonSubject, fmt.Errorf("subject %q is not a service account", clip(c.Subject))}
	}
	k8s := c.Kubernetes
	if k8s.Namespace != namespace || k8s.ServiceAccount.Name != account {
		return Caller{}, &Error{ReasonSubject, fmt.Errorf("subject %q is not the service account %q of its kubernetes.io claims",
			clip(c.Subject), clip(k8s.Namespace+"/"+k8s.ServiceAccount.Name))}
	}
	if (k8s.Pod.Name == "") != (k8s.Pod.UID == "") {
		return Caller{}, refuse(ReasonSubject, "pod claim lacks its name or uid")
	}
	return Caller{
		Namespace: namespace, ServiceAccount: account,
		Pod:  Pod{Name: k8s.Pod.Name, UID: k8s.Pod.UID},
		Node: k8s.Node.Name,
	}, nil
}

// serviceAccount splits the name that Kubernetes gives the user behind a service
// account.
func serviceAccount(user string) (namespace, account string, ok bool) {
	rest, ours := strings.CutPrefix(user, subjectPrefix)
	namespace, account, split := strings.Cut(rest, ":")
	return namespace, account, ours && split && namespace != "" && account != "" && !strings.Contains(account, ":")
}
