package h2

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzFrames feeds bytes to an endpoint as if its peer had sent them: it ends,
// without a panic, as soon as the peer has.
func FuzzFrames(f *testing.F) {
	block := []byte{2, 7, 'C', 'O', 'N', 'N', 'E', 'C', 'T', 1, 3, 'a', ':', '1'}
	frames := func(add func(*http2.Framer)) []byte {
		var b bytes.Buffer
		fr := http2.NewFramer(&b, nil)
		fr.AllowIllegalWrites = true
		add(fr)
		return b.Bytes()
	}
	f.Add(true, []byte(nil))
	f.Add(false, frames(func(fr *http2.Framer) {
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})
		_ = fr.WriteSettingsAck()
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true, PadLength: 3, Priority: http2.PriorityParam{Weight: 1}})
		_ = fr.WriteDataPadded(1, false, []byte("hello"), []byte{0, 0})
		_ = fr.WriteWindowUpdate(1, 10)
		_ = fr.WritePing(false, [8]byte{1})
		_ = fr.WriteData(1, true, nil)
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block[:5]})
		_ = fr.WriteContinuation(3, true, block[5:])
		_ = fr.WriteRSTStream(3, http2.ErrCodeCancel)
		_ = fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	}))
	f.Add(true, frames(func(fr *http2.Framer) {
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 5})
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true})
		_ = fr.WriteData(1, false, []byte("hello"))
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20})
		_ = fr.WriteGoAway(1, http2.ErrCodeNo, nil)
		_ = fr.WriteData(1, true, nil)
	}))
	f.Fuzz(func(t *testing.T, client bool, data []byte) {
		end, conn := connPair(t)
		echo := func(s *Stream) {
			if s.Respond(Head{Status: 200}, false) == nil {
				_, _ = io.Copy(s, s)
				_ = s.CloseWrite()
			}
			_ = s.Close()
		}
		c := New(end, Config{Client: client, StreamWindow: 1000, ConnWindow: 1 << 16, Base: t.Context(), Handle: echo})
		c.Start()
		opened := make(chan struct{})
		if client {
			s, err := c.Open(Head{Method: methodConnect, Authority: "a:1"}, []byte("early"), false)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer close(opened)
				_, _ = s.Answer()
				_, _ = io.Copy(io.Discard, s)
				_ = s.Close()
			}()
		} else {
			close(opened)
			data = append([]byte(preface), data...)
		}
		ended := make(chan struct{})
		go func() { _ = c.Run(); close(ended) }() // it may end as it likes
		drained := make(chan struct{})
		go func() { _, _ = io.Copy(io.Discard, conn); close(drained) }()
		_, _ = conn.Write(data)
		_ = conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		select {
		case <-ended:
		case <-ctx.Done():
			t.Fatal("the connection has ended and the endpoint has not")
		}
		<-opened
		c.Wait()
		<-drained
		if n := c.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// FuzzBlock feeds header blocks to the decoder, in two pieces. What it lets pass
// must pass our own checks and survive a round trip.
func FuzzBlock(f *testing.F) {
	f.Add(encodeHead(f, Head{Method: methodConnect, Authority: "10.0.0.1:80", Fields: []Field{{"baggage", "k=v"}, {"forwarded", `for="[::1]:80"`}}}), 3, true)
	f.Add(encodeHead(f, Head{Method: "GET", Scheme: "https", Authority: "a", Path: "/", Fields: []Field{{"te", "trailers"}}}), 1, true)
	f.Add(encodeHead(f, Head{Status: 200}), 0, true)
	f.Add([]byte{0x3f, 0xe1, 0x1f, 0x40, 1, 'a', 1, 'b', 0xbe, 0xbe}, 4, false)
	f.Fuzz(func(t *testing.T, data []byte, at int, end bool) {
		at = min(max(at, 0), len(data))
		b := newBlock(4 << 10)
		b.begin(1, end)
		if b.fragment(data[:at], false) != nil || b.fragment(data[at:], true) != nil {
			return
		}
		request, response := b.request() == "", b.response() == ""
		if b.head.TooLarge {
			return
		}
		if request && response {
			t.Errorf("both request and answer: %+v", b.head)
		}
		if !request && !response {
			return
		}
		if err := b.head.validate(); err != nil {
			t.Fatalf("%+v: %v", b.head, err)
		}
		again := newBlock(4 << 10)
		again.begin(1, end)
		if err := again.fragment(encodeHead(t, b.head), true); err != nil {
			t.Fatal(err)
		}
		_ = again.response()
		if len(again.head.Fields) != len(b.head.Fields) || again.head.Authority != b.head.Authority || again.head.Method != b.head.Method {
			t.Errorf("%+v became %+v", b.head, again.head)
		}
	})
}

func encodeHead(tb testing.TB, h Head) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := h.encode(hpack.NewEncoder(&b)); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}
