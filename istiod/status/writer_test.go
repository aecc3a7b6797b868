package status

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// memory is a Store that counts writes and can fail.
type memory struct {
	mu      sync.Mutex
	objects map[manifest.Key]*unstructured.Unstructured
	writes  int
	broken  bool
	hold    chan struct{} // Apply waits for it when not nil
}

func newMemory() *memory {
	return &memory{objects: map[manifest.Key]*unstructured.Unstructured{}}
}

func (m *memory) Get(key manifest.Key) (*unstructured.Unstructured, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.objects[key]; o != nil {
		return o.DeepCopy(), nil
	}
	return nil, fs.ErrNotExist
}

func (m *memory) Apply(o *unstructured.Unstructured) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hold != nil {
		<-m.hold
	}
	m.writes++
	if m.broken {
		return errors.New("disk full")
	}
	m.objects[manifest.KeyOf(o)] = o.DeepCopy()
	return nil
}

func (m *memory) Delete(key manifest.Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

func (m *memory) List() ([]*unstructured.Unstructured, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*unstructured.Unstructured
	for _, o := range m.objects {
		out = append(out, o)
	}
	return out, nil
}

func (m *memory) text(t *testing.T, key manifest.Key) string {
	t.Helper()
	o, err := m.Get(key)
	if err != nil {
		return ""
	}
	data, err := yaml.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// run starts a writer in a bubble and stops it at the end.
func run(t *testing.T, store *memory, f func(w *Writer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := NewWriter(Config{Store: Files(store), Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		f(w)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v after its context ended, want nil", err)
		}
	})
}

var reviews = manifest.Key{Kind: "Service", Namespace: "bookinfo", Name: "reviews"}

func bound(is bool) Status {
	reason := model.ReasonWaypointAccepted
	if !is {
		reason = model.ReasonWaypointNotReady
	}
	return WaypointBound(3, model.Binding{Reason: reason, Message: "m"})
}

func TestWriterMergesWriters(t *testing.T) {
	store := newMemory()
	run(t, store, func(w *Writer) {
		w.Set(WriterService, reviews, bound(true))
		w.Set(WriterFields, reviews, Fields(3, []model.Notice{{Object: reviews, Field: "spec.x", Message: "not supported yet"}}))
		synctest.Wait()
		want := `apiVersion: v1
kind: Service
metadata:
  name: reviews
  namespace: bookinfo
status:
  conditions:
  - lastTransitionTime: "2000-01-01T00:00:00Z"
    message: 'spec.x: not supported yet'
    observedGeneration: 3
    reason: UnsupportedFields
    status: "False"
    type: istio.io/FieldsHonoured
  - lastTransitionTime: "2000-01-01T00:00:00Z"
    message: m
    observedGeneration: 3
    reason: WaypointAccepted
    status: "True"
    type: istio.io/WaypointBound
`
		if diff := cmp.Diff(want, store.text(t, reviews)); diff != "" {
			t.Errorf("two writers on one object (-want +got):\n%s", diff)
		}
		w.Set(WriterFields, reviews, Fields(3, nil))
		synctest.Wait()
		o, err := store.Get(reviews)
		if err != nil {
			t.Fatal(err)
		}
		if got := decode(o); len(got.Conditions) != 1 || got.Conditions[0].Type != ConditionWaypointBound {
			t.Errorf("after one writer withdrew: conditions %v, want only %s", got.Conditions, ConditionWaypointBound)
		}
		w.Set(WriterService, reviews, Status{})
		synctest.Wait()
		if got := store.text(t, reviews); got != "" {
			t.Errorf("after the object went its status is still there:\n%s", got)
		}
	})
}

func TestWriterWritesOnlyChanges(t *testing.T) {
	store := newMemory()
	run(t, store, func(w *Writer) {
		times := func() string {
			synctest.Wait()
			o, err := store.Get(reviews)
			if err != nil {
				t.Fatal(err)
			}
			return decode(o).Conditions[0].LastTransitionTime.UTC().Format(time.TimeOnly)
		}
		w.Set(WriterService, reviews, bound(true))
		synctest.Wait()
		time.Sleep(time.Minute)
		w.Set(WriterService, reviews, bound(true))
		if got := times(); store.writes != 1 || got != "00:00:00" {
			t.Errorf("same status again: %d writes, time %s; want 1 and 00:00:00", store.writes, got)
		}
		changed := bound(true)
		changed.Conditions[0].Message = "other words"
		w.Set(WriterService, reviews, changed)
		if got := times(); store.writes != 2 || got != "00:00:00" {
			t.Errorf("other message: %d writes, time %s; want 2 and 00:00:00", store.writes, got)
		}
		w.Set(WriterService, reviews, bound(false))
		if got := times(); store.writes != 3 || got != "00:01:00" {
			t.Errorf("other status: %d writes, time %s; want 3 and 00:01:00", store.writes, got)
		}
	})
}

func TestWriterNeverWaitsForTheStore(t *testing.T) {
	store := newMemory()
	store.hold = make(chan struct{})
	run(t, store, func(w *Writer) {
		for i := range 10_000 {
			w.Set(WriterService, reviews, bound(i%2 == 0))
		}
		w.mu.Lock()
		waiting := 0
		if w.queue != nil {
			waiting = w.queue.Len()
		}
		w.mu.Unlock()
		if waiting > 1 {
			t.Errorf("%d objects wait to be written, want at most 1", waiting)
		}
		close(store.hold)
		synctest.Wait()
		if store.writes > 3 {
			t.Errorf("10000 statements about one object took %d writes, want at most 3", store.writes)
		}
	})
	o, err := store.Get(reviews)
	if err != nil {
		t.Fatal(err)
	}
	if got := decode(o).Conditions[0].Status; got != metav1.ConditionFalse {
		t.Errorf("status %s is stored, want the last one, False", got)
	}
}

func TestWriterTriesAgain(t *testing.T) {
	store := newMemory()
	store.broken = true
	run(t, store, func(w *Writer) {
		w.Set(WriterService, reviews, bound(true))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		store.mu.Lock()
		if store.writes < 2 || store.writes >= maxAttempts {
			t.Errorf("%d attempts after 5 s, want some but not all", store.writes)
		}
		store.broken = false
		store.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if store.text(t, reviews) == "" {
			t.Error("the status was not written after the store worked again")
		}
	})
	store.broken, store.writes = true, 0
	run(t, store, func(w *Writer) {
		w.Set(WriterService, reviews, bound(false))
		time.Sleep(time.Hour)
		synctest.Wait()
		if store.writes != maxAttempts {
			t.Errorf("%d attempts on a broken store, want %d", store.writes, maxAttempts)
		}
	})
}

func TestWriterSweepsAfterRestart(t *testing.T) {
	store := manifest.NewStore(t.TempDir())
	gone := reviews
	gone.Name = "gone"
	start := func(f func(w *Writer)) {
		synctest.Test(t, func(t *testing.T) {
			w := NewWriter(Config{Store: Files(store), Log: slog.New(slog.DiscardHandler)})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- w.Run(ctx) }()
			f(w)
			time.Sleep(time.Second)
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run returned %v after its context ended, want nil", err)
			}
		})
	}
	names := func() []string {
		list, err := store.List()
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, o := range list {
			out = append(out, manifest.KeyOf(o).String())
		}
		slices.Sort(out)
		return out
	}
	start(func(w *Writer) {
		w.Set(WriterService, reviews, bound(true))
		w.Set(WriterService, gone, bound(true))
		w.File("/etc/mesh/a%b~c.yaml", errors.New("a.yaml:3: did not find expected key"))
		w.File("/etc/mesh/old.yaml", errors.New("empty"))
	})
	if got := names(); len(got) != 4 {
		t.Fatalf("stored %q, want 4 objects", got)
	}
	start(func(w *Writer) {
		w.Set(WriterService, reviews, bound(true))
		w.File("/etc/mesh/a%b~c.yaml", errors.New("a.yaml:3: did not find expected key"))
		w.Synced()
	})
	want := []string{"ManifestFile.ambit-mesh.io istio-system/~2Fetc~2Fmesh~2Fa~25b~7Ec.yaml", "Service bookinfo/reviews"}
	if diff := cmp.Diff(want, names()); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	start(func(w *Writer) {
		w.Set(WriterService, reviews, bound(true))
		w.Synced()
		w.File("/etc/mesh/a%b~c.yaml", nil)
	})
	if got := names(); len(got) != 1 {
		t.Errorf("after the file was repaired: %q, want the service only", got)
	}
}

func TestWriterKeepsRouteParents(t *testing.T) {
	store := newMemory()
	key := manifest.Key{Group: gatewayv1.GroupName, Kind: "HTTPRoute", Namespace: "bookinfo", Name: "reviews"}
	parent := func(name string, ok bool) gatewayv1.RouteParentStatus {
		return gatewayv1.RouteParentStatus{
			ParentRef:      gatewayv1.ParentReference{Name: gatewayv1.ObjectName(name)},
			ControllerName: WriterGateway,
			Conditions:     []metav1.Condition{Condition("Accepted", ok, "r", "m")},
		}
	}
	run(t, store, func(w *Writer) {
		w.Set(WriterGateway, key, Status{Generation: 1, Parents: []gatewayv1.RouteParentStatus{parent("a", true), parent("b", true)}})
		synctest.Wait()
		time.Sleep(time.Minute)
		w.Set(WriterGateway, key, Status{Generation: 2, Parents: []gatewayv1.RouteParentStatus{parent("b", true), parent("a", false)}})
		synctest.Wait()
		o, err := store.Get(key)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range decode(o).Parents {
			got = append(got, string(p.ParentRef.Name)+" "+p.Conditions[0].LastTransitionTime.UTC().Format(time.TimeOnly))
		}
		if want := []string{"b 00:00:00", "a 00:01:00"}; !slices.Equal(got, want) {
			t.Errorf("parents with the time of their last change %q, want %q", got, want)
		}
	})
}

func TestFileKeyIsShortAndDistinct(t *testing.T) {
	long := make([]byte, 4000)
	for i := range long {
		long[i] = 'a'
	}
	a, b := FileKey("x"+string(long)), FileKey("y"+string(long))
	if a == b || len(a.Name) > 220 {
		t.Errorf("keys of long paths: equal %v, length %d; want distinct and short", a == b, len(a.Name))
	}
}
