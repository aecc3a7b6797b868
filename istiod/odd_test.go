package istiod

import (
	"testing"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/source"
	"github.com/ambit-mesh/ambit/istiod/xds"
)

// odd are manifests that are taken, or refused with a reason, although nobody
// would write them. The first is a small mesh in which the others have an effect.
var odd = map[string]string{
	"mesh": `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/use-waypoint: waypoint}}}
---
{apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{name: http, port: 80}, {port: 81}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: waypoint, namespace: shop, labels: {gateway.istio.io/managed: istio.io-mesh-controller}}, spec: {clusterIP: 10.96.0.2, ports: [{port: 15008}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: w, namespace: shop, labels: {kubernetes.io/service-name: waypoint}}, addressType: IPv4, endpoints: [{addresses: [10.1.1.1]}]}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint, namespace: shop}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: a}}, spec: {containers: []}, status: {phase: Running, podIP: 10.1.1.2}}
`,
	"service without spec":         `{apiVersion: v1, kind: Service, metadata: {name: odd, namespace: shop}}`,
	"service without ports":        `{apiVersion: v1, kind: Service, metadata: {name: odd, namespace: shop}, spec: {clusterIP: None, selector: {}}}`,
	"service with odd ports":       `{apiVersion: v1, kind: Service, metadata: {name: odd, namespace: shop}, spec: {ports: [{port: 1, targetPort: ""}, {port: 1, protocol: SCTP}, {port: 1, targetPort: nowhere, appProtocol: ""}]}}`,
	"pod without anything":         `{apiVersion: v1, kind: Pod, metadata: {name: odd, namespace: shop}}`,
	"pod with odd addresses":       `{apiVersion: v1, kind: Pod, metadata: {name: odd, namespace: shop}, spec: {containers: [{}]}, status: {podIPs: [{}, {ip: "::ffff:10.1.1.1"}, {ip: "fe80::1"}]}}`,
	"pod with bytes for a node":    "apiVersion: v1\nkind: Pod\nmetadata: {name: odd, namespace: shop}\nspec: {nodeName: !!binary /w==}\nstatus: {podIP: 10.1.1.3}\n",
	"pod with bytes for an owner":  "apiVersion: v1\nkind: Pod\nmetadata: {name: odd, namespace: shop, ownerReferences: [{controller: true, name: !!binary /w==, kind: Job, apiVersion: v1, uid: x}]}\nstatus: {podIP: 10.1.1.3}\n",
	"pod owned by nobody":          `{apiVersion: v1, kind: Pod, metadata: {name: odd, namespace: shop, ownerReferences: [{}, {controller: true}]}, status: {podIP: 10.1.1.3}}`,
	"slice without anything":       `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: odd, namespace: shop, labels: {kubernetes.io/service-name: a}}}`,
	"slice with empty endpoints":   `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: odd, namespace: shop, labels: {kubernetes.io/service-name: waypoint}}, addressType: IPv6, endpoints: [{}, {addresses: []}, {addresses: [x, "::1"], conditions: {}, targetRef: {kind: Pod}}], ports: [{}, {port: -1}]}`,
	"node without anything":        `{apiVersion: v1, kind: Node, metadata: {name: odd}}`,
	"mesh config without data":     `{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}}`,
	"gateway without listeners":    `{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: odd, namespace: shop}, spec: {gatewayClassName: istio-waypoint, listeners: []}}`,
	"gateway without spec":         `{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: odd, namespace: shop}}`,
	"gateway with odd namespaces":  `{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint, namespace: shop}, spec: {gatewayClassName: istio-waypoint, infrastructure: {parametersRef: {group: "", kind: ConfigMap, name: ""}}, addresses: [{}], listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Selector}}}]}}`,
	"gateway of nobody":            `{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint, namespace: shop}, spec: {gatewayClassName: nobodys}, status: {addresses: [{value: ""}, {value: x}]}}`,
	"route without rules":          `{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: odd, namespace: shop}, spec: {parentRefs: [{group: "", kind: Service, name: a}]}}`,
	"route without spec":           `{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: odd, namespace: shop}}`,
	"route with empty parts":       `{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: odd, namespace: shop}, spec: {parentRefs: [{name: ""}, {group: "", kind: Service, name: a}], rules: [{}, {matches: [{}], filters: [{type: URLRewrite}, {type: RequestRedirect, requestRedirect: {}}, {type: RequestHeaderModifier}], backendRefs: [{name: ""}]}, {timeouts: {}, retry: {}}]}}`,
	"virtual service without spec": `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: odd, namespace: shop}}`,
	"virtual service without http": `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: odd, namespace: shop}, spec: {hosts: [a]}}`,
	"virtual service with holes":   `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: odd, namespace: shop}, spec: {hosts: [a, "*", "*.local"], http: [{}, {match: [{}], route: [{destination: {host: ""}}]}, {route: [{destination: {host: a, port: {}}}, {destination: {host: b}, weight: 0}], retries: {}, headers: {}, rewrite: {}}, {redirect: {}}, {directResponse: {status: 200}}]}}`,
	"rule without spec":            `{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: odd, namespace: shop}}`,
	"rule with holes":              `{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: odd, namespace: shop}, spec: {host: a, trafficPolicy: {}, subsets: [{name: v1}, {name: v1, labels: {}}]}}`,
	"policy without spec":          `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: odd, namespace: shop}}`,
	"policy with holes":            `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: odd, namespace: shop}, spec: {selector: {}, action: DENY, rules: [{}, {from: [{}], to: [{}]}, {from: [{source: {}}], when: [{key: source.ip, values: [""]}]}]}}`,
	"mutual TLS without spec":      `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: odd, namespace: shop}}`,
	"mutual TLS with odd ports":    `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: odd, namespace: shop}, spec: {selector: {matchLabels: {app: a}}, mtls: {}, portLevelMtls: {"80": {}}}}`,
	"deployment without spec":      `{apiVersion: apps/v1, kind: Deployment, metadata: {name: waypoint, namespace: shop}}`,
}

// oddGraph is the whole graph without anything that runs.
func oddGraph(tb testing.TB) *source.Dir {
	tb.Helper()
	into := source.NewObjects(collection.NewGraph())
	dir, err := source.NewDir(source.DirConfig{Objects: into})
	if err != nil {
		tb.Fatal(err)
	}
	v := newViews(into, Config{ClusterDomain: mesh.DefaultClusterDomain})
	l := newL7Views(into, v)
	append(v.workloadResources(into.Graph), l.resources(into.Graph)...).publish(into.Graph, xds.NewStore())
	l.statements(into, v.deployments(into, "waypoint"))
	return dir
}

// takeOdd brings objects into the graph, and takes them out again.
func takeOdd(tb testing.TB, dir *source.Dir, data []byte) {
	tb.Helper()
	objects, err := manifest.Parse("odd.yaml", data)
	if err != nil {
		return
	}
	change := manifest.Change{File: "odd.yaml", Set: objects}
	dir.Load(tb.Context(), change)
	change = manifest.Change{File: "odd.yaml"}
	for _, o := range objects {
		change.Deleted = append(change.Deleted, o.Key)
	}
	dir.Load(tb.Context(), change)
}

func loadMesh(tb testing.TB, dir *source.Dir) {
	tb.Helper()
	objects, err := manifest.Parse("mesh.yaml", []byte(odd["mesh"]))
	if err != nil {
		tb.Fatal(err)
	}
	dir.Load(tb.Context(), manifest.Change{File: "mesh.yaml", Set: objects})
}

// TestOddManifests: whatever an API server would take, and more, istiod lives.
func TestOddManifests(t *testing.T) {
	dir := oddGraph(t)
	for name, text := range odd {
		t.Run(name, func(t *testing.T) {
			if _, err := manifest.Parse("odd.yaml", []byte(text)); err != nil {
				t.Fatalf("%s: the test itself is wrong: %v", name, err)
			}
			loadMesh(t, dir)
			takeOdd(t, dir, []byte(text))
		})
	}
}

func FuzzGraph(f *testing.F) {
	for _, text := range odd {
		f.Add([]byte(text))
	}
	dir := oddGraph(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		loadMesh(t, dir)
		takeOdd(t, dir, data)
	})
}
