package istiod

import "fmt"

// podManifest is a running, captured pod as the lab's kubelet writes it.
func podManifest(namespace, name, account, node, ip, labels string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: %s
  uid: uid-%s
  labels: {%s}
  annotations: {ambient.istio.io/redirection: enabled}
spec:
  serviceAccountName: %s
  nodeName: %s
  containers: [{name: app, image: app, ports: [{name: web, containerPort: 9080}]}]
status:
  phase: Running
  podIP: %s
  conditions: [{type: Ready, status: "True"}]
`, name, namespace, name, labels, account, node, ip)
}

const (
	systemYAML = `apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
`
	shopYAML = `apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  clusterIP: 10.96.3.4
  ipFamilies: [IPv4]
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: web}]
`
	denyYAML = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: shop}
spec:
  selector: {matchLabels: {app: reviews}}
  action: DENY
  rules: [{from: [{source: {principals: ["*"]}}]}]
`
	strictYAML = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
`
	waypointYAML = `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`
)

// shop is a small mesh: a ztunnel, a Service and two pods behind it.
func shop() map[string]string {
	return map[string]string{
		"system.yaml":             systemYAML,
		"shop.yaml":               shopYAML,
		"objects/pod.z.yaml":      podManifest("istio-system", "ztunnel-n1", "ztunnel", "n1", "10.89.0.11", "app: ztunnel"),
		"objects/pod.r1.yaml":     podManifest("shop", "reviews-1", "reviews", "n1", "10.244.1.5", "app: reviews, version: v1"),
		"objects/pod.r2.yaml":     podManifest("shop", "reviews-2", "reviews", "n2", "10.244.2.5", "app: reviews, version: v2"),
		"objects/node.n1.yaml":    "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}\n",
		"objects/pod.client.yaml": podManifest("shop", "client", "client", "n1", "10.244.1.6", "app: client"),
	}
}

const (
	reviews1 = "Kubernetes//Pod/shop/reviews-1"
	reviews2 = "Kubernetes//Pod/shop/reviews-2"
	client   = "Kubernetes//Pod/shop/client"
	reviews  = "shop/reviews.shop.svc.cluster.local"
)
