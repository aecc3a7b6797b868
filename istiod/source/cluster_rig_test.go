//go:build cluster

package source

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod/collection"
)

// patience is how long a test waits for what the API server should tell.
const patience = 30 * time.Second

// api is a real API server, for these tests alone: they add and remove custom
// resource definitions.
type api struct {
	t       *testing.T
	config  *rest.Config
	dynamic dynamic.Interface
}

func newAPI(t *testing.T) *api {
	t.Helper()
	file := os.Getenv("AMBIT_TEST_KUBECONFIG")
	if file == "" {
		t.Fatal("AMBIT_TEST_KUBECONFIG is not set: bin/cluster --name api up --control-plane-only; " +
			"export AMBIT_TEST_KUBECONFIG=$(bin/cluster --name api kubeconfig); go test -p 1 -tags cluster ./istiod/source ./istiod/status")
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return &api{t: t, config: config, dynamic: client}
}

// at returns where an object is; the tests' kinds have regular plurals.
func (a *api) at(o *unstructured.Unstructured) dynamic.ResourceInterface {
	gvr, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	if o.GetNamespace() == "" {
		return a.dynamic.Resource(gvr)
	}
	return a.dynamic.Resource(gvr).Namespace(o.GetNamespace())
}

func object1(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return o
}

// apply makes an object what text says, and removes it at the end of the test. A
// definition is in force when apply returns, as far as one can see from outside:
// the first requests for its objects may come too early and are repeated.
func (a *api) apply(text string) *unstructured.Unstructured {
	a.t.Helper()
	o := object1(a.t, text)
	var out *unstructured.Unstructured
	a.until("apply "+o.GetKind()+" "+o.GetName(), func() (err error) {
		out, err = a.at(o).Apply(context.Background(), o.GetName(), o, metav1.ApplyOptions{FieldManager: "test", Force: true})
		return err
	})
	a.t.Cleanup(func() { a.remove(o) })
	return out
}

func (a *api) remove(o *unstructured.Unstructured) {
	a.t.Helper()
	a.until("delete "+o.GetKind()+" "+o.GetName(), func() error {
		err := a.at(o).Delete(context.Background(), o.GetName(), metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil && o.GetKind() == "CustomResourceDefinition" {
			return errors.New("not gone yet")
		}
		return err
	})
}

func (a *api) until(what string, f func() error) {
	a.t.Helper()
	last := errors.New("never tried")
	err := wait.PollUntilContextTimeout(context.Background(), 50*time.Millisecond, patience, true, func(context.Context) (bool, error) {
		last = f()
		return last == nil, nil
	})
	if err != nil {
		a.t.Fatalf("%s: %v", what, last)
	}
}

// watch is a source at work.
type watching struct {
	*Kubernetes
	objects *Objects
	loaded  chan struct{}

	mu      sync.Mutex
	reports []Report
}

func (a *api) watch(config *rest.Config) *watching {
	a.t.Helper()
	w := &watching{objects: NewObjects(collection.NewGraph()), loaded: make(chan struct{})}
	k, err := NewKubernetes(KubernetesConfig{
		Objects: w.objects, Config: config, Loaded: func() { close(w.loaded) },
		Report: func(r Report) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.reports = append(w.reports, r)
		},
		Log: slog.New(slog.NewTextHandler(a.t.Output(), nil)),
	})
	if err != nil {
		a.t.Fatal(err)
	}
	w.Kubernetes = k
	ctx, cancel := context.WithCancel(a.t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	a.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			a.t.Errorf("run: %v", err)
		}
	})
	return w
}

func (w *watching) isLoaded() bool {
	select {
	case <-w.loaded:
		return true
	default:
		return false
	}
}

func (w *watching) state(kind string) Watched {
	for _, k := range w.Watched() {
		if k.Kind == kind {
			return k
		}
	}
	return Watched{}
}

// said returns everything reported so far of one sort.
func said[T any](w *watching, of func(Report) []T) (out []T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.reports {
		out = append(out, of(r)...)
	}
	return out
}

// line relays connections to the API server until it is cut.
type line struct {
	t      *testing.T
	target string
	addr   string

	mu       sync.Mutex
	listener net.Listener
	open     map[net.Conn]bool
}

// through returns a configuration that reaches the API server over a line, which
// does not work yet.
func (a *api) through() (*rest.Config, *line) {
	a.t.Helper()
	server, err := url.Parse(a.config.Host)
	if err != nil {
		a.t.Fatal(err)
	}
	l := &line{t: a.t, target: server.Host, open: map[net.Conn]bool{}}
	l.mend()
	l.cut()
	a.t.Cleanup(l.cut)
	config := rest.CopyConfig(a.config)
	config.Host = "https://" + l.addr
	config.ServerName = server.Hostname()
	if config.Insecure {
		config.ServerName = ""
	}
	return config, l
}

func (l *line) mend() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	listener, err := net.Listen("tcp", or(l.addr, "127.0.0.1:0"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.listener, l.addr = listener, listener.Addr().String()
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", l.target)
			if err != nil {
				in.Close()
				continue
			}
			l.mu.Lock()
			l.open[in], l.open[out] = true, true
			l.mu.Unlock()
			go func() { _, _ = io.Copy(in, out); in.Close() }()
			go func() { _, _ = io.Copy(out, in); out.Close() }()
		}
	}()
}

func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listener.Close()
	for c := range l.open {
		c.Close()
	}
	clear(l.open)
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// definition is a custom resource definition without a schema, as older releases
// would have it, that is served in one version.
func definitionText(plural, kind, group, version string) string {
	return `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ` + plural + `.` + group + `}
spec:
  group: ` + group + `
  names: {plural: ` + plural + `, kind: ` + kind + `, singular: ` + singular(kind) + `, listKind: ` + kind + `List}
  scope: Namespaced
  versions:
  - name: ` + version + `
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`
}

func singular(kind string) string {
	_, s := meta.UnsafeGuessKindToResource(schema.GroupVersionKind{Kind: kind})
	return s.Resource
}
