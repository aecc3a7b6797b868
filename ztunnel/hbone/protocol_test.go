package hbone

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/ztunnel/hbone/h2"
)

// What either side of a connection may do wrong is package h2's to test; here it
// is what a tunnel makes of it.

// TestServerAnswers sends requests that are not to be accepted.
func TestServerAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, served := scriptedClient(t, Config{MaxHeaderBytes: 16 << 10, PingInterval: -1}, func(in *Incoming) {
			if in.Method != "CONNECT" {
				_ = in.Reject(400)
				return
			}
			echo(t)(in)
		})
		p.headers(1, true, ":method", "GET", ":authority", "a:1", ":scheme", "https", ":path", "/")
		p.want("a GET is handed over", "HEADERS 1 400 end")
		p.headers(3, false, ":method", "CONNECT", ":authority", "a:1", "long", strings.Repeat("x", 15<<10), "longer", strings.Repeat("x", 2<<10))
		p.want("header list beyond the limit", "HEADERS 3 431 end")
		p.want("and nothing more from the client", "RST_STREAM 3 NO_ERROR")
		p.connect(5)
		p.want("stream", "HEADERS 5 200")
		p.check(p.fr.WriteDataPadded(5, true, []byte("hello"), make([]byte, 100)))
		p.want("echo", "DATA 5 hello")
		p.want("its end", "DATA 5 end")
		_ = p.conn.Close()
		t.Logf("serve: %v", <-served)
	})
}

func TestServerRefusesOtherProtocols(t *testing.T) {
	for _, preface := range []string{"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaa"} {
		synctest.Test(t, func(t *testing.T) {
			client, server := connPair(t)
			served := make(chan error, 1)
			go func() { served <- Serve(t.Context(), server, Config{}, func(*Incoming) {}) }()
			write(t, client, preface)
			if err := <-served; err == nil || !strings.Contains(err.Error(), "does not speak HTTP/2") {
				t.Errorf("preface %q: got %v", preface, err)
			}
			_ = client.Close()
		})
	}
}

func TestServerDoesNotWaitForPreface(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := connPair(t)
		start := time.Now()
		if err := Serve(t.Context(), server, Config{}, func(*Incoming) {}); err == nil {
			t.Error("a client that says nothing was served")
		}
		if got := time.Since(start); got != 10*time.Second {
			t.Errorf("gave up after %v, want 10s", got)
		}
		_ = client.Close()
	})
}

// TestRapidReset opens and cancels streams while their handlers hang.
func TestRapidReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p, _, served := scriptedClient(t, Config{MaxStreams: 10}, func(*Incoming) { <-release })
		go func() {
			for id := uint32(1); ; id += 2 {
				p.block.Reset()
				if p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{2, 7, 'C', 'O', 'N', 'N', 'E', 'C', 'T', 1, 3, 'a', ':', '1'}, EndHeaders: true}) != nil {
					return
				}
				if p.fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
					return
				}
			}
		}()
		p.want("after as many as may be open", "GOAWAY 21 ENHANCE_YOUR_CALM")
		close(release)
		_ = p.conn.Close()
		if err := <-served; err == nil {
			t.Error("serve returned nil")
		}
	})
}

// TestGracefulEnd follows the two GOAWAYs of a draining server.
func TestGracefulEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop, served := scriptedClient(t, Config{Grace: time.Minute}, echo(t))
		p.connect(1)
		p.want("stream", "HEADERS 1 200")
		stop()
		p.want("first", "GOAWAY 2147483647 NO_ERROR")
		p.want("then", "PING")
		p.connect(3) // was on its way
		p.want("stream of before the ping's answer is served", "HEADERS 3 200")
		p.check(p.fr.WritePing(true, goodbyePing))
		p.want("second", "GOAWAY 3 NO_ERROR")
		p.connect(5)
		p.check(p.fr.WriteData(5, true, []byte("ignored")))
		p.check(p.fr.WriteData(1, true, []byte("last")))
		p.check(p.fr.WriteData(3, true, nil))
		got := []string{p.next(), p.next(), p.next()}
		for _, f := range got {
			if f != "DATA 1 last" && f != "DATA 1 end" && f != "DATA 3 end" {
				t.Errorf("running streams: got %q", got)
			}
		}
		p.want("when the last stream has ended", "GOAWAY 3 NO_ERROR")
		p.want("and", "EOF")
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		_ = p.conn.Close()
	})
}

// TestDoneBeforeTheStart: "a SETTINGS frame ... MUST be the first frame" even
// if there is nothing to serve any more.
func TestDoneBeforeTheStart(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	stop()
	for range 200 {
		client, server := connPair(t)
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = Serve(ctx, server, Config{Grace: time.Nanosecond}, echo(t)) // whoever has ended it
		}()
		p := newPeer(t, client)
		p.want("first", "SETTINGS")
		_ = client.Close()
		<-served
	}
}

func TestGraceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handle, streams := accepting(t)
		e := connect(t, Config{}, Config{Grace: time.Minute}, handle)
		a, b := e.open(), <-streams
		start := time.Now()
		e.stop()
		write(t, a, "x") // goes on
		if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
			t.Errorf("read while draining: %v", err)
		}
		synctest.Wait()
		if _, err := e.tunnel.Open(t.Context(), Request{Authority: "a:1"}); !errors.Is(err, h2.ErrUnprocessed) {
			t.Errorf("open while draining: got %v, want %v", err, h2.ErrUnprocessed)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read: got %v, want an unexpected EOF", err)
		}
		if got := time.Since(start); got != time.Minute {
			t.Errorf("ended after %v, want 1m", got)
		}
		e.close()
	})
}

// TestResetMapping: what a reader and a writer see of a reset.
func TestResetMapping(t *testing.T) {
	tests := []struct {
		code http2.ErrCode
		pipe bool
	}{
		{http2.ErrCodeNo, true},
		{http2.ErrCodeCancel, true},
		{http2.ErrCodeStreamClosed, true},
		{http2.ErrCodeInternal, false},
	}
	for _, test := range tests {
		t.Run(test.code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, tunnel := scriptedServer(t, Config{})
				opened := opening(tunnel)
				p.want("request", "HEADERS 1 CONNECT 10.0.0.1:80")
				p.headers(1, false, ":status", "200")
				s, err := opened()
				p.check(err)
				p.check(p.fr.WriteData(1, false, []byte("before")))
				p.check(p.fr.WriteRSTStream(1, test.code))
				b, err := io.ReadAll(s)
				if string(b) != "before" || err == nil || errors.Is(err, syscall.EPIPE) != test.pipe {
					t.Errorf("read: got %q, %v", b, err)
				}
				if _, err := s.Write([]byte("x")); errors.Is(err, syscall.EPIPE) != test.pipe || err == nil {
					t.Errorf("write: got %v", err)
				}
				_ = p.conn.Close()
				_ = tunnel.Close()
			})
		})
	}
}

func TestCloseCodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, served := scriptedClient(t, Config{}, func(in *Incoming) {
			s, err := in.Accept()
			if err != nil {
				t.Errorf("accept: %v", err)
				return
			}
			switch in.Request.Authority {
			case "finished:1":
				closeWrite(t, s)
				_ = s.Close()
			case "unfinished:1":
				_ = s.Close()
			case "aborted:1":
				s.Reset()
			case "reset:1":
				closeWrite(t, s)
				s.Reset()
			}
		})
		for i, want := range []struct{ authority, frames string }{
			{"finished:1", "DATA end,RST_STREAM NO_ERROR"},
			{"unfinished:1", "DATA end,RST_STREAM NO_ERROR"},
			{"aborted:1", "RST_STREAM CANCEL"},
			{"reset:1", "DATA end,RST_STREAM CANCEL"},
		} {
			id := uint32(2*i + 1)
			p.headers(id, false, ":method", "CONNECT", ":authority", want.authority)
			p.next()
			for f := range strings.SplitSeq(want.frames, ",") {
				kind, rest, _ := strings.Cut(f, " ")
				p.want(want.authority, kind+" "+string('0'+rune(id))+" "+rest)
			}
		}
		_ = p.conn.Close()
		t.Logf("serve: %v", <-served)
	})
}

// TestClientAgainstScript sends what a server may get wrong.
func TestClientAgainstScript(t *testing.T) {
	t.Run("GOAWAY", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, tunnel := scriptedServer(t, Config{})
			first := opening(tunnel)
			p.want("request", "HEADERS 1 CONNECT 10.0.0.1:80")
			second := opening(tunnel)
			p.want("request", "HEADERS 3 CONNECT 10.0.0.1:80")
			p.headers(1, false, ":status", "200")
			s, err := first()
			p.check(err)
			p.check(p.fr.WriteGoAway(1, http2.ErrCodeNo, nil))
			if _, err := second(); !errors.Is(err, h2.ErrUnprocessed) {
				t.Errorf("stream beyond the last: got %v, want %v", err, h2.ErrUnprocessed)
			}
			if _, err := tunnel.Open(t.Context(), Request{Authority: "a:1"}); !errors.Is(err, h2.ErrUnprocessed) {
				t.Errorf("open after GOAWAY: got %v, want %v", err, h2.ErrUnprocessed)
			}
			p.check(p.fr.WriteData(1, true, []byte("running goes on")))
			readAll(t, "running stream", s, "running goes on")
			closeWrite(t, s)
			p.want("end", "DATA 1 end")
			p.want("the tunnel ends with its last stream", "GOAWAY 0 NO_ERROR")
			<-tunnel.Done()
			_ = p.conn.Close()
			_ = tunnel.Close()
		})
	})
	t.Run("interim answers are skipped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, tunnel := scriptedServer(t, Config{})
			opened := opening(tunnel)
			p.want("request", "HEADERS 1 CONNECT 10.0.0.1:80")
			p.headers(1, false, ":status", "103")
			p.headers(1, false, ":status", "200", "a", "b")
			s, err := opened()
			p.check(err)
			if len(s.Header()) != 1 {
				t.Errorf("header: got %v", s.Header())
			}
			p.headers(1, true, "trailer", "x")
			p.want("trailers on a connected stream", "RST_STREAM 1 PROTOCOL_ERROR")
			_ = p.conn.Close()
			_ = tunnel.Close()
		})
	})
	t.Run("limit of streams", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, tunnel := scriptedServer(t, Config{}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
			opened := opening(tunnel)
			p.want("request", "HEADERS 1 CONNECT 10.0.0.1:80")
			p.headers(1, false, ":status", "200")
			if _, err := opened(); err != nil {
				t.Errorf("first: %v", err)
			}
			if _, err := tunnel.Open(t.Context(), Request{Authority: "a:1"}); !errors.Is(err, h2.ErrNoRoom) {
				t.Errorf("second: got %v, want %v", err, h2.ErrNoRoom)
			}
			_ = p.conn.Close()
			_ = tunnel.Close()
		})
	})
	t.Run("DATA before the answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, tunnel := scriptedServer(t, Config{})
			opened := opening(tunnel)
			p.want("request", "HEADERS 1 CONNECT 10.0.0.1:80")
			p.check(p.fr.WriteData(1, false, []byte("x")))
			p.want("answer", "RST_STREAM 1 PROTOCOL_ERROR")
			if _, err := opened(); err == nil {
				t.Error("open succeeded")
			}
			_ = p.conn.Close()
			_ = tunnel.Close()
		})
	})
}

// TestPing: one after 10 s, then 10 s after each answer; without an answer the
// tunnel ends 20 s later.
func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, tunnel := scriptedServer(t, Config{})
		for range 3 {
			start := time.Now()
			f, err := p.fr.ReadFrame()
			for err == nil && f.Header().Type == http2.FrameWindowUpdate {
				f, err = p.fr.ReadFrame()
			}
			p.check(err)
			ping, ok := f.(*http2.PingFrame)
			if !ok || time.Since(start) != 10*time.Second {
				t.Fatalf("got %v after %v, want a PING after 10s", f, time.Since(start))
			}
			p.check(p.fr.WritePing(true, ping.Data))
		}
		start := time.Now()
		p.want("last ping", "PING")
		<-tunnel.Done()
		if got := time.Since(start); got != 30*time.Second {
			t.Errorf("tunnel ended after %v, want 30s", got)
		}
		if _, err := tunnel.Open(context.Background(), Request{Authority: "a:1"}); !errors.Is(err, h2.ErrPingTimeout) {
			t.Errorf("open: got %v, want %v", err, h2.ErrPingTimeout)
		}
		_ = p.conn.Close()
		_ = tunnel.Close()
	})
}
