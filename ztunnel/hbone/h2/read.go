package h2

import (
	"io"
	"time"
)

const (
	maxSettings = 128 // in one frame; there are a dozen
	// Frames that cost us more than the peer: more of them than maxAbuse
	// within abuseWindow end the connection.
	maxAbuse    = 2000
	abuseWindow = 10 * time.Second
)

// A reader is the state that only the reading goroutine of a connection
// touches.
type reader struct {
	c      *Conn
	in     input
	block  *block
	window int64  // that the peer may still send
	owed   uint32 // read and not yet given back
	acked  bool   // our SETTINGS
	abuse  int    // frames that cost us more than the peer, since
	since  time.Time
}

func (r *reader) init(c *Conn) {
	r.c = c
	r.in.init(c.net)
	r.block = newBlock(c.cfg.MaxHeaderBytes)
	r.window = int64(c.cfg.ConnWindow)
}

// run reads and handles frames.
func (r *reader) run() error {
	defer r.in.free()
	if !r.c.cfg.Client {
		if err := r.c.net.SetReadDeadline(time.Now().Add(r.c.cfg.PrefaceTimeout)); err != nil {
			return err
		}
		if err := r.preface(); err != nil {
			return err
		}
	}
	if err := r.frame(true); err != nil {
		return err
	}
	if !r.c.cfg.Client {
		if err := r.c.net.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
	}
	for {
		if err := r.frame(false); err != nil {
			return err
		}
	}
}

// preface reads what every client sends first.
//
// "Clients and servers MUST treat an invalid connection preface as a
// connection error of type PROTOCOL_ERROR. A GOAWAY frame MAY be omitted in
// this case" https://www.rfc-editor.org/rfc/rfc9113#section-3.4
func (r *reader) preface() error {
	p, err := r.in.need(len(preface))
	if err != nil {
		return ended(err)
	}
	if string(p) != preface {
		return protocolError("peer does not speak HTTP/2")
	}
	r.in.used(len(preface))
	return nil
}

// ended says in our terms that the peer has closed the connection where it may.
func ended(err error) error {
	if err == io.EOF { //nolint:errorlint // a clean end is exactly io.EOF
		return ErrPeerClosed
	}
	return err
}

// frame reads one frame.
func (r *reader) frame(first bool) error {
	p, err := r.in.need(frameHeaderLen)
	if err != nil {
		return ended(err)
	}
	h := parseFrameHeader(p)
	r.in.used(frameHeaderLen)
	switch {
	// "The SETTINGS frame ... MUST be the first frame"
	// https://www.rfc-editor.org/rfc/rfc9113#section-3.4
	case first && (h.typ != FrameSettings || h.has(flagAck)):
		return protocolError("first frame is not SETTINGS")
	// "An endpoint MUST send an error code of FRAME_SIZE_ERROR if a frame
	// exceeds the size defined in SETTINGS_MAX_FRAME_SIZE"
	// https://www.rfc-editor.org/rfc/rfc9113#section-4.2
	case h.length > int(r.c.cfg.MaxFrameSize):
		return &ConnError{FrameSize, "frame larger than we allow"}
	// "Each field block is processed as a discrete unit. Field blocks MUST be
	// transmitted as a contiguous sequence of frames, with no interleaved frames
	// of any other type or from any other stream."
	// https://www.rfc-editor.org/rfc/rfc9113#section-4.3
	case r.block.id != 0 && (h.typ != FrameContinuation || h.stream != r.block.id):
		return protocolError("header block is interrupted")
	}
	return r.dispatch(h)
}

func (r *reader) dispatch(h frameHeader) error {
	switch h.typ {
	case FrameData:
		return r.data(h)
	case FrameHeaders:
		return r.headers(h)
	case FrameContinuation:
		return r.continuation(h)
	case FrameWindowUpdate:
		return r.windowUpdate(h)
	case FrameReset:
		return r.reset(h)
	case FrameSettings:
		return r.settings(h)
	case FramePing:
		return r.ping(h)
	case FrameGoAway:
		return r.goAway(h)
	case FramePriority:
		return r.priority(h)
	case FramePushPromise:
		// "A client cannot push. Thus, servers MUST treat the receipt of a
		// PUSH_PROMISE frame as a connection error", and so do clients that have
		// disabled it https://www.rfc-editor.org/rfc/rfc9113#section-8.4
		return protocolError("PUSH_PROMISE")
	default:
		// "Implementations MUST ignore and discard frames of unknown types."
		// https://www.rfc-editor.org/rfc/rfc9113#section-4.1
		return r.in.skip(h.length)
	}
}

// fixed reads the payload of a frame that has length n, on the connection
// (stream 0) or on a stream.
//
// "An endpoint MUST send an error code of FRAME_SIZE_ERROR if a frame ... is
// too small to contain mandatory frame data"
// https://www.rfc-editor.org/rfc/rfc9113#section-4.2
func (r *reader) fixed(h frameHeader, n int, onStream bool) ([]byte, error) {
	if onStream != (h.stream != 0) {
		return nil, protocolError("frame on the wrong stream")
	}
	if h.length != n {
		return nil, &ConnError{FrameSize, "frame of wrong length"}
	}
	p, err := r.in.need(n)
	if err != nil {
		return nil, unexpected(err)
	}
	r.in.used(n)
	return p, nil
}

// costly counts a frame that costs us more than the peer.
//
// "An endpoint that doesn't monitor this behavior exposes itself to a risk of
// denial-of-service attack." https://www.rfc-editor.org/rfc/rfc9113#section-10.5
func (r *reader) costly(what string) error {
	if now := time.Now(); now.Sub(r.since) > abuseWindow {
		r.since, r.abuse = now, 0
	}
	if r.abuse++; r.abuse > maxAbuse {
		return &ConnError{EnhanceYourCalm, "too many frames of kind: " + what}
	}
	return nil
}
