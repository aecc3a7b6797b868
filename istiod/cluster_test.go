//go:build cluster

package istiod

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
)

func TestClusterRootCertificates(t *testing.T) {
	a := connectAPI(t)
	shop := a.namespace("shop", "")
	c := a.start("istiod-1")
	first := a.await(rootKey(shop), "it is made", exists)
	if first.GetLabels()[mesh.LabelConfig] != "true" || rootOf(first) != c.root() {
		t.Errorf("ConfigMap %v, want our label and the root", first.Object)
	}

	a.remove(rootKey(shop))
	again := a.await(rootKey(shop), "it is made again", exists)
	if again.GetUID() == first.GetUID() || rootOf(again) != rootOf(first) {
		t.Error("it has not been made again as it was")
	}
	a.patch(rootKey(shop), `{"data": {"root-cert.pem": "evil"}, "metadata": {"labels": {"istio.io/config": null}}}`)
	a.await(rootKey(shop), "it is put right", func(o *unstructured.Unstructured) string {
		if rootOf(o) != rootOf(first) || o.GetLabels()[mesh.LabelConfig] != "true" {
			return fmt.Sprint(o.Object["data"], o.GetLabels())
		}
		return ""
	})

	late := a.namespace("late", "")
	a.await(rootKey(late), "a namespace that came later", exists)
	for _, name := range withoutRoot[:3] {
		if _, err := a.of(rootKey(name)).Get(t.Context(), mesh.RootCertConfig, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("namespace %s has one: %v", name, err)
		}
	}
	a.remove(manifest.Key{Kind: "Namespace", Name: late})
	a.awaitGone(manifest.Key{Kind: "Namespace", Name: late})
	if text := c.logged(); strings.Contains(text, "cannot be written") {
		t.Errorf("writes failed:\n%s", text)
	}
}

func TestClusterGatewayClass(t *testing.T) {
	a := connectAPI(t)
	key := manifest.Key{Group: "gateway.networking.k8s.io", Kind: "GatewayClass", Name: mesh.WaypointGatewayClass}
	a.remove(key)
	a.awaitGone(key)
	c := a.start("istiod-1")
	first := a.await(key, "it is made", func(o *unstructured.Unstructured) string {
		if name, _, _ := unstructured.NestedString(o.Object, "spec", "controllerName"); name != mesh.MeshControllerName {
			return name
		}
		return ""
	})
	a.patch(key, `{"spec": {"description": "mine"}}`)
	a.namespace("later", "") // comes after it
	a.remove(key)
	a.await(key, "it is made again", func(o *unstructured.Unstructured) string {
		if o.GetUID() == first.GetUID() {
			return "it has not gone yet"
		}
		return ""
	})
	_, metrics := get(t, c, "/metrics")
	if want := `istiod_source_kinds{group="gateway.networking.k8s.io",kind="GatewayClass",state="watching"} 1`; !strings.Contains(metrics, want) {
		t.Errorf("metrics lack %s", want)
	}
}

func generatedKeys(namespace, name string) []manifest.Key {
	return []manifest.Key{
		{Kind: "ServiceAccount", Namespace: namespace, Name: name},
		{Group: "apps", Kind: "Deployment", Namespace: namespace, Name: name},
		{Kind: "Service", Namespace: namespace, Name: name},
	}
}

func gatewayIn(namespace, annotations, addresses string) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: %s, annotations: {%s}}
spec:
  gatewayClassName: istio-waypoint
  addresses: [%s]
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`, namespace, annotations, addresses)
}

func TestClusterWaypoint(t *testing.T) {
	a := connectAPI(t)
	shop := a.namespace("shop", "")
	a.start("istiod-1")
	gateway := manifest.Key{Group: "gateway.networking.k8s.io", Kind: "Gateway", Namespace: shop, Name: "waypoint"}
	deployment := generatedKeys(shop, "waypoint")[1]

	a.apply(gatewayIn(shop, "", ""))
	owner := a.await(gateway, "it exists", exists).GetUID()
	for _, key := range generatedKeys(shop, "waypoint") {
		o := a.await(key, "it is made", exists)
		if owners := o.GetOwnerReferences(); len(owners) != 1 || owners[0].UID != owner || owners[0].Kind != "Gateway" {
			t.Errorf("%s is owned by %v, want the Gateway", key, owners)
		}
		if managers := o.GetManagedFields(); managers[0].Manager != mesh.GatewayControllerName || managers[0].Operation != metav1.ManagedFieldsOperationApply {
			t.Errorf("%s: fields are managed by %v", key, managers[0].Manager)
		}
	}

	// Somebody's hand: what istiod says is put right, what it does not say stays.
	a.patch(deployment, `{"spec": {"replicas": 3, "template": {"spec": {"terminationGracePeriodSeconds": 1}}}}`)
	a.await(deployment, "it is put right", func(o *unstructured.Unstructured) string {
		replicas, _, _ := unstructured.NestedInt64(o.Object, "spec", "replicas")
		grace, _, _ := unstructured.NestedInt64(o.Object, "spec", "template", "spec", "terminationGracePeriodSeconds")
		if replicas != 3 || grace != 30 {
			return fmt.Sprintf("%d replicas, %d s of grace; want 3 and 30", replicas, grace)
		}
		return ""
	})
	for _, key := range generatedKeys(shop, "waypoint") {
		old := a.await(key, "it exists", exists).GetUID()
		a.remove(key)
		a.await(key, "it is made again", func(o *unstructured.Unstructured) string {
			if o.GetUID() == old {
				return "it has not gone yet"
			}
			return ""
		})
	}

	// Other names: the old objects go.
	a.apply(gatewayIn(shop, "gateway.istio.io/name-override: other", ""))
	for n, key := range generatedKeys(shop, "other") {
		a.await(key, "it is made", exists)
		a.awaitGone(generatedKeys(shop, "waypoint")[n])
	}
	a.patch(gateway, `{"spec": {"addresses": [{"type": "Hostname", "value": "mine.example.com"}]}}`)
	for _, key := range generatedKeys(shop, "other") {
		a.awaitGone(key)
	}

	// The Gateway takes its objects along.
	a.patch(gateway, `{"spec": {"addresses": null}}`)
	for _, key := range generatedKeys(shop, "other") {
		a.await(key, "it is made", exists)
	}
	a.remove(gateway)
	for _, key := range generatedKeys(shop, "other") {
		a.awaitGone(key)
	}
}

func TestClusterLeavesTheUsersObjectsAlone(t *testing.T) {
	a := connectAPI(t)
	shop := a.namespace("shop", "")
	service := manifest.Key{Kind: "Service", Namespace: shop, Name: "waypoint"}
	a.apply("apiVersion: v1\nkind: Service\nmetadata: {name: waypoint, namespace: " + shop + "}\nspec: {selector: {app: mine}, ports: [{port: 80}]}\n")
	a.start("istiod-1")
	a.apply(gatewayIn(shop, "", ""))
	a.await(generatedKeys(shop, "waypoint")[1], "it is made", exists)
	gateway := manifest.Key{Group: "gateway.networking.k8s.io", Kind: "Gateway", Namespace: shop, Name: "waypoint"}
	a.await(gateway, "its status names the Service", func(o *unstructured.Unstructured) string {
		status, err := json.Marshal(o.Object["status"])
		if err != nil || !strings.Contains(string(status), "Service "+shop+"/waypoint") {
			return string(status)
		}
		return ""
	})
	if o := a.await(service, "it exists", exists); managed(o) {
		t.Error("the user's Service was overwritten")
	}
}

// The API server has nothing to say against what istiod generates, and neither
// does the strictest of the Pod Security Standards.
func TestClusterTakesGeneratedObjectsWithoutWarnings(t *testing.T) {
	a := connectAPI(t)
	shop := a.namespace("shop", "pod-security.kubernetes.io/warn: restricted, pod-security.kubernetes.io/enforce: restricted")
	warnings := &warnings{}
	cfg := rest.CopyConfig(a.rest)
	cfg.WarningHandler = warnings
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	a.client = client
	d := waypointOf(t, "w")
	for _, o := range d.objects {
		body := unstructuredOf(t, o)
		body.SetNamespace(shop)
		key := manifest.KeyOf(body)
		_, err := a.of(key).Apply(t.Context(), key.Name, body, metav1.ApplyOptions{FieldManager: "test", DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	if list := warnings.list(); len(list) > 0 {
		t.Errorf("warnings: %v", list)
	}
}

type warnings struct {
	mu    sync.Mutex
	texts []string
}

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

func (w *warnings) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.texts)
}

func TestClusterCallers(t *testing.T) {
	a := connectAPI(t)
	shop := a.namespace("shop", "istio.io/dataplane-mode: ambient")
	app := a.pod(shop, "cart", "cart-1", "n1", mesh.TokenAudience)
	far := a.pod(shop, "far", "far-1", "n2", mesh.TokenAudience)
	wrong := a.pod(shop, "cart", "cart-2", "n1", "https://kubernetes.default.svc")
	zt := a.pod("istio-system", "ztunnel", "ztunnel-n1", "n1", mesh.TokenAudience)
	gone := a.pod(shop, "cart", "cart-3", "n1", mesh.TokenAudience)
	a.remove(manifest.Key{Kind: "Pod", Namespace: shop, Name: "cart-3"})
	c := a.start("istiod-1")
	id := func(account string) string { return "spiffe://cluster.local/ns/" + shop + "/sa/" + account }

	tests := []struct {
		name, token, impersonate string
		good                     bool
	}{
		{"a pod for itself", app, "", true},
		{"a pod for its neighbour", far, id("cart"), false},
		{"ztunnel for a pod of its node", zt, id("cart"), true},
		{"ztunnel for a pod of another node", zt, id("far"), false},
		{"a token for another audience", wrong, "", false},
		{"a token of a pod that is gone", gone, "", false},
		{"no token of this cluster", strings.Repeat("x", 40), "", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := c.request(test.token, test.impersonate); (err == nil) != test.good {
				t.Errorf("%s: %v; want a certificate: %t\n%s", test.name, err, test.good, c.logged())
			}
		})
	}

	z := c.proxyWith(mesh.NodeTypeZtunnel, "istio-system", "ztunnel-n1", zt)
	z.delta.Subscribe(mesh.TypeAddress)
	z.await("first push", z.has(mesh.TypeAddress, "Kubernetes//Pod/"+shop+"/cart-1"))

	// A pod that is scheduled now gets its certificate as soon as istiod has seen it.
	token := a.pod(shop, "late", "late-1", "n1", mesh.TokenAudience)
	c.eventually("certificate of a new pod", func() string {
		_, err := c.request(zt, id("late"))
		return text(err)
	})
	c.eventually("a new pod's own certificate", func() string {
		_, err := c.request(token, "")
		return text(err)
	})
}

func TestClusterLeaders(t *testing.T) {
	a := connectAPI(t)
	shop := a.namespace("shop", "")
	token := a.pod(shop, "cart", "cart-1", "n1", mesh.TokenAudience)
	first := a.start("istiod-1")
	a.awaitLeader("istiod-1")
	second := a.start("istiod-2")
	if first.root() != second.root() {
		t.Error("the two have different roots")
	}
	for name, c := range map[string]*control{"leader": first, "other": second} {
		if _, err := c.request(token, ""); err != nil {
			t.Errorf("certificate by the %s: %v", name, err)
		}
		if got, _ := get(t, c, "/ready"); got != http.StatusOK {
			t.Errorf("/ready of the %s: %d", name, got)
		}
	}
	if strings.Contains(second.logged(), "this istiod writes") {
		t.Error("the second writes, too")
	}

	started := time.Now()
	first.stop()
	a.awaitLeader("istiod-2")
	t.Logf("another leads %s after the first was told to stop", time.Since(started))
	a.remove(rootKey(shop))
	a.await(rootKey(shop), "the second makes it", exists)
	a.apply(gatewayIn(shop, "", ""))
	for _, key := range generatedKeys(shop, "waypoint") {
		a.await(key, "the second makes it", exists)
	}
	second.stop()
	if holder := a.holder(); holder != "" {
		t.Errorf("the lease is held by %s after the last has ended", holder)
	}
}

// A Gateway that became undeployable while no istiod ran loses its objects.
func TestClusterSweeps(t *testing.T) {
	a := connectAPI(t)
	shop := a.namespace("shop", "")
	c := a.start("istiod-1")
	a.apply(gatewayIn(shop, "", ""))
	for _, key := range generatedKeys(shop, "waypoint") {
		a.await(key, "it is made", exists)
	}
	c.stop()
	a.patch(manifest.Key{Group: "gateway.networking.k8s.io", Kind: "Gateway", Namespace: shop, Name: "waypoint"},
		`{"spec": {"addresses": [{"type": "Hostname", "value": "mine.example.com"}]}}`)
	a.start("istiod-2")
	for _, key := range generatedKeys(shop, "waypoint") {
		a.awaitGone(key)
	}
}

// A waypoint that has been ready is one for the next istiod, although its pods
// are away.
func TestClusterRemembersReadyWaypoints(t *testing.T) {
	a := connectAPI(t)
	shop := a.namespace("shop", "istio.io/use-waypoint: waypoint")
	c := a.start("istiod-1")
	a.apply(gatewayIn(shop, "", ""))
	a.await(generatedKeys(shop, "waypoint")[2], "it is made", exists)
	slice := manifest.Key{Group: "discovery.k8s.io", Kind: "EndpointSlice", Namespace: shop, Name: "waypoint-x"}
	a.apply(fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: waypoint-x, namespace: %s, labels: {kubernetes.io/service-name: waypoint}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.9], conditions: {ready: true}}]
ports: [{name: mesh, port: 15008, protocol: TCP}]
`, shop))
	gateway := manifest.Key{Group: "gateway.networking.k8s.io", Kind: "Gateway", Namespace: shop, Name: "waypoint"}
	hostname := "waypoint." + shop + ".svc.cluster.local"
	a.await(gateway, "it has an address", func(o *unstructured.Unstructured) string {
		addresses, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
		if !strings.Contains(fmt.Sprint(addresses), hostname) {
			return fmt.Sprint(o.Object["status"])
		}
		return ""
	})
	c.stop()
	a.remove(slice)
	next := a.start("istiod-2")
	if w, ok := next.i.views.waypoints.Get(shop + "/waypoint"); !ok || w.Hostname != hostname {
		t.Errorf("the waypoint is %+v, want one that has been ready", w)
	}
}

// get asks an istiod's monitoring port.
func get(t *testing.T, c *control, path string) (status int, body string) {
	t.Helper()
	response, err := http.Get("http://" + c.i.addresses.Monitoring + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}
