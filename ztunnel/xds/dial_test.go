package xds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
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

func call(t *testing.T, conn *grpc.ClientConn) error {
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
