// Package collection derives sets of values from other sets and keeps them up
// to date. A program states once, as pure functions, how each collection
// follows from others; when inputs change, only the items whose dependencies
// changed are computed again, and only items that came out different travel on.
//
// A Graph owns its collections. Graph.Update changes inputs and brings
// everything derived up to date before it returns: synchronously, in the order
// in which the collections were made, which is an order of dependency because a
// function may fetch from older collections only. So each item is computed at
// most once per batch, and never from a mixture of old and new (no glitches).
// Then the sinks run, in order of registration, then the functions of
// AfterBatch.
//
// It deliberately starts no goroutine, knows no Kubernetes and no errors: an
// item that cannot be computed is no item. One lock per Graph: Update excludes
// everything else; Get and List may be called from any goroutine outside of
// Update. Functions given to Derive and to Sink run under the lock and must not
// call them: they have Fetch, Lookup and All, which also record what the item
// depends on.
//
// The words are those of Istio's krt; see DESIGN.md §4 for what istiod makes
// of it.
package collection

import (
	"maps"
	"reflect"
	"slices"
	"sync"
)

// Graph is a set of collections that change together.
type Graph struct {
	mu    sync.RWMutex
	nodes []node // in order of creation, which is an order of dependency
	sinks []func()
	after []func()
}

// node is the side of a collection that the Graph drives.
type node interface {
	// step brings the collection up to date with the events of older ones.
	step()
	// settle forgets the events of the batch.
	settle()
}

// NewGraph returns an empty Graph.
func NewGraph() *Graph { return &Graph{} }

// Tx is the right to change inputs, valid during the function that Update
// calls.
type Tx struct{ g *Graph }

// Update runs f, which changes inputs, as one batch. It returns when all
// derived collections are up to date and all sinks have seen the difference.
func (g *Graph) Update(f func(tx *Tx)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(&Tx{g: g})
	for _, n := range g.nodes {
		n.step()
	}
	for _, sink := range g.sinks {
		sink()
	}
	for _, n := range g.nodes {
		n.settle()
	}
	for _, f := range g.after {
		f()
	}
}

// AfterBatch registers a function that runs at the end of each Update, after
// all sinks, also when nothing came out different.
func (g *Graph) AfterBatch(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.after = append(g.after, f)
}

// Collection is a set of items, each under its own key.
type Collection[T any] interface {
	Name() string
	// Get and List must not be called inside Update.
	Get(key string) (T, bool)
	List() []T // sorted by key
	Len() int

	base() *store[T]
}

// Event is the difference of one item between two batches. Old is nil for a
// new item, New for one that is gone.
type Event[T any] struct {
	Key      string
	Old, New *T
}

// Sink registers a function that is given the changes of each batch, sorted by
// key. It is not called when there are none. Items that exist already are
// not reported: register sinks before the first Update.
func Sink[T any](from Collection[T], f func([]Event[T])) {
	s := from.base()
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.g.sinks = append(s.g.sinks, func() {
		if events := s.events(); len(events) > 0 {
			f(events)
		}
	})
}

// store holds the items of a collection and what changed in this batch.
type store[T any] struct {
	g     *Graph
	order int // index in g.nodes
	name  string
	equal func(a, b T) bool

	items   map[string]T
	before  map[string]*T // items touched in this batch, as they were; nil: absent
	diff    []Event[T]    // memory of events; nil when it must be made
	indexes []*Index[T]
}

// register makes room in the graph for the collection that n returns.
func register[T any](g *Graph, name string, equal func(a, b T) bool, n func(*store[T]) node) *store[T] {
	if equal == nil {
		equal = func(a, b T) bool { return reflect.DeepEqual(a, b) }
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &store[T]{
		g: g, order: len(g.nodes), name: name, equal: equal,
		items: map[string]T{}, before: map[string]*T{},
	}
	g.nodes = append(g.nodes, n(s))
	return s
}

// Name returns the name that the collection was made with, for dumps.
func (s *store[T]) Name() string { return s.name }

// Get returns the item under key.
func (s *store[T]) Get(key string) (T, bool) {
	s.g.mu.RLock()
	defer s.g.mu.RUnlock()
	item, ok := s.items[key]
	return item, ok
}

// List returns all items sorted by key.
func (s *store[T]) List() []T {
	s.g.mu.RLock()
	defer s.g.mu.RUnlock()
	return s.sorted()
}

// Len returns the number of items.
func (s *store[T]) Len() int {
	s.g.mu.RLock()
	defer s.g.mu.RUnlock()
	return len(s.items)
}

func (s *store[T]) base() *store[T] { return s }

func (s *store[T]) sorted() []T {
	out := make([]T, 0, len(s.items))
	for _, key := range slices.Sorted(maps.Keys(s.items)) {
		out = append(out, s.items[key])
	}
	return out
}

// put stores an item unless an equal one is there.
func (s *store[T]) put(key string, item T) {
	old, ok := s.items[key]
	if ok && s.equal(old, item) {
		return
	}
	s.touch(key, old, ok)
	for _, index := range s.indexes {
		if ok {
			index.remove(key, old)
		}
		index.add(key, item)
	}
	s.items[key] = item
}

// drop removes an item.
func (s *store[T]) drop(key string) {
	old, ok := s.items[key]
	if !ok {
		return
	}
	s.touch(key, old, true)
	for _, index := range s.indexes {
		index.remove(key, old)
	}
	delete(s.items, key)
}

func (s *store[T]) touch(key string, old T, existed bool) {
	s.diff = nil
	if _, touched := s.before[key]; touched {
		return
	}
	if existed {
		s.before[key] = &old
	} else {
		s.before[key] = nil
	}
}

// events returns the difference to the state before the batch. An item that
// was changed and changed back is no event.
func (s *store[T]) events() []Event[T] {
	if len(s.before) == 0 || s.diff != nil {
		return s.diff
	}
	out := make([]Event[T], 0, len(s.before))
	for _, key := range slices.Sorted(maps.Keys(s.before)) {
		event := Event[T]{Key: key, Old: s.before[key]}
		if item, ok := s.items[key]; ok {
			event.New = &item
		}
		same := event.Old == nil && event.New == nil ||
			event.Old != nil && event.New != nil && s.equal(*event.Old, *event.New)
		if !same {
			out = append(out, event)
		}
	}
	s.diff = out
	return out
}

func (s *store[T]) settle() {
	s.diff = nil
	clear(s.before)
	for _, index := range s.indexes {
		clear(index.touched)
	}
}

// changed serves dependants, which do not know T.
func (s *store[T]) changed() []string {
	events := s.events()
	out := make([]string, len(events))
	for i, event := range events {
		out[i] = event.Key
	}
	return out
}

// Input is a collection that is changed from outside.
type Input[T any] struct {
	*store[T]
	key func(T) string
}

// NewInput makes an input. equal may be nil for reflect.DeepEqual.
func NewInput[T any](g *Graph, name string, key func(T) string, equal func(a, b T) bool) *Input[T] {
	in := &Input[T]{key: key}
	in.store = register(g, name, equal, func(*store[T]) node { return in })
	return in
}

// Set adds or replaces the item with v's key.
func (in *Input[T]) Set(_ *Tx, v T) { in.put(in.key(v), v) }

// Delete removes the item under key, if there is one.
func (in *Input[T]) Delete(_ *Tx, key string) { in.drop(key) }

func (in *Input[T]) step() {}
