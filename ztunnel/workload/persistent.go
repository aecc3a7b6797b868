package workload

import (
	"hash/maphash"
	"iter"
	"math/bits"
)

// The index of a snapshot is a persistent hash trie: a version shares with its
// predecessor all nodes that did not change, so a push that touches one of
// 100,000 workloads copies a handful of small nodes and readers need no lock.
// A batch owns the nodes that it created and changes those in place, so the
// first push costs about what filling a map costs.

var hashSeed = maphash.MakeSeed()

const (
	trieBits  = 5
	trieMask  = 1<<trieBits - 1
	trieDepth = 60 // below this shift the hash is used up and leaves chain
)

// batch is the owner of the nodes created for one new version. It must not be
// used after that version was published.
type batch struct{ _ byte } // not empty: distinct batches need distinct addresses

// index is one version of a map. The zero index is empty.
type index[K comparable, V any] struct {
	root *node[K, V]
	len  int
}

type node[K comparable, V any] struct {
	owner  *batch
	bitmap uint32
	slots  []slot[K, V] // one per bit set, in order of bits
}

type slot[K comparable, V any] struct {
	child *node[K, V]
	leaf  *leaf[K, V]
}

type leaf[K comparable, V any] struct {
	hash uint64
	key  K
	val  V
	next *leaf[K, V] // same 60 bits of hash
}

func (m index[K, V]) get(key K) (V, bool) {
	hash := maphash.Comparable(hashSeed, key)
	n := m.root
	for shift := uint(0); n != nil; shift += trieBits {
		bit := uint32(1) << (hash >> shift & trieMask)
		if n.bitmap&bit == 0 {
			break
		}
		s := n.slots[bits.OnesCount32(n.bitmap&(bit-1))]
		if s.child != nil {
			n = s.child
			continue
		}
		for l := s.leaf; l != nil; l = l.next {
			if l.key == key {
				return l.val, true
			}
		}
		break
	}
	var zero V
	return zero, false
}

// at is get for values whose zero value means absent.
func (m index[K, V]) at(key K) V {
	v, _ := m.get(key)
	return v
}

func (m *index[K, V]) set(b *batch, key K, val V) {
	l := &leaf[K, V]{hash: maphash.Comparable(hashSeed, key), key: key, val: val}
	added := false
	m.root = m.root.set(b, l, 0, &added)
	if added {
		m.len++
	}
}

// editable returns n itself when b owns it, else a copy that b owns.
func (n *node[K, V]) editable(b *batch) *node[K, V] {
	if n == nil {
		return &node[K, V]{owner: b}
	}
	if n.owner == b {
		return n
	}
	return &node[K, V]{owner: b, bitmap: n.bitmap, slots: append(make([]slot[K, V], 0, len(n.slots)+1), n.slots...)}
}

func (n *node[K, V]) set(b *batch, l *leaf[K, V], shift uint, added *bool) *node[K, V] {
	n = n.editable(b)
	bit := uint32(1) << (l.hash >> shift & trieMask)
	i := bits.OnesCount32(n.bitmap & (bit - 1))
	if n.bitmap&bit == 0 {
		n.bitmap |= bit
		n.slots = append(n.slots, slot[K, V]{})
		copy(n.slots[i+1:], n.slots[i:])
		n.slots[i] = slot[K, V]{leaf: l}
		*added = true
		return n
	}
	s := n.slots[i]
	switch {
	case s.child != nil:
		n.slots[i].child = s.child.set(b, l, shift+trieBits, added)
	case s.leaf.hash == l.hash && s.leaf.key == l.key && s.leaf.next == nil:
		n.slots[i].leaf = l
	case shift >= trieDepth:
		rest, found := without(s.leaf, l.key)
		l.next = rest
		n.slots[i].leaf = l
		*added = !found
	default:
		ignored := false
		child := (*node[K, V])(nil).set(b, s.leaf, shift+trieBits, &ignored)
		n.slots[i] = slot[K, V]{child: child.set(b, l, shift+trieBits, added)}
	}
	return n
}

// without returns the chain with key left out; the rest of it is copied.
func without[K comparable, V any](l *leaf[K, V], key K) (rest *leaf[K, V], found bool) {
	for ; l != nil; l = l.next {
		if l.key == key {
			found = true
			continue
		}
		c := *l
		c.next = rest
		rest = &c
	}
	return rest, found
}

func (m *index[K, V]) remove(b *batch, key K) {
	if _, ok := m.get(key); !ok {
		return
	}
	m.root = m.root.remove(b, key, maphash.Comparable(hashSeed, key), 0)
	m.len--
}

// remove drops a key that is there. It returns nil when nothing is left.
func (n *node[K, V]) remove(b *batch, key K, hash uint64, shift uint) *node[K, V] {
	n = n.editable(b)
	bit := uint32(1) << (hash >> shift & trieMask)
	i := bits.OnesCount32(n.bitmap & (bit - 1))
	if child := n.slots[i].child; child != nil {
		child = child.remove(b, key, hash, shift+trieBits)
		switch {
		case child == nil:
			n.drop(bit, i)
		case len(child.slots) == 1 && child.slots[0].child == nil:
			n.slots[i] = child.slots[0]
		default:
			n.slots[i].child = child
		}
	} else if rest, _ := without(n.slots[i].leaf, key); rest != nil {
		n.slots[i].leaf = rest
	} else {
		n.drop(bit, i)
	}
	if len(n.slots) == 0 {
		return nil
	}
	return n
}

func (n *node[K, V]) drop(bit uint32, i int) {
	n.bitmap &^= bit
	copy(n.slots[i:], n.slots[i+1:])
	n.slots[len(n.slots)-1] = slot[K, V]{}
	n.slots = n.slots[:len(n.slots)-1]
}

// all iterates in no particular order.
func (m index[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { m.root.walk(yield) }
}

func (n *node[K, V]) walk(yield func(K, V) bool) bool {
	if n == nil {
		return true
	}
	for _, s := range n.slots {
		if s.child != nil {
			if !s.child.walk(yield) {
				return false
			}
			continue
		}
		for l := s.leaf; l != nil; l = l.next {
			if !yield(l.key, l.val) {
				return false
			}
		}
	}
	return true
}
