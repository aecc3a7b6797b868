package kube

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

const patience = 20 * time.Second

func TestConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://10.0.0.1:6443"}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Config(file)
	if err != nil || cfg.Host != "https://10.0.0.1:6443" || cfg.UserAgent != "istiod" || cfg.QPS < 50 {
		t.Errorf("Config = %+v, %v; want that of the file, as istiod", cfg, err)
	}
	t.Setenv("KUBECONFIG", file)
	if _, err := Config(""); err == nil || !strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("Config without a file, outside of a cluster: %v; want what to do, and no use of KUBECONFIG", err)
	}
	if _, err := Config(file + "x"); err == nil || !strings.Contains(err.Error(), file+"x") {
		t.Errorf("Config of a file that is not there: %v; want its name", err)
	}
}

const ours = "made-by-us"

func newObjects(t *testing.T, a *apiServer) *Objects {
	t.Helper()
	o, err := NewObjects(a.config(), ObjectsConfig{
		FieldManager: "m", Labels: map[string]string{ours: "yes"},
		Foreign: func(existing, _ metav1.Object) bool { return existing.GetLabels()[ours] == "" },
		Kinds:   []schema.GroupKind{{Kind: "Service"}, {Group: "apps", Kind: "Deployment"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func service(name string, labels object) object {
	return object{"apiVersion": "v1", "kind": "Service", "metadata": object{"namespace": "shop", "name": name, "labels": labels}}
}

const path = "/api/v1/namespaces/shop/services"

func TestApply(t *testing.T) {
	a := newAPIServer(t)
	o := newObjects(t, a)
	wanted := &unstructured.Unstructured{Object: service("w", object{ours: "yes", "n": "1"})}
	apply := func() {
		t.Helper()
		if err := o.Apply(t.Context(), wanted.DeepCopy()); err != nil {
			t.Fatal(err)
		}
	}
	apply()
	if a.get(path+"/w") == nil {
		t.Fatal("an absent object is not made")
	}

	mine := service("w", object{ours: "yes", "n": "2"})
	meta(mine)["uid"] = "u1"
	a.set(path+"/w", mine)
	apply()
	if labels := meta(a.get(path + "/w"))["labels"].(object); labels["n"] != "1" {
		t.Errorf("labels %v: what was changed is not put right", labels)
	}

	a.set(path+"/w", service("w", object{"n": "3"}))
	apply()
	if labels := meta(a.get(path + "/w"))["labels"].(object); labels["n"] != "3" {
		t.Errorf("labels %v: the user's object was overwritten", labels)
	}
}

// Between looking and writing, the user has put an object of their own there.
func TestApplyDoesNotOverwriteAnotherLife(t *testing.T) {
	a := newAPIServer(t)
	o := newObjects(t, a)
	mine := service("w", object{ours: "yes"})
	meta(mine)["uid"] = "u1"
	a.set(path+"/w", mine)
	a.refuseWith(func(method, _ string) *metav1.Status {
		if method == http.MethodPatch {
			theirs := service("w", object{})
			meta(theirs)["uid"] = "u2"
			a.store(path+"/w", theirs)
		}
		return nil
	})
	if err := o.Apply(t.Context(), &unstructured.Unstructured{Object: service("w", object{ours: "yes"})}); err == nil {
		t.Error("no error")
	}
	if meta(a.get(path + "/w"))["uid"] != "u2" {
		t.Error("the user's object was overwritten")
	}
}

func TestApplyIntoADyingNamespaceIsNoError(t *testing.T) {
	a := newAPIServer(t)
	o := newObjects(t, a)
	a.refuseWith(func(method, _ string) *metav1.Status {
		if method != http.MethodPatch {
			return nil
		}
		s := refusal(http.StatusForbidden, metav1.StatusReasonForbidden)
		s.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}}
		return s
	})
	wanted := &unstructured.Unstructured{Object: service("w", object{ours: "yes"})}
	if err := o.Apply(t.Context(), wanted); err != nil {
		t.Errorf("apply: %v", err)
	}
	a.refuseWith(func(string, string) *metav1.Status {
		return refusal(http.StatusForbidden, metav1.StatusReasonForbidden)
	})
	if err := o.Apply(t.Context(), wanted); err == nil || !strings.Contains(err.Error(), "shop") {
		t.Errorf("apply that is forbidden for another reason: %v, want an error that names the object", err)
	}
}

func TestCreateDeleteList(t *testing.T) {
	a := newAPIServer(t)
	o := newObjects(t, a)
	class := &unstructured.Unstructured{Object: object{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": object{"name": "c"}, "spec": object{"n": "1"},
	}}
	const classes = "/apis/gateway.networking.k8s.io/v1/gatewayclasses"
	for range 2 {
		if err := o.Create(t.Context(), class); err != nil {
			t.Fatal(err)
		}
		a.get(classes + "/c")["spec"] = object{"n": "2"}
	}
	if spec := a.get(classes + "/c")["spec"].(object); spec["n"] != "2" {
		t.Error("an object that exists was overwritten")
	}

	a.set(path+"/w", service("w", object{ours: "yes"}))
	list, err := o.List(t.Context(), "shop", nil)
	if err != nil || len(list) != 1 || list[0].GetName() != "w" {
		t.Errorf("List = %v, %v; want w", list, err)
	}
	key := manifest.Key{Kind: "Service", Namespace: "shop", Name: "w"}
	for range 2 { // what is gone may be deleted
		if err := o.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Delete(t.Context(), manifest.Key{Kind: "Node", Name: "n"}); err == nil {
		t.Error("an object of a kind that istiod does not make is deleted, want an error")
	}
}

func TestSecrets(t *testing.T) {
	a := newAPIServer(t)
	s, err := NewSecrets(a.config(), "istio-system", quiet())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "ca"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get of none: %v, want fs.ErrNotExist", err)
	}
	secret := &corev1.Secret{APIVersion: "v1", Kind: "Secret", Name: "ca", Namespace: "istio-system", Data: map[string][]byte{"k": []byte("v")}}
	if err := s.Create(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), secret); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create: %v, want fs.ErrExist", err)
	}
	if got, err := s.Get(t.Context(), "ca"); err != nil || string(got.Data["k"]) != "v" {
		t.Errorf("Get = %v, %v", got, err)
	}
	// Until the server answers, istiod asks again; it ends with its context.
	a.refuseWith(func(string, string) *metav1.Status {
		return refusal(http.StatusForbidden, metav1.StatusReasonForbidden)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Get(ctx, "ca"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get while it is forbidden: %v, want to wait", err)
	}
}

// replica is one istiod that wants to lead.
type replica struct {
	leading atomic.Bool
	stop    context.CancelFunc
	done    chan error
}

func lead(t *testing.T, a *apiServer, name string, others ...*replica) *replica {
	t.Helper()
	lease, err := NewLease(a.config(), LeaseConfig{
		Namespace: "istio-system", Name: "l", Identity: name, Log: quiet(), Lasts: 2 * time.Second, RenewWithin: time.Second, Retry: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	r := &replica{stop: stop, done: make(chan error, 1)}
	go func() {
		r.done <- lease.Lead(ctx, func(ctx context.Context) error {
			for _, other := range others {
				if other.leading.Load() {
					t.Errorf("%s leads beside another", name)
				}
			}
			r.leading.Store(true)
			<-ctx.Done()
			r.leading.Store(false)
			return nil
		})
	}()
	return r
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	deadline := time.After(2 * patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !check() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestLeaseIsGivenBack(t *testing.T) {
	a := newAPIServer(t)
	first := lead(t, a, "first")
	eventually(t, "the first leads", first.leading.Load)
	second := lead(t, a, "second", first)
	eventually(t, "the second has asked", func() bool {
		return len(slices.DeleteFunc(slices.Clone(a.called()), func(c string) bool { return !strings.HasPrefix(c, "GET") })) >= 2
	})
	if second.leading.Load() {
		t.Error("the second leads, too")
	}
	first.stop()
	if err := <-first.done; err != nil || first.leading.Load() {
		t.Errorf("the first ended with %v, its work runs: %t", err, first.leading.Load())
	}
	given := a.get(leasePath)["spec"].(object)
	if given["holderIdentity"] != "" {
		t.Errorf("the lease is held by %v after its end", given["holderIdentity"])
	}
	eventually(t, "the second leads", second.leading.Load)
	second.stop()
	if err := <-second.done; err != nil {
		t.Error(err)
	}
}

const leasePath = "/apis/coordination.k8s.io/v1/namespaces/istio-system/leases/l"

// Somebody takes the lease away: the work ends, and begins again when the lease
// is free.
func TestLostLeaseIsWonBack(t *testing.T) {
	a := newAPIServer(t)
	r := lead(t, a, "first")
	eventually(t, "it leads", r.leading.Load)
	a.refuseWith(func(method, path string) *metav1.Status {
		if method == http.MethodPut && path == leasePath {
			return refusal(http.StatusInternalServerError, metav1.StatusReasonInternalError)
		}
		return nil
	})
	eventually(t, "it has lost the lease", func() bool { return !r.leading.Load() })
	a.refuseWith(nil)
	eventually(t, "it leads again", r.leading.Load)
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

// The API server does what the leader asks and does not answer it: whoever else
// gets the Lease, and however, never leads beside it.
func TestTwoNeverLead(t *testing.T) {
	for name, hangs := range map[string]func(r *http.Request) bool{
		"nothing of it is answered": func(*http.Request) bool { return true },
		"no write is answered":      func(r *http.Request) bool { return r.Method == http.MethodPut },
	} {
		synctest.Test(t, func(t *testing.T) {
			var leading, taken atomic.Int32
			var cut atomic.Bool
			a := &apiServer{t: t, objects: map[string]object{}}
			ctx, stop := context.WithCancel(t.Context())
			var ended sync.WaitGroup
			for _, replica := range []string{"first", "second"} {
				config := direct{a, func(r *http.Request) bool { return replica == "first" && cut.Load() && hangs(r) }}.config()
				lease, err := NewLease(config, LeaseConfig{Namespace: "istio-system", Name: "l", Identity: replica, Log: quiet()})
				if err != nil {
					t.Fatal(err)
				}
				ended.Go(func() {
					err := lease.Lead(ctx, func(ctx context.Context) error {
						if leading.Add(1) > 1 {
							t.Errorf("%s: %s leads beside another", name, replica)
						}
						defer leading.Add(-1)
						if replica == "second" {
							taken.Add(1)
						}
						<-ctx.Done()
						// What was under way when the work was told to end.
						time.Sleep(leaseLasts - renewWithin - time.Second)
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				})
				time.Sleep(5 * time.Second)
			}
			cut.Store(true)
			time.Sleep(time.Minute)
			if taken.Load() != 1 && name == "nothing of it is answered" {
				t.Errorf("%s: the second has led %d times, want once", name, taken.Load())
			}
			cut.Store(false)
			stop()
			ended.Wait()
		})
	}
}

func TestErrorOfTheWorkEndsLeading(t *testing.T) {
	a := newAPIServer(t)
	lease, err := NewLease(a.config(), LeaseConfig{Namespace: "istio-system", Name: "l", Identity: "x", Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if err := lease.Lead(t.Context(), func(context.Context) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("Lead = %v, want the error of the work", err)
	}
	if _, held := maps.Clone(a.get(leasePath)["spec"].(object))["holderIdentity"]; held && a.get(leasePath)["spec"].(object)["holderIdentity"] != "" {
		t.Error("the lease is still held")
	}
}
