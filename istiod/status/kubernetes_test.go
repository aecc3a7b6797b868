package status

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/source"
)

var policiesGVR = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}

func policyKey() manifest.Key {
	return manifest.Key{Group: "security.istio.io", Kind: "AuthorizationPolicy", Namespace: "a", Name: "p"}
}

func policyWith(conditions ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"namespace": "a", "name": "p"},
		"status":   map[string]any{"validationMessages": []any{}, "conditions": conditions},
	}}
}

// fakeStore is a Kubernetes store on a fake, which knows no field managers: that
// is tried on a real API server, kubernetes_cluster_test.go.
func fakeStore(objects ...runtime.Object) (*Kubernetes, *fake.FakeDynamicClient) {
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{policiesGVR: "AuthorizationPolicyList"}, objects...)
	return &Kubernetes{client: client, cfg: KubernetesConfig{
		Objects: source.NewObjects(collection.NewGraph()),
		Resource: func(_, kind string) (schema.GroupVersionResource, bool) {
			return policiesGVR, kind == "AuthorizationPolicy"
		},
	}}, client
}

func policyWanted(reason string) Wanted {
	return Wanted{Writers: map[string]Status{WriterZtunnelPolicy: {
		Generation: 2, Conditions: []metav1.Condition{Condition(ConditionZtunnelAccepted, true, reason, "m")},
	}}}
}

func TestKubernetesUpdatesOnWhatOthersLeft(t *testing.T) {
	other := map[string]any{"type": "Other", "status": "True", "observedGeneration": "1"}
	store, client := fakeStore(policyWith(other, map[string]any{"type": ConditionReconciled, "status": "False"}))
	conflicts := 2
	client.PrependReactor("update", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		if conflicts--; conflicts >= 0 {
			return true, nil, apierrors.NewConflict(policiesGVR.GroupResource(), "p", errors.New("changed"))
		}
		return false, nil, nil
	})
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	if err := store.Write(t.Context(), policyKey(), policyWanted("Accepted"), now); err != nil {
		t.Fatal(err)
	}
	live, err := client.Resource(policiesGVR).Namespace("a").Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"validationMessages": []any{}, "conditions": []any{
		map[string]any{"type": "Other", "status": "True", "observedGeneration": int64(1)},
		map[string]any{
			"type": ConditionZtunnelAccepted, "status": "True", "reason": "Accepted", "message": "m",
			"observedGeneration": int64(2), "lastTransitionTime": "2026-01-02T03:04:05Z",
		},
	}}
	if diff := cmp.Diff(want, live.Object["status"]); diff != "" {
		t.Errorf("status after two conflicts (-want +got):\n%s", diff)
	}
	client.ClearActions()
	if err := store.Write(t.Context(), policyKey(), policyWanted("Accepted"), now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, action := range client.Actions() {
		if action.GetVerb() != "get" {
			t.Errorf("the same status again: %s, want no write", action.GetVerb())
		}
	}
	newer := policyWanted("Other")
	newer.Writers[WriterZtunnelPolicy] = Status{Generation: 1, Conditions: newer.Writers[WriterZtunnelPolicy].Conditions}
	if err := store.Write(t.Context(), policyKey(), newer, now); err != nil {
		t.Fatal(err)
	}
	if again, _ := client.Resource(policiesGVR).Namespace("a").Get(t.Context(), "p", metav1.GetOptions{}); !cmp.Equal(live.Object, again.Object) {
		t.Error("a statement about an older version of the object was written over one about a newer")
	}
}

func TestKubernetesWriteErrors(t *testing.T) {
	store, client := fakeStore(policyWith())
	for _, c := range []struct {
		what       string
		err        error
		unanswered bool
		gone       bool
	}{
		{"gone", apierrors.NewNotFound(policiesGVR.GroupResource(), "p"), false, true},
		{"away", errors.New("connection refused"), true, false},
		{"busy", apierrors.NewTooManyRequestsError("later"), true, false},
		{"broken", apierrors.NewInternalError(errors.New("etcd")), true, false},
		{"forbidden", apierrors.NewForbidden(policiesGVR.GroupResource(), "p", errors.New("no")), false, false},
	} {
		client.PrependReactor("get", "*", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, c.err })
		err := store.Write(t.Context(), policyKey(), policyWanted("Accepted"), time.Time{})
		if (err == nil) != c.gone || errors.Is(err, errUnanswered) != c.unanswered {
			t.Errorf("%s: error %v, want none %v, unanswered %v", c.what, err, c.gone, c.unanswered)
		}
	}
	config := manifest.Key{Kind: "ConfigMap", Namespace: "istio-system", Name: "istio"}
	if err := store.Write(t.Context(), config, policyWanted("x"), time.Time{}); err != nil {
		t.Errorf("a kind without a status: %v, want no error", err)
	}
}

func TestManagersOf(t *testing.T) {
	o := &unstructured.Unstructured{Object: map[string]any{}}
	fields := `{"f:status":{"f:addresses":{},"f:conditions":{"k:{\"type\":\"Accepted\"}":{".":{},"f:reason":{}}},"f:listeners":{".":{},"k:{\"name\":\"mesh\"}":{}}}}`
	o.SetManagedFields([]metav1.ManagedFieldsEntry{
		{Manager: WriterGateway, Operation: metav1.ManagedFieldsOperationApply, Subresource: "status", FieldsV1: metav1.NewFieldsV1(fields)},
		{Manager: WriterFields, Operation: metav1.ManagedFieldsOperationApply, FieldsV1: metav1.NewFieldsV1(fields)},
		{Manager: WriterService, Operation: metav1.ManagedFieldsOperationUpdate, Subresource: "status", FieldsV1: metav1.NewFieldsV1(fields)},
	})
	managers := managersOf(o)
	if len(managers) != 1 {
		t.Fatalf("managers %v, want %s only: it alone has applied a status", managers, WriterGateway)
	}
	host := gatewayv1.HostnameAddressType
	all := body{
		Conditions: []metav1.Condition{{Type: "Accepted"}, {Type: "Programmed"}},
		Listeners:  []gatewayv1.ListenerStatus{{Name: "mesh"}},
		Addresses:  []gatewayv1.GatewayStatusAddress{{Type: &host, Value: "x"}},
	}
	for _, c := range []struct {
		what string
		says func(b *body)
		want bool
	}{
		{"says more than it has applied", func(*body) {}, false},
		{"no condition any more", func(b *body) { b.Conditions = b.Conditions[1:] }, true},
		{"no listener any more", func(b *body) { b.Listeners = nil }, true},
		{"no addresses any more", func(b *body) { b.Addresses = nil }, true},
	} {
		says := all
		c.says(&says)
		if got := managers[WriterGateway].exceeds(says); got != c.want {
			t.Errorf("%s: exceeds %v, want %v", c.what, got, c.want)
		}
	}
}

func TestWriterRunsAgain(t *testing.T) {
	store := newMemory()
	synctest.Test(t, func(t *testing.T) {
		w := NewWriter(Config{Store: Files(store), Log: slog.New(slog.DiscardHandler)})
		term := func() {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- w.Run(ctx) }()
			synctest.Wait()
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run returned %v after its context ended, want nil", err)
			}
		}
		gone := reviews
		gone.Name = "gone"
		w.Set(WriterService, reviews, bound(true))
		w.Set(WriterService, gone, bound(true))
		w.Synced()
		term()
		store.objects[reviews] = nil // another leader, who saw something else
		w.Set(WriterService, gone, Status{})
		term()
		if store.text(t, reviews) == "" {
			t.Error("the second term has not looked at what was wanted already")
		}
		if store.text(t, gone) != "" {
			t.Error("the second term has not removed what was withdrawn between the terms")
		}
	})
}

func TestWriterWaitsForAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &away{until: time.Now().Add(time.Hour)}
		w := NewWriter(Config{Store: store, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		w.Set(WriterService, reviews, bound(true))
		time.Sleep(2 * time.Hour)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if store.written != 1 {
			t.Errorf("%d writes after the store was back, want 1", store.written)
		}
	})
}

// away is a Store that does not answer for a while.
type away struct {
	until   time.Time
	written int
}

func (s *away) Write(context.Context, manifest.Key, Wanted, time.Time) error {
	if time.Now().Before(s.until) {
		return errUnanswered
	}
	s.written++
	return nil
}

func (s *away) Stored() ([]manifest.Key, error) { return nil, nil }

func (s *away) Watch(func(manifest.Key)) {}

// FuzzStored: whatever status and field managers an object has, ours can be put
// beside it.
func FuzzStored(f *testing.F) {
	f.Add([]byte(`{"status":{"conditions":[{"type":"Other","observedGeneration":"1"},7],"parents":[{"controllerName":"x"}]}}`), []byte(`{"f:status":{"f:conditions":{"k:{}":{}}}}`))
	f.Fuzz(func(t *testing.T, data, fields []byte) {
		var o map[string]any
		if json.Unmarshal(data, &o) != nil || o == nil {
			return
		}
		live := &unstructured.Unstructured{Object: o}
		want := policyWanted("Accepted").merge()
		for _, how := range []shape{conditions, parents} {
			if changed, err := want.into(live.DeepCopy(), how, metav1.Time{}); changed && err != nil {
				t.Errorf("changed and failed: %v", err)
			}
		}
		decode(live).newerThan(want)
		managed := &unstructured.Unstructured{Object: map[string]any{}}
		managed.SetManagedFields([]metav1.ManagedFieldsEntry{{
			Manager: "m", Operation: metav1.ManagedFieldsOperationApply, Subresource: "status", FieldsV1: metav1.NewFieldsV1(string(fields)),
		}})
		for _, parts := range managersOf(managed) {
			parts.exceeds(want)
		}
	})
}
