package collection

import (
	"fmt"
	"maps"
	"slices"
)

// Options says how the items of a derived collection are told apart.
type Options[O any] struct {
	Key   func(O) string
	Equal func(a, b O) bool // nil: reflect.DeepEqual
}

// Derived is a collection that follows from others.
type Derived[O any] struct {
	*store[O]
	key     func(O) string
	from    source // the collection that is mapped
	compute func(c *Context, input string) (out []O, exists bool)

	outputs map[string]map[string]O        // input key to its outputs
	makers  map[string]map[string]struct{} // output key to the inputs that make it
	uses    map[string]map[dependency]struct{}
	users   map[source]map[dependency]map[string]struct{}
	runs    int // of the function, in the life of the collection
}

// source is something that an item can depend on: a collection or an index.
// changed returns the keys or values that changed in this batch.
type source interface{ changed() []string }

// dependency is one thing that an item has fetched. all means every key.
type dependency struct {
	source source
	key    string
	all    bool
}

// Context is handed to the function of a derived collection. It records what
// the function reads, and must not outlive the call.
type Context struct {
	order    int
	name     string
	used     map[dependency]struct{}
	previous any
}

func (c *Context) use(order int, name string, d dependency) {
	if order >= c.order {
		panic(fmt.Sprintf("collection %s fetches from %s, which was made later", c.name, name))
	}
	c.used[d] = struct{}{}
}

// Derive makes a collection of the values that f returns for the items of
// from. f must be a pure function of its input and of what it reads through c.
//
// When f returns one key for several inputs, the value that came from the
// input with the smallest key counts; when it returns one key twice for the
// same input, the first does.
func Derive[I, O any](g *Graph, name string, from Collection[I], o Options[O], f func(c *Context, in I) []O) *Derived[O] {
	input := from.base()
	d := &Derived[O]{
		key: o.Key, from: input,
		outputs: map[string]map[string]O{}, makers: map[string]map[string]struct{}{},
		uses: map[string]map[dependency]struct{}{}, users: map[source]map[dependency]map[string]struct{}{},
	}
	d.compute = func(c *Context, key string) ([]O, bool) {
		item, ok := input.items[key]
		if !ok {
			return nil, false
		}
		return f(c, item), true
	}
	d.store = register(g, name, o.Equal, func(*store[O]) node { return d })
	g.mu.Lock()
	defer g.mu.Unlock()
	for key := range input.items {
		d.run(key)
	}
	d.settle()
	return d
}

// Fetch reads one item; the result depends on that key, also while it is
// absent.
func Fetch[T any](c *Context, from Collection[T], key string) (T, bool) {
	s := from.base()
	c.use(s.order, s.name, dependency{source: s, key: key})
	item, ok := s.items[key]
	return item, ok
}

// Lookup reads the items with a value, sorted by key; the result depends on
// those items and on others getting the value.
func Lookup[T any](c *Context, ix *Index[T], value string) []T {
	c.use(ix.from.order, ix.from.name, dependency{source: ix, key: value})
	return ix.lookup(value)
}

// All reads everything, sorted by key; the result depends on every change of
// the collection. Use it for small collections.
func All[T any](c *Context, from Collection[T]) []T {
	s := from.base()
	c.use(s.order, s.name, dependency{source: s, all: true})
	return s.sorted()
}

// Previous returns what the function returned for this input the last time,
// sorted by key: nothing at first. It is for the rare fact that stays true once
// it was, such as "has been ready".
func Previous[O any](c *Context) []O {
	outputs, _ := c.previous.(map[string]O)
	out := make([]O, 0, len(outputs))
	for _, key := range slices.Sorted(maps.Keys(outputs)) {
		out = append(out, outputs[key])
	}
	return out
}

// Runs returns how often the collection's function has been called.
func (d *Derived[O]) Runs() int {
	d.g.mu.RLock()
	defer d.g.mu.RUnlock()
	return d.runs
}

// step computes the items again whose input or dependencies changed.
func (d *Derived[O]) step() {
	dirty := map[string]struct{}{}
	for _, key := range d.from.changed() {
		dirty[key] = struct{}{}
	}
	for source, users := range d.users {
		changed := source.changed()
		if len(changed) == 0 {
			continue
		}
		maps.Copy(dirty, users[dependency{source: source, all: true}])
		for _, key := range changed {
			maps.Copy(dirty, users[dependency{source: source, key: key}])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(dirty)) {
		d.run(key)
	}
}

// run computes the outputs of one input and takes over the difference.
func (d *Derived[O]) run(input string) {
	c := &Context{order: d.order, name: d.name, used: map[dependency]struct{}{}, previous: d.outputs[input]}
	values, exists := d.compute(c, input)
	d.depend(input, c.used)
	before := d.outputs[input]
	now := map[string]O{}
	if exists {
		d.runs++
	}
	for _, value := range values {
		key := d.key(value)
		if _, twice := now[key]; !twice {
			now[key] = value
		}
	}
	if len(now) == 0 {
		delete(d.outputs, input)
	} else {
		d.outputs[input] = now
	}
	for key := range before {
		if _, still := now[key]; !still {
			delete(d.makers[key], input)
			d.choose(key)
		}
	}
	for key := range now {
		if d.makers[key] == nil {
			d.makers[key] = map[string]struct{}{}
		}
		d.makers[key][input] = struct{}{}
		d.choose(key)
	}
}

// choose stores the output that counts among those of all inputs.
func (d *Derived[O]) choose(key string) {
	makers := d.makers[key]
	if len(makers) == 0 {
		delete(d.makers, key)
		d.drop(key)
		return
	}
	first, found := "", false
	for input := range makers {
		if !found || input < first {
			first, found = input, true
		}
	}
	d.put(key, d.outputs[first][key])
}

// depend replaces what an input's outputs depend on.
func (d *Derived[O]) depend(input string, used map[dependency]struct{}) {
	for dep := range d.uses[input] {
		if _, still := used[dep]; still {
			continue
		}
		users := d.users[dep.source]
		delete(users[dep], input)
		if len(users[dep]) == 0 {
			delete(users, dep)
		}
		if len(users) == 0 {
			delete(d.users, dep.source)
		}
	}
	for dep := range used {
		users := d.users[dep.source]
		if users == nil {
			users = map[dependency]map[string]struct{}{}
			d.users[dep.source] = users
		}
		if users[dep] == nil {
			users[dep] = map[string]struct{}{}
		}
		users[dep][input] = struct{}{}
	}
	if len(used) == 0 {
		delete(d.uses, input)
	} else {
		d.uses[input] = used
	}
}
