//go:build cluster

package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/install/crds"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/source"
)

const patience = 30 * time.Second

// rig is a real API server with the definitions of Istio and of the Gateway API,
// a source that reads it and a Writer that writes to it.
type rig struct {
	t       *testing.T
	dynamic dynamic.Interface
	writer  *Writer
	store   *Kubernetes
	objects *source.Objects
}

func newRig(t *testing.T) *rig {
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
	r := &rig{t: t}
	if r.dynamic, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	r.define()
	r.read(config)
	r.write()
	return r
}

// define installs the definitions and removes them at the end.
func (r *rig) define() {
	r.t.Helper()
	module := exec.CommandContext(r.t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api")
	dir, err := module.Output()
	if err != nil {
		r.t.Fatal(err)
	}
	texts := strings.Split(string(crds.Istio), "\n---\n")
	for _, plural := range []string{"gatewayclasses", "gateways", "httproutes"} {
		data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "config/crd/standard/gateway.networking.k8s.io_"+plural+".yaml"))
		if err != nil {
			r.t.Fatal(err)
		}
		texts = append(texts, string(data))
	}
	for _, text := range texts {
		if strings.Contains(text, "\n  name: authorizationpolicies.security.istio.io\n") || strings.Contains(text, "gateway.networking.k8s.io/bundle-version") {
			r.apply(text)
		}
	}
}

// read runs a source until the end of the test, and waits for the kinds.
func (r *rig) read(config *rest.Config) {
	r.t.Helper()
	r.objects = source.NewObjects(collection.NewGraph())
	log := slog.New(slog.NewTextHandler(r.t.Output(), nil))
	from, err := source.NewKubernetes(source.KubernetesConfig{Objects: r.objects, Config: config, Log: log})
	if err != nil {
		r.t.Fatal(err)
	}
	if r.store, err = NewKubernetes(KubernetesConfig{Objects: r.objects, Resource: from.Resource, Config: config}); err != nil {
		r.t.Fatal(err)
	}
	r.writer = NewWriter(Config{Store: r.store, Log: log})
	r.background(from.Run)
	r.until("the kinds", func() error {
		for _, w := range from.Watched() {
			if slices.Contains([]string{"AuthorizationPolicy", "Gateway", "HTTPRoute", "GatewayClass"}, w.Kind) && w.State != source.StateWatching {
				return fmt.Errorf("%+v", w)
			}
		}
		return nil
	})
}

func (r *rig) write() { r.t.Helper(); r.background(r.writer.Run) }

func (r *rig) background(run func(ctx context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	ended := false
	stop = func() {
		cancel()
		if ended {
			return
		}
		ended = true
		if err := <-done; err != nil {
			r.t.Errorf("run: %v", err)
		}
	}
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) at(o *unstructured.Unstructured) dynamic.ResourceInterface {
	gvr, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	if o.GetKind() == "Gateway" {
		gvr.Resource = "gateways" // the guess is gatewaies
	}
	if o.GetNamespace() == "" {
		return r.dynamic.Resource(gvr)
	}
	return r.dynamic.Resource(gvr).Namespace(o.GetNamespace())
}

func (r *rig) apply(text string) *unstructured.Unstructured {
	r.t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		r.t.Fatal(err)
	}
	var out *unstructured.Unstructured
	r.until("apply "+o.GetKind()+" "+o.GetName(), func() (err error) {
		out, err = r.at(o).Apply(context.Background(), o.GetName(), o, metav1.ApplyOptions{FieldManager: "test", Force: true})
		return err
	})
	r.t.Cleanup(func() {
		r.until("delete "+o.GetName(), func() error {
			err := r.at(o).Delete(context.Background(), o.GetName(), metav1.DeleteOptions{})
			switch {
			case apierrors.IsNotFound(err):
				return nil
			case err == nil && o.GetKind() == "CustomResourceDefinition":
				return errors.New("not gone yet")
			}
			return err
		})
	})
	return out
}

func (r *rig) until(what string, f func() error) {
	r.t.Helper()
	last := errors.New("never tried")
	if err := wait.PollUntilContextTimeout(context.Background(), 50*time.Millisecond, patience, true, func(context.Context) (bool, error) {
		last = f()
		return last == nil, nil
	}); err != nil {
		r.t.Fatalf("%s: %v", what, last)
	}
}

// summary is a status without its times: one line per condition and parent.
func (r *rig) summary(o *unstructured.Unstructured) (string, *unstructured.Unstructured) {
	r.t.Helper()
	live, err := r.at(o).Get(context.Background(), o.GetName(), metav1.GetOptions{})
	if err != nil {
		return err.Error(), nil
	}
	b := decode(live)
	var out []string
	line := func(prefix string, c metav1.Condition) {
		out = append(out, fmt.Sprintf("%s%s=%s/%s@%d", prefix, c.Type, c.Status, c.Reason, c.ObservedGeneration))
	}
	for _, c := range b.Conditions {
		line("", c)
	}
	for _, p := range b.Parents {
		for _, c := range p.Conditions {
			line(fmt.Sprintf("%s:%s ", p.ControllerName, p.ParentRef.Name), c)
		}
	}
	for _, l := range b.Listeners {
		out = append(out, "listener "+string(l.Name))
	}
	for _, a := range b.Addresses {
		out = append(out, "address "+a.Value)
	}
	slices.Sort(out)
	return strings.Join(out, "\n"), live
}

func (r *rig) want(what string, o *unstructured.Unstructured, want ...string) {
	r.t.Helper()
	slices.Sort(want)
	r.until(what, func() error {
		if got, _ := r.summary(o); got != strings.Join(want, "\n") {
			return fmt.Errorf("status is\n%s\nwant\n%s", got, strings.Join(want, "\n"))
		}
		return nil
	})
}

func keyOf(o *unstructured.Unstructured) manifest.Key { return manifest.KeyOf(o) }

func TestClusterServiceHasWritersApart(t *testing.T) {
	r := newRig(t)
	o := r.apply(`{apiVersion: v1, kind: Service, metadata: {name: reviews, namespace: default}, spec: {ports: [{port: 80}]}}`)
	r.writer.Set(WriterService, keyOf(o), bound(true))
	r.writer.Set(WriterFields, keyOf(o), Fields(0, []model.Notice{{Object: keyOf(o), Field: "spec.x", Message: "no effect"}}))
	r.want("two writers", o, "istio.io/FieldsHonoured=False/UnsupportedFields@0", "istio.io/WaypointBound=True/WaypointAccepted@3")
	_, live := r.summary(o)
	if managers := managersOf(live); len(managers) != 2 || !managers[WriterService]["conditions"][`{"type":"istio.io/WaypointBound"}`] {
		t.Errorf("field managers of the status %v, want %s and %s, each of its own", managers, WriterService, WriterFields)
	}
	condition := func(name string) metav1.Condition {
		_, live := r.summary(o)
		return *meta0(decode(live).Conditions, name)
	}
	was := condition(ConditionWaypointBound).LastTransitionTime

	// Somebody else's condition stays, and ours comes back where it is changed.
	other := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(`{apiVersion: v1, kind: Service, metadata: {name: reviews, namespace: default}, status: {conditions: [
	  {type: example.com/Other, status: "True", reason: R, message: m, lastTransitionTime: "2026-01-01T00:00:00Z"}]}}`), &other.Object); err != nil {
		t.Fatal(err)
	}
	if _, err := r.at(o).Apply(t.Context(), "reviews", other, metav1.ApplyOptions{FieldManager: "other", Force: true}, "status"); err != nil {
		t.Fatal(err)
	}
	_, live = r.summary(o)
	for _, c := range live.Object["status"].(map[string]any)["conditions"].([]any) {
		if c := c.(map[string]any); c["type"] == ConditionWaypointBound {
			c["status"], c["reason"] = "False", "Meddled"
		}
	}
	if _, err := r.at(o).UpdateStatus(t.Context(), live, metav1.UpdateOptions{FieldManager: "editor"}); err != nil {
		t.Fatal(err)
	}
	r.want("the overwritten condition", o, "example.com/Other=True/R@0",
		"istio.io/FieldsHonoured=False/UnsupportedFields@0", "istio.io/WaypointBound=True/WaypointAccepted@3")

	r.writer.Set(WriterFields, keyOf(o), Status{})
	r.want("a writer withdraws", o, "example.com/Other=True/R@0", "istio.io/WaypointBound=True/WaypointAccepted@3")
	_, live = r.summary(o)
	version := live.GetResourceVersion()
	again := bound(true)
	r.writer.Set(WriterService, keyOf(o), again)
	again.Conditions = slices.Clone(again.Conditions)
	again.Conditions[0].Message = "other words"
	r.writer.Set(WriterService, keyOf(o), again)
	r.until("another message", func() error {
		if got := condition(ConditionWaypointBound).Message; got != "other words" {
			return fmt.Errorf("message %q", got)
		}
		return nil
	})
	if _, live := r.summary(o); live.GetResourceVersion() == version {
		t.Error("nothing was written")
	}
	if now := condition(ConditionWaypointBound).LastTransitionTime; now.Before(&was) {
		t.Errorf("lastTransitionTime %v, was %v", now, was)
	}
	r.writer.Set(WriterService, keyOf(o), Status{})
	r.want("nobody speaks", o, "example.com/Other=True/R@0")
}

func meta0(list []metav1.Condition, name string) *metav1.Condition {
	if c := meta.FindStatusCondition(list, name); c != nil {
		return c
	}
	return &metav1.Condition{}
}

func routeStatus(generation int64, accepted bool, parents ...string) Status {
	s := Status{Generation: generation}
	for _, name := range parents {
		group, kind := gatewayv1.Group(""), gatewayv1.Kind("Service")
		s.Parents = append(s.Parents, gatewayv1.RouteParentStatus{
			ParentRef:      gatewayv1.ParentReference{Group: &group, Kind: &kind, Name: gatewayv1.ObjectName(name)},
			ControllerName: mesh.GatewayControllerName,
			Conditions:     []metav1.Condition{Condition("Accepted", accepted, "Accepted", "m")},
		})
	}
	return s
}

func TestClusterRouteKeepsParentsOfOthers(t *testing.T) {
	r := newRig(t)
	o := r.apply(`{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: reviews, namespace: default}, spec: {parentRefs: [{group: "", kind: Service, name: a}]}}`)
	theirs := o.DeepCopy()
	text := `[{"parentRef":{"name":"g"},"controllerName":"example.com/c","conditions":[{"type":"Accepted","status":"True","reason":"Accepted","message":"","lastTransitionTime":"2026-01-01T00:00:00Z","observedGeneration":1}]}]`
	var list []any
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	theirs.Object["status"] = map[string]any{"parents": list}
	if _, err := r.at(o).UpdateStatus(t.Context(), theirs, metav1.UpdateOptions{FieldManager: "other"}); err != nil {
		t.Fatal(err)
	}
	const other = "example.com/c:g Accepted=True/Accepted@1"
	r.writer.Set(WriterGateway, keyOf(o), routeStatus(1, true, "a", "b"))
	r.want("both controllers", o, other, "istio.io/gateway-controller:a Accepted=True/Accepted@1", "istio.io/gateway-controller:b Accepted=True/Accepted@1")
	r.writer.Set(WriterGateway, keyOf(o), routeStatus(2, false, "b"))
	r.want("one of ours went", o, other, "istio.io/gateway-controller:b Accepted=False/Accepted@2")

	// The other controller replaces the list, as some do.
	live, err := r.at(o).Get(t.Context(), o.GetName(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	live.Object["status"] = map[string]any{"parents": list}
	if _, err := r.at(o).UpdateStatus(t.Context(), live, metav1.UpdateOptions{FieldManager: "other"}); err != nil {
		t.Fatal(err)
	}
	r.want("ours comes back", o, other, "istio.io/gateway-controller:b Accepted=False/Accepted@2")
	r.writer.Set(WriterGateway, keyOf(o), Status{})
	r.want("we withdraw", o, other)
}

func TestClusterIstioConditions(t *testing.T) {
	r := newRig(t)
	o := r.apply(`{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: default}, spec: {action: DENY}}`)
	live := o.DeepCopy()
	live.Object["status"] = map[string]any{"observedGeneration": "7", "conditions": []any{map[string]any{
		"type": "Other", "status": "True", "observedGeneration": "1", "lastTransitionTime": "2026-01-01T00:00:00Z",
	}}}
	if _, err := r.at(o).UpdateStatus(t.Context(), live, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	says := func(reason string) Status {
		return Status{Generation: o.GetGeneration(), Conditions: []metav1.Condition{Condition(ConditionZtunnelAccepted, true, reason, "m")}}
	}
	r.writer.Set(WriterZtunnelPolicy, keyOf(o), says("Accepted"))
	r.writer.Set(WriterValidation, keyOf(o), Invalid(1, "bad"))
	r.want("ours beside theirs", o, "Other=True/@1", "Reconciled=False/Invalid@1", "ZtunnelAccepted=True/Accepted@1")
	r.writer.Set(WriterValidation, keyOf(o), Status{})
	r.writer.Set(WriterZtunnelPolicy, keyOf(o), says("UnsupportedValue"))
	r.want("one withdraws", o, "Other=True/@1", "ZtunnelAccepted=True/UnsupportedValue@1")
	_, live = r.summary(o)
	if got := live.Object["status"].(map[string]any)["observedGeneration"]; got != "7" {
		t.Errorf("the rest of the status: observedGeneration %v, want 7", got)
	}
}

func TestClusterGatewayAndClass(t *testing.T) {
	r := newRig(t)
	class := r.apply(`{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: istio-waypoint}, spec: {controllerName: istio.io/mesh-controller}}`)
	g := r.apply(`{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint, namespace: default}, spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}`)
	r.want("before", g, "Accepted=Unknown/Pending@0", "Programmed=Unknown/Pending@0")
	host, ip := gatewayv1.HostnameAddressType, gatewayv1.IPAddressType
	s := gatewayv1.GatewayStatus{
		Conditions: []metav1.Condition{Condition("Accepted", true, "Accepted", "m"), Condition("Programmed", true, "Programmed", "m")},
		Listeners:  []gatewayv1.ListenerStatus{{Name: "mesh", SupportedKinds: []gatewayv1.RouteGroupKind{}, Conditions: []metav1.Condition{Condition("Accepted", true, "Accepted", "m")}}},
		Addresses:  []gatewayv1.GatewayStatusAddress{{Type: &ip, Value: "10.96.0.9"}, {Type: &host, Value: "waypoint.default.svc.cluster.local"}},
	}
	r.writer.Set(WriterGateway, keyOf(g), Gateway(1, s))
	r.want("the Gateway", g, "Accepted=True/Accepted@1", "Programmed=True/Programmed@1", "listener mesh", "address 10.96.0.9", "address waypoint.default.svc.cluster.local")
	r.until("the source reads it", func() error {
		o, _ := r.objects.Gateways.Get("default/waypoint")
		if o == nil || len(o.Status.Addresses) != 2 {
			return errors.New("no addresses")
		}
		return nil
	})
	if there, _ := r.store.there(keyOf(g)); !there.satisfies(r.writer.get(keyOf(g))) {
		t.Errorf("what is there does not satisfy what is wanted: %+v", there)
	}
	features := []gatewayv1.SupportedFeature{{Name: "HTTPRoute"}, {Name: "Mesh"}}
	r.writer.Set(WriterGateway, keyOf(class), GatewayClass(1, gatewayv1.GatewayClassStatus{Conditions: []metav1.Condition{Condition("Accepted", true, "Accepted", "m")}, SupportedFeatures: features}))
	r.until("the class", func() error {
		o, _ := r.objects.GatewayClasses.Get("istio-waypoint")
		if o == nil || !slices.Equal(o.Status.SupportedFeatures, features) {
			return fmt.Errorf("%+v", o)
		}
		return nil
	})
}

func TestClusterOnlyTheLeaderWrites(t *testing.T) {
	r := newRig(t)
	o := r.apply(`{apiVersion: v1, kind: Service, metadata: {name: a, namespace: default}, spec: {ports: [{port: 80}]}}`)
	stale := r.apply(`{apiVersion: v1, kind: Service, metadata: {name: stale, namespace: default}, spec: {ports: [{port: 80}]}}`)
	first := NewWriter(Config{Store: quiet{r.store}, Log: slog.New(slog.DiscardHandler)})
	first.Set(WriterService, keyOf(o), bound(false))
	first.Set(WriterService, keyOf(stale), bound(true))
	stop := r.background(first.Run)
	r.want("the first leader", stale, "istio.io/WaypointBound=True/WaypointAccepted@3")
	r.want("the first leader", o, "istio.io/WaypointBound=False/WaypointIsNotReady@3")
	stop()
	first.Set(WriterService, keyOf(o), bound(true)) // a follower by now

	second := NewWriter(Config{Store: quiet{r.store}, Log: slog.New(slog.DiscardHandler)})
	second.Set(WriterService, keyOf(o), bound(true))
	second.Synced()
	r.until("the source reads it", func() error {
		if s, _ := r.objects.Services.Get("default/stale"); s == nil || len(s.Status.Conditions) == 0 {
			return errors.New("no condition")
		}
		return nil
	})
	stop = r.background(second.Run)
	r.want("the second leader", o, "istio.io/WaypointBound=True/WaypointAccepted@3")
	r.want("it sweeps", stale)
	stop()

	first.Set(WriterService, keyOf(o), bound(false))
	r.background(first.Run)
	r.want("the first leads again", o, "istio.io/WaypointBound=False/WaypointIsNotReady@3")
}

// quiet is a Store of a second Writer: sinks are registered before the first
// batch.
type quiet struct{ *Kubernetes }

func (quiet) Watch(func(manifest.Key)) {}
