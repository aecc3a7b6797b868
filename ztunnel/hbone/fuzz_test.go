package hbone

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// script returns the bytes of frames.
func script(add func(fr *http2.Framer)) []byte {
	var b bytes.Buffer
	fr := http2.NewFramer(&b, nil)
	fr.AllowIllegalWrites = true
	add(fr)
	return b.Bytes()
}

var connectBlock = []byte{2, 7, 'C', 'O', 'N', 'N', 'E', 'C', 'T', 1, 3, 'a', ':', '1'}

// FuzzServer feeds bytes to Serve as if a client had sent them.
func FuzzServer(f *testing.F) {
	f.Add([]byte(http2.ClientPreface))
	f.Add(append([]byte(http2.ClientPreface), script(func(fr *http2.Framer) {
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connectBlock, EndHeaders: true})
		_ = fr.WriteDataPadded(1, false, []byte("hello"), []byte{0, 0})
		_ = fr.WriteWindowUpdate(1, 10)
		_ = fr.WritePing(false, [8]byte{1})
		_ = fr.WriteData(1, true, nil)
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: connectBlock[:5]})
		_ = fr.WriteContinuation(3, true, connectBlock[5:])
		_ = fr.WriteRSTStream(3, http2.ErrCodeCancel)
		_ = fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	})...))
	f.Fuzz(func(t *testing.T, data []byte) {
		client, server := connPair(t)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		served := make(chan error, 1)
		go func() { served <- Serve(ctx, server, Config{StreamWindow: 1000, Grace: 1}, echo(t)) }()
		go func() { _, _ = io.Copy(io.Discard, client) }()
		_, _ = client.Write(data)
		_ = client.Close()
		err := <-served
		if ctx.Err() != nil {
			t.Errorf("a connection that had ended was served on: %v", err)
		}
	})
}

// FuzzClient feeds bytes to a tunnel as if a server had sent them.
func FuzzClient(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(script(func(fr *http2.Framer) {
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 5})
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true})
		_ = fr.WriteData(1, false, []byte("hello"))
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		_ = fr.WriteGoAway(1, http2.ErrCodeNo, nil)
		_ = fr.WriteData(1, true, nil)
	}))
	f.Fuzz(func(t *testing.T, data []byte) {
		client, server := connPair(t)
		tunnel, err := NewTunnel(client, Config{OpenTimeout: 5 * time.Second})
		if err != nil {
			t.Fatalf("tunnel: %v", err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			s, err := tunnel.Open(t.Context(), Request{Authority: "a:1"})
			if err != nil {
				return
			}
			_, _ = s.Write(make([]byte, 100))
			_ = s.CloseWrite()
			_, _ = io.Copy(io.Discard, s)
			_ = s.Close()
		}()
		// Preface, SETTINGS, WINDOW_UPDATE, and the first byte of the request:
		// the stream exists when the bytes arrive.
		_, _ = io.ReadFull(server, make([]byte, 71))
		go func() { _, _ = io.Copy(io.Discard, server) }()
		_, _ = server.Write(data)
		_ = server.Close()
		<-done
		_ = tunnel.Close()
	})
}
