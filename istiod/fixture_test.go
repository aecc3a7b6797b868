package istiod

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/api/security/v1alpha1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	securityapi "github.com/ambit-mesh/ambit/apis/security"
	workloadapi "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/istiod/authn/authntest"
	"github.com/ambit-mesh/ambit/istiod/xds/xdstest"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// control is a running istiod with its directories.
type control struct {
	t      *testing.T
	i      *Istiod
	issuer *authntest.Issuer
	config string
	state  string
	stop   func()
	root   func() string // the root certificate that istiod has distributed

	mu  sync.Mutex
	log bytes.Buffer
}

// Write takes the log.
func (c *control) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.Write(p)
}

func (c *control) logged() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.String()
}

// start runs istiod on manifests: file name to contents. Names that begin with
// "objects/" are of the state directory.
func start(t *testing.T, files map[string]string) *control {
	t.Helper()
	c := &control{t: t, issuer: authntest.New(t), config: t.TempDir(), state: t.TempDir()}
	c.root = func() string {
		o := c.generated(manifest.Key{Kind: "ConfigMap", Namespace: "istio-system", Name: mesh.RootCertConfig})
		text, _, _ := unstructured.NestedString(o.Object, "data", mesh.RootCertFile)
		return text
	}
	for name, contents := range files {
		c.write(name, contents)
	}
	c.run()
	t.Cleanup(func() { c.stop() })
	return c
}

func (c *control) run() {
	c.t.Helper()
	c.runAs(Config{
		ConfigDir: c.config, StateDir: c.state,
		JWKSFile: c.issuer.File, JWTIssuer: authntest.URL, JWTAudience: authntest.Audience,
	})
}

func (c *control) runAs(cfg Config) {
	c.t.Helper()
	cfg.TrustedNodeAccounts = []string{"istio-system/ztunnel"}
	cfg.Log = slog.New(slog.NewTextHandler(c, &slog.HandlerOptions{Level: slog.LevelDebug}))
	i, err := New(cfg)
	if err != nil {
		c.t.Fatalf("new: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background()) // ends before the test's, for clean-up
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	var once sync.Once
	c.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				c.t.Errorf("run: %v", err)
			}
		})
	}
	c.i = i
	wait, end := context.WithTimeout(ctx, patience)
	defer end()
	if _, err := i.Addresses(wait); err != nil {
		c.stop()
		c.t.Fatalf("istiod does not serve: %v\n%s", err, c.logged())
	}
}

func (c *control) path(name string) string {
	if rest, ok := strings.CutPrefix(name, "objects/"); ok {
		return filepath.Join(c.state, "objects", rest)
	}
	return filepath.Join(c.config, name)
}

// write replaces a file by rename.
func (c *control) write(name, contents string) {
	c.t.Helper()
	path := c.path(name)
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(temporary, []byte(contents), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(temporary, path); err != nil {
		c.t.Fatal(err)
	}
}

// overwrite truncates a file and writes it in place.
func (c *control) overwrite(name, contents string) {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), []byte(contents), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// eventually waits until check returns "", else fails with what it returned.
func (c *control) eventually(what string, check func() string) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := check()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: %s\n%s", what, missing, c.logged())
		}
		<-tick.C
	}
}

// status waits for a status whose text holds all parts.
func (c *control) status(key manifest.Key, parts ...string) {
	c.t.Helper()
	c.eventually("status of "+key.String(), func() string {
		o, err := manifest.NewStore(filepath.Join(c.state, "status")).Get(key)
		if err != nil {
			return err.Error()
		}
		text, err := json.Marshal(o.Object)
		if err != nil {
			return err.Error()
		}
		for _, part := range parts {
			if !strings.Contains(string(text), part) {
				return "no " + part + " in " + string(text)
			}
		}
		return ""
	})
}

// remove deletes a file.
func (c *control) remove(name string) {
	c.t.Helper()
	if err := os.Remove(c.path(name)); err != nil {
		c.t.Fatal(err)
	}
}

// generated waits for an object in the state directory.
func (c *control) generated(key manifest.Key) *unstructured.Unstructured {
	c.t.Helper()
	var out *unstructured.Unstructured
	c.eventually(key.String(), func() string {
		o, err := manifest.NewStore(filepath.Join(c.state, "objects")).Get(key)
		if err != nil {
			return err.Error()
		}
		out = o
		return ""
	})
	return out
}

// token is that of a pod made by podManifest.
func (c *control) token(namespace, account, pod, node string) string {
	return c.issuer.Token(authntest.Bound(namespace, account, pod, "uid-"+pod, node, time.Now()))
}

type bearerToken string

func (b bearerToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (bearerToken) RequireTransportSecurity() bool { return true }

// dial connects over TLS, as a proxy does.
func (c *control) dial(token string) *grpc.ClientConn {
	c.t.Helper()
	text := c.root()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(text)) {
		c.t.Fatalf("no certificate in %s", text)
	}
	conn, err := grpc.NewClient("passthrough:///"+c.i.addresses.XDS,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "istiod.istio-system.svc",
		})), grpc.WithPerRPCCredentials(bearerToken(token)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			c.t.Errorf("close: %v", err)
		}
	})
	return conn
}

// proxy is a delta client that remembers what it was sent.
type proxy struct {
	c         *control
	delta     *xdstest.Delta
	resources map[string]*discoveryv3.Resource // type and name
	messages  int
}

func (c *control) proxy(kind, namespace, account, pod, node string) *proxy {
	c.t.Helper()
	return c.proxyWith(kind, namespace, pod, c.token(namespace, account, pod, node))
}

func (c *control) proxyWith(kind, namespace, pod, token string) *proxy {
	c.t.Helper()
	id := xdstest.Node(kind, namespace, pod)
	id.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"NAMESPACE": structpb.NewStringValue(namespace)}}
	return &proxy{c: c, delta: c.connect(id, token), resources: map[string]*discoveryv3.Resource{}}
}

func (c *control) connect(id *corev3.Node, token string) *xdstest.Delta {
	return xdstest.Connect(c.t, c.dial(token), id)
}

// ztunnel is the proxy of node n1, subscribed to everything.
func (c *control) ztunnel() *proxy {
	c.t.Helper()
	p := c.proxy(mesh.NodeTypeZtunnel, "istio-system", "ztunnel", "ztunnel-n1", "n1")
	p.delta.Subscribe(mesh.TypeAddress)
	p.delta.Subscribe(mesh.TypeAuthorization)
	return p
}

// take reads one response, if there is one in time, and acknowledges it.
func (p *proxy) take(wait time.Duration) bool {
	response, ok := p.delta.Poll(wait)
	if !ok {
		return false
	}
	p.messages++
	for _, r := range response.GetResources() {
		p.resources[response.GetTypeUrl()+" "+r.GetName()] = r
	}
	for _, name := range response.GetRemovedResources() {
		delete(p.resources, response.GetTypeUrl()+" "+name)
	}
	p.delta.Ack(response)
	return true
}

// await reads until check returns "".
func (p *proxy) await(what string, check func() string) {
	p.c.t.Helper()
	deadline := time.Now().Add(patience)
	for check() != "" {
		if !p.take(time.Until(deadline)) {
			p.c.t.Fatalf("%s: %s\nresources: %v\n%s", what, check(), names(p.resources), p.c.logged())
		}
	}
}

func names(m map[string]*discoveryv3.Resource) []string {
	var out []string
	for name := range m {
		out = append(out, name)
	}
	return out
}

func (p *proxy) has(typeURL, name string) func() string {
	return func() string {
		if p.resources[typeURL+" "+name] == nil {
			return "no " + typeURL + " " + name
		}
		return ""
	}
}

func (p *proxy) lacks(typeURL, name string) func() string {
	return func() string {
		if p.resources[typeURL+" "+name] != nil {
			return typeURL + " " + name + " is there"
		}
		return ""
	}
}

func (p *proxy) unmarshal(typeURL, name string, into proto.Message) bool {
	r := p.resources[typeURL+" "+name]
	return r != nil && proto.Unmarshal(r.GetResource().GetValue(), into) == nil
}

func (p *proxy) workload(uid string) *workloadapi.Workload {
	var out workloadapi.Address
	p.unmarshal(mesh.TypeAddress, uid, &out)
	return out.GetWorkload()
}

func (p *proxy) service(name string) *workloadapi.Service {
	var out workloadapi.Address
	p.unmarshal(mesh.TypeAddress, name, &out)
	return out.GetService()
}

func (p *proxy) policy(name string) *securityapi.Authorization {
	var out securityapi.Authorization
	if !p.unmarshal(mesh.TypeAuthorization, name, &out) {
		return nil
	}
	return &out
}

// request asks for a certificate as a pod; impersonate may be "".
func (c *control) request(token, impersonate string) (*securityv1.IstioCertificateResponse, error) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		c.t.Fatal(err)
	}
	req := &securityv1.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), ValidityDuration: 3600,
	}
	if impersonate != "" {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{mesh.ImpersonatedIdentity: structpb.NewStringValue(impersonate)}}
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	return securityv1.NewIstioCertificateServiceClient(c.dial(token)).CreateCertificate(ctx, req)
}

// proxyClaiming says of itself to be of another namespace than its token.
func (c *control) proxyClaiming(kind, claimed, namespace, account, pod string) *proxy {
	c.t.Helper()
	id := xdstest.Node(kind, claimed, pod)
	id.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"NAMESPACE": structpb.NewStringValue(claimed)}}
	return &proxy{c: c, delta: c.connect(id, c.token(namespace, account, pod, "n1")), resources: map[string]*discoveryv3.Resource{}}
}
