package collection

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The mesh in small: pods carry a label, services select by it, namespaces
// give both a default.
type pod struct{ Name, Namespace, Label string }

type service struct{ Name, Label string }

type namespace struct{ Name, Mode string }

type workload struct {
	Name, Mode string
	Services   []string
}

type summary struct {
	Mode string
	Pods int
}

type world struct {
	g          *Graph
	pods       *Input[pod]
	services   *Input[service]
	namespaces *Input[namespace]
	workloads  *Derived[workload]
	modes      *Derived[workload] // duplicates on purpose: keyed by mode
	summaries  *Derived[summary]
}

func newWorld() *world {
	g := NewGraph()
	w := &world{
		g:          g,
		pods:       NewInput(g, "pods", func(p pod) string { return p.Name }, nil),
		services:   NewInput(g, "services", func(s service) string { return s.Name }, nil),
		namespaces: NewInput(g, "namespaces", func(n namespace) string { return n.Name }, nil),
	}
	byLabel := NewIndex(w.services, "label", func(s service) []string { return []string{s.Label} })
	w.workloads = Derive(g, "workloads", w.pods, Options[workload]{Key: func(w workload) string { return w.Name }},
		func(c *Context, p pod) []workload {
			if p.Label == "none" {
				return nil
			}
			out := workload{Name: p.Name}
			if n, ok := Fetch(c, w.namespaces, p.Namespace); ok {
				out.Mode = n.Mode
			}
			for _, s := range Lookup(c, byLabel, p.Label) {
				out.Services = append(out.Services, s.Name)
			}
			return []workload{out}
		})
	w.modes = Derive(g, "modes", w.workloads, Options[workload]{Key: func(w workload) string { return w.Mode }},
		func(_ *Context, in workload) []workload { return []workload{in} })
	w.summaries = Derive(g, "summaries", w.namespaces, Options[summary]{Key: func(s summary) string { return s.Mode }},
		func(c *Context, n namespace) []summary {
			out := summary{Mode: n.Mode}
			for _, w := range All(c, w.workloads) {
				if w.Mode == n.Mode {
					out.Pods++
				}
			}
			return []summary{out}
		})
	return w
}

// mutate applies one random change; the same seed gives the same change.
func (w *world) mutate(tx *Tx, r *rand.Rand) {
	name := func(kind string, n int) string { return fmt.Sprint(kind, r.IntN(n)) }
	remove := r.IntN(4) == 0
	switch r.IntN(3) {
	case 0:
		p := pod{Name: name("p", 12), Namespace: name("ns", 3), Label: []string{"a", "b", "c", "none"}[r.IntN(4)]}
		if remove {
			w.pods.Delete(tx, p.Name)
		} else {
			w.pods.Set(tx, p)
		}
	case 1:
		s := service{Name: name("s", 5), Label: []string{"a", "b", "c"}[r.IntN(3)]}
		if remove {
			w.services.Delete(tx, s.Name)
		} else {
			w.services.Set(tx, s)
		}
	case 2:
		n := namespace{Name: name("ns", 3), Mode: name("mode", 2)}
		if remove {
			w.namespaces.Delete(tx, n.Name)
		} else {
			w.namespaces.Set(tx, n)
		}
	}
}

// mirror rebuilds a collection from the events of its sink.
func mirror[T any](t *testing.T, from Collection[T]) map[string]T {
	t.Helper()
	out := map[string]T{}
	Sink(from, func(events []Event[T]) {
		for _, e := range events {
			old, had := out[e.Key]
			if had != (e.Old != nil) || had && !cmp.Equal(old, *e.Old) {
				t.Errorf("%s: event for %s says old %v, want %v (present %v)", from.Name(), e.Key, e.Old, old, had)
			}
			if e.New != nil && had && cmp.Equal(old, *e.New) {
				t.Errorf("%s: event for %s without a difference", from.Name(), e.Key)
			}
			if e.New == nil {
				delete(out, e.Key)
			} else {
				out[e.Key] = *e.New
			}
		}
	})
	return out
}

// Incremental updates give what computing everything from the final inputs
// gives, and the events say exactly the difference.
func TestRandomChangesEqualFullRecomputation(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			w := newWorld()
			workloads, modes, summaries := mirror(t, w.workloads), mirror(t, w.modes), mirror(t, w.summaries)
			for range 60 {
				w.g.Update(func(tx *Tx) {
					for range r.IntN(4) {
						w.mutate(tx, r)
					}
				})
				fresh := newWorld()
				fresh.g.Update(func(tx *Tx) {
					for _, p := range w.pods.List() {
						fresh.pods.Set(tx, p)
					}
					for _, s := range w.services.List() {
						fresh.services.Set(tx, s)
					}
					for _, n := range w.namespaces.List() {
						fresh.namespaces.Set(tx, n)
					}
				})
				same(t, "workloads", w.workloads.List(), fresh.workloads.List(), workloads)
				same(t, "modes", w.modes.List(), fresh.modes.List(), modes)
				same(t, "summaries", w.summaries.List(), fresh.summaries.List(), summaries)
			}
		})
	}
}

func same[T any](t *testing.T, name string, got, want []T, fromEvents map[string]T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s differ from a full computation (-want +got):\n%s", name, diff)
	}
	events := make([]T, 0, len(fromEvents))
	for _, key := range slices.Sorted(maps.Keys(fromEvents)) {
		events = append(events, fromEvents[key])
	}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Fatalf("events of %s do not add up (-want +got):\n%s", name, diff)
	}
}

func (w *world) load() {
	w.g.Update(func(tx *Tx) {
		for i := range 1000 {
			w.pods.Set(tx, pod{Name: fmt.Sprintf("p%04d", i), Namespace: fmt.Sprint("ns", i%10), Label: fmt.Sprint("l", i%50)})
		}
		for i := range 50 {
			w.services.Set(tx, service{Name: fmt.Sprint("s", i), Label: fmt.Sprint("l", i)})
		}
		for i := range 10 {
			w.namespaces.Set(tx, namespace{Name: fmt.Sprint("ns", i), Mode: "ambient"})
		}
	})
}

func TestRecomputesOnlyWhatIsConcerned(t *testing.T) {
	tests := []struct {
		change string
		do     func(w *world, tx *Tx)
		want   int // runs of the function of workloads
	}{
		{"one pod changes", func(w *world, tx *Tx) { w.pods.Set(tx, pod{Name: "p0001", Namespace: "ns1", Label: "l2"}) }, 1},
		{"one pod is set to what it was", func(w *world, tx *Tx) { w.pods.Set(tx, pod{Name: "p0001", Namespace: "ns1", Label: "l1"}) }, 0},
		{"one pod goes", func(w *world, tx *Tx) { w.pods.Delete(tx, "p0001") }, 0},
		{"a service moves between labels", func(w *world, tx *Tx) { w.services.Set(tx, service{Name: "s1", Label: "l2"}) }, 40},
		{"a namespace changes", func(w *world, tx *Tx) { w.namespaces.Set(tx, namespace{Name: "ns1", Mode: "none"}) }, 100},
		{"a namespace that nobody is in", func(w *world, tx *Tx) { w.namespaces.Set(tx, namespace{Name: "other"}) }, 0},
		{"a pod and its service in one batch", func(w *world, tx *Tx) {
			w.pods.Set(tx, pod{Name: "p0001", Namespace: "ns1", Label: "l2"})
			w.services.Set(tx, service{Name: "s2", Label: "other"})
		}, 21},
	}
	for _, test := range tests {
		t.Run(test.change, func(t *testing.T) {
			w := newWorld()
			w.load()
			before := w.workloads.Runs()
			w.g.Update(func(tx *Tx) { test.do(w, tx) })
			if got := w.workloads.Runs() - before; got != test.want {
				t.Errorf("%s: the function ran %d times, want %d", test.change, got, test.want)
			}
		})
	}
}

func TestDuplicateKeysAreDecidedByTheSmallestInput(t *testing.T) {
	g := NewGraph()
	in := NewInput(g, "in", func(p pod) string { return p.Name }, nil)
	out := Derive(g, "out", in, Options[pod]{Key: func(p pod) string { return p.Label }},
		func(_ *Context, p pod) []pod { return []pod{p} })
	steps := []struct {
		do   func(tx *Tx)
		want string
	}{
		{func(tx *Tx) { in.Set(tx, pod{Name: "b", Label: "x"}) }, "b"},
		{func(tx *Tx) { in.Set(tx, pod{Name: "c", Label: "x"}) }, "b"},
		{func(tx *Tx) { in.Set(tx, pod{Name: "a", Label: "x"}) }, "a"},
		{func(tx *Tx) { in.Delete(tx, "a") }, "b"},
		{func(tx *Tx) { in.Set(tx, pod{Name: "b", Label: "y"}) }, "c"},
		{func(tx *Tx) { in.Delete(tx, "c") }, ""},
	}
	for i, step := range steps {
		g.Update(step.do)
		if got, _ := out.Get("x"); got.Name != step.want {
			t.Errorf("step %d: owner of the key is %q, want %q", i, got.Name, step.want)
		}
	}
}

func TestSinksRunOncePerBatchBeforeAfterBatch(t *testing.T) {
	w := newWorld()
	var calls []string
	Sink(w.pods, func(events []Event[pod]) { calls = append(calls, fmt.Sprint("pods ", len(events))) })
	Sink(w.workloads, func(events []Event[workload]) { calls = append(calls, fmt.Sprint("workloads ", len(events))) })
	w.g.AfterBatch(func() { calls = append(calls, "after") })
	w.g.Update(func(tx *Tx) {
		w.pods.Set(tx, pod{Name: "a"})
		w.pods.Set(tx, pod{Name: "b"})
		w.pods.Set(tx, pod{Name: "gone"})
		w.pods.Delete(tx, "gone")
	})
	w.g.Update(func(*Tx) {})
	if got, want := strings.Join(calls, ", "), "pods 2, workloads 2, after, after"; got != want {
		t.Errorf("calls: %s, want %s", got, want)
	}
}

func TestPreviousRemembersTheLastOutputs(t *testing.T) {
	g := NewGraph()
	in := NewInput(g, "in", func(n namespace) string { return n.Name }, nil)
	ready := Derive(g, "ready once", in, Options[namespace]{Key: func(n namespace) string { return n.Name }},
		func(c *Context, n namespace) []namespace {
			for _, was := range Previous[namespace](c) {
				if was.Mode == "ready" {
					n.Mode = "ready"
				}
			}
			return []namespace{n}
		})
	for i, step := range []struct{ set, want string }{{"no", "no"}, {"ready", "ready"}, {"no", "ready"}} {
		g.Update(func(tx *Tx) { in.Set(tx, namespace{Name: "x", Mode: step.set}) })
		if got, _ := ready.Get("x"); got.Mode != step.want {
			t.Errorf("step %d: %q, want %q", i, got.Mode, step.want)
		}
	}
}

func TestFetchFromALaterCollectionIsRefused(t *testing.T) {
	g := NewGraph()
	in := NewInput(g, "in", func(n namespace) string { return n.Name }, nil)
	var later *Input[pod]
	_ = Derive(g, "early", in, Options[namespace]{Key: func(n namespace) string { return n.Name }},
		func(c *Context, n namespace) []namespace { Fetch(c, later, "x"); return []namespace{n} })
	later = NewInput(g, "later", func(p pod) string { return p.Name }, nil)
	defer func() {
		if recover() == nil {
			t.Error("a fetch from a later collection was accepted, want a panic: it would be out of date")
		}
	}()
	g.Update(func(tx *Tx) { in.Set(tx, namespace{Name: "x"}) })
}
