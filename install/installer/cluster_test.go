//go:build cluster

package installer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/install/crds"
)

// These tests need an API server with its controllers, and nothing else:
//
//	AMBIT_TEST_KUBECONFIG=$(bin/cluster kubeconfig) go test -tags cluster -run TestCluster ./install/installer
//
// Where the cluster has no node, a node of their own plays scheduler and
// kubelet: it starts no container and says it did. On other clusters the images
// must be there. The mesh must not be installed.

func testFlags(t *testing.T) *genericclioptions.ConfigFlags {
	t.Helper()
	file := os.Getenv("AMBIT_TEST_KUBECONFIG")
	if file == "" {
		t.Fatal("AMBIT_TEST_KUBECONFIG does not name a kubeconfig")
	}
	flags := genericclioptions.NewConfigFlags(false)
	*flags.KubeConfig, *flags.Namespace = file, system
	return flags.WithWrapConfigFn(func(c *rest.Config) *rest.Config {
		c.QPS, c.WarningHandler = -1, rest.NoWarnings{}
		return c
	})
}

// bed is a cluster to install into, and what an installer says.
type bed struct {
	*Installer
	t   *testing.T
	out *transcript
}

type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *transcript) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *transcript) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func newBed(t *testing.T, change func(*Config)) *bed {
	t.Helper()
	out := &transcript{}
	cfg := Config{
		Cluster: testFlags(t), Namespace: system, Timeout: 2 * time.Minute, GatewayAPI: crds.GatewayAPI, Out: io.MultiWriter(out, t.Output()),
	}
	if change != nil {
		change(&cfg)
	}
	i, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	i.every = 200 * time.Millisecond
	return &bed{Installer: i, t: t, out: out}
}

func (b *bed) install() {
	b.t.Helper()
	if err := b.Install(b.t.Context()); err != nil {
		b.t.Fatalf("install: %v\nit said:\n%s", err, b.out)
	}
}

func (b *bed) uninstall(purge bool) {
	b.t.Helper()
	if err := b.Uninstall(b.t.Context(), UninstallOptions{Purge: purge}); err != nil {
		b.t.Fatalf("uninstall: %v\nit said:\n%s", err, b.out)
	}
}

func (b *bed) said(want string) {
	b.t.Helper()
	if !strings.Contains(b.out.String(), want) {
		b.t.Errorf("it did not say %q, but:\n%s", want, b.out)
	}
}

// everything lists all objects of the cluster but those that come and go by
// themselves.
func (b *bed) everything() []string {
	b.t.Helper()
	b.discovery.Invalidate()
	lists, err := b.discovery.ServerPreferredResources()
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		b.t.Fatal(err)
	}
	var out []string
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || r.Kind == "Event" || r.Name == "componentstatuses" || gv.Group == "metrics.k8s.io" {
				continue
			}
			found, err := b.metadata.Resource(gv.WithResource(r.Name)).List(context.WithoutCancel(b.t.Context()), metav1.ListOptions{})
			if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
				continue
			}
			if err != nil {
				b.t.Fatalf("%s: %v", r.Name, err)
			}
			for _, o := range found.Items {
				out = append(out, r.Kind+" "+o.Namespace+"/"+o.Name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// compare reports what is in one list and not in the other. The namespace of
// the mesh goes with a delay, so do objects of the API server's own.
func (b *bed) compare(before []string) {
	b.t.Helper()
	after := b.everything()
	for _, id := range after {
		if !slices.Contains(before, id) {
			b.t.Errorf("left behind: %s", id)
		}
	}
	for _, id := range before {
		if !slices.Contains(after, id) {
			b.t.Errorf("gone, and was not the mesh's: %s", id)
		}
	}
}

// make creates an object, as istiod or a user would.
func (b *bed) make(manifest string) {
	b.t.Helper()
	b.makeAs("test", manifest)
}

// makeAs creates an object under a field manager's name.
func (b *bed) makeAs(manager, manifest string) {
	b.t.Helper()
	objects, err := decode([]byte(manifest))
	if err != nil {
		b.t.Fatal(err)
	}
	b.mapper.Reset()
	for _, o := range objects {
		client, err := b.client(o)
		if err != nil {
			b.t.Fatal(err)
		}
		if _, err := client.Create(b.t.Context(), o, metav1.CreateOptions{FieldManager: manager}); err != nil {
			b.t.Fatalf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

// asIstiodMakes is what istiod leaves in a cluster, besides its own Lease.
const asIstiodMakes = `
{apiVersion: v1, kind: ConfigMap, metadata: {name: istio-ca-root-cert, namespace: default, labels: {istio.io/config: "true"}}}
---
{apiVersion: v1, kind: Secret, metadata: {name: istio-ca-secret, namespace: istio-system}, type: istio.io/ca-root}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: istiod-leader, namespace: istio-system}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: istio-waypoint}, spec: {controllerName: istio.io/mesh-controller}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: waypoint, namespace: default, labels: {gateway.istio.io/managed: istio.io-mesh-controller}}}
`

func TestClusterInstallTwiceAndUninstall(t *testing.T) {
	b := newBed(t, nil)
	before := b.everything()
	playNode(t, nil)
	b.install()
	b.said("gateway API: v1.7.0 installed")
	b.said("release ambit-ztunnel installed, revision 1")
	b.makeAs(mesh.ServiceIstiod, asIstiodMakes)

	second := newBed(t, func(c *Config) { c.Values = parse(t, "istiod: {podAnnotations: {second: 'yes'}}") })
	second.install()
	second.said("release ambit-istiod upgraded, revision 2")

	refused := newBed(t, nil)
	declined := func([]string) (bool, error) { return false, nil }
	if err := refused.Uninstall(t.Context(), UninstallOptions{Confirm: declined}); !errors.Is(err, ErrDeclined) {
		t.Errorf("declined: %v", err)
	}
	last := newBed(t, nil)
	last.uninstall(true)
	last.said("ambit-cni: ended")
	if text := last.out.String(); strings.Index(text, "ambit-cni: ended") > strings.Index(text, "ztunnel: ended") {
		t.Errorf("ztunnel went before the node agents:\n%s", text)
	}
	nothing := newBed(t, nil)
	nothing.uninstall(true)
	nothing.said("there is nothing to uninstall")
	t.Run("nothing is left", func(t *testing.T) {
		last.t = t
		last.compare(slices.Concat(before, nodeObjects(last.everything())))
	})
}

// nodeObjects are those of the node that the tests play.
func nodeObjects(ids []string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !strings.HasSuffix(id, "/"+nodeName) })
}

func TestClusterWhatIsOthersStays(t *testing.T) {
	b := newBed(t, nil)
	before := b.everything()
	playNode(t, nil)
	b.make(`
{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: mine, namespace: istio-system}}
`)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		purge := newBed(t, nil)
		if err := purge.Uninstall(ctx, UninstallOptions{Purge: true}); err != nil {
			t.Error(err)
		}
		_ = b.kube.CoreV1().Namespaces().Delete(ctx, system, metav1.DeleteOptions{})
		purge.mapper.Reset()
		_ = purge.dynamic.Resource(crdResource).Delete(ctx, "wasmplugins.extensions.istio.io", metav1.DeleteOptions{})
		err := purge.wait(ctx, "cleanup", func(ctx context.Context) (bool, []string, error) {
			_, err := purge.kube.CoreV1().Namespaces().Get(ctx, system, metav1.GetOptions{})
			return apierrors.IsNotFound(err), nil, nil
		})
		if err != nil {
			t.Error(err)
		}
		purge.compare(slices.Concat(before, nodeObjects(purge.everything())))
	})
	b.foreignDefinition()
	b.install()
	b.said("1 of Istio's definitions are there already and are left as they are; they belong to no release")
	b.makeAs(mesh.ServiceIstiod, asIstiodMakes)
	b.make(`{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: users, namespace: default}, spec: {hosts: [a], http: [{route: [{destination: {host: a}}]}]}}`)
	b.uninstall(false)
	left := b.everything()
	for _, id := range []string{
		"Namespace /istio-system", "ConfigMap istio-system/mine", "VirtualService default/users",
		"CustomResourceDefinition /wasmplugins.extensions.istio.io", "CustomResourceDefinition /gateways.gateway.networking.k8s.io",
	} {
		if !slices.Contains(left, id) {
			t.Errorf("gone: %s", id)
		}
	}
	for _, id := range left {
		for _, ours := range []string{"istio-ca", "istiod", "ambit-", "ztunnel", "istio-waypoint", "sh.helm.release"} {
			if strings.Contains(id, ours) && !strings.HasSuffix(id, "/"+nodeName) {
				t.Errorf("left behind: %s", id)
			}
		}
	}
	again := newBed(t, nil)
	again.install() // takes over the definitions that its own release has left
	again.said("release ambit-base installed, revision 1")
	again.said("gateway API: v1.7.0 is there")
}

// foreignDefinition creates one of Istio's definitions as kubectl would.
func (b *bed) foreignDefinition() {
	b.t.Helper()
	objects, err := decode(crds.Istio)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, o := range objects {
		if o.GetName() == "wasmplugins.extensions.istio.io" {
			if _, err := b.dynamic.Resource(crdResource).Create(b.t.Context(), o, metav1.CreateOptions{}); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

func TestClusterFailureSaysWhat(t *testing.T) {
	playNode(t, func(container string) *corev1.ContainerState {
		if container != "discovery" {
			return nil
		}
		return &corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: `Back-off pulling image "ambit-mesh/istiod:1"`}}
	})
	b := newBed(t, func(c *Config) { c.Timeout = 5 * time.Second })
	t.Cleanup(func() {
		purge := newBed(t, nil)
		if err := purge.Uninstall(context.WithoutCancel(t.Context()), UninstallOptions{Purge: true}); err != nil {
			t.Error(err)
		}
	})
	err := b.Install(t.Context())
	if err == nil || !strings.Contains(err.Error(), `container discovery: ImagePullBackOff: Back-off pulling image "ambit-mesh/istiod:1"`) {
		t.Errorf("got %v", err)
	}
	b.said("ImagePullBackOff")
	if strings.Contains(b.out.String(), "ambit-cni") {
		t.Error("it went on without istiod")
	}
}

func TestClusterDryRunChangesNothing(t *testing.T) {
	b := newBed(t, func(c *Config) { c.DryRun = true })
	before := b.everything()
	b.install()
	b.said("release ambit-ztunnel would be installed")
	b.compare(before)
}

func TestClusterForeignObjectIsExplained(t *testing.T) {
	b := newBed(t, nil)
	b.make(`
{apiVersion: v1, kind: Namespace, metadata: {name: istio-system, labels: {app.kubernetes.io/managed-by: ambitctl}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: istiod, namespace: istio-system}}
`)
	playNode(t, nil)
	err := b.Install(t.Context())
	if err == nil || !strings.Contains(err.Error(), "Something else has installed this object") {
		t.Errorf("got %v", err)
	}
	if err := b.kube.CoreV1().ServiceAccounts(system).Delete(t.Context(), "istiod", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.uninstall(true)
}

// An interrupted install is found and finished, and one that somebody else
// works on is left alone.
func TestClusterInterruptedInstall(t *testing.T) {
	playNode(t, nil)
	b := newBed(t, nil)
	b.install()
	t.Cleanup(func() {
		purge := newBed(t, nil)
		if err := purge.Uninstall(context.WithoutCancel(t.Context()), UninstallOptions{Purge: true}); err != nil {
			t.Error(err)
		}
	})
	cfg, err := b.helm(system)
	if err != nil {
		t.Fatal(err)
	}
	for _, age := range []time.Duration{time.Second, time.Hour} {
		last, err := b.last(system, "ambit-istiod")
		if err != nil {
			t.Fatal(err)
		}
		last.Info.Status, last.Info.LastDeployed = "pending-upgrade", time.Now().Add(-age)
		if err := cfg.Releases.Update(last); err != nil {
			t.Fatal(err)
		}
		next := newBed(t, nil)
		err = next.Install(t.Context())
		switch {
		case age < interrupted && (err == nil || !strings.Contains(err.Error(), "somebody else has been working on it")):
			t.Errorf("a release that is being worked on: %v", err)
		case age > interrupted && err != nil:
			t.Errorf("a release whose installer has died: %v", err)
		}
	}
}
