package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/identity/identitytest"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

// handshake connects a client to a server and returns what each says, and whom
// the server has seen.
func handshake(t *testing.T, client *tls.Config, server *tls.Config) (seen spiffe.ID, clientErr, serverErr error) {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	_ = a.SetDeadline(deadline)
	_ = b.SetDeadline(deadline)
	srv, cli := tls.Server(b, server), tls.Client(a, client)
	done := make(chan error, 1)
	go func() {
		err := srv.HandshakeContext(t.Context())
		if err == nil {
			_, err = srv.Write([]byte("x"))
		}
		_ = b.Close()
		done <- err
	}()
	clientErr = cli.HandshakeContext(t.Context())
	if clientErr == nil {
		_, clientErr = cli.Read(make([]byte, 1)) // the server's verdict comes after the handshake
	}
	_ = a.Close()
	serverErr = <-done
	if serverErr == nil {
		var err error
		if seen, err = mtls.PeerID(srv.ConnectionState()); err != nil {
			t.Errorf("peer id: %v", err)
		}
	}
	return seen, clientErr, serverErr
}

func source(c *mtls.Certificate) mtls.Source {
	return func(context.Context) (*mtls.Certificate, error) { return c, nil }
}

// issue makes a certificate from a template.
func issue(t *testing.T, ca *identitytest.CA, id spiffe.ID, change func(*x509.Certificate)) *mtls.Certificate {
	t.Helper()
	template := identitytest.Leaf(id, time.Hour)
	change(template)
	key := identitytest.Key(t)
	c, err := mtls.NewCertificate(key, []string{identitytest.PEM(ca.Sign(template, key.Public())), ca.RootPEM()})
	if err != nil {
		t.Fatalf("certificate: %v", err)
	}
	return c
}

func TestHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := identitytest.New(t, "cluster.local")
		a, b := ca.ID("ns", "a"), ca.ID("ns", "b")
		client, server := ca.Issue(a, time.Hour), ca.Issue(b, time.Hour)
		seen, clientErr, serverErr := handshake(t, mtls.ClientConfig(client, []spiffe.ID{a, b}), mtls.ServerConfig(t.Context(), source(server)))
		if clientErr != nil || serverErr != nil || seen != a {
			t.Errorf("got %v, %v, server sees %s", clientErr, serverErr, seen)
		}
	})
}

// TestRefused gives one side a certificate that the other must refuse.
func TestRefused(t *testing.T) {
	keep := func(*x509.Certificate) {}
	tests := []struct {
		name    string
		issuer  string // trust domain of the other authority; empty: the same
		id      string
		change  func(*x509.Certificate)
		client  string // what a client says of such a server
		server  string // what a server says of such a client; empty: it may pass
		ageFor  time.Duration
		noPeers bool
	}{
		{name: "wrong id", id: "spiffe://cluster.local/ns/ns/sa/other", change: keep, client: "want spiffe://cluster.local/ns/ns/sa/b"},
		{name: "wrong trust domain", id: "spiffe://other/ns/ns/sa/b", change: keep, client: "peer is spiffe://other/", server: "want trust domain cluster.local"},
		{name: "other authority", issuer: "cluster.local", id: "spiffe://cluster.local/ns/ns/sa/b", change: keep, client: "unknown authority", server: "unknown authority"},
		{name: "expired", id: "spiffe://cluster.local/ns/ns/sa/b", change: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, client: "expired", server: "expired"},
		{name: "expires", id: "spiffe://cluster.local/ns/ns/sa/b", change: keep, ageFor: 2 * time.Hour, client: "expired", server: "expired"},
		{name: "not yet valid", id: "spiffe://cluster.local/ns/ns/sa/b", change: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, client: "not yet valid", server: "not yet valid"},
		{name: "for clients only", id: "spiffe://cluster.local/ns/ns/sa/b", change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, client: "not for serverAuth"},
		{name: "no extended usage", id: "spiffe://cluster.local/ns/ns/sa/b", change: func(c *x509.Certificate) { c.ExtKeyUsage = nil }, client: "not for serverAuth", server: "not for clientAuth"},
		{name: "for servers only", id: "spiffe://cluster.local/ns/ns/sa/b", change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, server: "not for clientAuth"},
		{name: "an authority's own", id: "spiffe://cluster.local/ns/ns/sa/b", change: func(c *x509.Certificate) { c.IsCA = true }, client: "CA flag", server: "CA flag"},
		{name: "may sign", id: "spiffe://cluster.local/ns/ns/sa/b", change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, client: "KeyCertSign", server: "KeyCertSign"},
		{name: "no acceptable peers", id: "spiffe://cluster.local/ns/ns/sa/b", change: keep, noPeers: true, client: "no identity is acceptable"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := identitytest.New(t, "cluster.local")
				issuer := ca
				if test.issuer != "" {
					issuer = identitytest.New(t, test.issuer)
				}
				id, err := spiffe.Parse(test.id)
				if err != nil {
					t.Fatal(err)
				}
				bad := issue(t, issuer, id, test.change)
				peers := []spiffe.ID{ca.ID("ns", "b")}
				if test.noPeers {
					peers = nil
				}
				time.Sleep(test.ageFor)
				good := ca.Issue(ca.ID("ns", "a"), time.Hour)
				// The bad one trusts the good one, so that only one side refuses.
				bad.Roots = append(bad.Roots, ca.Root())

				_, clientErr, _ := handshake(t, mtls.ClientConfig(good, peers), mtls.ServerConfig(t.Context(), source(bad)))
				if (clientErr == nil) != (test.client == "") || clientErr != nil && !strings.Contains(clientErr.Error(), test.client) {
					t.Errorf("client: got %v, want %q", clientErr, test.client)
				}
				_, _, serverErr := handshake(t, mtls.ClientConfig(bad, []spiffe.ID{good.ID}), mtls.ServerConfig(t.Context(), source(good)))
				if (serverErr == nil) != (test.server == "") || serverErr != nil && !strings.Contains(serverErr.Error(), test.server) {
					t.Errorf("server: got %v, want %q", serverErr, test.server)
				}
			})
		})
	}
}

func TestTwoNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := identitytest.New(t, "cluster.local")
		a, b := ca.ID("ns", "a"), ca.ID("ns", "b")
		template := identitytest.Leaf(b, time.Hour)
		template.URIs = append(template.URIs, identitytest.Leaf(a, time.Hour).URIs...)
		key := identitytest.Key(t)
		leaf := ca.Sign(template, key.Public())
		if _, err := mtls.NewCertificate(key, []string{identitytest.PEM(leaf), ca.RootPEM()}); err == nil {
			t.Error("a certificate with two URI names was read")
		}
		bad := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}
		good := ca.Issue(a, time.Hour)
		_, clientErr, _ := handshake(t, mtls.ClientConfig(good, []spiffe.ID{a, b}),
			&tls.Config{Certificates: []tls.Certificate{bad}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
		if clientErr == nil || !strings.Contains(clientErr.Error(), "2 URI names") {
			t.Errorf("client: got %v", clientErr)
		}
	})
}

func TestPlainClientIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := identitytest.New(t, "cluster.local")
		server := mtls.ServerConfig(t.Context(), source(ca.Issue(ca.ID("ns", "b"), time.Hour)))
		good := mtls.ClientConfig(ca.Issue(ca.ID("ns", "a"), time.Hour), []spiffe.ID{ca.ID("ns", "b")})
		for name, change := range map[string]func(*tls.Config){
			"no certificate": func(c *tls.Config) { c.Certificates = nil },
			"no ALPN":        func(c *tls.Config) { c.NextProtos = nil },
			"TLS 1.2":        func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		} {
			cfg := good.Clone()
			change(cfg)
			cfg.VerifyConnection = nil
			if _, _, serverErr := handshake(t, cfg, server); serverErr == nil {
				t.Errorf("%s: client was accepted", name)
			}
		}
	})
}

func TestIntermediateAndNoResumption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := identitytest.New(t, "cluster.local")
		sub := ca.Intermediate()
		a, b := ca.ID("ns", "a"), ca.ID("ns", "b")
		key := identitytest.Key(t)
		leaf := sub.Sign(identitytest.Leaf(a, time.Hour), key.Public())
		client, err := mtls.NewCertificate(key, []string{identitytest.PEM(leaf), identitytest.PEM(sub.Root()), ca.RootPEM()})
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Verify(); err != nil {
			t.Errorf("verify: %v", err)
		}
		clientCfg := mtls.ClientConfig(client, []spiffe.ID{b})
		clientCfg.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		clientCfg.SessionTicketsDisabled = false // a client that would like to
		clientCfg.ServerName = "b"
		serverCfg := mtls.ServerConfig(t.Context(), source(ca.Issue(b, time.Hour)))
		verified := 0
		inner := clientCfg.VerifyConnection
		clientCfg.VerifyConnection = func(s tls.ConnectionState) error {
			verified++
			if s.DidResume {
				t.Error("session was resumed")
			}
			return inner(s)
		}
		for range 3 {
			seen, clientErr, serverErr := handshake(t, clientCfg, serverCfg)
			if clientErr != nil || serverErr != nil || seen != a {
				t.Errorf("got %v, %v, %s", clientErr, serverErr, seen)
			}
		}
		if verified != 3 {
			t.Errorf("verified %d times, want 3", verified)
		}
	})
}

// TestRotation: each handshake uses the certificate of its time; one that is
// not there yet is waited for, and an end of the server ends the wait.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := identitytest.New(t, "cluster.local")
		a, b := ca.ID("ns", "a"), ca.ID("ns", "b")
		client := mtls.ClientConfig(ca.Issue(a, time.Hour), []spiffe.ID{b})
		asked := 0
		server := mtls.ServerConfig(t.Context(), func(context.Context) (*mtls.Certificate, error) {
			asked++
			time.Sleep(time.Second)
			return ca.Issue(b, time.Minute), nil
		})
		for range 2 {
			if _, clientErr, _ := handshake(t, client, server); clientErr != nil {
				t.Errorf("client: %v", clientErr)
			}
			time.Sleep(time.Minute) // the first one has expired
		}
		if asked != 2 {
			t.Errorf("source was asked %d times, want 2", asked)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("pod is gone"))
		_, _, serverErr := handshake(t, client, mtls.ServerConfig(ctx, func(ctx context.Context) (*mtls.Certificate, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}))
		if serverErr == nil || !strings.Contains(serverErr.Error(), "pod is gone") {
			t.Errorf("server: got %v", serverErr)
		}
	})
}

func TestNewCertificate(t *testing.T) {
	ca := identitytest.New(t, "cluster.local")
	id := ca.ID("ns", "a")
	key := identitytest.Key(t)
	leaf := identitytest.PEM(ca.Sign(identitytest.Leaf(id, time.Hour), key.Public()))
	other := identitytest.New(t, "cluster.local").RootPEM()
	for name, chain := range map[string][]string{
		"nothing":               nil,
		"leaf without roots":    {leaf},
		"not PEM":               {leaf, "x"},
		"empty leaf":            {"", ca.RootPEM()},
		"two leaves in one":     {leaf + leaf, ca.RootPEM()},
		"private key as a leaf": {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", ca.RootPEM()},
		"damaged":               {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ca.RootPEM()},
		"another key's":         {identitytest.PEM(ca.Sign(identitytest.Leaf(id, time.Hour), identitytest.Key(t).Public())), ca.RootPEM()},
		"no identity":           {ca.RootPEM(), ca.RootPEM()},
	} {
		if _, err := mtls.NewCertificate(key, chain); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c, err := mtls.NewCertificate(key, []string{leaf, ca.RootPEM() + other})
	if err != nil {
		t.Fatal(err)
	}
	if c.ID != id || len(c.Roots) != 2 || len(c.Chain) != 1 {
		t.Errorf("got %s, %d roots, chain of %d", c.ID, len(c.Roots), len(c.Chain))
	}
	if c, err = mtls.NewCertificate(key, []string{leaf, other}); err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(); err == nil {
		t.Error("a chain to no root was verified")
	}
}

func FuzzNewCertificate(f *testing.F) {
	f.Add("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "")
	f.Fuzz(func(t *testing.T, leaf, roots string) {
		key := identitytest.Key(t)
		if _, err := mtls.NewCertificate(key, []string{leaf, roots}); err == nil {
			t.Error("a certificate for a key that nobody knows was accepted")
		}
	})
}
