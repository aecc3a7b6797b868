package codec

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

const readSize = 16 << 10

var readBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// smallSize holds most heads of requests.
const smallSize = 1 << 10

// reader buffers one direction of a connection. Its buffer comes from a pool,
// grows up to a head's limit, and is held while bytes are in it or a head is
// awaited. A reader that waits for long has a small buffer of its own, which is
// used first.
type reader struct {
	src    io.Reader
	small  *[smallSize]byte // nil: none
	pooled *[readSize]byte
	buf    []byte // buf[r:w] is unread
	r, w   int
	total  uint64 // bytes taken from src
}

func (b *reader) buffered() []byte { return b.buf[b.r:b.w] }

func (b *reader) skip(n int) { b.r += n }

// release gives the buffer back; nothing may be unread.
func (b *reader) release() {
	if b.r != b.w || b.buf == nil {
		return
	}
	if b.pooled != nil {
		readBuffers.Put(b.pooled)
	}
	b.pooled, b.buf, b.r, b.w = nil, nil, 0, 0
}

// fill reads once. When the buffer is full it is compacted, then doubled; it
// never holds more than limit unread bytes.
func (b *reader) fill(limit int) error {
	b.makeRoom(limit)
	if b.w == len(b.buf) {
		return errFull
	}
	for range 100 {
		n, err := b.src.Read(b.buf[b.w:])
		b.w += n
		b.total += uint64(n)
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

var errFull = errors.New("buffer is full")

func (b *reader) makeRoom(limit int) {
	switch {
	case b.buf == nil && b.small != nil:
		b.buf = b.small[:]
	case b.buf == nil:
		b.pooled, _ = readBuffers.Get().(*[readSize]byte)
		b.buf = b.pooled[:]
	case b.r == b.w:
		b.r, b.w = 0, 0
	case b.w < len(b.buf):
	case b.r > 0:
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
	case len(b.buf) == smallSize:
		b.pooled, _ = readBuffers.Get().(*[readSize]byte)
		copy(b.pooled[:], b.buf)
		b.buf = b.pooled[:]
	case len(b.buf) < limit:
		larger := make([]byte, min(2*len(b.buf), limit))
		copy(larger, b.buf[:b.w])
		if b.pooled != nil {
			readBuffers.Put(b.pooled)
			b.pooled = nil
		}
		b.buf = larger
	}
}

// Read gives what is buffered, or reads past the buffer.
func (b *reader) Read(p []byte) (int, error) {
	if b.r < b.w {
		n := copy(p, b.buf[b.r:b.w])
		b.r += n
		b.release()
		return n, nil
	}
	b.release()
	n, err := b.src.Read(p)
	b.total += uint64(n)
	return n, err
}

// head returns the bytes of a head, through the empty line that ends it, once
// they are all here. They stay valid until the next fill. io.EOF means that
// nothing came; a head cut short is io.ErrUnexpectedEOF.
func (b *reader) head() ([]byte, error) {
	line, scanned := 0, 0 // relative to b.r: start of the current line, bytes looked at
	for {
		for {
			unread := b.buffered()
			i := bytes.IndexByte(unread[scanned:], '\n')
			if i < 0 {
				scanned = len(unread)
				break
			}
			end := scanned + i
			if end == line || unread[end-1] != '\r' {
				return nil, bad("line ends with a bare line feed")
			}
			scanned = end + 1
			if end-1 == line {
				return unread[:scanned], nil
			}
			line = scanned
		}
		if scanned >= MaxHeadBytes {
			return nil, &Error{Status: 431, Reason: "head is larger than 60 KiB"}
		}
		if err := b.fill(MaxHeadBytes); err != nil {
			if errors.Is(err, errFull) {
				return nil, &Error{Status: 431, Reason: "head is larger than 60 KiB"}
			}
			if errors.Is(err, io.EOF) && scanned > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}
