package workload

import (
	"maps"
	"math/rand/v2"
	"testing"
)

// TestIndexAgainstMap runs random batches on an index and on a map, and keeps
// old versions to see that they do not change.
func TestIndexAgainstMap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var m index[int, int]
	model := map[int]int{}
	type version struct {
		index index[int, int]
		model map[int]int
	}
	var old []version
	for range 200 {
		b := &batch{}
		for range random.IntN(50) {
			key := random.IntN(500)
			if random.IntN(3) == 0 {
				m.remove(b, key)
				delete(model, key)
			} else {
				v := random.Int()
				m.set(b, key, v)
				model[key] = v
			}
		}
		snapshot := make(map[int]int, len(model))
		maps.Copy(snapshot, model)
		old = append(old, version{m, snapshot})
	}
	for i, v := range old {
		n := 0
		for k, got := range v.index.all() {
			n++
			if want, ok := v.model[k]; !ok || got != want || v.index.at(k) != want {
				t.Fatalf("version %d: key %d is %d, want %d", i, k, got, want)
			}
		}
		if n != len(v.model) || v.index.len != n {
			t.Fatalf("version %d: %d keys, len %d, want %d", i, n, v.index.len, len(v.model))
		}
	}
}

func TestIndexChainsWhereHashesMeet(t *testing.T) {
	b := &batch{}
	root := (*node[string, int])(nil)
	added := false
	for i, key := range []string{"a", "b", "c", "b"} {
		root = root.set(b, &leaf[string, int]{hash: 7, key: key, val: i}, 0, &added)
	}
	m := index[string, int]{root: root}
	got := maps.Collect(m.all())
	if len(got) != 3 || got["a"] != 0 || got["b"] != 3 || got["c"] != 2 {
		t.Errorf("chain holds %v", got)
	}
	for _, key := range []string{"b", "a", "c"} {
		root = root.remove(b, key, 7, 0)
	}
	if root != nil {
		t.Errorf("left: %+v", root)
	}
}
