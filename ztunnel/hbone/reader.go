package hbone

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/net/http2"
)

const (
	// maxControlFrame bounds every frame but DATA: they are read whole.
	maxControlFrame = 256 << 10
	// Frames that cost us more than the peer: more of them than maxAbuse
	// within abuseWindow end the connection.
	maxAbuse    = 2000
	abuseWindow = 10 * time.Second
)

// A connError is a connection error in the sense of RFC 9113 §5.4.1: the peer
// is told its code.
type connError struct {
	code   http2.ErrCode
	reason string
}

func (e *connError) Error() string { return fmt.Sprintf("%v: %s", e.code, e.reason) }

func protocolError(reason string) error { return &connError{http2.ErrCodeProtocol, reason} }

// loop reads and handles frames.
func (r *reader) loop() error {
	for first := true; ; first = false {
		fh, err := r.frames.ReadFrameHeader()
		if err != nil {
			return r.readError(err)
		}
		// "The SETTINGS frame ... MUST be the first frame"
		// https://www.rfc-editor.org/rfc/rfc9113#section-3.4
		if first && (fh.Type != http2.FrameSettings || fh.Flags.Has(http2.FlagSettingsAck)) {
			return protocolError("first frame is not SETTINGS")
		}
		if err := r.frame(fh); err != nil {
			return r.readError(err)
		}
		if first && !r.c.client {
			if err := r.c.net.SetReadDeadline(time.Time{}); err != nil {
				return err
			}
		}
	}
}

// readError says in our terms what the Framer reports.
func (r *reader) readError(err error) error {
	if ce, ok := errors.AsType[http2.ConnectionError](err); ok {
		reason := "malformed frame"
		if detail := r.frames.ErrorDetail(); detail != nil {
			reason = detail.Error()
		}
		return &connError{http2.ErrCode(ce), reason}
	}
	if errors.Is(err, http2.ErrFrameTooLarge) {
		return &connError{http2.ErrCodeFrameSize, "frame larger than we allow"}
	}
	if err == io.EOF { //nolint:errorlint // a clean end is exactly io.EOF
		return errPeerClosed
	}
	return err
}

func (r *reader) frame(fh http2.FrameHeader) error {
	switch fh.Type {
	case http2.FrameData:
		return r.data(fh)
	case http2.FrameWindowUpdate:
		return r.windowUpdate(fh)
	case http2.FrameHeaders, http2.FrameSettings, http2.FramePing, http2.FrameGoAway, http2.FrameRSTStream, http2.FrameContinuation:
	case http2.FramePushPromise:
		// "A receiver MUST treat the receipt of a PUSH_PROMISE ... as a
		// connection error of type PROTOCOL_ERROR" when push is disabled
		// https://www.rfc-editor.org/rfc/rfc9113#section-8.4
		return protocolError("PUSH_PROMISE")
	case http2.FramePriority, http2.FramePriorityUpdate:
		return discard(r.buf, int(fh.Length))
	default:
		// "Implementations MUST ignore and discard frames of unknown types."
		// https://www.rfc-editor.org/rfc/rfc9113#section-4.1
		return discard(r.buf, int(fh.Length))
	}
	if fh.Length > maxControlFrame {
		return &connError{http2.ErrCodeEnhanceYourCalm, "frame of " + fh.Type.String() + " too large"}
	}
	f, err := r.frames.ReadFrameForHeader(fh)
	if se, ok := errors.AsType[http2.StreamError](err); ok {
		return r.malformed(se)
	}
	if err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return r.headers(f)
	case *http2.SettingsFrame:
		return r.settings(f)
	case *http2.PingFrame:
		return r.ping(f)
	case *http2.GoAwayFrame:
		r.c.peerGoesAway(f.LastStreamID, f.ErrCode)
		return nil
	case *http2.RSTStreamFrame:
		return r.reset(f)
	default:
		return protocolError("unexpected " + fh.Type.String())
	}
}

// data handles a DATA frame; the payload goes straight into the stream's
// buffer, piece by piece as it arrives.
func (r *reader) data(fh http2.FrameHeader) error {
	s, known := r.c.stream(fh.StreamID)
	if !known {
		// "Receiving any frame other than HEADERS or PRIORITY on a stream in
		// [idle] state MUST be treated as a connection error of type
		// PROTOCOL_ERROR." https://www.rfc-editor.org/rfc/rfc9113#section-5.1
		return protocolError("DATA on idle stream")
	}
	// "The entire DATA frame payload is included in flow control, including
	// the Pad Length and Padding fields if present."
	// https://www.rfc-editor.org/rfc/rfc9113#section-6.1
	length := int(fh.Length)
	if r.window -= int64(length); r.window < 0 {
		return &connError{http2.ErrCodeFlowControl, "more DATA than the connection's window"}
	}
	padding := 0
	if fh.Flags.Has(http2.FlagDataPadded) {
		var err error
		if padding, err = r.padding(length); err != nil {
			return err
		}
	}
	end := fh.Flags.Has(http2.FlagDataEndStream)
	if length == padding && !end {
		if err := r.costly("empty DATA"); err != nil {
			return err
		}
	}
	if s != nil && !s.expect(length) {
		s = nil
	}
	unread := length - padding
	if padding > 0 {
		unread, padding = length-padding, padding-1 // the length octet has been read
	}
	if err := r.payload(s, unread); err != nil {
		return err
	}
	if err := discard(r.buf, padding); err != nil {
		return err
	}
	// Credit for the connection is given when bytes have been read: streams
	// whose reader is slow cost their own window only.
	r.owe(fh.Length)
	if s == nil {
		return nil
	}
	s.credit(length - unread)
	if end {
		s.remoteEnded()
	}
	return nil
}

// padding reads the Pad Length octet and returns how much of a payload of
// length is padding, that octet included.
func (r *reader) padding(length int) (int, error) {
	if length == 0 {
		return 0, &connError{http2.ErrCodeFrameSize, "padded DATA without length"}
	}
	b, err := r.buf.ReadByte()
	if err != nil {
		return 0, err
	}
	// "If the length of the padding is the length of the frame payload or
	// greater, the recipient MUST treat this as a connection error"
	// https://www.rfc-editor.org/rfc/rfc9113#section-6.1
	if int(b) >= length {
		return 0, protocolError("padding longer than the frame")
	}
	return int(b) + 1, nil
}

// payload moves n bytes from the connection to s, or nowhere if s is nil.
func (r *reader) payload(s *Stream, n int) error {
	for n > 0 {
		var room []byte
		if s != nil {
			room = s.space(n)
		}
		if room == nil {
			return discard(r.buf, n)
		}
		got, err := r.buf.Read(room)
		s.filled(got)
		if err != nil {
			return unexpected(err)
		}
		n -= got
	}
	return nil
}

// owe notes bytes of the connection's window to give back.
func (r *reader) owe(n uint32) {
	r.owed += n
	if r.owed < r.c.cfg.ConnWindow/4 {
		return
	}
	more := r.owed
	r.owed = 0
	r.window += int64(more)
	r.c.w.control(func(fr *http2.Framer) error { return fr.WriteWindowUpdate(0, more) })
}

func (r *reader) windowUpdate(fh http2.FrameHeader) error {
	// "A WINDOW_UPDATE frame with a length other than 4 octets MUST be treated
	// as a connection error of type FRAME_SIZE_ERROR."
	// https://www.rfc-editor.org/rfc/rfc9113#section-6.9
	if fh.Length != 4 {
		return &connError{http2.ErrCodeFrameSize, "WINDOW_UPDATE of wrong length"}
	}
	var b [4]byte
	if _, err := io.ReadFull(r.buf, b[:]); err != nil {
		return unexpected(err)
	}
	more := int64(binary.BigEndian.Uint32(b[:]) & maxWindow)
	if fh.StreamID == 0 {
		return r.c.growWindow(more)
	}
	s, known := r.c.stream(fh.StreamID)
	if !known {
		return protocolError("WINDOW_UPDATE on idle stream")
	}
	if s != nil {
		s.growWindow(more)
	}
	return nil
}

// malformed ends one stream whose header block makes no sense.
func (r *reader) malformed(se http2.StreamError) error {
	if err := r.costly("malformed frame"); err != nil {
		return err
	}
	if _, known := r.c.stream(se.StreamID); !known {
		if r.c.client {
			return protocolError("HEADERS on idle stream")
		}
		if err := r.c.newPeerID(se.StreamID); err != nil {
			return err
		}
	}
	reason := "malformed"
	if se.Cause != nil {
		reason = se.Cause.Error()
	}
	r.c.streamError(se.StreamID, se.Code, reason)
	return nil
}

func (r *reader) headers(f *http2.MetaHeadersFrame) error {
	s, known := r.c.stream(f.StreamID)
	switch {
	case s != nil && (!r.c.client || s.isAnswered()):
		// "The frame types other than DATA or stream management frames ...
		// MUST NOT be sent on a connected stream and MUST be treated as a
		// stream error" https://www.rfc-editor.org/rfc/rfc9113#section-8.5
		r.c.streamError(f.StreamID, http2.ErrCodeProtocol, "HEADERS on a connected stream")
		return nil
	case r.c.client && s != nil:
		r.response(s, f)
		return nil
	case known:
		return nil // of a stream that we have given up
	case r.c.client:
		return protocolError("HEADERS on idle stream")
	}
	return r.request(f)
}

func (r *reader) reset(f *http2.RSTStreamFrame) error {
	s, known := r.c.stream(f.StreamID)
	if !known {
		return protocolError("RST_STREAM on idle stream")
	}
	if s == nil {
		return nil
	}
	if !r.c.client && !s.isAnswered() {
		if err := r.costly("RST_STREAM before the answer"); err != nil {
			return err
		}
	}
	s.peerReset(f.ErrCode)
	return nil
}

func (r *reader) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if err := r.costly("SETTINGS"); err != nil {
		return err
	}
	if f.HasDuplicates() {
		return protocolError("duplicate settings")
	}
	if err := f.ForeachSetting(r.setting); err != nil {
		return err
	}
	r.c.w.control(func(fr *http2.Framer) error { return fr.WriteSettingsAck() })
	return nil
}

func (r *reader) setting(s http2.Setting) error {
	if err := s.Valid(); err != nil {
		return err
	}
	switch s.ID {
	case http2.SettingInitialWindowSize:
		return r.c.setPeerWindow(int64(s.Val))
	case http2.SettingMaxFrameSize:
		r.c.maxFrame.Store(s.Val)
	case http2.SettingMaxConcurrentStreams:
		r.c.setPeerMax(s.Val)
	case http2.SettingHeaderTableSize:
		r.c.w.setTableSize(s.Val)
	default: // nothing that we send depends on the others
	}
	return nil
}

func (r *reader) ping(f *http2.PingFrame) error {
	if f.IsAck() {
		r.c.pong(f.Data)
		return nil
	}
	if err := r.costly("PING"); err != nil {
		return err
	}
	data := f.Data
	r.c.w.control(func(fr *http2.Framer) error { return fr.WritePing(true, data) })
	return nil
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
		return &connError{http2.ErrCodeEnhanceYourCalm, "too many frames of kind: " + what}
	}
	return nil
}

func discard(r *bufio.Reader, n int) error {
	if _, err := r.Discard(n); err != nil {
		return unexpected(err)
	}
	return nil
}

// unexpected is for an end in the middle of a frame.
func unexpected(err error) error {
	if err == io.EOF { //nolint:errorlint // readers return it bare
		return io.ErrUnexpectedEOF
	}
	return err
}
