package codec

import (
	"errors"
	"io"
	"strconv"
	"sync"
)

const writeSize = 32 << 10

var writeBuffers = sync.Pool{New: func() any { return new([writeSize]byte) }}

// writer collects what goes out in one direction of a connection, so that a
// head and the first bytes of its body leave together. Its buffer comes from a
// pool and is held while bytes are in it.
type writer struct {
	dst    io.Writer
	pooled *[writeSize]byte
	buf    []byte // unsent
	total  uint64
	err    error
}

func (w *writer) room() {
	if w.pooled == nil {
		w.pooled, _ = writeBuffers.Get().(*[writeSize]byte)
		w.buf = w.pooled[:0]
	}
}

func (w *writer) flush() error {
	if w.pooled == nil {
		return w.err
	}
	if w.err == nil && len(w.buf) > 0 {
		var n int
		n, w.err = w.dst.Write(w.buf)
		w.total += uint64(n)
	}
	writeBuffers.Put(w.pooled)
	w.pooled, w.buf = nil, nil
	return w.err
}

func (w *writer) text(s string) {
	for len(s) > 0 && w.err == nil {
		w.room()
		if len(w.buf) == writeSize {
			_ = w.flush()
			continue
		}
		n := min(len(s), writeSize-len(w.buf))
		w.buf = append(w.buf, s[:n]...)
		s = s[n:]
	}
}

func (w *writer) bytes(p []byte) {
	for len(p) > 0 && w.err == nil {
		w.room()
		if len(w.buf) == writeSize {
			_ = w.flush()
			continue
		}
		n := min(len(p), writeSize-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
	}
}

func (w *writer) number(n int64, base int) {
	var digits [20]byte
	w.bytes(strconv.AppendInt(digits[:0], n, base))
}

func (w *writer) fields(fields []Field) {
	for i := range fields {
		w.text(fields[i].Name)
		w.text(": ")
		w.text(fields[i].Value)
		w.text("\r\n")
	}
}

// framing writes the fields about the body and the connection, and the empty
// line.
func (w *writer) framing(length int64, closes bool, upgrade string) {
	switch {
	case length == Chunked:
		w.text("transfer-encoding: chunked\r\n")
	case length >= 0:
		w.text("content-length: ")
		w.number(length, 10)
		w.text("\r\n")
	}
	switch {
	case upgrade != "":
		w.text("connection: upgrade\r\nupgrade: ")
		w.text(upgrade)
		w.text("\r\n")
	case closes:
		w.text("connection: close\r\n")
	}
	w.text("\r\n")
}

const chunkHead = 6 // four hex digits and CRLF

// copyBody streams src out, in chunks when the length is not known before, and
// flushes whenever src has nothing ready and at the end. The caller learns
// which side failed.
func (w *writer) copyBody(src *Body, chunked bool) (readErr, writeErr error) {
	head := 0
	if chunked {
		head = chunkHead
	}
	for {
		if src.waits() && !src.Done() && len(w.buf) > 0 {
			if err := w.flush(); err != nil {
				return nil, err
			}
		}
		if writeSize-len(w.buf) < head+2+1024 {
			if err := w.flush(); err != nil {
				return nil, err
			}
		}
		w.room()
		start := len(w.buf)
		n, err := src.Read(w.buf[start+head : writeSize-2])
		if n > 0 {
			w.buf = w.buf[:start+head+n]
			if chunked {
				putChunkHead(w.buf[start:], n)
				w.buf = append(w.buf, '\r', '\n')
			}
		}
		if errors.Is(err, io.EOF) {
			if chunked {
				w.text("0\r\n")
				w.fields(src.Trailer())
				w.text("\r\n")
			}
			return nil, w.flush()
		}
		if err != nil {
			_ = w.flush()
			return err, nil
		}
	}
}

// putChunkHead writes a size with leading zeros, which the grammar allows, so
// that the content can be read straight to its place behind.
func putChunkHead(p []byte, n int) {
	const digits = "0123456789abcdef"
	p[0], p[1], p[2], p[3] = digits[n>>12&15], digits[n>>8&15], digits[n>>4&15], digits[n&15]
	p[4], p[5] = '\r', '\n'
}
