package h2

import "io"

const (
	idleBufSize = 4 << 10   // held while waiting
	readBufSize = 128 << 10 // held while there is more to read
)

// An input buffers what a connection brings. It waits with a small buffer; a
// large one is borrowed while there is more.
type input struct {
	from  Transport
	small [idleBufSize]byte
	buf   []byte // small, or borrowed
	r, w  int    // buf[r:w] is unread
}

func (in *input) init(from Transport) {
	in.from = from
	in.buf = in.small[:]
}

// need returns the next n bytes, which must fit the large buffer; they stay
// until used is called and more are asked for. An end before the first is
// io.EOF, one after it io.ErrUnexpectedEOF.
func (in *input) need(n int) ([]byte, error) {
	for in.w-in.r < n {
		if err := in.fill(n); err != nil {
			if err == io.EOF && in.w > in.r { //nolint:errorlint // readers return it bare
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return in.buf[in.r : in.r+n], nil
}

// some returns between 1 and n of the next bytes, in the middle of a frame.
func (in *input) some(n int) ([]byte, error) {
	if in.w == in.r {
		if err := in.fill(1); err != nil {
			return nil, unexpected(err)
		}
	}
	return in.buf[in.r:min(in.w, in.r+n)], nil
}

func (in *input) used(n int) { in.r += n }

// skip drops the next n bytes.
func (in *input) skip(n int) error {
	for n > 0 {
		p, err := in.some(n)
		if err != nil {
			return err
		}
		in.used(len(p))
		n -= len(p)
	}
	return nil
}

// fill reads once, so that n bytes will fit.
func (in *input) fill(n int) error {
	unread := in.buf[in.r:in.w]
	if len(unread) <= idleBufSize && n <= idleBufSize && len(in.buf) > idleBufSize {
		copy(in.small[:], unread) // while waiting
		in.free()
		in.r, in.w = 0, len(unread)
		unread = in.small[:in.w]
	}
	if big := max(n, len(unread)+in.from.Await()); big > idleBufSize && len(in.buf) == idleBufSize {
		in.buf = readBufs.Get().(*[readBufSize]byte)[:]
	}
	in.r, in.w = 0, copy(in.buf, unread)
	got, err := in.from.ReadRecords(in.buf[in.w:])
	in.w += got
	if got > 0 {
		return nil // an error comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// free gives a borrowed buffer back.
func (in *input) free() {
	if len(in.buf) == readBufSize {
		readBufs.Put((*[readBufSize]byte)(in.buf))
		in.buf = in.small[:]
	}
}

// unexpected is for an end in the middle of a frame.
func unexpected(err error) error {
	if err == io.EOF { //nolint:errorlint // readers return it bare
		return io.ErrUnexpectedEOF
	}
	return err
}
