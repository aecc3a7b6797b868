//go:build cluster

package istiod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/install/crds"
	"github.com/ambit-mesh/ambit/istiod/kube"
)

// api is a real API server, with the controllers that collect garbage and make
// service accounts, and without nodes: what AMBIT_TEST_KUBECONFIG names.
type api struct {
	t      *testing.T
	file   string
	rest   *rest.Config
	client dynamic.Interface
	core   corev1client.CoreV1Interface
}

// define is done once: it is most of a test's time.
var define sync.Once

func connectAPI(t *testing.T) *api {
	t.Helper()
	file := os.Getenv("AMBIT_TEST_KUBECONFIG")
	if file == "" {
		t.Fatal("AMBIT_TEST_KUBECONFIG is not set: bin/cluster --name istiod up --control-plane-only, " +
			"then AMBIT_TEST_KUBECONFIG=$(bin/cluster --name istiod kubeconfig)")
	}
	cfg, err := kube.Config(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS = -1
	a := &api{t: t, file: file, rest: cfg}
	if a.client, err = dynamic.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	if a.core, err = corev1client.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	define.Do(a.define)
	a.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n")
	a.file = a.account()
	return a
}

// account returns a kubeconfig of istiod's service account, which may do what the
// chart lets it do and no more.
func (a *api) account() string {
	a.t.Helper()
	chart, err := os.ReadFile("../install/charts/istiod/templates/rbac.yaml")
	if err != nil {
		a.t.Fatal(err)
	}
	template := regexp.MustCompile(`(?m)^.*\{\{-? *include .*$`).ReplaceAllString(string(chart), "")
	a.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: istiod, namespace: istio-system}\n---\n" +
		strings.ReplaceAll(template, "{{ .Release.Namespace }}", "istio-system"))
	response, err := a.core.ServiceAccounts("istio-system").CreateToken(a.t.Context(), "istiod", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		a.t.Fatal(err)
	}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["c"] = &clientcmdapi.Cluster{
		Server: a.rest.Host, CertificateAuthorityData: a.rest.CAData, CertificateAuthority: a.rest.CAFile,
	}
	cfg.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: response.Status.Token}
	cfg.Contexts["c"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	cfg.CurrentContext = "c"
	file := filepath.Join(a.t.TempDir(), "config")
	if err := clientcmd.WriteToFile(*cfg, file); err != nil {
		a.t.Fatal(err)
	}
	return file
}

// define installs the definitions of the kinds that istiod reads.
func (a *api) define() {
	a.t.Helper()
	gateway, err := crds.GatewayAPI()
	if err != nil {
		a.t.Fatal(err)
	}
	for _, text := range [][]byte{gateway, crds.Istio} {
		list, err := manifest.Parse("crds.yaml", text)
		if err != nil {
			a.t.Fatal(err)
		}
		for _, o := range list {
			if o.Key.Kind == "CustomResourceDefinition" {
				a.applyObject(o.Body)
			}
		}
	}
	for _, kind := range []string{"Gateway", "GatewayClass"} {
		a.eventually("kind "+kind, func() string {
			_, err := a.resource("gateway.networking.k8s.io", kind, "").List(a.t.Context(), metav1.ListOptions{Limit: 1})
			return text(err)
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// resource is where objects of a kind are.
func (a *api) resource(group, kind, namespace string) dynamic.ResourceInterface {
	r := schema.GroupVersionResource{Group: group, Version: "v1", Resource: strings.ToLower(kind) + "s"}
	if strings.HasSuffix(kind, "s") {
		r.Resource = strings.ToLower(kind) + "es"
	}
	if namespace == "" {
		return a.client.Resource(r)
	}
	return a.client.Resource(r).Namespace(namespace)
}

func (a *api) of(key manifest.Key) dynamic.ResourceInterface {
	return a.resource(key.Group, key.Kind, key.Namespace)
}

// apply makes objects, and their status if they have one.
func (a *api) apply(manifests string) {
	a.t.Helper()
	list, err := manifest.Parse("test.yaml", []byte(manifests))
	if err != nil {
		a.t.Fatal(err)
	}
	for _, o := range list {
		a.applyObject(o.Body)
	}
}

func (a *api) applyObject(o *unstructured.Unstructured) {
	a.t.Helper()
	options := metav1.ApplyOptions{FieldManager: "test", Force: true}
	key := manifest.KeyOf(o)
	if _, err := a.of(key).Apply(a.t.Context(), key.Name, o, options); err != nil {
		a.t.Fatalf("%s: %v", key, err)
	}
	if _, ok := o.Object["status"]; ok && key.Kind != "CustomResourceDefinition" {
		if _, err := a.of(key).ApplyStatus(a.t.Context(), key.Name, o, options); err != nil {
			a.t.Fatalf("status of %s: %v", key, err)
		}
	}
}

func (a *api) remove(key manifest.Key) {
	a.t.Helper()
	// The test's own context has ended when this cleans up.
	err := a.of(key).Delete(context.WithoutCancel(a.t.Context()), key.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	if err != nil && !apierrors.IsNotFound(err) {
		a.t.Fatalf("%s: %v", key, err)
	}
}

func (a *api) patch(key manifest.Key, change string) {
	a.t.Helper()
	if _, err := a.of(key).Patch(a.t.Context(), key.Name, types.MergePatchType, []byte(change), metav1.PatchOptions{FieldManager: "somebody"}); err != nil {
		a.t.Fatalf("%s: %v", key, err)
	}
}

// namespace makes one that goes with the test.
func (a *api) namespace(name, labels string) string {
	a.t.Helper()
	name += "-" + strings.ToLower(fmt.Sprintf("%x", time.Now().UnixNano()))
	a.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + ", labels: {" + labels + "}}\n")
	a.t.Cleanup(func() { a.remove(manifest.Key{Kind: "Namespace", Name: name}) })
	return name
}

// eventually waits until check returns "".
func (a *api) eventually(what string, check func() string) {
	a.t.Helper()
	(&control{t: a.t}).eventually(what, check)
}

// await waits for an object of which check returns "".
func (a *api) await(key manifest.Key, what string, check func(o *unstructured.Unstructured) string) *unstructured.Unstructured {
	a.t.Helper()
	var out *unstructured.Unstructured
	a.eventually(key.String()+": "+what, func() string {
		o, err := a.of(key).Get(a.t.Context(), key.Name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		out = o
		return check(o)
	})
	return out
}

func exists(*unstructured.Unstructured) string { return "" }

func (a *api) awaitGone(key manifest.Key) {
	a.t.Helper()
	a.eventually(key.String()+" is gone", func() string {
		_, err := a.of(key).Get(a.t.Context(), key.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return ""
		}
		return "it is there: " + text(err)
	})
}

func rootKey(namespace string) manifest.Key {
	return manifest.Key{Kind: "ConfigMap", Namespace: namespace, Name: mesh.RootCertConfig}
}

func rootOf(o *unstructured.Unstructured) string {
	out, _, _ := unstructured.NestedString(o.Object, "data", mesh.RootCertFile)
	return out
}

// start runs an istiod against the API server.
func (a *api) start(pod string) *control {
	a.t.Helper()
	c := &control{t: a.t}
	c.root = func() string { return rootOf(a.await(rootKey("istio-system"), "root certificate", exists)) }
	c.runAs(Config{Kubeconfig: a.file, PodName: pod, ListenAddress: "127.0.0.1"})
	a.t.Cleanup(func() {
		c.stop()
		if text := c.logged(); strings.Contains(text, "forbidden") {
			a.t.Errorf("istiod may not do what it has to, see install/charts/istiod/templates/rbac.yaml:\n%s", text)
		}
	})
	return c
}

var leaseKey = manifest.Key{Group: "coordination.k8s.io", Kind: "Lease", Namespace: "istio-system", Name: leaseName}

func (a *api) holder() string {
	o, err := a.of(leaseKey).Get(a.t.Context(), leaseName, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	holder, _, _ := unstructured.NestedString(o.Object, "spec", "holderIdentity")
	pod, _, _ := strings.Cut(holder, "_")
	return pod
}

func (a *api) awaitLeader(pod string) {
	a.t.Helper()
	a.eventually(pod+" leads", func() string {
		if holder := a.holder(); holder != pod {
			return "the leader is " + holder
		}
		return ""
	})
}

// pod makes a running pod of a service account, as the kubelet that is not there
// would leave it, and returns a token that is bound to it.
func (a *api) pod(namespace, account, name, node, audience string) string {
	a.t.Helper()
	a.apply("apiVersion: v1\nkind: Node\nmetadata: {name: " + node + "}\n")
	a.apply(fmt.Sprintf("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: %s}\n", account, namespace))
	a.apply(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {app: %s}}
spec:
  serviceAccountName: %s
  nodeName: %s
  automountServiceAccountToken: false
  containers: [{name: app, image: app}]
status: {phase: Running, podIP: 10.244.9.9, podIPs: [{ip: 10.244.9.9}]}
`, name, namespace, name, account, node))
	key := manifest.Key{Kind: "Pod", Namespace: namespace, Name: name}
	a.t.Cleanup(func() { a.remove(key) })
	pod := a.await(key, "it exists", exists)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences:      []string{audience},
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: name, UID: pod.GetUID()},
	}}
	response, err := a.core.ServiceAccounts(namespace).CreateToken(a.t.Context(), account, request, metav1.CreateOptions{})
	if err != nil {
		a.t.Fatalf("token of %s: %v", key, err)
	}
	return response.Status.Token
}
