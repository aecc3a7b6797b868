package hbone

import "sync"

// Buffers are pooled and held only while there is data in them. A pool holds
// pointers to arrays, because putting a slice would allocate its header.
var (
	writeBufs  = sync.Pool{New: func() any { return new([writeBufSize]byte) }}
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
	buf     []byte
	r, w    int
	filling bool // the tunnel's reader writes behind w
	next    *chunk
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
	c.r, c.w, c.filling, c.next = 0, 0, false, nil
	for _, p := range chunkPools {
		if len(c.buf) == p.size {
			p.pool.Put(c)
		}
	}
}

// A queue is a stream's receive buffer. The reader of the tunnel appends with
// space and filled, the application takes with front and took. The caller
// holds the stream's lock, but bytes are moved without it: behind w only the
// reader touches a chunk, before w only the application.
type queue struct{ head, tail *chunk }

// space returns room for up to n more bytes. The chunk stays where it is until
// filled is called.
func (q *queue) space(n int) []byte {
	if q.tail == nil || q.tail.w == len(q.tail.buf) {
		c := getChunk(n)
		if q.tail == nil {
			q.head = c
		} else {
			q.tail.next = c
		}
		q.tail = c
	}
	q.tail.filling = true
	return q.tail.buf[q.tail.w:min(len(q.tail.buf), q.tail.w+n)]
}

// filled publishes n bytes of the room that space gave.
func (q *queue) filled(n int) {
	if q.tail == nil {
		return // dropped meanwhile
	}
	q.tail.w += n
	q.tail.filling = false
	q.trim()
}

// front returns the bytes that come next, nil if there are none.
func (q *queue) front() []byte {
	if q.head == nil || q.head.r == q.head.w {
		return nil
	}
	return q.head.buf[q.head.r:q.head.w]
}

// took removes n bytes of those that front gave.
func (q *queue) took(n int) {
	if q.head == nil {
		return // dropped meanwhile
	}
	q.head.r += n
	q.trim()
}

// trim gives back the head if it is used up.
func (q *queue) trim() {
	c := q.head
	if c == nil || c.r < c.w || c.filling {
		return
	}
	if q.head = c.next; q.head == nil {
		q.tail = nil
	}
	putChunk(c)
}

// drop forgets everything. The chunks are left to the garbage collector: one
// end may still be looking at them.
func (q *queue) drop() { q.head, q.tail = nil, nil }
