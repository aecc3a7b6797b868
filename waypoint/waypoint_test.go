package waypoint_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/waypoint"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/identity/identitytest"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/xds"
)

const (
	vip     = "10.96.0.9:80"
	texts   = "outbound|80||web.shop.svc.cluster.local"
	ownName = "web.shop.svc.cluster.local:80"
)

// istiod is an in-memory control plane: delta xDS by name or wildcard, and a CA.
type istiod struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	securityv1alpha1.UnimplementedIstioCertificateServiceServer
	ca *identitytest.CA

	mu        sync.Mutex
	resources map[string]map[string]*anypb.Any // type URL -> name
	nacks     []string
	nodeID    string
}

func (s *istiod) set(t *testing.T, typeURL, name string, m proto.Message) {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resources[typeURL] == nil {
		s.resources[typeURL] = map[string]*anypb.Any{}
	}
	s.resources[typeURL][name] = a
}

func (s *istiod) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for n := 0; ; n++ {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		if res := s.answer(req); res != nil {
			res.Nonce = fmt.Sprint(n)
			if err := stream.Send(res); err != nil {
				return err
			}
		}
	}
}

func (s *istiod) answer(req *discoveryv3.DeltaDiscoveryRequest) *discoveryv3.DeltaDiscoveryResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.GetNode() != nil {
		s.nodeID = req.GetNode().GetId()
	}
	if req.GetErrorDetail() != nil {
		s.nacks = append(s.nacks, req.GetErrorDetail().GetMessage())
	}
	res := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.GetTypeUrl()}
	known := s.resources[req.GetTypeUrl()]
	switch {
	case len(req.GetResourceNamesSubscribe()) > 0:
		for _, name := range req.GetResourceNamesSubscribe() {
			if a := known[name]; a != nil {
				res.Resources = append(res.Resources, &discoveryv3.Resource{Name: name, Version: "1", Resource: a})
			} else if name != "*" {
				res.RemovedResources = append(res.RemovedResources, name)
			}
		}
	case req.GetResponseNonce() == "" && len(req.GetResourceNamesUnsubscribe()) == 0:
		for name, a := range known {
			res.Resources = append(res.Resources, &discoveryv3.Resource{Name: name, Version: "1", Resource: a})
		}
	default:
		return nil
	}
	return res
}

func (s *istiod) CreateCertificate(_ context.Context, req *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	block, _ := pem.Decode([]byte(req.GetCsr()))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	id, err := spiffe.New(s.ca.TrustDomain, "shop", "waypoint")
	if err != nil {
		return nil, err
	}
	leaf := s.ca.Sign(identitytest.Leaf(id, time.Duration(req.GetValidityDuration())*time.Second), csr.PublicKey)
	return &securityv1alpha1.IstioCertificateResponse{CertChain: []string{identitytest.PEM(leaf), s.ca.RootPEM()}}, nil
}

// start serves the control plane over TLS and returns how to reach it.
func (s *istiod) start(t *testing.T) xds.DialConfig {
	t.Helper()
	key := identitytest.Key(t)
	template := &x509.Certificate{
		SerialNumber: s.ca.Root().SerialNumber, DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root, token := filepath.Join(dir, "root.pem"), filepath.Join(dir, "token")
	for file, text := range map[string][]byte{root: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), token: []byte("token")} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, s)
	securityv1alpha1.RegisterIstioCertificateServiceServer(server, s)
	l := free(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return xds.DialConfig{Address: "https://localhost:" + port, RootCertPath: root, TokenPath: token, ClusterID: "Kubernetes"}
}

func free(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// address is a port that was free a moment ago.
func address(t *testing.T) string {
	t.Helper()
	l := free(t)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func parse[M proto.Message](t *testing.T, m M, text string) M {
	t.Helper()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return m
}

func (s *istiod) configure(t *testing.T, endpoint string) {
	t.Helper()
	host, port, _ := net.SplitHostPort(endpoint)
	s.set(t, config.TypeCluster, texts, parse(t, &clusterv3.Cluster{},
		`{"name":"`+texts+`","type":"EDS","edsClusterConfig":{"edsConfig":{"ads":{}}},"lbPolicy":"LEAST_REQUEST"}`))
	s.set(t, config.TypeCluster, "bad", parse(t, &clusterv3.Cluster{}, `{"name":"bad","type":"STATIC"}`))
	s.set(t, config.TypeEndpoint, texts, parse(t, &endpointv3.ClusterLoadAssignment{}, `{"clusterName":"`+texts+`","endpoints":[{"lbEndpoints":[
		{"endpoint":{"address":{"socketAddress":{"address":"`+host+`","portValue":`+port+`}}},"metadata":{"filterMetadata":{"ambit.endpoint":{"protocol":"TCP"}}}}]}]}`))
	s.set(t, config.TypeListener, ownName, parse(t, &listenerv3.Listener{}, `{"name":"`+ownName+`",
		"address":{"socketAddress":{"address":"10.96.0.9","portValue":80}},
		"metadata":{"filterMetadata":{"ambit.service":{"name":"web","namespace":"shop","hostname":"web.shop.svc.cluster.local"}}},
		"apiListener":{"apiListener":{"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
		"rds":{"routeConfigName":"`+ownName+`","configSource":{"ads":{}}},
		"httpFilters":[{"name":"envoy.filters.http.router","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}}`))
	s.set(t, config.TypeRoute, ownName, parse(t, &routev3.RouteConfiguration{}, `{"name":"`+ownName+`","virtualHosts":[{"name":"x","domains":["*"],
		"routes":[{"name":"default","match":{"prefix":"/"},"route":{"cluster":"`+texts+`","timeout":"0s"}}]}]}`))
	s.set(t, mesh.TypeAddress, "/127.0.0.1", &api.Address{Type: &api.Address_Workload{Workload: &api.Workload{
		Uid: "Kubernetes//Pod/shop/curl", Name: "curl", Namespace: "shop", ServiceAccount: "curl", WorkloadName: "curl-deployment",
		Addresses: [][]byte{{127, 0, 0, 1}}, CanonicalName: "curl", CanonicalRevision: "v1",
	}}})
}

type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(limit) {
			t.Fatalf("%s: did not happen", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func fetch(t *testing.T, url, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	body, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(body)
}

// TestRun boots a waypoint against a control plane, sends one request through
// it, looks at what an operator sees, and ends it.
func TestRun(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	defer app.Close()
	plane := &istiod{ca: identitytest.New(t, "cluster.local"), resources: map[string]map[string]*anypb.Any{}}
	plane.configure(t, app.Listener.Addr().String())
	dial := plane.start(t)
	access := &lines{}
	cfg := waypoint.Config{
		PodName: "waypoint-1", Namespace: "shop", ServiceAccount: "waypoint", Node: "n1", TrustDomain: "cluster.local",
		ClusterID: "Kubernetes", InstanceIP: "10.244.1.9", XDS: dial, CA: dial, TTL: time.Hour,
		HBONE: address(t), Admin: address(t), Metrics: address(t), Readiness: address(t),
		Access: access, Log: slog.New(slog.DiscardHandler),
	}
	w, err := waypoint.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	eventually(t, "ready", func() bool {
		code, _ := fetch(t, "http://"+cfg.Readiness+"/healthz/ready", "")
		return code == 200
	})
	plane.mu.Lock()
	nodeID, nacks := plane.nodeID, plane.nacks
	plane.mu.Unlock()
	if nodeID != "waypoint~10.244.1.9~waypoint-1.shop~shop.svc.cluster.local" {
		t.Errorf("node id %q", nodeID)
	}
	if len(nacks) != 1 || !strings.Contains(nacks[0], "bad: type STATIC is not supported") {
		t.Errorf("refusals %q, want the bad cluster's", nacks)
	}
	request(t, cfg, plane.ca)
	observe(t, cfg, access)
	stop()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

func request(t *testing.T, cfg waypoint.Config, ca *identitytest.CA) {
	t.Helper()
	conn, err := tls.Dial("tcp", cfg.HBONE, mtls.ClientConfig(ca.Issue(ca.ID("shop", "curl"), time.Hour), []spiffe.ID{ca.ID("shop", "waypoint")}))
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := hbone.NewTunnel(conn, hbone.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tunnel.Close() })
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return tunnel.Open(ctx, hbone.Request{Authority: vip})
	}}}
	defer client.CloseIdleConnections()
	res, err := client.Get("http://web/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(body) != "hello" {
		t.Fatalf("got %d %q, want 200 hello", res.StatusCode, body)
	}
}

func observe(t *testing.T, cfg waypoint.Config, access *lines) {
	t.Helper()
	eventually(t, "access line", func() bool { return strings.Contains(access.String(), `"GET / HTTP/1.1" 200`) })
	_, metrics := fetch(t, "http://"+cfg.Metrics+"/stats/prometheus", "")
	for _, want := range []string{`source_workload="curl-deployment"`, `source_version="v1"`, `destination_service_name="web"`, `istio_build{component="waypoint"`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if code, _ := fetch(t, "http://"+cfg.Admin+"/config_dump", "evil.example"); code != http.StatusForbidden {
		t.Errorf("admin for a foreign Host: %d, want 403", code)
	}
	_, text := fetch(t, "http://"+cfg.Admin+"/config_dump", "")
	var dump struct {
		Listeners, Routes, Clusters, Endpoints []map[string]any
		Certificates                           []struct {
			Identity, State string
			CertChain       []struct{ SerialNumber, ValidFrom, ExpirationTime string }
		}
	}
	if err := json.Unmarshal([]byte(text), &dump); err != nil {
		t.Fatal(err)
	}
	if len(dump.Listeners) != 1 || len(dump.Routes) != 1 || len(dump.Clusters) != 1 || len(dump.Endpoints) != 1 || dump.Routes[0]["name"] != ownName {
		t.Errorf("dump: %s", text)
	}
	if len(dump.Certificates) != 1 || dump.Certificates[0].State != "Available" || dump.Certificates[0].CertChain[0].SerialNumber == "" ||
		dump.Certificates[0].Identity != "spiffe://cluster.local/ns/shop/sa/waypoint" {
		t.Errorf("certificates: %+v", dump.Certificates)
	}
	if _, clusters := fetch(t, "http://"+cfg.Admin+"/clusters", ""); !strings.Contains(clusters, texts+"::") {
		t.Errorf("clusters: %q", clusters)
	}
}
