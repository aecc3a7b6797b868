package bed

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
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/istiod/authn"
	"github.com/ambit-mesh/ambit/istiod/ca"
	"github.com/ambit-mesh/ambit/istiod/xds"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

const (
	istiodName    = "istiod.istio-system.svc"
	rootNamespace = "istio-system"
	account       = "ztunnel"
	tokenPrefix   = "token of ztunnel on "
)

// control is istiod's servers with contents that the caller sets.
type control struct {
	authority *ca.Authority
	store     *xds.Store
	server    *xds.Server
	grpc      *grpc.Server
	serving   sync.WaitGroup

	mu  sync.Mutex
	set map[string]map[xds.Ref]xds.Resource // by kind: what Set… set last
}

func startControl(b *Bed) (*control, error) {
	authority, err := ca.NewSelfSigned(TrustDomain, time.Now())
	if err != nil {
		return nil, err
	}
	c := &control{authority: authority, store: xds.NewStore(), set: map[string]map[xds.Ref]xds.Resource{}}
	return c, c.start(b)
}

// start serves what there is, for the first time or again.
func (c *control) start(b *Bed) error {
	log := slog.New(slog.DiscardHandler)
	c.server = xds.NewServer(xds.Config{
		Store: c.store, Log: log,
		Authorize: func(context.Context, *corev3.Node) ([]string, error) { return nil, nil },
	})
	signer := ca.NewService(ca.ServiceConfig{
		Authority: c.authority, Verify: verify, Pods: pods{b}, Log: log,
		TrustDomain:         func() string { return TrustDomain },
		TrustedNodeAccounts: []string{rootNamespace + "/" + account},
	})
	l, err := b.wire.Listen(netip.AddrPortFrom(wireAddress, mesh.PortXDS), netns.ListenOptions{})
	if err != nil {
		return err
	}
	c.grpc = grpc.NewServer(append(xds.Options(), grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: c.authority.ServingSource([]string{istiodName}, []netip.Addr{wireAddress}),
	})))...)
	c.server.Register(c.grpc)
	signer.Register(c.grpc)
	c.serving.Go(func() { _ = c.grpc.Serve(l) }) // ends with stop
	return nil
}

func (c *control) stop() {
	c.server.Close()
	c.grpc.Stop()
	c.serving.Wait()
}

// StopControl takes the control plane away; what it describes stays.
func (b *Bed) StopControl() { b.control.stop() }

// StartControl brings it back.
func (b *Bed) StartControl() error { return b.control.start(b) }

// verify knows the tokens that nodes give to their ztunnels.
func verify(_ context.Context, token string) (authn.Caller, error) {
	node, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok {
		return authn.Caller{}, &authn.Error{Reason: authn.ReasonSignature, Err: errors.New("no token of this bed")}
	}
	name := account + "-" + node
	return authn.Caller{Namespace: rootNamespace, ServiceAccount: account, Pod: authn.Pod{Name: name, UID: name}, Node: node}, nil
}

// pods tells the authority which pods there are: those of the bed, and a
// ztunnel on every node.
type pods struct{ bed *Bed }

func (p pods) Pod(_, name string) (ca.Pod, bool) {
	node, ok := strings.CutPrefix(name, account+"-")
	return ca.Pod{UID: name, ServiceAccount: account, Node: node, Phase: "Running"}, ok
}

func (p pods) RunsOn(node, namespace, serviceAccount string) bool {
	for _, pod := range p.bed.podsOf(node) {
		if pod.Namespace == namespace && pod.ServiceAccount == serviceAccount {
			return true
		}
	}
	return false
}

// SetWorkloads replaces the workloads that the control plane describes.
func (b *Bed) SetWorkloads(workloads ...*workload.Workload) error {
	var all []xds.Resource
	for _, w := range workloads {
		r, err := resource(mesh.TypeAddress, w.GetUid(), &workload.Address{Type: &workload.Address_Workload{Workload: w}})
		if err != nil {
			return err
		}
		for _, a := range w.GetAddresses() {
			if ip, ok := netip.AddrFromSlice(a); ok {
				r.Aliases = append(r.Aliases, w.GetNetwork()+"/"+ip.String())
			}
		}
		all = append(all, r)
	}
	b.control.replace("workloads", all)
	return nil
}

// SetServices replaces the services that the control plane describes.
func (b *Bed) SetServices(services ...*workload.Service) error {
	var all []xds.Resource
	for _, s := range services {
		name := s.GetNamespace() + "/" + s.GetHostname()
		r, err := resource(mesh.TypeAddress, name, &workload.Address{Type: &workload.Address_Service{Service: s}})
		if err != nil {
			return err
		}
		for _, a := range s.GetAddresses() {
			if ip, ok := netip.AddrFromSlice(a.GetAddress()); ok {
				r.Aliases = append(r.Aliases, a.GetNetwork()+"/"+ip.String())
			}
		}
		all = append(all, r)
	}
	b.control.replace("services", all)
	return nil
}

// SetPolicies replaces the policies that the control plane describes.
func (b *Bed) SetPolicies(policies ...*security.Authorization) error {
	var all []xds.Resource
	for _, p := range policies {
		r, err := resource(mesh.TypeAuthorization, p.GetNamespace()+"/"+p.GetName(), p)
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	b.control.replace("policies", all)
	return nil
}

func resource(typeURL, name string, m proto.Message) (xds.Resource, error) {
	body, err := proto.Marshal(m)
	if err != nil {
		return xds.Resource{}, fmt.Errorf("bed: %s: %w", name, err)
	}
	return xds.Resource{TypeURL: typeURL, Name: name, Body: &anypb.Any{TypeUrl: typeURL, Value: body}}, nil
}

// replace sets the resources of a kind in one step.
func (c *control) replace(kind string, all []xds.Resource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := map[xds.Ref]xds.Resource{}
	for _, r := range all {
		next[xds.Ref{TypeURL: r.TypeURL, Name: r.Name}] = r
	}
	var gone []xds.Ref
	for ref := range c.set[kind] {
		if _, stays := next[ref]; !stays {
			gone = append(gone, ref)
		}
	}
	c.set[kind] = next
	c.store.Update(all, gone)
}

// Certificate issues a certificate as ztunnel would get it, for a program of
// the caller's that takes part in the mesh. Leaf is set.
func (b *Bed) Certificate(namespace, serviceAccount string) (tls.Certificate, error) {
	id, err := spiffe.New(TrustDomain, namespace, serviceAccount)
	if err != nil {
		return tls.Certificate{}, err
	}
	return b.CertificateFor(id)
}

// CertificateFor issues a certificate for any identity.
func (b *Bed) CertificateFor(id spiffe.ID) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	chain, err := b.control.authority.Sign(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), id, 0)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair([]byte(chain[0]), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// RootPEM returns the root certificates of the mesh.
func (b *Bed) RootPEM() []byte { return b.control.authority.RootPEM() }
