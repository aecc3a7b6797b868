package ztunnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/security"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/apis/zds"
	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

func TestMain(m *testing.M) {
	if os.Args[0] == processName {
		os.Exit(runProcess())
	}
	netnstest.Main(m)
}

const patience = 30 * time.Second

// istiod is a control plane with fixed resources that signs what it is asked.
type istiod struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	v1alpha1.UnimplementedIstioCertificateServiceServer
	t         *testing.T
	key       *ecdsa.PrivateKey
	root      *x509.Certificate
	resources map[string][]*discoveryv3.Resource

	mu     sync.Mutex
	issued map[string][]x509.RevocationListEntry // by identity

	address  string
	rootFile string
	stop     func()
}

func startIstiod(t *testing.T, messages ...proto.Message) *istiod {
	t.Helper()
	return listenIstiod(t, net.IPv4(127, 0, 0, 1), messages...)
}

func listenIstiod(t *testing.T, ip net.IP, messages ...proto.Message) *istiod {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &istiod{t: t, key: key, issued: map[string][]x509.RevocationListEntry{}, resources: map[string][]*discoveryv3.Resource{mesh.TypeAddress: nil, mesh.TypeAuthorization: nil}}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	i.root = i.sign(template, template, &key.PublicKey)
	for _, m := range messages {
		r := workloadtest.Resource(t, m)
		url := r.GetResource().GetTypeUrl()
		i.resources[url] = append(i.resources[url], r)
	}
	i.rootFile = filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(i.rootFile, encode(i.root), 0o600); err != nil {
		t.Fatal(err)
	}
	serving := i.sign(&x509.Certificate{IPAddresses: []net.IP{ip}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, i.root, &key.PublicKey)
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&tls.Certificate{Certificate: [][]byte{serving.Raw}, PrivateKey: key})))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, i)
	v1alpha1.RegisterIstioCertificateServiceServer(server, i)
	l, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	i.address = "https://" + l.Addr().String()
	var serve sync.WaitGroup
	serve.Go(func() { _ = server.Serve(l) })
	i.stop = sync.OnceFunc(func() { server.Stop(); serve.Wait() })
	t.Cleanup(i.stop)
	return i
}

func (i *istiod) sign(c, parent *x509.Certificate, key any) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	c.SerialNumber, c.NotBefore, c.NotAfter = serial, time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key, i.key)
	if err != nil {
		i.t.Errorf("sign: %v", err)
		return c
	}
	out, _ := x509.ParseCertificate(der)
	return out
}

func encode(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// DeltaAggregatedResources answers the first request of each type.
func (i *istiod) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	sent := map[string]bool{}
	for {
		r, err := s.Recv()
		if err != nil {
			return nil
		}
		if r.GetErrorDetail() != nil {
			i.t.Errorf("refused: %v", r.GetErrorDetail())
		}
		if url := r.GetTypeUrl(); !sent[url] {
			sent[url] = true
			if err := s.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: url, Nonce: "1", Resources: i.resources[url]}); err != nil {
				return err
			}
		}
	}
}

// CreateCertificate signs for the identity that the caller names, or else for
// that which its token is.
func (i *istiod) CreateCertificate(ctx context.Context, r *v1alpha1.IstioCertificateRequest) (*v1alpha1.IstioCertificateResponse, error) {
	block, _ := pem.Decode([]byte(r.GetCsr()))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	name := r.GetMetadata().GetFields()[mesh.ImpersonatedIdentity].GetStringValue()
	if md, _ := metadata.FromIncomingContext(ctx); name == "" && len(md.Get("authorization")) == 1 {
		name = strings.TrimPrefix(md.Get("authorization")[0], "Bearer ")
	}
	id, err := url.Parse(name)
	if err != nil {
		return nil, err
	}
	leaf := i.sign(&x509.Certificate{
		URIs: []*url.URL{id}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, i.root, csr.PublicKey)
	i.mu.Lock()
	i.issued[name] = append(i.issued[name], x509.RevocationListEntry{SerialNumber: leaf.SerialNumber, RevocationTime: time.Now()})
	i.mu.Unlock()
	return &v1alpha1.IstioCertificateResponse{CertChain: []string{string(encode(leaf)), string(encode(i.root))}}, nil
}

// revoke returns a list of all certificates that an identity has got.
func (i *istiod) revoke(identity string) string {
	i.t.Helper()
	i.mu.Lock()
	entries := i.issued[identity]
	i.mu.Unlock()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour), RevokedCertificateEntries: entries,
	}, i.root, i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// announce plays the node agent: a snapshot of pods, each acknowledged.
func announce(t *testing.T, l *net.UnixListener, pods map[string]*netnstest.Pod) *net.UnixConn {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(patience))
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatalf("node agent: accept: %v", err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 1024)
	if _, err := netns.ReceivePacket(c, buf); err != nil {
		t.Fatalf("node agent: hello: %v", err)
	}
	ask := func(r *zds.WorkloadRequest, f *os.File) {
		t.Helper()
		data, _ := proto.Marshal(r)
		if err := netns.SendPacket(c, data, f); err != nil {
			t.Fatalf("node agent: send: %v", err)
		}
		p, err := netns.ReceivePacket(c, buf)
		if err != nil {
			t.Fatalf("node agent: answer: %v", err)
		}
		var answer zds.WorkloadResponse
		if err := proto.Unmarshal(p.Body, &answer); err != nil || answer.GetAck().GetError() != "" {
			t.Fatalf("node agent: %v, %v", err, &answer)
		}
	}
	for name, pod := range pods {
		ask(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{
			Uid: "uid-" + name, WorkloadInfo: &zds.WorkloadInfo{Name: name, Namespace: name, ServiceAccount: name},
		}}}, pod.NS.File())
	}
	ask(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}}, nil)
	return c
}

// output collects log lines.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func describe(name string, pod *netnstest.Pod) *api.Workload {
	return &api.Workload{
		Uid: "Kubernetes//Pod/" + name + "/" + name, Name: name, Namespace: name, ServiceAccount: name, Node: "n1",
		Addresses: [][]byte{pod.Addr.AsSlice()}, TunnelProtocol: api.TunnelProtocol_HBONE, WorkloadName: name, CanonicalName: name,
	}
}

// TestProcess runs the whole process between a fake istiod, a fake node agent
// and two pods with real redirection.
func TestProcess(t *testing.T) {
	web, shop := netnstest.NewPod(t), netnstest.NewPod(t)
	for _, pod := range []*netnstest.Pod{web, shop} {
		if err := redirect.Apply(pod.NS.File(), redirect.Options{}); err != nil {
			t.Fatalf("redirect: %v", err)
		}
	}
	self := describe("z", shop)
	self.Addresses = [][]byte{netnstest.NodeAddr.AsSlice()} // we are in the node's namespace
	control := startIstiod(t, describe("web", web), describe("shop", shop), self,
		&security.Authorization{Name: "never", Namespace: "elsewhere", Scope: security.Scope_NAMESPACE})
	dir := t.TempDir()
	token, socket := filepath.Join(dir, "token"), filepath.Join(dir, "zds.sock")
	if err := os.WriteFile(token, []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	agent, err := netns.ListenSeqpacket(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = agent.Close() }()
	cfg, err := config.Parse([]string{
		"NODE_NAME=n1", "XDS_ADDRESS=" + control.address, "CA_ADDRESS=" + control.address, "XDS_ROOT_CA=" + control.rootFile, "CA_ROOT_CA=" + control.rootFile,
		"AUTH_TOKEN=" + token, "INPOD_UDS=" + socket, "POD_NAME=z", "POD_NAMESPACE=z", "SERVICE_ACCOUNT=z", "PROXY_CONFIG={concurrency: 2}", "ISTIO_META_DNS_CAPTURE=false", "ISTIO_META_ISTIO_VERSION=1.2.3",
	})
	if err != nil {
		t.Fatal(err)
	}
	var out output
	z, err := New(cfg, &out)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- z.Run(t.Context()) }()
	defer func() {
		if t.Failed() {
			t.Logf("log:\n%s", out.String())
		}
	}()
	node := announce(t, agent, map[string]*netnstest.Pod{"web": web, "shop": shop})
	defer func() { _ = node.Close() }()

	seen := make(chan netip.Addr, 1)
	app, err := shop.NS.Listen(netip.AddrPortFrom(shop.Addr, 8080), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = app.Close() }()
	go func() {
		c, err := app.AcceptTCP()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		seen <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		_, _ = io.Copy(c, c)
	}()
	c, err := web.NS.Dial(t.Context(), netip.AddrPortFrom(shop.Addr, 8080), netns.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatalf("no echo: %v", err)
	}
	if got := <-seen; got != web.Addr {
		t.Errorf("the application sees %s, want the client's own address %s", got, web.Addr)
	}
	checkDump(t)
	if body := get(t, "http://127.0.0.1:15021/healthz/ready"); body != "ready\n" {
		t.Errorf("readiness: %s", body)
	}
	if body := get(t, "http://127.0.0.1:15020/metrics"); !strings.Contains(body, "istio_tcp_connections_opened_total{") || !strings.Contains(body, `tag="1.2.3"`) ||
		!strings.Contains(body, "workload_manager_active_proxy_count 2") || !strings.Contains(body, `istio_xds_message_total{url="`) {
		t.Errorf("metrics:\n%s", body)
	}
	scrapeThroughMesh(t, web)
	_ = c.Close()
	r, err := http.Post("http://127.0.0.1:15000/quitquitquit", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	select {
	case err := <-ran:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("did not end")
	}
	text := out.String()
	for _, want := range []string{
		"\tinfo\tambit\teffective configuration\tconfig=",
		`dst.identity="spiffe://cluster.local/ns/z/sa/z"`, // the scrape
		`src.identity="spiffe://cluster.local/ns/web/sa/web"`, `direction="outbound" bytes_sent=5 bytes_recv=5`, `direction="inbound" bytes_sent=5 bytes_recv=5`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("log lacks %q", want)
		}
	}
}

// scrapeThroughMesh reads our own metrics from a pod: over HBONE, since we are a
// workload, too (spec/ztunnel.md §1.8).
func scrapeThroughMesh(t *testing.T, from *netnstest.Pod) {
	t.Helper()
	c, err := from.NS.Dial(t.Context(), netip.AddrPortFrom(netnstest.NodeAddr, 15020), netns.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: z\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(body), "HTTP/1.1 200 OK") || !strings.Contains(string(body), "istio_build{") {
		t.Errorf("scrape: %v\n%s", err, body)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	return string(body)
}

func checkDump(t *testing.T) {
	t.Helper()
	var d struct {
		Workloads     []struct{ UID string }
		Policies      []struct{ Name string }
		Certificates  []struct{ Identity, State string }
		Version       map[string]string
		WorkloadState map[string]struct {
			State       string
			Connections struct {
				Outbound, Inbound []struct{ Src, ActualDst, Protocol string }
				NotYetMeshed      []any
			}
			Info struct{ Name string }
		}
	}
	body := get(t, "http://127.0.0.1:15000/config_dump")
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintln(len(d.Workloads), len(d.Policies), d.Certificates, d.Version["istioVersion"]); got !=
		"3 1 [{spiffe://cluster.local/ns/shop/sa/shop Available} {spiffe://cluster.local/ns/web/sa/web Available} {spiffe://cluster.local/ns/z/sa/z Available}] 1.2.3\n" {
		t.Errorf("dump: %s", got)
	}
	web := d.WorkloadState["uid-web"]
	if web.State != "Up" || web.Info.Name != "web" || len(web.Connections.Outbound) != 1 || web.Connections.Outbound[0].Protocol != "HBONE" || web.Connections.NotYetMeshed == nil {
		t.Errorf("state of web: %+v", web)
	}
}
