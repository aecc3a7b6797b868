package istiod

import (
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	workloadapi "github.com/ambit-mesh/ambit/apis/workload"
)

func TestServesTheMeshAndItsChanges(t *testing.T) {
	c := start(t, shop())
	z := c.ztunnel()
	z.await("first push", z.has(mesh.TypeAddress, client))
	z.await("first push", z.has(mesh.TypeAddress, reviews))

	w := z.workload(reviews1)
	if w.GetTunnelProtocol() != workloadapi.TunnelProtocol_HBONE || w.GetServiceAccount() != "reviews" ||
		w.GetLocality().GetRegion() != "r" || w.GetServices()[reviews].GetPorts()[0].GetTargetPort() != 9080 {
		t.Errorf("workload is %v, want a captured member of the service in region r, target port 9080", w)
	}

	c.write("strict.yaml", strictYAML)
	z.await("PeerAuthentication STRICT", func() string {
		if slices.Equal(z.workload(reviews1).GetAuthorizationPolicies(), []string{"istio-system/istio_converted_static_strict"}) {
			return z.has(mesh.TypeAuthorization, "istio-system/istio_converted_static_strict")()
		}
		return "the workload does not name the policy"
	})

	c.write("deny.yaml", denyYAML)
	z.await("AuthorizationPolicy", func() string {
		if !slices.Contains(z.workload(reviews2).GetAuthorizationPolicies(), "shop/deny-all") {
			return "the workload does not name the policy"
		}
		return z.has(mesh.TypeAuthorization, "shop/deny-all")()
	})
	if got := z.workload(client).GetAuthorizationPolicies(); slices.Contains(got, "shop/deny-all") {
		t.Errorf("a pod that the policy does not select names it: %v", got)
	}
	c.status(policyKey("deny-all"), "ZtunnelAccepted", "attached to ztunnel")

	c.remove("objects/pod.r2.yaml")
	z.await("pod gone", z.lacks(mesh.TypeAddress, reviews2))
}

func policyKey(name string) manifest.Key {
	return manifest.Key{Group: "security.istio.io", Kind: "AuthorizationPolicy", Namespace: "shop", Name: name}
}

func TestOnePodEventSendsOneResource(t *testing.T) {
	c := start(t, shop())
	z := c.ztunnel()
	z.await("first push", z.has(mesh.TypeAddress, reviews))
	for z.take(100_000_000) { //nolint:revive // until it is quiet
	}
	before, runs := z.messages, c.i.views.workloads.Runs()
	c.write("objects/pod.r1.yaml", strings.Replace(shop()["objects/pod.r1.yaml"], `status: "True"`, `status: "False"`, 1))
	z.await("unhealthy", func() string {
		if z.workload(reviews1).GetStatus() == workloadapi.WorkloadStatus_UNHEALTHY {
			return ""
		}
		return "still healthy"
	})
	if got := z.messages - before; got != 1 {
		t.Errorf("%d messages for one pod, want 1", got)
	}
	if got := c.i.views.workloads.Runs() - runs; got != 1 {
		t.Errorf("%d workloads computed for one pod, want 1", got)
	}
}

func TestCertificates(t *testing.T) {
	c := start(t, shop())
	zt := c.token("istio-system", "ztunnel", "ztunnel-n1", "n1")
	tests := []struct {
		name, token, want string
		identity          string // of the certificate; "" = refused
	}{
		{"ztunnel for a pod of its node", zt, "spiffe://cluster.local/ns/shop/sa/reviews", "spiffe://cluster.local/ns/shop/sa/reviews"},
		{"a pod for itself", c.token("shop", "client", "client", "n1"), "", "spiffe://cluster.local/ns/shop/sa/client"},
		{"a pod for its neighbour", c.token("shop", "client", "client", "n1"), "spiffe://cluster.local/ns/shop/sa/reviews", ""},
		{"ztunnel for an account that has no pod here", zt, "spiffe://cluster.local/ns/shop/sa/nobody", ""},
		{"ztunnel for another trust domain", zt, "spiffe://elsewhere/ns/shop/sa/reviews", ""},
		{"a pod that is gone", c.token("shop", "client", "gone", "n1"), "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			response, err := c.request(test.token, test.want)
			if test.identity == "" {
				if err == nil {
					t.Fatalf("%s: got a certificate, want a refusal", test.name)
				}
				return
			}
			if err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			block, _ := pem.Decode([]byte(response.GetCertChain()[0]))
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if id, err := spiffe.FromCertificate(cert); err != nil || id.String() != test.identity {
				t.Errorf("%s: identity %s (%v), want %s", test.name, id, err, test.identity)
			}
		})
	}
}

func TestWhoMayOpenAStream(t *testing.T) {
	files := withWaypoint()
	files["objects/pod.fw.yaml"] = podManifest("shop", "fake-w", "client", "n1", "10.244.1.8", mesh.LabelGatewayName+": waypoint")
	files["objects/pod.fake.yaml"] = podManifest("shop", "fake", "client", "n1", "10.244.1.7", mesh.LabelGatewayName+": nowhere")
	files["objects/pod.z2.yaml"] = podManifest("istio-system", "ztunnel-n2", "ztunnel", "n2", "10.89.0.12", "app: ztunnel")
	c := start(t, files)
	tests := []struct {
		name, kind, namespace, account, pod, claims string
		want                                        codes.Code
	}{
		{"ztunnel", "ztunnel", "istio-system", "ztunnel", "ztunnel-n1", "istio-system", codes.OK},
		{"an application as ztunnel", "ztunnel", "shop", "client", "client", "shop", codes.PermissionDenied},
		{"an application as somebody of another namespace", "sidecar", "shop", "client", "client", "istio-system", codes.PermissionDenied},
		{"an application as waypoint", "waypoint", "shop", "client", "client", "shop", codes.PermissionDenied},
		{"an application as a proxy that nobody serves", "sidecar", "shop", "client", "client", "shop", codes.PermissionDenied},
		{"a ztunnel as a proxy that nobody serves", "sidecar", "istio-system", "ztunnel", "ztunnel-n1", "istio-system", codes.PermissionDenied},
		{"a ztunnel as waypoint", "waypoint", "istio-system", "ztunnel", "ztunnel-n1", "istio-system", codes.PermissionDenied},
		{"a waypoint's pod of another account, as waypoint", "waypoint", "shop", "client", "fake-w", "shop", codes.PermissionDenied},
		{"a waypoint's pod of its account, as ztunnel", "ztunnel", "shop", "waypoint", "waypoint-1", "shop", codes.PermissionDenied},
		{"a pod whose label names no Gateway, as waypoint", "waypoint", "shop", "client", "fake", "shop", codes.PermissionDenied},
		{"a pod of another node than its token says", "ztunnel", "istio-system", "ztunnel", "ztunnel-n2", "istio-system", codes.Unauthenticated},
		{"a pod that is gone", "ztunnel", "istio-system", "ztunnel", "ztunnel-n9", "istio-system", codes.Unauthenticated},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := c.proxy(test.kind, test.namespace, test.account, test.pod, "n1")
			if test.claims != test.namespace {
				p = c.proxyClaiming(test.kind, test.claims, test.namespace, test.account, test.pod)
			}
			p.delta.Subscribe(mesh.TypeAddress)
			if test.want == codes.OK {
				p.await("first push", p.has(mesh.TypeAddress, reviews))
				return
			}
			if got := p.delta.End(); got.Code() != test.want {
				t.Errorf("%s: stream ended with %v, want %v", test.name, got, test.want)
			}
		})
	}
	if got := strings.Count(c.logged(), "is no proxy of type"); got != 3 {
		t.Errorf("three refusals were logged %d times", got)
	}
	if _, err := c.request("nonsense", ""); grpcstatus.Code(err) != codes.Unauthenticated {
		t.Errorf("a token that is none: %v, want Unauthenticated", err)
	}
}

func TestAuthorityOutlivesARestart(t *testing.T) {
	c := start(t, shop())
	key := manifest.Key{Kind: "ConfigMap", Namespace: "shop", Name: mesh.RootCertConfig}
	first := c.generated(key)
	c.stop()
	c.run()
	second := c.generated(key)
	if first.Object["data"].(map[string]any)[mesh.RootCertFile] != second.Object["data"].(map[string]any)[mesh.RootCertFile] {
		t.Error("the root certificate is another one after a restart")
	}
	z := c.ztunnel()
	z.await("first push after the restart", z.has(mesh.TypeAddress, reviews))
}
