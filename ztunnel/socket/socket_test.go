package socket

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

func pair(tb testing.TB) (near *Conn, conn, far *net.TCPConn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	d, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	conn, far = d.(*net.TCPConn), c.(*net.TCPConn)
	tb.Cleanup(func() { _ = conn.Close(); _ = far.Close() })
	if near, err = New(conn); err != nil {
		tb.Fatal(err)
	}
	return near, conn, far
}

// room is a Buffer that counts.
type room struct {
	p    [8]byte
	lent bool
	puts int
}

func (r *room) Get() []byte { r.lent = true; return r.p[:] }
func (r *room) Put()        { r.lent = false; r.puts++ }

func TestRead(t *testing.T) {
	near, _, far := pair(t)
	var b room
	_, _ = io.WriteString(far, "hello")
	if n, err := near.Read(&b); string(b.p[:n]) != "hello" || err != nil || !b.lent {
		t.Errorf("got %q, %v", b.p[:n], err)
	}
	b = room{}
	done := make(chan string)
	go func() {
		n, err := near.Read(&b)
		done <- string(b.p[:n]) + " " + errorString(err)
	}()
	go func() { _, _ = io.WriteString(far, "again") }()
	if got := <-done; got != "again " {
		t.Errorf("got %q", got)
	}
	_ = far.CloseWrite()
	if n, err := near.Read(&b); n != 0 || err != io.EOF { //nolint:errorlint // readers return it bare
		t.Errorf("at the end: %d, %v", n, err)
	}
}

func errorString(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestReadHoldsNothingWhileItWaits(t *testing.T) {
	near, conn, far := pair(t)
	var b room
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := near.Read(&b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want a timeout", err)
	}
	if b.lent || b.puts == 0 {
		t.Error("the buffer was not put back")
	}
	_ = conn.SetReadDeadline(time.Time{})
	_ = far.SetLinger(0)
	_ = far.Close()
	if _, err := near.Read(&b); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	_ = conn.Close()
	if _, err := near.Read(&b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want that it is closed", err)
	}
	if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want that it is closed", err)
	}
}

func TestWrite(t *testing.T) {
	near, conn, far := pair(t)
	big := bytes.Repeat([]byte("0123456789"), 2<<20)
	var reading sync.WaitGroup
	reading.Go(func() {
		if got, err := io.ReadAll(far); !bytes.Equal(got, big) || err != nil {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
	})
	if n, err := near.Write(big); n != len(big) || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	if n, err := near.Write(nil); n != 0 || err != nil {
		t.Errorf("write of nothing: %d, %v", n, err)
	}
	_ = conn.CloseWrite()
	reading.Wait()
	if _, err := near.TryWrite([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("got %v, want a broken pipe", err)
	}
}

func TestTryWriteDoesNotWait(t *testing.T) {
	near, _, far := pair(t)
	sent := 0
	for {
		n, err := near.TryWrite(make([]byte, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		if sent += n; n == 0 {
			break
		}
	}
	if _, err := io.ReadFull(far, make([]byte, sent)); err != nil {
		t.Error(err)
	}
}
