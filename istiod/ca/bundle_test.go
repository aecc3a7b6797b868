package ca_test

import (
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/istiod/ca"
)

func TestLoadSecret(t *testing.T) {
	rootKey, midKey, signKey := ecKey(elliptic.P256()), ecKey(elliptic.P256()), ecKey(elliptic.P256())
	root := certify("root", rootKey, nil, nil)
	next := certify("next root", ecKey(elliptic.P256()), nil, nil)
	mid := certify("mid", midKey, root, rootKey)
	signer := certify("signer", signKey, mid, midKey)
	key := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(signKey))})
	rootPEMKey := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(rootKey))})
	type secret = map[string][]byte
	full := [][]*x509.Certificate{{signer}, {mid}, {root}}
	tests := []struct {
		name string
		data secret
		want [][]*x509.Certificate // above the leaf; nil: an error
	}{
		{"as Istio's documentation makes it", secret{
			"ca-cert.pem": bundle(signer), "ca-key.pem": key, "cert-chain.pem": bundle(signer, mid, root), "root-cert.pem": bundle(root),
		}, full},
		{"a chain without the signer", secret{
			"ca-cert.pem": bundle(signer), "ca-key.pem": key, "cert-chain.pem": bundle(mid), "root-cert.pem": bundle(root),
		}, full},
		{"two roots", secret{
			"ca-cert.pem": bundle(signer), "ca-key.pem": key, "cert-chain.pem": bundle(mid), "root-cert.pem": bundle(root, next),
		}, [][]*x509.Certificate{{signer}, {mid}, {root, next}}},
		{"only what is called a root is trusted", secret{
			"ca-cert.pem": bundle(signer), "ca-key.pem": key, "cert-chain.pem": bundle(mid, next), "root-cert.pem": bundle(root),
		}, full},
		{"a root that is not self-signed", secret{
			"ca-cert.pem": bundle(signer), "ca-key.pem": key, "root-cert.pem": bundle(mid),
		}, [][]*x509.Certificate{{signer}, {mid}}},
		{"a signer that is the root", secret{
			"ca-cert.pem": bundle(root), "ca-key.pem": rootPEMKey, "cert-chain.pem": bundle(root), "root-cert.pem": bundle(root),
		}, [][]*x509.Certificate{{root}}},
		{"our own", secret{"ca-cert.pem": bundle(root), "ca-key.pem": rootPEMKey, "cert-chain.pem": {}, "root-cert.pem": {}}, [][]*x509.Certificate{{root}}},
		{"cert-manager's", secret{"tls.crt": bundle(signer, mid), "tls.key": key, "ca.crt": bundle(root)}, full},

		{"nothing", secret{}, nil},
		{"no key", secret{"ca-cert.pem": bundle(signer), "root-cert.pem": bundle(root)}, nil},
		{"no root for an intermediate", secret{"ca-cert.pem": bundle(signer), "ca-key.pem": key, "cert-chain.pem": bundle(mid)}, nil},
		{"a root that is no PEM", secret{"ca-cert.pem": bundle(signer), "ca-key.pem": key, "root-cert.pem": []byte("x")}, nil},
		{"a chain that is no PEM", secret{"ca-cert.pem": bundle(signer), "ca-key.pem": key, "cert-chain.pem": []byte("x"), "root-cert.pem": bundle(root)}, nil},
		{"somebody else's root", secret{"ca-cert.pem": bundle(signer), "ca-key.pem": key, "cert-chain.pem": bundle(mid), "root-cert.pem": bundle(next)}, nil},
		{"a self-signed signer that is no root", secret{"ca-cert.pem": bundle(root), "ca-key.pem": rootPEMKey, "root-cert.pem": bundle(next)}, nil},
		{"another's key", secret{"ca-cert.pem": bundle(signer), "ca-key.pem": rootPEMKey, "cert-chain.pem": bundle(mid), "root-cert.pem": bundle(root)}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, err := ca.LoadSecret(test.data)
			if err != nil {
				if test.want != nil {
					t.Fatal(err)
				}
				return
			}
			if test.want == nil {
				t.Fatal("loaded, want an error")
			}
			chain := must(a.Sign(plainCSR(), cartID, time.Hour))
			verify(t, chain)
			var want []string
			for _, certs := range test.want {
				want = append(want, string(bundle(certs...)))
			}
			if !slices.Equal(chain[1:], want) {
				t.Errorf("%d elements above the leaf, or others than wanted (%d)", len(chain)-1, len(want))
			}
		})
	}
}

func FuzzLoadSecret(f *testing.F) {
	f.Add([]byte("x"), []byte("y"), []byte("z"), []byte(""))
	key := ecKey(elliptic.P256())
	root := bundle(certify("root", key, nil, nil))
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(key))})
	f.Add(root, keyPEM, root, root)
	f.Fuzz(func(t *testing.T, cert, key, chain, roots []byte) {
		a, err := ca.LoadSecret(map[string][]byte{"ca-cert.pem": cert, "ca-key.pem": key, "cert-chain.pem": chain, "root-cert.pem": roots})
		if err != nil {
			return
		}
		if len(a.RootPEM()) == 0 {
			t.Error("loaded without a root")
		}
	})
}
