package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/istiod/ca"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func ecKey(curve elliptic.Curve) *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(curve, rand.Reader))
}

// csr is a request as ztunnel makes it.
func csr(key crypto.Signer, template *x509.CertificateRequest) string {
	der := must(x509.CreateCertificateRequest(rand.Reader, template, key))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func plainCSR() string { return csr(ecKey(elliptic.P256()), &x509.CertificateRequest{}) }

var cartID = must(spiffe.New("cluster.local", "shop", "cart"))

func certificates(tb testing.TB, text string) []*x509.Certificate {
	tb.Helper()
	var certs []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return certs
		}
		certs = append(certs, must(x509.ParseCertificate(block.Bytes)))
	}
}

// verify checks a chain as a peer that has only the roots at its end.
func verify(tb testing.TB, chain []string) *x509.Certificate {
	tb.Helper()
	if len(chain) < 2 {
		tb.Fatalf("chain of %d elements", len(chain))
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(chain[len(chain)-1]))
	for _, element := range chain[1 : len(chain)-1] {
		if n := len(certificates(tb, element)); n != 1 {
			tb.Errorf("an intermediate element holds %d certificates", n)
		}
		between.AppendCertsFromPEM([]byte(element))
	}
	leaves := certificates(tb, chain[0])
	if len(leaves) != 1 || !strings.HasSuffix(chain[0], "-----END CERTIFICATE-----\n") {
		tb.Fatalf("the first element holds %d certificates", len(leaves))
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		options := x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}}
		if _, err := leaves[0].Verify(options); err != nil {
			tb.Errorf("verify: %v", err)
		}
	}
	return leaves[0]
}

func TestSelfSigned(t *testing.T) {
	a := must(ca.NewSelfSigned("cluster.local", time.Now()))
	root := certificates(t, string(a.RootPEM()))[0]
	if life := time.Until(root.NotAfter); life < 9*365*24*time.Hour || !root.IsCA || root.Subject.Organization[0] != "cluster.local" {
		t.Errorf("root: life %s, CA %v, subject %s", life, root.IsCA, root.Subject)
	}
	if key, ok := root.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("key %T", root.PublicKey)
	}
	again := must(ca.Load(a.PEM()))
	if string(again.RootPEM()) != string(a.RootPEM()) {
		t.Error("loaded again it has another root")
	}
	chain := must(again.Sign(plainCSR(), cartID, 0))
	if chain[len(chain)-1] != string(a.RootPEM()) || len(chain) != 2 {
		t.Errorf("chain of %d", len(chain))
	}
	verify(t, chain)
	if text := a.String(); strings.Contains(text, "KEY") || !strings.Contains(text, "cluster.local") {
		t.Errorf("String: %s", text)
	}
}

func TestSign(t *testing.T) {
	a := must(ca.NewSelfSigned("cluster.local", time.Now()))
	admin := must(url.Parse("spiffe://cluster.local/ns/istio-system/sa/istiod"))
	key := ecKey(elliptic.P256())
	request := csr(key, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "root", Organization: []string{"system:masters"}},
		DNSNames: []string{"istiod.istio-system.svc"}, URIs: []*url.URL{admin}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
		EmailAddresses: []string{"root@example.com"},
	})
	leaf := verify(t, must(a.Sign(request, cartID, time.Hour)))
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != cartID.String() || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
		t.Errorf("names: %v %v %v %v; want only %s", leaf.URIs, leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses, cartID)
	}
	if leaf.Subject.String() != "" || leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("subject %q, CA %v, usage %b", leaf.Subject, leaf.IsCA, leaf.KeyUsage)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("not the request's public key")
	}
	for _, extension := range leaf.Extensions {
		if extension.Id.String() == "2.5.29.17" && !extension.Critical {
			t.Error("the alternative name is not critical beside an empty subject")
		}
	}
	if leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() < 64 {
		t.Errorf("serial %s", leaf.SerialNumber)
	}
	if _, err := a.Sign(plainCSR(), spiffe.ID{}, 0); err == nil {
		t.Error("signed for nobody")
	}
}

func TestLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := must(ca.NewSelfSigned("cluster.local", time.Now()))
		now := time.Now()
		cases := map[string]struct{ ttl, life, back time.Duration }{
			"default":        {0, 24 * time.Hour, 2 * time.Minute},
			"less than none": {-time.Hour, 24 * time.Hour, 2 * time.Minute},
			"ten seconds":    {10 * time.Second, 10 * time.Second, 5 * time.Second},
			"the maximum":    {90 * 24 * time.Hour, 90 * 24 * time.Hour, 2 * time.Minute},
		}
		for name, c := range cases {
			leaf := verify(t, must(a.Sign(plainCSR(), cartID, c.ttl)))
			if life, back := leaf.NotAfter.Sub(now), now.Sub(leaf.NotBefore); life != c.life || back != c.back {
				t.Errorf("%s: life %s back-dated by %s, want %s and %s", name, life, back, c.life, c.back)
			}
		}
		_, err := a.Sign(plainCSR(), cartID, 90*24*time.Hour+time.Second)
		if fault, ok := errors.AsType[*ca.Refusal](err); !ok || fault.Reason != ca.ReasonTTL {
			t.Errorf("more than the maximum: %v", err)
		}

		old := must(ca.NewSelfSigned("cluster.local", now.Add(-10*365*24*time.Hour+time.Minute)))
		leaf := verify(t, must(old.Sign(plainCSR(), cartID, time.Hour)))
		if life := leaf.NotAfter.Sub(now); life != time.Minute {
			t.Errorf("signer with a minute left: life %s", life)
		}
		expired := must(ca.Load(must(ca.NewSelfSigned("cluster.local", now.Add(-11*365*24*time.Hour))).PEM()))
		if _, err := expired.Sign(plainCSR(), cartID, time.Hour); err == nil {
			t.Error("an expired authority signed")
		}
	})
}

func TestSignRefuses(t *testing.T) {
	a := must(ca.NewSelfSigned("cluster.local", time.Now()))
	good := plainCSR()
	block, _ := pem.Decode([]byte(good))
	forged := append([]byte(nil), block.Bytes...)
	forged[len(forged)-1] ^= 1
	armour := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	weak := must(x509.ParsePKCS1PrivateKey(weakRSA(t)))
	cases := map[string]struct {
		csr  string
		want ca.Reason
	}{
		"empty":            {"", ca.ReasonCSR},
		"garbage":          {"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", ca.ReasonCSR},
		"not PEM":          {string(block.Bytes), ca.ReasonCSR},
		"another type":     {armour("CERTIFICATE", block.Bytes), ca.ReasonCSR},
		"two":              {good + good, ca.ReasonCSR},
		"large":            {good + strings.Repeat("\n", 1<<20), ca.ReasonCSR},
		"trailing DER":     {armour("CERTIFICATE REQUEST", append(slices.Clip(block.Bytes), 0)), ca.ReasonCSR},
		"signature forged": {armour("CERTIFICATE REQUEST", forged), ca.ReasonCSRSignature},
		"RSA of 1024 bits": {csr(weak, &x509.CertificateRequest{}), ca.ReasonCSRKey},
		"P-224":            {csr(ecKey(elliptic.P224()), &x509.CertificateRequest{}), ca.ReasonCSRKey},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := a.Sign(c.csr, cartID, 0)
			fault, ok := errors.AsType[*ca.Refusal](err)
			if !ok || fault.Reason != c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, key := range map[string]crypto.Signer{
		"P-384": ecKey(elliptic.P384()), "P-521": ecKey(elliptic.P521()), "Ed25519": ed,
		"RSA of 2048 bits": must(rsa.GenerateKey(rand.Reader, 2048)),
	} {
		leaf := verify(t, must(a.Sign(csr(key, &x509.CertificateRequest{}), cartID, 0)))
		_, isRSA := key.(*rsa.PrivateKey)
		if encipher := leaf.KeyUsage&x509.KeyUsageKeyEncipherment != 0; encipher != isRSA {
			t.Errorf("%s: key encipherment %v", name, encipher)
		}
	}
}

// weakRSA is a key that crypto/rsa would not make.
func weakRSA(tb testing.TB) []byte {
	tb.Helper()
	tb.Setenv("GODEBUG", "rsa1024min=0")
	return x509.MarshalPKCS1PrivateKey(must(rsa.GenerateKey(rand.Reader, 1024)))
}

// certify signs a CA certificate for key; a nil parent signs itself.
func certify(name string, key crypto.Signer, parent *x509.Certificate, by crypto.Signer, change ...func(*x509.Certificate)) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	for _, f := range change {
		f(template)
	}
	if parent == nil {
		parent, by = template, key
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by))))
}

func bundle(certs ...*x509.Certificate) []byte {
	var text []byte
	for _, cert := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return text
}

func TestLoad(t *testing.T) {
	rootKey, midKey, signKey := must(rsa.GenerateKey(rand.Reader, 2048)), ecKey(elliptic.P384()), ecKey(elliptic.P256())
	root := certify("root", rootKey, nil, nil)
	other := certify("next root", ecKey(elliptic.P256()), nil, nil)
	mid := certify("mid", midKey, root, rootKey)
	signer := certify("signer", signKey, mid, midKey)
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rootKey)})
	sec1 := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(signKey))})

	verify(t, must(must(ca.Load(bundle(root), pkcs1)).Sign(plainCSR(), cartID, 0)))
	a := must(ca.Load(bundle(signer, mid, root, other), sec1))
	chain := must(a.Sign(plainCSR(), cartID, 0))
	verify(t, chain)
	if len(chain) != 4 || chain[1] != string(bundle(signer)) || chain[2] != string(bundle(mid)) || chain[3] != string(bundle(root, other)) {
		t.Errorf("chain of %d is not leaf, signer, intermediate, roots", len(chain))
	}
	verify(t, must(must(ca.Load(a.PEM())).Sign(plainCSR(), cartID, 0)))

	short := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Minute) }
	shortMid := certify("mid", midKey, root, rootKey, short)
	leaf := verify(t, must(must(ca.Load(bundle(signer, shortMid, root), sec1)).Sign(plainCSR(), cartID, time.Hour)))
	if leaf.NotAfter.After(shortMid.NotAfter) {
		t.Error("the certificate outlives an intermediate")
	}

	noCA := certify("signer", signKey, mid, midKey, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
	cases := map[string]struct{ cert, key []byte }{
		"no certificate":         {nil, sec1},
		"not a certificate":      {sec1, sec1},
		"text around it":         {append(bundle(root), "x"...), pkcs1},
		"no key":                 {bundle(root), nil},
		"another key":            {bundle(root), sec1},
		"a key of another kind":  {bundle(root), []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")},
		"no root":                {bundle(signer, mid), sec1},
		"a root of someone else": {bundle(signer, mid, other), sec1},
		"intermediate missing":   {bundle(signer, root), sec1},
		"may not sign":           {bundle(noCA, mid, root), sec1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := ca.Load(c.cert, c.key); err == nil {
				t.Error("loaded")
			}
		})
	}
}

func TestServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := must(ca.NewSelfSigned("cluster.local", time.Now()))
		source := a.ServingSource([]string{"istiod.istio-system.svc"}, []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("::1")})
		first := must(source(nil))
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(a.RootPEM())
		for _, name := range []string{"istiod.istio-system.svc", "10.244.1.5", "::1"} {
			if _, err := first.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if again := must(source(nil)); again != first {
			t.Error("issued twice")
		}
		time.Sleep(46 * 24 * time.Hour)
		if again := must(source(nil)); again == first {
			t.Error("not renewed at half of its life")
		}
	})
}

func FuzzSign(f *testing.F) {
	a := must(ca.NewSelfSigned("cluster.local", time.Now()))
	f.Add([]byte(plainCSR()))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte(csr(ecKey(elliptic.P384()), &x509.CertificateRequest{DNSNames: []string{"a"}})))
	f.Fuzz(func(t *testing.T, request []byte) {
		// As PEM, and as the DER inside.
		armoured := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}))
		for _, text := range []string{string(request), armoured} {
			chain, err := a.Sign(text, cartID, 0)
			if err != nil {
				if _, ok := errors.AsType[*ca.Refusal](err); !ok {
					t.Errorf("not the request's fault: %v", err)
				}
				continue
			}
			leaf := verify(t, chain)
			if id, err := spiffe.FromCertificate(leaf); err != nil || id != cartID || len(leaf.DNSNames) != 0 {
				t.Errorf("issued for %v %v (%v)", id, leaf.DNSNames, err)
			}
		}
	})
}
