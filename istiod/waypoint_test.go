package istiod

import (
	"slices"
	"strings"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	workloadapi "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/istiod/status"
)

// The slice that the lab writes once the waypoint's pod is ready.
const waypointSliceYAML = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: waypoint-x, namespace: shop, labels: {kubernetes.io/service-name: waypoint}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.9], conditions: {ready: READY}, targetRef: {kind: Pod, name: waypoint-1, namespace: shop, uid: uid-waypoint-1}}]
ports: [{name: mesh, port: 15008}]
`

const virtualServiceYAML = `apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: test-user}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
`

const (
	routeName  = "reviews.shop.svc.cluster.local:9080"
	clusterV2  = "outbound|9080|v2|reviews.shop.svc.cluster.local"
	waypointID = "Kubernetes//Pod/shop/waypoint-1"
)

// withWaypoint is the shop behind a waypoint whose pod runs.
func withWaypoint() map[string]string {
	files := shop()
	files["shop.yaml"] = strings.Replace(shopYAML, "dataplane-mode: ambient", "dataplane-mode: ambient, istio.io/use-waypoint: waypoint", 1)
	files["waypoint.yaml"] = waypointYAML
	files["objects/pod.w.yaml"] = podManifest("shop", "waypoint-1", "waypoint", "n1", "10.244.1.9",
		"gateway.networking.k8s.io/gateway-name: waypoint, gateway.istio.io/managed: istio.io-mesh-controller")
	return files
}

func TestWaypointLifeCycle(t *testing.T) {
	c := start(t, withWaypoint())
	z := c.ztunnel()
	z.await("first push", z.has(mesh.TypeAddress, reviews))
	if w := z.service(reviews).GetWaypoint(); w != nil {
		t.Errorf("the service has waypoint %v while it is not ready", w)
	}
	if w := z.workload(waypointID); w.GetTunnelProtocol() != workloadapi.TunnelProtocol_HBONE || !w.GetNativeTunnel() || w.GetWaypoint() != nil {
		t.Errorf("the waypoint's pod is %v, want native HBONE and no waypoint of its own", w)
	}
	for _, kind := range []manifest.Key{
		{Kind: "ServiceAccount", Namespace: "shop", Name: "waypoint"},
		{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: "waypoint"},
		{Kind: "Service", Namespace: "shop", Name: "waypoint"},
	} {
		c.generated(kind)
	}
	gateway := manifest.Key{Group: "gateway.networking.k8s.io", Kind: "Gateway", Namespace: "shop", Name: "waypoint"}
	c.status(gateway, `"Programmed"`, "AddressNotAssigned")
	c.status(manifest.Key{Kind: "Service", Namespace: "shop", Name: "reviews"}, "WaypointIsNotReady")

	c.write("objects/slice.yaml", strings.Replace(waypointSliceYAML, "READY", "true", 1))
	bound := func() string {
		if got := z.service(reviews).GetWaypoint().GetHostname().GetHostname(); got != "waypoint.shop.svc.cluster.local" {
			return "waypoint is " + got
		}
		return ""
	}
	z.await("waypoint ready", bound)
	c.status(gateway, "waypoint.shop.svc.cluster.local", `"Programmed"`)
	c.status(manifest.Key{Kind: "Service", Namespace: "shop", Name: "reviews"}, "WaypointAccepted")

	// A typing error in its listener changes nothing but the status.
	c.write("waypoint.yaml", strings.Replace(waypointYAML, "port: 15008", "port: 15009", 1))
	c.status(gateway, "no listener is valid")
	for _, kind := range []string{"Service", "Deployment"} {
		group := managedKinds[kind]
		if _, err := manifest.NewStore(c.state + "/objects").Get(manifest.Key{Group: group, Kind: kind, Namespace: "shop", Name: "waypoint"}); err != nil {
			t.Errorf("after a typing error in the listener: %v", err)
		}
	}
	c.write("waypoint.yaml", waypointYAML)
	c.status(gateway, "Resource accepted")

	// A restart of the waypoint's pod does not take the waypoint away.
	c.write("objects/slice.yaml", strings.Replace(waypointSliceYAML, "READY", "false", 1))
	c.write("strict.yaml", strictYAML) // comes after it
	z.await("a later change", z.has(mesh.TypeAuthorization, "istio-system/istio_converted_static_strict"))
	if missing := bound(); missing != "" {
		t.Errorf("after the waypoint's pod became unready: %s", missing)
	}

	c.remove("waypoint.yaml")
	z.await("waypoint gone", func() string {
		if z.service(reviews).GetWaypoint() != nil {
			return "the service still has it"
		}
		return ""
	})
	c.eventually("generated objects", func() string {
		if _, err := manifest.NewStore(c.state + "/objects").Get(manifest.Key{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: "waypoint"}); err == nil {
			return "the Deployment is still there"
		}
		return ""
	})
}

func TestWaypointIsSentItsServices(t *testing.T) {
	files := withWaypoint()
	files["objects/slice.yaml"] = strings.Replace(waypointSliceYAML, "READY", "true", 1)
	files["virtualservice.yaml"] = virtualServiceYAML
	files["objects/service.w.yaml"] = `apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: shop, labels: {gateway.istio.io/managed: istio.io-mesh-controller, gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {clusterIP: 10.96.9.9, selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{name: mesh, port: 15008}]}
`
	files["deny.yaml"] = denyYAML
	c := start(t, files)
	w := c.proxy(mesh.NodeTypeWaypoint, "shop", "waypoint", "waypoint-1", "n1")
	w.delta.Subscribe(mesh.TypeAuthorization) // which are ztunnels'
	w.delta.Subscribe(typeListener)
	w.delta.Subscribe(typeCluster)
	w.delta.Subscribe(typeRoute, routeName)
	w.delta.Subscribe(typeEndpoint, clusterV2)
	w.await("listener", w.has(typeListener, routeName))
	w.await("cluster", w.has(typeCluster, clusterV2))
	w.await("route", w.has(typeRoute, routeName))
	w.await("endpoints", w.has(typeEndpoint, clusterV2))

	if missing := w.lacks(mesh.TypeAuthorization, "shop/deny-all")(); missing != "" {
		t.Errorf("a waypoint was sent ztunnels' policies: %s", missing)
	}

	var routes routev3.RouteConfiguration
	w.unmarshal(typeRoute, routeName, &routes)
	if got := routes.GetVirtualHosts()[0].GetRoutes(); len(got) != 2 || got[0].GetRoute().GetCluster() != clusterV2 {
		t.Errorf("routes are %v, want test-user to v2 first of two", got)
	}
	var endpoints endpointv3.ClusterLoadAssignment
	w.unmarshal(typeEndpoint, clusterV2, &endpoints)
	metadata := endpoints.GetEndpoints()[0].GetLbEndpoints()[0].GetMetadata().GetFilterMetadata()[mesh.EndpointMetadata].GetFields()
	if got := metadata[mesh.EndpointMetadataProtocol].GetStringValue(); got != mesh.EndpointProtocolHBONE {
		t.Errorf("protocol of the endpoint is %q, want HBONE", got)
	}
	if got := metadata[mesh.EndpointMetadataSPIFFEIDs].GetListValue().GetValues()[0].GetStringValue(); got != "spiffe://cluster.local/ns/shop/sa/reviews" {
		t.Errorf("identity of the endpoint is %q", got)
	}

	// Pods come and go without any message but the endpoints.
	served, clusters := c.i.l7.served.Runs(), names(w.resources)
	c.remove("objects/pod.r2.yaml")
	w.await("endpoint gone", func() string {
		var now endpointv3.ClusterLoadAssignment
		if w.unmarshal(typeEndpoint, clusterV2, &now) && len(now.GetEndpoints()) > 0 && len(now.GetEndpoints()[0].GetLbEndpoints()) > 0 {
			return "it is still there"
		}
		return ""
	})
	if got := c.i.l7.served.Runs(); got != served {
		t.Errorf("routes were computed %d times because of a pod", got-served)
	}
	if got := names(w.resources); len(got) != len(clusters) {
		t.Errorf("resources are now %v, were %v", got, clusters)
	}

	// Nobody else sees the waypoint's configuration.
	z := c.ztunnel()
	z.delta.Subscribe(typeListener)
	z.await("first push", z.has(mesh.TypeAddress, reviews))
	if slices.ContainsFunc(names(z.resources), func(name string) bool { return strings.HasPrefix(name, typeListener) }) {
		t.Error("a ztunnel was sent a listener of the waypoint")
	}
}

// A waypoint that has been ready guards its services when istiod starts while
// its pod is away, also when the file of its Gateway cannot be read for a while.
func TestWaypointOutlivesARestart(t *testing.T) {
	files := withWaypoint()
	files["objects/slice.yaml"] = strings.Replace(waypointSliceYAML, "READY", "true", 1)
	c := start(t, files)
	gateway := manifest.Key{Group: "gateway.networking.k8s.io", Kind: "Gateway", Namespace: "shop", Name: "waypoint"}
	deployment := manifest.Key{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: "waypoint"}
	c.status(gateway, "waypoint.shop.svc.cluster.local")
	c.generated(deployment)

	c.stop()
	c.write("objects/slice.yaml", strings.Replace(waypointSliceYAML, "READY", "false", 1))
	c.run()
	z := c.ztunnel()
	z.await("first push", z.has(mesh.TypeAddress, reviews))
	if got := z.service(reviews).GetWaypoint().GetHostname().GetHostname(); got != "waypoint.shop.svc.cluster.local" {
		t.Errorf("after a restart of istiod the waypoint is %q: a bypass", got)
	}

	c.stop()
	c.write("waypoint.yaml", "kind: [")
	c.run()
	c.status(status.FileKey(c.path("waypoint.yaml")), "waypoint.yaml:")
	c.write("waypoint.yaml", waypointYAML)
	z = c.ztunnel()
	z.await("file mended", func() string {
		if z.service(reviews).GetWaypoint() == nil {
			return "no waypoint"
		}
		return ""
	})
	c.generated(deployment)
}

// What the user has made under the names of a waypoint's objects is the user's.
func TestWaypointLeavesTheUsersObjectsAlone(t *testing.T) {
	files := withWaypoint()
	files["own.yaml"] = `apiVersion: apps/v1
kind: Deployment
metadata: {name: waypoint, namespace: shop}
spec:
  selector: {matchLabels: {app: own}}
  template: {metadata: {labels: {app: own}}, spec: {containers: [{name: own, image: own}]}}
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: shop}
spec: {clusterIP: 10.96.9.9, selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{name: mesh, port: 15008}]}
`
	files["objects/slice.yaml"] = strings.Replace(waypointSliceYAML, "READY", "true", 1)
	c := start(t, files)
	c.generated(manifest.Key{Kind: "ServiceAccount", Namespace: "shop", Name: "waypoint"})
	gateway := manifest.Key{Group: "gateway.networking.k8s.io", Kind: "Gateway", Namespace: "shop", Name: "waypoint"}
	c.status(gateway, "Deployment shop/waypoint, Service shop/waypoint", "gateway.istio.io/managed")
	for _, kind := range []manifest.Key{{Group: "apps", Kind: "Deployment"}, {Kind: "Service"}} {
		kind.Namespace, kind.Name = "shop", "waypoint"
		if _, err := manifest.NewStore(c.state + "/objects").Get(kind); err == nil {
			t.Errorf("%s was written over the user's", kind)
		}
	}
	z := c.ztunnel()
	z.await("waypoint's service", z.has(mesh.TypeAddress, "shop/waypoint.shop.svc.cluster.local"))
	if w := z.service("shop/waypoint.shop.svc.cluster.local").GetWaypoint(); w != nil {
		t.Errorf("the waypoint's own Service has waypoint %v, itself", w)
	}

	c.remove("own.yaml")
	c.generated(manifest.Key{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: "waypoint"})
}
