package mtls_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/identity/identitytest"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

func pemCRL(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func TestRevokedPeers(t *testing.T) {
	ca := identitytest.New(t, "cluster.local")
	client, server := ca.Issue(ca.ID("ns", "client"), time.Hour), ca.Issue(ca.ID("ns", "server"), time.Hour)
	revocations := mtls.NewRevocations(func() []*x509.Certificate { return client.Roots })
	policy := mtls.Policy{Revoked: revocations.Check}
	try := func() (clientErr, serverErr error) {
		_, clientErr, serverErr = handshake(t,
			policy.ClientConfig(client, []spiffe.ID{server.ID}), policy.ServerConfig(t.Context(), source(server)))
		return clientErr, serverErr
	}
	set := func(what string, data []byte) {
		t.Helper()
		changed := revocations.Changed()
		if err := revocations.Set(data); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-changed:
		default:
			t.Errorf("%s: the change was not told", what)
		}
	}
	if c, s := try(); c != nil || s != nil {
		t.Fatalf("no list: client %v, server %v", c, s)
	}
	set("client's", pemCRL(ca.CRL(client.Leaf.SerialNumber)))
	if _, s := try(); !errors.Is(s, mtls.ErrRevoked) {
		t.Errorf("revoked client: server says %v", s)
	}
	set("server's", ca.CRL(server.Leaf.SerialNumber)) // DER
	if c, _ := try(); !errors.Is(c, mtls.ErrRevoked) {
		t.Errorf("revoked server: client says %v", c)
	}
	if revocations.Len() != 1 {
		t.Errorf("%d revoked, want 1", revocations.Len())
	}
	if err := revocations.Set([]byte("no list")); err == nil {
		t.Error("garbage was accepted")
	}
	if err := revocations.Set(append(pemCRL(ca.CRL()), "-----BEGIN X509 CRL-----\nMII"...)); err == nil {
		t.Error("a list that is cut off was accepted")
	}
	if c, _ := try(); !errors.Is(c, mtls.ErrRevoked) {
		t.Errorf("after a broken list the last good one counts no more: %v", c)
	}
	set("certificates only", []byte(ca.RootPEM()))
	if c, s := try(); c != nil || s != nil {
		t.Errorf("no list in the file: client %v, server %v", c, s)
	}
	set("empty", nil)

	// Somebody else's list, in the name of our authority.
	other := identitytest.New(t, "cluster.local")
	set("forged", pemCRL(other.CRL(client.Leaf.SerialNumber, server.Leaf.SerialNumber)))
	if c, s := try(); c != nil || s != nil {
		t.Errorf("list of another authority: client %v, server %v", c, s)
	}
	if string(other.Root().RawSubject) != string(ca.Root().RawSubject) {
		t.Error("the other authority has another name: the test shows nothing")
	}
}

// TestRevokedIntermediate: the whole chain is checked.
func TestRevokedIntermediate(t *testing.T) {
	ca := identitytest.New(t, "cluster.local")
	sub, key := ca.Intermediate(), identitytest.Key(t)
	leaf := sub.Sign(identitytest.Leaf(ca.ID("ns", "server"), time.Hour), key.Public())
	server, err := mtls.NewCertificate(key, []string{identitytest.PEM(leaf), identitytest.PEM(sub.Root()), ca.RootPEM()})
	if err != nil {
		t.Fatal(err)
	}
	client := ca.Issue(ca.ID("ns", "client"), time.Hour)
	revocations := mtls.NewRevocations(func() []*x509.Certificate { return client.Roots })
	if err := revocations.Set(ca.CRL(sub.Root().SerialNumber)); err != nil {
		t.Fatal(err)
	}
	_, err, _ = handshake(t, mtls.Policy{Revoked: revocations.Check}.ClientConfig(client, []spiffe.ID{server.ID}),
		mtls.ServerConfig(t.Context(), source(server)))
	if !errors.Is(err, mtls.ErrRevoked) {
		t.Errorf("client says %v", err)
	}
}

func TestPolicyVersions(t *testing.T) {
	ca := identitytest.New(t, "cluster.local")
	cert := ca.Issue(ca.ID("ns", "a"), time.Hour)
	for _, c := range []struct {
		what           string
		client, server mtls.Policy
		limit          func(*tls.Config)
		ok             bool
	}{
		{what: "1.2 where it is not allowed", limit: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }},
		{
			what: "1.2 where it is", server: mtls.Policy{TLS12: true}, ok: true,
			limit: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		},
		{
			what: "1.2 without GCM", server: mtls.Policy{TLS12: true},
			limit: func(c *tls.Config) {
				c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
				c.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
			},
		},
		{what: "hybrid on both sides", client: mtls.Policy{PQC: true}, server: mtls.Policy{PQC: true}, ok: true},
		{what: "hybrid wanted of a classical client", server: mtls.Policy{PQC: true}, limit: func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }},
		{what: "1.2 of a hybrid server", server: mtls.Policy{PQC: true, TLS12: true}, limit: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }},
	} {
		config := c.client.ClientConfig(cert, []spiffe.ID{cert.ID})
		if c.limit != nil {
			c.limit(config)
		}
		_, clientErr, serverErr := handshake(t, config, c.server.ServerConfig(t.Context(), source(cert)))
		if (clientErr == nil && serverErr == nil) != c.ok {
			t.Errorf("%s: client %v, server %v, want ok %v", c.what, clientErr, serverErr, c.ok)
		}
	}
}

func FuzzRevocations(f *testing.F) {
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"))
	f.Add([]byte{0x30, 0})
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, data []byte) {
		r := mtls.NewRevocations(func() []*x509.Certificate { return nil })
		if r.Set(data) == nil {
			_ = r.Check(nil)
		}
	})
}
