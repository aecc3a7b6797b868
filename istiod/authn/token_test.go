package authn

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"os"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/istiod/authn/authntest"
)

// FuzzJWKS: a file of any bytes yields asymmetric keys of sufficient size with
// a name, or an error.
func FuzzJWKS(f *testing.F) {
	good, err := os.ReadFile(authntest.New(f).File)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"keys":[{"kty":"RSA","kid":"a","n":"AQ","e":"AQAB"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","kid":"a","k":"AQ"}]}`))
	f.Add([]byte(`{"keys":[null,1,{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := parseJWKS(data)
		if err != nil {
			return
		}
		for id, key := range set.byID {
			switch public := key.key.(type) {
			case *rsa.PublicKey:
				if key.algorithm != jose.RS256 || public.N.BitLen() < minRSABits {
					t.Errorf("key %q: %s of %d bits", id, key.algorithm, public.N.BitLen())
				}
			case *ecdsa.PublicKey:
				if key.algorithm != jose.ES256 {
					t.Errorf("key %q: %s", id, key.algorithm)
				}
			default:
				t.Errorf("key %q: %T", id, public)
			}
			if id == "" {
				t.Error("key without a name")
			}
		}
	})
}
