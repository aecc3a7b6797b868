package istiod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/authn/authntest"
	"github.com/ambit-mesh/ambit/istiod/deploy"
)

// memory is an objectStore that fails on demand.
type memory struct {
	mu      sync.Mutex
	objects map[manifest.Key]*unstructured.Unstructured
	calls   []string
	fail    error
}

func newMemory() *memory { return &memory{objects: map[manifest.Key]*unstructured.Unstructured{}} }

func (m *memory) call(name string, key manifest.Key) error {
	m.calls = append(m.calls, name+" "+key.String())
	return m.fail
}

func (m *memory) Apply(_ context.Context, o *unstructured.Unstructured) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := manifest.KeyOf(o)
	if err := m.call("apply", key); err != nil {
		return err
	}
	if there := m.objects[key]; there == nil || !foreign(there, o) {
		m.objects[key] = o
	}
	return nil
}

func (m *memory) Create(_ context.Context, o *unstructured.Unstructured) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := manifest.KeyOf(o)
	if err := m.call("create", key); err != nil || m.objects[key] != nil {
		return err
	}
	m.objects[key] = o
	return nil
}

func (m *memory) Delete(_ context.Context, key manifest.Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return m.call("delete", key)
}

func (m *memory) List(_ context.Context, namespace string, with map[string]string) ([]*unstructured.Unstructured, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*unstructured.Unstructured
	for key, o := range m.objects {
		ours := managed(o) && (namespace == "" || namespace == key.Namespace)
		for name, value := range with {
			ours = ours && o.GetLabels()[name] == value
		}
		if ours {
			out = append(out, o)
		}
	}
	return out, m.fail
}

func (m *memory) has() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for key := range m.objects {
		out = append(out, key.String())
	}
	slices.Sort(out)
	return out
}

func (m *memory) failing(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *memory) taken() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.calls
	m.calls = nil
	return out
}

// world is what a generator in a cluster sees.
type world struct {
	t           *testing.T
	store       *memory
	g           *generator
	mu          sync.Mutex
	deployments map[string]deployment
	namespaces  map[string]bool
	gateways    map[string]bool
	classes     map[string]bool
	roots       map[string]*corev1.ConfigMap
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, store: newMemory(), deployments: map[string]deployment{}, namespaces: map[string]bool{},
		gateways: map[string]bool{}, classes: map[string]bool{}, roots: map[string]*corev1.ConfigMap{},
	}
	w.g = &generator{store: w.store, log: slog.New(slog.DiscardHandler), cluster: true, rootPEM: []byte("root"), state: state{
		deployment: func(name string) (deployment, bool) { return locked(w, w.deployments, name) },
		namespace:  func(name string) bool { v, _ := locked(w, w.namespaces, name); return v },
		gateway:    func(name string) bool { v, _ := locked(w, w.gateways, name); return v },
		class:      func(name string) bool { v, _ := locked(w, w.classes, name); return v },
		root:       func(name string) (*corev1.ConfigMap, bool) { return locked(w, w.roots, name) },
		all: func() []task {
			w.mu.Lock()
			defer w.mu.Unlock()
			out := []task{{taskClass, mesh.WaypointGatewayClass}, {taskSweep, ""}}
			for _, name := range slices.Sorted(maps.Keys(w.namespaces)) {
				out = append(out, task{taskRoot, name})
			}
			for _, name := range slices.Sorted(maps.Keys(w.deployments)) {
				out = append(out, task{taskWaypoint, name})
			}
			return out
		},
	}}
	return w
}

func locked[V any](w *world, m map[string]V, key string) (V, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v, ok := m[key]
	return v, ok
}

// lead runs the generator; the function that it returns ends the term.
func (w *world) lead() func() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.g.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	}
}

// waypointOf is the deployment of the Gateway shop/w, its objects under a name.
func waypointOf(t *testing.T, name string) deployment {
	t.Helper()
	g := &gatewayObject{}
	g.Namespace, g.Name, g.UID = "shop", "w", "uid-w"
	g.Spec.GatewayClassName = mesh.WaypointGatewayClass
	if name != "w" {
		g.Annotations = map[string]string{"gateway.istio.io/name-override": name}
	}
	objects, err := deploy.Waypoint(g, deploy.Options{Image: "i"})
	if err != nil {
		t.Fatal(err)
	}
	return deployment{gateway: "shop/w", objects: []runtime.Object{objects.ServiceAccount, objects.Deployment, objects.Service}}
}

func names3(name string) []string {
	return []string{"Deployment.apps shop/" + name, "Service shop/" + name, "ServiceAccount shop/" + name}
}

func equal(t *testing.T, when string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %s\nwant %s", when, strings.Join(got, ", "), strings.Join(want, ", "))
	}
}

func TestGeneratorFollowsAWaypoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.classes[mesh.WaypointGatewayClass] = true
		w.gateways["shop/w"] = true
		end := w.lead()
		defer end()
		do := func() {
			w.g.note(taskWaypoint, "shop/w")
			synctest.Wait()
		}
		w.deployments["shop/w"] = waypointOf(t, "w")
		do()
		equal(t, "a waypoint came", w.store.has(), names3("w"))

		w.deployments["shop/w"] = waypointOf(t, "other")
		do()
		equal(t, "its objects are renamed", w.store.has(), names3("other"))

		w.deployments["shop/w"] = deployment{gateway: "shop/w", err: errors.New("overlay is broken")}
		do()
		equal(t, "its overlay is broken", w.store.has(), names3("other"))

		delete(w.deployments, "shop/w")
		do()
		equal(t, "it is no longer deployable", w.store.has(), nil)
	})
}

// That the Gateway is not seen is no reason to take its waypoint away: the
// garbage collector knows better.
func TestGeneratorLeavesOrphansToTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.deployments["shop/w"] = waypointOf(t, "w")
		w.gateways["shop/w"] = true
		end := w.lead()
		delete(w.deployments, "shop/w")
		delete(w.gateways, "shop/w")
		w.g.note(taskWaypoint, "shop/w")
		w.g.note(taskSweep, "")
		synctest.Wait()
		end()
		if got := w.store.has(); !slices.Contains(got, "Deployment.apps shop/w") {
			t.Errorf("what is left: %v; the Deployment was deleted", got)
		}

		// In a directory there is no garbage collector.
		w.g.cluster = false
		end = w.lead()
		w.g.note(taskSweep, "")
		synctest.Wait()
		end()
		if got := w.store.has(); slices.Contains(got, "Deployment.apps shop/w") {
			t.Errorf("what is left: %v; want nothing of the waypoint", got)
		}
	})
}

func TestGeneratorSweepsWhatIsNotDeployableAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.classes[mesh.WaypointGatewayClass] = true
		w.gateways["shop/w"] = true
		for _, o := range waypointOf(t, "w").objects {
			if err := w.store.Apply(t.Context(), unstructuredOf(t, o)); err != nil {
				t.Fatal(err)
			}
		}
		defer w.lead()()
		equal(t, "a Gateway that is not deployable", w.store.has(), nil)
	})
}

// Somebody else writes the same object whenever we have: each waits for a while.
func TestGeneratorDoesNotFight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.namespaces["shop"] = true
		w.roots["shop"] = &corev1.ConfigMap{} // theirs, whatever we write
		defer w.lead()()
		w.store.taken()
		for range 10 * 100 {
			w.g.look(taskRoot, "shop")
			time.Sleep(time.Second / 100)
		}
		if got := len(w.store.taken()); got < 9 || got > 11 {
			t.Errorf("%d writes in 10 s, want one a second", got)
		}
	})
}

func unstructuredOf(t *testing.T, o runtime.Object) *unstructured.Unstructured {
	t.Helper()
	body, err := manifest.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestGeneratorLeavesTheUsersObjectAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		theirs := &corev1.Service{APIVersion: "v1", Kind: "Service", Namespace: "shop", Name: "w"}
		theirs.Spec.ClusterIP = "10.0.0.1"
		key := manifest.Key{Kind: "Service", Namespace: "shop", Name: "w"}
		w.store.objects[key] = unstructuredOf(t, theirs)
		w.gateways["shop/w"] = true
		w.deployments["shop/w"] = waypointOf(t, "w")
		defer w.lead()()
		if ip, _, _ := unstructured.NestedString(w.store.objects[key].Object, "spec", "clusterIP"); ip != "10.0.0.1" {
			t.Error("the user's Service was overwritten")
		}
	})
}

func TestRootCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.classes[mesh.WaypointGatewayClass] = true
		for _, name := range []string{"shop", "kube-system"} {
			w.namespaces[name] = true
		}
		defer w.lead()()
		equal(t, "at first", w.store.has(), []string{"ConfigMap shop/istio-ca-root-cert"})

		good := &corev1.ConfigMap{Labels: map[string]string{mesh.LabelConfig: "true"}, Data: map[string]string{mesh.RootCertFile: "root"}}
		check := func(when string, wantWrites int) {
			t.Helper()
			w.store.taken()
			w.g.note(taskRoot, "shop")
			synctest.Wait()
			if got := len(w.store.taken()); got != wantWrites {
				t.Errorf("%s: %d writes, want %d", when, got, wantWrites)
			}
		}
		w.roots["shop"] = good
		check("it is as it should be", 0)
		changed := good.DeepCopy()
		changed.Data[mesh.RootCertFile] = "evil"
		w.roots["shop"] = changed
		check("it was changed", 1)
		unlabelled := good.DeepCopy()
		unlabelled.Labels = nil
		w.roots["shop"] = unlabelled
		check("its label was removed", 1)
		delete(w.roots, "shop")
		check("it was deleted", 1)
		delete(w.namespaces, "shop")
		check("its namespace goes", 0)
	})
}

func TestGatewayClassIsMadeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lead()()
		equal(t, "no class", w.store.has(), []string{"GatewayClass.gateway.networking.k8s.io istio-waypoint"})
		w.store.taken()
		w.classes[mesh.WaypointGatewayClass] = true
		w.lead()()
		if calls := w.store.taken(); len(calls) > 0 {
			t.Errorf("a class that exists: %v, want nothing", calls)
		}
	})
}

// What fails is tried again, later each time, and in the end done as things are
// then.
func TestGeneratorTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.classes[mesh.WaypointGatewayClass] = true
		w.namespaces["shop"] = true
		w.store.failing(errors.New("no answer"))
		start := time.Now()
		end := w.lead()
		defer end()
		time.Sleep(10 * time.Minute)
		if calls := len(w.store.taken()); calls < 10 || calls > 20 {
			t.Errorf("%d attempts in %s, want one a minute in the end", calls, time.Since(start))
		}
		w.store.failing(nil)
		time.Sleep(retryAtMost)
		synctest.Wait()
		equal(t, "in the end", w.store.has(), []string{"ConfigMap shop/istio-ca-root-cert"})
	})
}

// What is noted while another istiod leads costs nothing, and is done by Run as
// part of everything.
func TestGeneratorBeginsATermWithEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.classes[mesh.WaypointGatewayClass] = true
		w.namespaces["a"] = true
		w.g.note(taskRoot, "a")
		if got := w.store.has(); len(got) != 0 {
			t.Errorf("written while not leading: %v", got)
		}
		w.lead()()
		w.namespaces["b"] = true
		w.g.note(taskRoot, "b")
		synctest.Wait()
		equal(t, "after the first term", w.store.has(), []string{"ConfigMap a/istio-ca-root-cert"})
		w.lead()()
		equal(t, "after the second", w.store.has(), []string{"ConfigMap a/istio-ca-root-cert", "ConfigMap b/istio-ca-root-cert"})
	})
}

// racingSecrets are those of an API server on which another istiod is quicker.
type racingSecrets struct {
	secrets map[string]*corev1.Secret
	quicker *corev1.Secret // appears when the first create arrives
}

func (s *racingSecrets) Get(_ context.Context, name string) (*corev1.Secret, error) {
	if secret := s.secrets[name]; secret != nil {
		return secret, nil
	}
	return nil, fmt.Errorf("secret %s: %w", name, fs.ErrNotExist)
}

func (s *racingSecrets) Create(_ context.Context, secret *corev1.Secret) error {
	if s.quicker != nil {
		s.secrets[secret.Name], s.quicker = s.quicker, nil
	}
	if s.secrets[secret.Name] != nil {
		return fmt.Errorf("secret %s: %w", secret.Name, fs.ErrExist)
	}
	s.secrets[secret.Name] = secret
	return nil
}

// All replicas take what the first of them has made.
func TestAuthorityConverges(t *testing.T) {
	i := oddIstiod(t)
	alone := &racingSecrets{secrets: map[string]*corev1.Secret{}}
	i.platform.secrets = alone
	first, err := i.authority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	made := alone.secrets[mesh.CASecretName]
	if made == nil || made.Type != "istio.io/ca-root" {
		t.Fatalf("secret %v, want one of type istio.io/ca-root", made)
	}
	i.platform.secrets = &racingSecrets{secrets: map[string]*corev1.Secret{}, quicker: made}
	second, err := i.authority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if string(first.RootPEM()) != string(second.RootPEM()) {
		t.Error("the slower istiod has another root")
	}
}

func TestPluggedInAuthorityComesFirst(t *testing.T) {
	i := oddIstiod(t)
	alone := &racingSecrets{secrets: map[string]*corev1.Secret{}}
	i.platform.secrets = alone
	own, err := i.authority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other := &racingSecrets{secrets: map[string]*corev1.Secret{}}
	i.platform.secrets = other
	theirs, err := i.authority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	alone.secrets["cacerts"] = other.secrets[mesh.CASecretName]
	i.platform.secrets = alone
	got, err := i.authority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if string(got.RootPEM()) != string(theirs.RootPEM()) || string(got.RootPEM()) == string(own.RootPEM()) {
		t.Error("not the plugged-in root")
	}
	alone.secrets["cacerts"] = &corev1.Secret{Data: map[string][]byte{"ca-cert.pem": []byte("x")}}
	if _, err := i.authority(t.Context()); err == nil || !strings.Contains(err.Error(), "istio-system/cacerts") {
		t.Errorf("a broken plugged-in authority: %v, want an error that names it: to go on with another would change every identity's root", err)
	}
}

// oddIstiod is one that has been wired and does not run.
func oddIstiod(t *testing.T) *Istiod {
	t.Helper()
	c := &control{t: t}
	i, err := New(Config{ConfigDir: t.TempDir(), StateDir: t.TempDir(), JWKSFile: issuerFile(t), JWTIssuer: "i", JWTAudience: "a", Log: slog.New(slog.NewTextHandler(c, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func issuerFile(t *testing.T) string {
	t.Helper()
	return authntest.New(t).File
}
