package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestMain fails the run if a goroutine is left behind.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	for range 200 {
		if runtime.NumGoroutine() <= before {
			os.Exit(code)
		}
		<-time.After(10 * time.Millisecond)
	}
	os.Exit(1)
}

func tcpPair(tb testing.TB) (a, b *net.TCPConn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("listen: %v", err)
	}
	defer l.Close()
	d, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		tb.Fatalf("dial: %v", err)
	}
	c, err := l.Accept()
	if err != nil {
		tb.Fatalf("accept: %v", err)
	}
	return d.(*net.TCPConn), c.(*net.TCPConn)
}

// between starts Copy between two TCP connections and returns their far ends.
func between(tb testing.TB, c *Counters) (caller, target *net.TCPConn, result chan error) {
	tb.Helper()
	caller, near := tcpPair(tb)
	far, target := tcpPair(tb)
	result = make(chan error, 1)
	go func() { result <- Copy(near, far, c) }()
	return caller, target, result
}

// poll waits until a condition holds.
func poll(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			tb.Fatalf("%s: not within 10s", what)
		}
		runtime.Gosched()
	}
}

func TestHalfCloseAndCounters(t *testing.T) {
	for _, callerFirst := range []bool{true, false} {
		var c Counters
		caller, target, result := between(t, &c)
		first, second, sent, received := caller, target, &c.Sent, &c.Received
		if !callerFirst {
			first, second, sent, received = target, caller, &c.Received, &c.Sent
		}
		_, _ = io.WriteString(first, "question")
		_ = first.CloseWrite()
		if b, err := io.ReadAll(second); string(b) != "question" || err != nil {
			t.Errorf("second reads %q, %v", b, err)
		}
		for i := range 3 {
			_, _ = io.WriteString(second, "answer")
			poll(t, "counter moves while the connection lives", func() bool { return received.Load() == uint64(6*(i+1)) })
		}
		_ = second.CloseWrite()
		if b, err := io.ReadAll(first); string(b) != "answeransweranswer" || err != nil {
			t.Errorf("first reads %q, %v", b, err)
		}
		if err := <-result; err != nil {
			t.Errorf("copy: %v", err)
		}
		if sent.Load() != 8 {
			t.Errorf("question's bytes: got %d, want 8", sent.Load())
		}
		_ = first.Close()
		_ = second.Close()
	}
}

// TestBulk is enough for all sizes of buffers.
func TestBulk(t *testing.T) {
	var c Counters
	caller, target, result := between(t, &c)
	payload := bytes.Repeat([]byte("0123456789abcde"), 2<<20)
	var all sync.WaitGroup
	for _, dir := range [][2]*net.TCPConn{{caller, target}, {target, caller}} {
		all.Go(func() {
			_, _ = dir[0].Write(payload)
			_ = dir[0].CloseWrite()
		})
		all.Go(func() {
			if b, err := io.ReadAll(dir[1]); !bytes.Equal(b, payload) || err != nil {
				t.Errorf("got %d bytes, %v", len(b), err)
			}
		})
	}
	all.Wait()
	if err := <-result; err != nil {
		t.Errorf("copy: %v", err)
	}
	if n := uint64(len(payload)); c.Sent.Load() != n || c.Received.Load() != n {
		t.Errorf("counters: %d, %d, want %d", c.Sent.Load(), c.Received.Load(), n)
	}
	_ = caller.Close()
	_ = target.Close()
}

// TestResetIsPassedOn: a reset is no failure, but the other application must
// not take it for a good end.
func TestResetIsPassedOn(t *testing.T) {
	var c Counters
	caller, target, result := between(t, &c)
	_, _ = io.WriteString(caller, "x")
	_, _ = io.ReadFull(target, make([]byte, 1))
	_ = caller.SetLinger(0)
	_ = caller.Close()
	if _, err := target.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("target reads: got %v, want a reset", err)
	}
	if err := <-result; err != nil {
		t.Errorf("copy: got %v, want nil", err)
	}
	_ = target.Close()
}

// fake is a connection in memory that can be made to fail.
type fake struct {
	net.Conn
	readErr, writeErr error
	wrote             bytes.Buffer
	closed, finished  chan struct{}
	once, onceF       sync.Once
	answer            io.Reader
	wasReset          bool
}

func newFake() *fake {
	return &fake{closed: make(chan struct{}), finished: make(chan struct{})}
}

func (f *fake) Read(p []byte) (int, error) {
	if f.answer != nil {
		n, err := f.answer.Read(p)
		if err != io.EOF || f.readErr == nil {
			return n, err
		}
	}
	if f.readErr != nil {
		return 0, f.readErr
	}
	<-f.closed
	return 0, net.ErrClosed
}

func (f *fake) Write(p []byte) (int, error) {
	if f.writeErr != nil {
		return 0, f.writeErr
	}
	return f.wrote.Write(p)
}

func (f *fake) CloseWrite() error { f.onceF.Do(func() { close(f.finished) }); return nil }
func (f *fake) Close() error      { f.once.Do(func() { close(f.closed) }); return nil }
func (f *fake) Reset()            { f.wasReset = true; _ = f.Close() }

func TestErrors(t *testing.T) {
	boom := errors.New("boom")
	tests := []struct {
		name  string
		setup func(caller, target *fake)
		want  string // of the error, empty for none
		reset bool
	}{
		{"read fails", func(caller, _ *fake) { caller.readErr = boom }, "read from caller: boom", true},
		{"write fails", func(caller, target *fake) {
			caller.answer, target.writeErr = strings.NewReader("x"), boom
		}, "write to target: boom", true},
		{"answer fails", func(_, target *fake) { target.readErr = boom }, "read from target: boom", true},
		{"tunnel breaks", func(_, target *fake) { target.readErr = io.ErrUnexpectedEOF }, "", true},
		{"pipe breaks", func(caller, _ *fake) { caller.readErr = syscall.EPIPE }, "", true},
		{"early answer is delivered although the target takes no more", func(caller, target *fake) {
			caller.answer, target.writeErr = strings.NewReader("much"), syscall.EPIPE
			target.answer = strings.NewReader("413")
		}, "", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				caller, target := newFake(), newFake()
				test.setup(caller, target)
				var c Counters
				err := Copy(caller, target, &c)
				if (err == nil) != (test.want == "") || (err != nil && err.Error() != test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				if caller.wasReset != test.reset || target.wasReset != test.reset {
					t.Errorf("reset: caller %v, target %v, want %v", caller.wasReset, target.wasReset, test.reset)
				}
				if target.answer != nil && caller.wrote.String() != "413" {
					t.Errorf("answer: got %q, want 413", caller.wrote.String())
				}
				<-caller.closed
				<-target.closed
			})
		})
	}
}

// pushing is a connection that writes what it has by itself, like a stream of a
// tunnel.
type pushing struct {
	*fake
	mu   sync.Mutex
	to   sink
	done func(error)
}

func (p *pushing) Forward(to sink, done func(error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to, p.done = to, done
}

// end says once that no more comes.
func (p *pushing) end(err error) {
	p.mu.Lock()
	done := p.done
	p.done = nil
	p.mu.Unlock()
	if done != nil {
		done(err)
	}
}

func (p *pushing) Reset() { p.fake.Reset(); p.end(net.ErrClosed) }

func TestForward(t *testing.T) {
	start := func() (far *pushing, app *net.TCPConn, c *Counters, result chan error) {
		far, c, result = &pushing{fake: newFake()}, &Counters{}, make(chan error, 1)
		near, app := tcpPair(t)
		go func() { result <- Copy(far, near, c) }()
		poll(t, "forwarding", func() bool { far.mu.Lock(); defer far.mu.Unlock(); return far.to != nil })
		return far, app, c, result
	}
	t.Run("bytes, then EOF", func(t *testing.T) {
		far, app, c, result := start()
		for range 3 {
			if n, err := far.to.TryWrite([]byte("abc")); n != 3 || err != nil {
				t.Errorf("try: %d, %v", n, err)
			}
		}
		if c.Sent.Load() != 9 {
			t.Errorf("counted %d bytes, want 9", c.Sent.Load())
		}
		far.end(nil)
		if b, err := io.ReadAll(app); string(b) != "abcabcabc" || err != nil {
			t.Errorf("application reads %q, %v", b, err)
		}
		_ = app.Close()
		<-far.finished
		_ = far.Close()
		if err := <-result; err != nil {
			t.Errorf("copy: %v", err)
		}
	})
	t.Run("a full socket takes no more, and does not wait", func(t *testing.T) {
		far, app, _, result := start()
		sent := 0
		for {
			n, err := far.to.TryWrite(make([]byte, 1<<20))
			if err != nil {
				t.Errorf("try: %v", err)
			}
			if sent += n; n == 0 {
				break
			}
		}
		far.end(nil)
		if n, err := io.Copy(io.Discard, app); n != int64(sent) || err != nil {
			t.Errorf("application reads %d, %v, want %d", n, err, sent)
		}
		_ = app.Close()
		if err := <-result; err != nil {
			t.Errorf("copy: %v", err)
		}
	})
	t.Run("a reset of the application ends the forwarding from within", func(t *testing.T) {
		far, app, _, result := start()
		_ = app.SetLinger(0)
		_ = app.Close()
		if err := <-result; err != nil {
			t.Errorf("copy: %v", err)
		}
		if !far.wasReset {
			t.Error("the stream was not reset")
		}
	})
}

func TestBufferSizes(t *testing.T) {
	var b buffer
	step := func(what string, n, want int) {
		t.Helper()
		b.used(n)
		if got := len(b.get()); got != want {
			t.Errorf("%s: got %d, want %d", what, got, want)
		}
	}
	if got := len(b.get()); got != smallSize {
		t.Errorf("first: got %d, want %d", got, smallSize)
	}
	for range mediumAfter/smallSize - 1 {
		step("before 128 KiB", smallSize, smallSize)
	}
	step("after 128 KiB", smallSize, mediumSize)
	step("short read: may fall idle", 10, smallSize)
	step("full read: it does not", smallSize, mediumSize)
	for b.moved < largeAfter-mediumSize {
		step("before 10 MiB", mediumSize, mediumSize)
	}
	step("after 10 MiB", mediumSize, largeSize)
	step("half full: stays", largeSize/2, largeSize)
	b.free()
}

func BenchmarkCopy(b *testing.B) {
	var c Counters
	caller, target, result := between(b, &c)
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 256<<10)
		for {
			if _, err := target.Read(buf); err != nil {
				return
			}
		}
	})
	p := make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := caller.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	_ = caller.Close()
	reading.Wait()
	_ = target.Close()
	if err := <-result; err != nil {
		b.Error(err)
	}
}
