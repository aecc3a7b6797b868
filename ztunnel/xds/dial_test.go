package xds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

// newServerCert makes a self-signed certificate and its PEM text.
func newServerCert(t *testing.T, name string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// tlsServer answers every stream with its headers' tokens.
type tlsServer struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	seen chan metadata.MD
}

func (s *tlsServer) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	s.seen <- md
	return nil
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func call(t *testing.T, conn grpc.ClientConnInterface) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil && err.Error() != "EOF" {
		return err
	}
	return nil
}

func TestDial(t *testing.T) {
	cert, root := newServerCert(t, "istiod.test")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &tlsServer{seen: make(chan metadata.MD, 1)}
	g := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	defer g.Stop()

	dir := t.TempDir()
	rootPath, tokenPath := filepath.Join(dir, "root.pem"), filepath.Join(dir, "token")
	_, otherRoot := newServerCert(t, "istiod.test")
	dial := func(alt string) *grpc.ClientConn {
		t.Helper()
		conn, err := Dial(DialConfig{Address: "https://" + l.Addr().String(), RootCertPath: rootPath, TokenPath: tokenPath, ClusterID: "c1", AltHostname: alt})
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	refused := func(what, want string, conn *grpc.ClientConn) {
		t.Helper()
		if err := call(t, conn); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", what, err, want)
		}
	}
	writeFile(t, tokenPath, "token1\n")
	refused("no root file", "root certificate: open", dial("istiod.test"))
	writeFile(t, rootPath, "nonsense")
	refused("nonsense in it", "holds no certificate", dial("istiod.test"))
	writeFile(t, rootPath, otherRoot)
	refused("another root", "not from a root in "+rootPath, dial("istiod.test"))
	writeFile(t, rootPath, root)
	refused("another name", "127.0.0.1", dial(""))
	refused("another alternative", "127.0.0.1", dial("other.test"))

	conn := dial("istiod.test")
	for _, token := range []string{"token1", "token2"} {
		writeFile(t, tokenPath, token+"\n")
		if err := call(t, conn); err != nil {
			t.Fatalf("call: %v", err)
		}
		md := <-s.seen
		if got := strings.Join(md.Get("authorization"), ",") + strings.Join(md.Get("clusterid"), ","); got != "Bearer "+token+"c1" {
			t.Errorf("headers: got %q", got)
		}
	}
	writeFile(t, tokenPath, " \n")
	refused("empty token", tokenPath+" is empty", conn)
}

// TestDialVariants: roots as text, a token as text, headers, no token.
func TestDialVariants(t *testing.T) {
	cert, root := newServerCert(t, "istiod.test")
	s, address := serveTLS(t, cert)
	try := func(cfg DialConfig) (string, error) {
		cfg.Address, cfg.AltHostname = address, "istiod.test"
		conn, err := Dial(cfg)
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		defer func() { _ = conn.Close() }()
		if err := call(t, conn); err != nil {
			return "", err
		}
		md := <-s.seen
		return fmt.Sprint(md.Get("authorization"), md.Get("clusterid"), md.Get("x-a")), nil
	}
	for what, c := range map[string]struct {
		cfg  DialConfig
		want string
	}{
		"token as text": {DialConfig{RootCertPath: root, Token: "t", ClusterID: "c", Headers: map[string]string{"x-a": "1"}}, "[Bearer t] [c] [1]"},
		"no token":      {DialConfig{RootCertPath: root, ClusterID: "c", Headers: map[string]string{"x-a": "1"}}, "[] [] [1]"},
		"nothing":       {DialConfig{RootCertPath: root, ClusterID: "c"}, "[] [] []"},
	} {
		if got, err := try(c.cfg); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", what, got, err, c.want)
		}
	}
	for what, c := range map[string]struct {
		cfg  DialConfig
		want string
	}{
		"the machine's roots": {DialConfig{RootCertPath: System}, "not from a root in SYSTEM"},
		"TLS 1.2 only": {DialConfig{RootCertPath: root, Secure: func(c *tls.Config) *tls.Config {
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		}}, "protocol version"},
		"a dialer that refuses": {DialConfig{RootCertPath: root, Connect: func(context.Context, string) (net.Conn, error) { return nil, errors.New("no way") }}, "no way"},
	} {
		if _, err := try(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

// serveTLS starts a server, of TLS 1.3 only, and returns its address.
func serveTLS(t *testing.T, cert tls.Certificate) (*tlsServer, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &tlsServer{seen: make(chan metadata.MD, 1)}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
	var serving sync.WaitGroup
	serving.Go(func() { _ = g.Serve(l) })
	t.Cleanup(func() { g.Stop(); serving.Wait() })
	return s, l.Addr().String()
}

// TestConnFollowsTheRoot: a call after a change of the root does not go to a
// server that only the old root vouches for, even over a connection that is
// open; a broken file changes nothing.
func TestConnFollowsTheRoot(t *testing.T) {
	cert, root := newServerCert(t, "istiod.test")
	_, otherRoot := newServerCert(t, "istiod.test")
	s, address := serveTLS(t, cert)
	path := filepath.Join(t.TempDir(), "root.pem")
	writeFile(t, path, root)
	conn, err := NewConn(DialConfig{Address: address, RootCertPath: path, AltHostname: "istiod.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ask := func() error {
		err := call(t, conn)
		if err == nil {
			<-s.seen
		}
		return err
	}
	if err := ask(); err != nil {
		t.Fatalf("first call: %v", err)
	}
	first := conn.current
	for _, text := range []string{"broken", root, root + "\n"} {
		writeFile(t, path, text)
		if err := ask(); err != nil {
			t.Errorf("after %.10q: %v", text, err)
		}
	}
	if conn.current == first {
		t.Error("the connection was not made anew")
	}
	second := conn.current
	writeFile(t, path, otherRoot)
	if err := ask(); err == nil || !strings.Contains(err.Error(), "not from a root") {
		t.Errorf("another root: %v", err)
	}
	if second.GetState() != connectivity.Shutdown {
		second.WaitForStateChange(t.Context(), second.GetState())
	}
	writeFile(t, path, root)
	if err := ask(); err != nil {
		t.Errorf("the first root again: %v", err)
	}
}

func TestSplitAddress(t *testing.T) {
	for address, want := range map[string]string{
		"https://istiod.istio-system.svc:15012":  "istiod.istio-system.svc istiod.istio-system.svc:15012",
		"https://istiod.istio-system.svc:15012/": "istiod.istio-system.svc istiod.istio-system.svc:15012",
		"10.0.0.1:15012":                         "10.0.0.1 10.0.0.1:15012",
		"[fd00::1]:15012":                        "fd00::1 [fd00::1]:15012",
	} {
		host, target, err := splitAddress(address)
		if got := host + " " + target; got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", address, got, err, want)
		}
	}
	for address, want := range map[string]string{
		"http://istiod:15010": "plaintext is not supported",
		"istiod":              "not host:port",
		"":                    "not host:port",
		"https://istiod":      "not host:port",
		":15012":              "lacks the host",
		"istiod:":             "lacks the host or the port",
	} {
		if _, _, err := splitAddress(address); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", address, err, want)
		}
	}
	if _, err := Dial(DialConfig{Address: "a:1"}); err == nil {
		t.Error("dial without roots succeeded")
	}
}
