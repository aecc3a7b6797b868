package hbone

import (
	"fmt"
	"io"
	"maps"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
)

// TestStalledStreams: however many readers sleep, the others get their bytes,
// and what is buffered for a sleeper is at most its window.
func TestStalledStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window, stalled = serverWindow, 32
		cfg := Config{StreamWindow: window, ConnWindow: 4 * window}
		handle, streams := accepting(t)
		e := connect(t, cfg, cfg, handle)
		var writers sync.WaitGroup
		sent := make([]int, stalled)
		for i := range stalled {
			s := e.open()
			writers.Go(func() { sent[i], _ = s.Write(make([]byte, 10*window)) })
			<-streams // accepted, and never read
		}
		synctest.Wait()
		for range 3 {
			fast, far := e.open(), <-streams
			var copying sync.WaitGroup
			copying.Go(func() {
				if _, err := fast.Write(make([]byte, 50*window)); err != nil {
					t.Errorf("write beside stalled streams: %v", err)
				}
				closeWrite(t, fast)
			})
			if n, err := io.Copy(io.Discard, far); n != 50*window || err != nil {
				t.Errorf("read beside stalled streams: got %d bytes, %v", n, err)
			}
			copying.Wait()
			closeWrite(t, far)
		}
		e.close()
		writers.Wait()
		for i, n := range sent {
			if n != window {
				t.Errorf("stalled stream %d: %d bytes sent, want its window of %d", i, n, window)
			}
		}
	})
}

// TestReceiveWindowGrows: a server's streams start with a small window; it grows
// to the configured one while the reader keeps up, and only then.
func TestReceiveWindowGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 1 << 20
		handle, streams := accepting(t)
		e := connect(t, Config{}, Config{StreamWindow: most}, handle)
		near, far := e.open(), <-streams
		var writer sync.WaitGroup
		sent := make(chan int, 1)
		writer.Go(func() {
			n, _ := near.Write(make([]byte, 20*most))
			sent <- n
		})
		// behind is how much lies unread once the writer can send no more.
		behind := func() int64 {
			synctest.Wait()
			return far.Unread()
		}
		if got := behind(); got != serverWindow {
			t.Errorf("unread before the first read: %d, want %d", got, serverWindow)
		}
		total := 0
		read := func(n int) {
			got, err := io.ReadFull(far, make([]byte, n))
			total += got
			if err != nil {
				t.Error(err)
			}
		}
		for range 100 { // a slow reader: each time the window is full again
			read(1 << 10)
			behind()
		}
		if got := behind(); got > serverWindow {
			t.Errorf("unread with a slow reader: %d, want at most %d", got, serverWindow)
		}
		read(8 * most)
		if got := behind(); got <= most/2 || got > most {
			t.Errorf("unread after a fast reader: %d, want near %d", got, most)
		}
		_ = far.Close()
		writer.Wait()
		if n := <-sent; n < total || n > total+most {
			t.Errorf("%d bytes sent, %d read", n, total)
		}
		e.close()
	})
}

// TestSendWindow: not a byte more than the peer allows, for stream and
// connection, whatever it does to its settings.
func TestSendWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, tunnel := scriptedServer(t, Config{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
		opened := opening(tunnel)
		p.want("request", "HEADERS 1 CONNECT 10.0.0.1:80")
		p.headers(1, false, ":status", "200")
		s, err := opened()
		p.check(err)
		var writer sync.WaitGroup
		writer.Go(func() { write(t, s, "0123456789abcdefghijklmnopqrst") })
		p.want("the window", "DATA 1 0123456789")
		p.check(p.fr.WriteWindowUpdate(1, 3))
		p.want("three more", "DATA 1 abc")
		p.check(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 14}))
		got := p.next() + "," + p.next()
		if got != "SETTINGS ack,DATA 1 defg" && got != "DATA 1 defg,SETTINGS ack" {
			t.Errorf("four more by SETTINGS: got %q", got)
		}
		p.check(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4}))
		p.want("ten less", "SETTINGS ack")
		p.check(p.fr.WriteWindowUpdate(1, 10)) // the window is 0 now
		p.check(p.fr.WriteWindowUpdate(1, 2))
		p.want("two more", "DATA 1 hi")
		p.check(p.fr.WriteWindowUpdate(1, 100))
		p.want("the rest", "DATA 1 jklmnopqrst")
		writer.Wait()
		_ = p.conn.Close()
		_ = tunnel.Close()
	})
}

// TestConnectionWindow exhausts the connection's window with streams that have
// window of their own, then gives it back bit by bit: each gets its turn.
func TestConnectionWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, tunnel := scriptedServer(t, Config{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		var streams []*Stream
		for id := uint32(1); id <= 5; id += 2 {
			opened := opening(tunnel)
			p.want("request", fmt.Sprintf("HEADERS %d CONNECT 10.0.0.1:80", id))
			p.headers(id, false, ":status", "200")
			s, err := opened()
			p.check(err)
			streams = append(streams, s)
		}
		var writers sync.WaitGroup
		total := map[uint32]int{}
		for _, s := range streams {
			writers.Go(func() { _, _ = s.Write(make([]byte, 100_000)) })
		}
		read := func(want int) {
			t.Helper()
			for got := 0; got < want; {
				f, err := p.fr.ReadFrame()
				p.check(err)
				if d, ok := f.(*http2.DataFrame); ok {
					got += len(d.Data())
					total[d.StreamID] += len(d.Data())
				}
			}
		}
		read(65535)
		before := maps.Clone(total)
		for range 30 {
			synctest.Wait() // all are in line again
			p.check(p.fr.WriteWindowUpdate(0, 1000))
			read(1000)
		}
		for id := uint32(1); id <= 5; id += 2 {
			if got := total[id] - before[id]; got != 10_000 {
				t.Errorf("stream %d got %d bytes of window, want its third of 30000", id, got)
			}
		}
		_ = p.conn.Close()
		_ = tunnel.Close()
		writers.Wait()
	})
}

// TestWaiterLeaves: a stream that gives up while it is first in line for the
// connection's window does not hold up those behind it.
func TestWaiterLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, tunnel := scriptedServer(t, Config{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		var streams []*Stream
		for id := uint32(1); id <= 5; id += 2 {
			opened := opening(tunnel)
			p.next()
			p.headers(id, false, ":status", "200")
			s, err := opened()
			p.check(err)
			streams = append(streams, s)
		}
		var writers sync.WaitGroup
		writers.Go(func() { _, _ = streams[0].Write(make([]byte, 65535)) })
		for got := 0; got < 65535; {
			f, err := p.fr.ReadFrame()
			p.check(err)
			got += int(f.Header().Length)
		}
		for _, s := range streams[1:] {
			writers.Go(func() { _, _ = s.Write([]byte("x")) })
			synctest.Wait()
		}
		_ = streams[1].Close()
		p.want("reset", "RST_STREAM 3 CANCEL")
		p.check(p.fr.WriteWindowUpdate(0, 1))
		p.want("the next in line", "DATA 5 x")
		_ = p.conn.Close()
		_ = tunnel.Close()
		writers.Wait()
	})
}

// TestFrameSize: no frame is larger than the peer takes, and large ones are
// used when it does.
func TestFrameSize(t *testing.T) {
	for _, size := range []uint32{16 << 10, 1 << 20} {
		synctest.Test(t, func(t *testing.T) {
			p, tunnel := scriptedServer(t, Config{},
				http2.Setting{ID: http2.SettingMaxFrameSize, Val: size},
				http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
			p.check(p.fr.WriteWindowUpdate(0, 1<<30))
			opened := opening(tunnel)
			p.want("request", "HEADERS 1 CONNECT 10.0.0.1:80")
			p.headers(1, false, ":status", "200")
			s, err := opened()
			p.check(err)
			payload := make([]byte, 3<<20)
			for i := range payload {
				payload[i] = byte(i * 7 >> 3)
			}
			var writer sync.WaitGroup
			writer.Go(func() { _, _ = s.Write(payload) })
			var got []byte
			largest := 0
			for len(got) < len(payload) {
				f, err := p.fr.ReadFrame()
				p.check(err)
				if d, ok := f.(*http2.DataFrame); ok {
					got = append(got, d.Data()...)
					largest = max(largest, len(d.Data()))
				}
			}
			writer.Wait()
			if largest != int(size) {
				t.Errorf("largest frame: got %d, want %d", largest, size)
			}
			if string(got) != string(payload) {
				t.Error("payload differs")
			}
			_ = p.conn.Close()
			_ = tunnel.Close()
		})
	}
}
