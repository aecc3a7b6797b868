package codec

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
)

// Body is the body of one message, read from its connection as it arrives. Read
// returns io.EOF at its end; a connection that ends before is
// io.ErrUnexpectedEOF. After io.EOF Trailer holds the trailer fields.
type Body struct {
	src     *reader
	left    int64 // of the body or, when chunked, of the current chunk; UntilClose
	chunked bool
	first   bool        // no chunk was read yet
	done    atomic.Bool // may be asked while another goroutine reads
	err     error
	read    uint64
	trailer []Field
}

func newBody(src *reader, length int64) *Body {
	b := &Body{src: src, left: length}
	switch length {
	case 0:
		b.done.Store(true)
	case Chunked:
		b.chunked, b.first, b.left = true, true, 0
	}
	return b
}

// Done reports whether the body was read to its end.
func (b *Body) Done() bool { return b.done.Load() }

// Bytes returns how many bytes of content were read.
func (b *Body) Bytes() uint64 { return b.read }

// Trailer returns the trailer fields once Done.
func (b *Body) Trailer() []Field { return b.trailer }

// waits reports whether the next Read may block. A chunk's content often comes
// without the head of the next one, and must not wait for it.
func (b *Body) waits() bool {
	unread := b.src.buffered()
	if !b.chunked || b.left > 0 {
		return len(unread) == 0
	}
	if !b.first {
		unread = unread[min(2, len(unread)):]
	}
	if len(unread) > 0 && unread[0] == '0' {
		return !bytes.Contains(unread, []byte("\r\n\r\n"))
	}
	i := bytes.IndexByte(unread, '\n')
	return i < 0 || i+1 == len(unread)
}

func (b *Body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.done.Load() {
		return 0, io.EOF
	}
	n, err := b.next(p)
	b.read += uint64(n)
	if err != nil {
		b.err = err
	}
	return n, err
}

func (b *Body) next(p []byte) (int, error) {
	if b.chunked && b.left == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
		if b.done.Load() {
			return 0, io.EOF
		}
	}
	if b.left >= 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.src.Read(p)
	if b.left == UntilClose {
		if errors.Is(err, io.EOF) {
			b.done.Store(true)
		}
		return n, err
	}
	b.left -= int64(n)
	if b.left == 0 {
		b.done.Store(!b.chunked)
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

const maxChunkLine = 512 // size and extensions, which are dropped

func (b *Body) nextChunk() error {
	if !b.first {
		line, err := b.line()
		if err != nil {
			return err
		}
		if len(line) != 0 {
			return bad("chunk is longer than it said")
		}
	}
	b.first = false
	line, err := b.line()
	if err != nil {
		return err
	}
	if b.left, err = chunkSize(line); err != nil {
		return err
	}
	if b.left > 0 {
		return nil
	}
	return b.readTrailer()
}

// line reads a line through its CRLF and returns it without, valid until the
// next read.
func (b *Body) line() ([]byte, error) {
	for {
		unread := b.src.buffered()
		if i := bytes.IndexByte(unread, '\n'); i >= 0 {
			if i == 0 || unread[i-1] != '\r' {
				return nil, bad("line ends with a bare line feed")
			}
			b.src.skip(i + 1)
			return unread[:i-1], nil
		}
		if len(unread) > maxChunkLine {
			return nil, bad("chunk line is too long")
		}
		if err := b.src.fill(MaxHeadBytes); err != nil {
			return nil, cutShort(err)
		}
	}
}

func cutShort(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// chunkSize reads "1*HEXDIG [chunk-ext]", RFC 9112 §7.1.
func chunkSize(line []byte) (int64, error) {
	if len(line) > maxChunkLine {
		return 0, bad("chunk line is too long")
	}
	n, i := int64(0), 0
	for ; i < len(line) && chars[line[i]]&charHex != 0; i++ {
		if i == 15 {
			return 0, bad("chunk size is too large")
		}
		n = n<<4 | int64(hexValue(line[i]))
	}
	if i == 0 {
		return 0, bad("chunk size is not a number")
	}
	if extension := trim(line[i:]); len(extension) > 0 && (extension[0] != ';' || !all(extension, charValue)) {
		return 0, bad("chunk extension is not valid")
	}
	return n, nil
}

func hexValue(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

// readTrailer reads the fields after the last chunk. Those that would change
// how a message is framed, routed or authenticated do not travel this way,
// RFC 9110 §6.5.1.
func (b *Body) readTrailer() error {
	head, err := b.src.head()
	if err != nil {
		return cutShort(err)
	}
	var fields scratch
	if err := fields.lowerNames(head, 0); err != nil {
		return err
	}
	for _, f := range fields.cut(string(head)) {
		switch f.Name {
		case "host", "authorization", "cookie", "set-cookie", "content-type", "content-encoding", "trailer", "cache-control":
		default:
			if !perConnection(f.Name) {
				b.trailer = append(b.trailer, f)
			}
		}
	}
	b.src.skip(len(head))
	b.src.release()
	b.done.Store(true)
	return nil
}
