package h2

import "sync"

// Buffers are pooled and held only while there is data in them. A pool holds
// pointers to arrays, because putting a slice would allocate its header.
var (
	writeBufs  = sync.Pool{New: func() any { return new([writeBufSize]byte) }}
	readBufs   = sync.Pool{New: func() any { return new([readBufSize]byte) }}
	chunks4K   = sync.Pool{New: func() any { return &chunk{buf: make([]byte, 4<<10)} }}
	chunks16K  = sync.Pool{New: func() any { return &chunk{buf: make([]byte, 16<<10)} }}
	chunks64K  = sync.Pool{New: func() any { return &chunk{buf: make([]byte, 64<<10)} }}
	chunkPools = []struct {
		size int
		pool *sync.Pool
	}{{4 << 10, &chunks4K}, {16 << 10, &chunks16K}, {64 << 10, &chunks64K}}
)

func getWriteBuf() []byte { return writeBufs.Get().(*[writeBufSize]byte)[:0] }

// putWriteBuf gives b back unless control frames have made it grow.
func putWriteBuf(b []byte) {
	if cap(b) == writeBufSize {
		writeBufs.Put((*[writeBufSize]byte)(b[:writeBufSize]))
	}
}

// A chunk is a piece of a stream's receive buffer: buf[r:w] has been received
// and not been taken.
type chunk struct {
	buf  []byte
	r, w int
	next *chunk
}

// getChunk returns a chunk for n bytes, or of the largest size.
func getChunk(n int) *chunk {
	for _, c := range chunkPools {
		if n <= c.size {
			return c.pool.Get().(*chunk)
		}
	}
	return chunks64K.Get().(*chunk)
}

func putChunk(c *chunk) {
	c.r, c.w, c.next = 0, 0, nil
	for _, p := range chunkPools {
		if len(c.buf) == p.size {
			p.pool.Put(c)
		}
	}
}

// A queue is a stream's receive buffer. The caller holds the stream's lock, but
// may look at the bytes of front without it: they stay until took or drop.
type queue struct{ head, tail *chunk }

// add copies p to the end.
func (q *queue) add(p []byte) {
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == len(q.tail.buf) {
			c := getChunk(len(p))
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		n := copy(q.tail.buf[q.tail.w:], p)
		q.tail.w += n
		p = p[n:]
	}
}

func (q *queue) empty() bool { return q.head == nil }

// front returns the bytes that come next, nil if there are none.
func (q *queue) front() []byte {
	if q.head == nil {
		return nil
	}
	return q.head.buf[q.head.r:q.head.w]
}

// took removes n bytes of those that front gave.
func (q *queue) took(n int) {
	c := q.head
	if c == nil {
		return // dropped meanwhile
	}
	if c.r += n; c.r < c.w {
		return
	}
	if q.head = c.next; q.head == nil {
		q.tail = nil
	}
	putChunk(c)
}

// drop forgets everything. The chunks are left to the garbage collector: the
// application may still be looking at them.
func (q *queue) drop() { q.head, q.tail = nil, nil }
