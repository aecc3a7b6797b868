package relay

import "sync"

// Sizes of the buffer of one direction (as in spec/ztunnel.md §2.11, but for the
// largest): small until it
// has shown that it moves much, because most connections do not.
const (
	smallSize  = 1 << 10
	mediumSize = 16<<10 - 64
	largeSize  = 128<<10 - 64 // with a frame header a whole number of TLS records

	mediumAfter = 128 << 10 // bytes moved
	largeAfter  = 10 << 20
)

var (
	small  = sync.Pool{New: func() any { return new([smallSize]byte) }}
	medium = sync.Pool{New: func() any { return new([mediumSize]byte) }}
	large  = sync.Pool{New: func() any { return new([largeSize]byte) }}
)

// A buffer is the pooled buffer of one direction. The zero buffer is ready.
type buffer struct {
	bytes []byte
	moved uint64
	want  int // size to use next, 0: that for moved
}

// get returns the buffer to read into.
func (b *buffer) get() []byte {
	size := b.want
	if size == 0 {
		size = sizeFor(b.moved)
	}
	if len(b.bytes) == size {
		return b.bytes
	}
	b.free()
	switch size {
	case smallSize:
		b.bytes = small.Get().(*[smallSize]byte)[:]
	case mediumSize:
		b.bytes = medium.Get().(*[mediumSize]byte)[:]
	default:
		b.bytes = large.Get().(*[largeSize]byte)[:]
	}
	return b.bytes
}

// used notes a read of n bytes. After a short one the connection may be about
// to fall idle, and waits with a small buffer; a full one brings the size back.
func (b *buffer) used(n int) {
	b.moved += uint64(n)
	switch {
	case n == len(b.bytes):
		b.want = 0
	case n <= smallSize:
		b.want = smallSize
	}
}

func (b *buffer) free() {
	switch len(b.bytes) {
	case smallSize:
		small.Put((*[smallSize]byte)(b.bytes))
	case mediumSize:
		medium.Put((*[mediumSize]byte)(b.bytes))
	case largeSize:
		large.Put((*[largeSize]byte)(b.bytes))
	}
	b.bytes = nil
}

func sizeFor(moved uint64) int {
	switch {
	case moved < mediumAfter:
		return smallSize
	case moved < largeAfter:
		return mediumSize
	}
	return largeSize
}
