package hbone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"
)

// TestMain fails the run if a goroutine of the package is left behind.
func TestMain(m *testing.M) {
	code := m.Run()
	var left string
	for range 200 {
		if left = leaked(); left == "" {
			os.Exit(code)
		}
		<-time.After(10 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", left)
	os.Exit(1)
}

// leaked returns the stacks of goroutines other than this one that run code of
// the package.
func leaked() string {
	buf := make([]byte, 4<<20)
	var left []string
	for i, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if i > 0 && strings.Contains(stack, "ztunnel/hbone") {
			left = append(left, stack)
		}
	}
	return strings.Join(left, "\n\n")
}

// connPair returns two ends of a connection in memory, with buffers like those
// of a socket.
func connPair(tb testing.TB) (client, server net.Conn) {
	tb.Helper()
	l := bufconn.Listen(64 << 10)
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			tb.Errorf("accept: %v", err)
		}
		accepted <- c
	}()
	client, err := l.Dial()
	if err != nil {
		tb.Fatalf("dial: %v", err)
	}
	server = <-accepted
	_ = l.Close()
	return client, server
}

// endpoints is a tunnel whose other end is Serve, in one process.
type endpoints struct {
	t      testing.TB
	tunnel *Tunnel
	stop   context.CancelFunc // tells Serve to drain
	served chan error         // what Serve returned
}

func connect(tb testing.TB, clientCfg, serverCfg Config, handle func(*Incoming)) *endpoints {
	tb.Helper()
	client, server := connPair(tb)
	return connectOver(tb, client, server, clientCfg, serverCfg, handle)
}

func connectOver(tb testing.TB, client, server net.Conn, clientCfg, serverCfg Config, handle func(*Incoming)) *endpoints {
	tb.Helper()
	ctx, stop := context.WithCancel(context.Background())
	e := &endpoints{t: tb, stop: stop, served: make(chan error, 1)}
	go func() { e.served <- Serve(ctx, server, serverCfg, handle) }()
	tunnel, err := NewTunnel(client, clientCfg)
	if err != nil {
		tb.Fatalf("new tunnel: %v", err)
	}
	e.tunnel = tunnel
	return e
}

// close ends the tunnel and waits for the server.
func (e *endpoints) close() {
	e.t.Helper()
	_ = e.tunnel.Close()
	if err := <-e.served; err != nil {
		e.t.Errorf("serve: %v", err)
	}
	e.stop()
}

func (e *endpoints) open() *Stream {
	e.t.Helper()
	s, err := e.tunnel.Open(context.Background(), Request{Authority: "10.0.0.1:80"})
	if err != nil {
		e.t.Fatalf("open: %v", err)
	}
	return s
}

// accepting returns a handler that accepts and passes the stream on.
func accepting(tb testing.TB) (handle func(*Incoming), streams chan *Stream) {
	tb.Helper()
	streams = make(chan *Stream, 1000)
	return func(in *Incoming) {
		s, err := in.Accept()
		if err != nil {
			tb.Errorf("accept: %v", err)
			return
		}
		streams <- s
	}, streams
}

// echo sends back what it gets, then ends.
func echo(tb testing.TB) func(*Incoming) {
	tb.Helper()
	return func(in *Incoming) {
		s, err := in.Accept()
		if err != nil {
			return // the client has gone
		}
		defer func() { _ = s.Close() }()
		if _, err := io.Copy(s, s); err != nil {
			return
		}
		_ = s.CloseWrite() // the client may have gone
	}
}

func readAll(tb testing.TB, what string, r io.Reader, want string) {
	tb.Helper()
	b, err := io.ReadAll(r)
	if err != nil || string(b) != want {
		tb.Errorf("%s: got %q, %v, want %q", what, b, err, want)
	}
}

func write(tb testing.TB, w io.Writer, text string) {
	tb.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		tb.Errorf("write %q: %v", text, err)
	}
}

func closeWrite(tb testing.TB, s *Stream) {
	tb.Helper()
	if err := s.CloseWrite(); err != nil {
		tb.Errorf("close write: %v", err)
	}
}

func TestRequestAndAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{}, func(in *Incoming) {
			switch in.Request.Authority {
			case "yes:80":
				s, err := in.Accept(Field{Name: "baggage", Value: "k=v"})
				if err != nil {
					t.Errorf("accept: %v", err)
					return
				}
				defer func() { _ = s.Close() }()
				readAll(t, "server", s, fmt.Sprint(in.Request.Header))
				write(t, s, "ok")
				closeWrite(t, s)
			case "no:80":
				if err := in.Reject(401); err != nil {
					t.Errorf("reject: %v", err)
				}
			}
		})
		defer e.close()
		header := []Field{{Name: "forwarded", Value: "for=x"}, {Name: "long", Value: strings.Repeat("x", 10<<10)}}
		s, err := e.tunnel.Open(t.Context(), Request{Authority: "yes:80", Header: header})
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		if got := fmt.Sprint(s.Header()); got != "[{baggage k=v}]" {
			t.Errorf("answer's header: got %v", got)
		}
		write(t, s, fmt.Sprint(header))
		closeWrite(t, s)
		readAll(t, "client", s, "ok")
		_ = s.Close()

		var status *StatusError
		if _, err := e.tunnel.Open(t.Context(), Request{Authority: "no:80"}); !errors.As(err, &status) || status.Status != 401 {
			t.Errorf("rejected: got %v, want status 401", err)
		}
		var reset *ResetError
		if _, err := e.tunnel.Open(t.Context(), Request{Authority: "silent:80"}); !errors.As(err, &reset) {
			t.Errorf("handler without an answer: got %v, want a reset", err)
		}
		for _, bad := range []Request{{}, {Authority: "a\r\nb"}, {Authority: "a:1", Header: []Field{{Name: "Upper", Value: "x"}}}, {Authority: "a:1", Header: []Field{{Name: ":path", Value: "x"}}}} {
			if _, err := e.tunnel.Open(t.Context(), bad); err == nil {
				t.Errorf("request %v was accepted", bad)
			}
		}
	})
}

// TestHalfClose closes each side's sending direction in either order, with
// bytes before and after, in both roles.
func TestHalfClose(t *testing.T) {
	for _, clientFirst := range []bool{true, false} {
		t.Run(fmt.Sprintf("client first %v", clientFirst), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				handle, streams := accepting(t)
				e := connect(t, Config{}, Config{}, handle)
				defer e.close()
				first, second := e.open(), <-streams
				if !clientFirst {
					first, second = second, first
				}
				write(t, first, "request")
				closeWrite(t, first)
				readAll(t, "second reads all of the first", second, "request")
				if _, err := first.Write([]byte("x")); err == nil {
					t.Error("write after CloseWrite succeeded")
				}
				// The other direction runs for as long as it likes.
				time.Sleep(time.Hour)
				for range 3 {
					write(t, second, "answer ")
					time.Sleep(time.Minute)
				}
				closeWrite(t, second)
				closeWrite(t, second) // again: no error
				readAll(t, "first reads all of the second", first, "answer answer answer ")
				synctest.Wait()
				if n := e.tunnel.c.Streams(); n != 0 {
					t.Errorf("tunnel has %d streams after both ends, want 0", n)
				}
				_ = first.Close()
				_ = second.Close()
			})
		})
	}
}

func TestCloseWithDataInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handle, streams := accepting(t)
		e := connect(t, Config{}, Config{}, handle)
		defer e.close()
		a, b := e.open(), <-streams
		write(t, a, "last words")
		_ = a.Close()
		readAll(t, "peer reads what was sent before the close", b, "last words")
		if _, err := b.Write([]byte("x")); err == nil {
			t.Error("write to a stream that the peer has closed succeeded")
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after Close: got %v, want net.ErrClosed", err)
		}
		_ = b.Close()
	})
}

func TestTunnelCloseEndsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handle, streams := accepting(t)
		e := connect(t, Config{}, Config{}, handle)
		a, b := e.open(), <-streams
		blocked := make(chan error, 1)
		go func() {
			_, err := a.Read(make([]byte, 1))
			blocked <- err
		}()
		synctest.Wait()
		e.close()
		if err := <-blocked; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("blocked read: got %v, want an unexpected EOF", err)
		}
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("server's read: got %v, want an unexpected EOF", err)
		}
		if _, err := e.tunnel.Open(t.Context(), Request{Authority: "a:1"}); err == nil {
			t.Error("open on a closed tunnel succeeded")
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handle, streams := accepting(t)
		e := connect(t, Config{}, Config{StreamWindow: 1000}, handle)
		defer e.close()
		a, b := e.open(), <-streams
		start := time.Now()
		_ = a.SetReadDeadline(start.Add(time.Minute))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: got %v, want a timeout", err)
		}
		_ = a.SetWriteDeadline(start.Add(time.Hour))
		n, err := a.Write(make([]byte, 2000))
		if n != 1000 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write beyond the window: got %d, %v, want 1000 and a timeout", n, err)
		}
		if got := time.Since(start); got != time.Hour {
			t.Errorf("deadline passed after %v, want 1h", got)
		}
		_ = a.SetDeadline(time.Time{})
		write(t, b, "x")
		if _, err := io.ReadFull(b, make([]byte, 1000)); err != nil {
			t.Errorf("server: %v", err)
		}
		if _, err := a.Read(make([]byte, 1)); err != nil {
			t.Errorf("read without deadline: %v", err)
		}
		write(t, a, "y")
		_ = a.SetReadDeadline(time.Now().Add(-time.Second))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read after the deadline: got %v, want a timeout", err)
		}
		_ = a.Close()
		_ = b.Close()
	})
}

func TestOpenGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := make(chan struct{}, 2)
		e := connect(t, Config{OpenTimeout: 5 * time.Second}, Config{}, func(in *Incoming) {
			<-in.Context().Done()
			gone <- struct{}{}
		})
		defer e.close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := e.tunnel.Open(ctx, Request{Authority: "a:1"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
		<-gone
		if _, err := e.tunnel.Open(t.Context(), Request{Authority: "a:1"}); err == nil || !strings.Contains(err.Error(), "no answer within 5s") {
			t.Errorf("got %v, want the open timeout", err)
		}
		<-gone
	})
}

// TestConcurrentClose closes streams and tunnel from many sides at once.
func TestConcurrentClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := connect(t, Config{}, Config{}, echo(t))
		var all sync.WaitGroup
		for range 20 {
			s := e.open()
			all.Go(func() { _, _ = s.Write(make([]byte, 1<<20)) })
			all.Go(func() { _, _ = io.Copy(io.Discard, s) })
			all.Go(func() { _ = s.CloseWrite() })
			all.Go(func() { _ = s.Close() })
		}
		all.Go(func() { _ = e.tunnel.Close() })
		all.Wait()
		e.close()
	})
}
