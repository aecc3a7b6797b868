package collection

import (
	"maps"
	"slices"
)

// Index finds the items of a collection by values that they have.
type Index[T any] struct {
	from    *store[T]
	name    string
	values  func(T) []string
	keys    map[string]map[string]struct{} // value to keys of items
	touched map[string]struct{}            // values of items changed in this batch
}

// NewIndex makes an index. values must be a pure function of the item.
func NewIndex[T any](from Collection[T], name string, values func(T) []string) *Index[T] {
	s := from.base()
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	index := &Index[T]{
		from: s, name: name, values: values,
		keys: map[string]map[string]struct{}{}, touched: map[string]struct{}{},
	}
	for key, item := range s.items {
		index.add(key, item)
	}
	clear(index.touched)
	s.indexes = append(s.indexes, index)
	return index
}

// Name returns the name that the index was made with.
func (ix *Index[T]) Name() string { return ix.name }

// Get returns the items with a value, sorted by key. Like Collection.Get it
// must not be called inside Update.
func (ix *Index[T]) Get(value string) []T {
	ix.from.g.mu.RLock()
	defer ix.from.g.mu.RUnlock()
	return ix.lookup(value)
}

func (ix *Index[T]) lookup(value string) []T {
	keys := ix.keys[value]
	out := make([]T, 0, len(keys))
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		out = append(out, ix.from.items[key])
	}
	return out
}

func (ix *Index[T]) add(key string, item T) {
	for _, value := range ix.values(item) {
		keys := ix.keys[value]
		if keys == nil {
			keys = map[string]struct{}{}
			ix.keys[value] = keys
		}
		keys[key] = struct{}{}
		ix.touched[value] = struct{}{}
	}
}

func (ix *Index[T]) remove(key string, item T) {
	for _, value := range ix.values(item) {
		keys := ix.keys[value]
		delete(keys, key)
		if len(keys) == 0 {
			delete(ix.keys, value)
		}
		ix.touched[value] = struct{}{}
	}
}

// changed returns the values that the changed items have or had.
func (ix *Index[T]) changed() []string {
	if len(ix.touched) == 0 || len(ix.from.changed()) == 0 {
		return nil
	}
	return slices.Collect(maps.Keys(ix.touched))
}
