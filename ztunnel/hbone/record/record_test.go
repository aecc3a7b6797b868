package record

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// chunks gives its pieces one per Read, then io.EOF; it keeps what is written.
type chunks struct {
	net.Conn
	pieces [][]byte
	wrote  [][]byte
	err    error // of Write
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.pieces[0])
	if c.pieces[0] = c.pieces[0][n:]; len(c.pieces[0]) == 0 {
		c.pieces = c.pieces[1:]
	}
	return n, nil
}

func (c *chunks) Write(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	c.wrote = append(c.wrote, bytes.Clone(p))
	return len(p), nil
}

func record(n int) []byte {
	b := append(binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(n)), make([]byte, n)...)
	for i := range n {
		b[headerLen+i] = byte(i)
	}
	return b
}

// TestReadsOneRecordAtATime however the bytes come.
func TestReadsOneRecordAtATime(t *testing.T) {
	stream := bytes.Join([][]byte{record(100), record(1), record(0), record(MaxPlain)}, nil)
	for _, size := range []int{1, 3, 5, 6, 100, 1000, len(stream)} {
		from := &chunks{}
		for rest := stream; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			from.pieces = append(from.pieces, rest[:min(size, len(rest))])
		}
		c := New(from)
		var got []byte
		p := make([]byte, 1<<15)
		for _, want := range []int{105, 6, 5, headerLen + MaxPlain} {
			for left := want; left > 0; {
				n, err := c.Read(p)
				if err != nil || n > left {
					t.Fatalf("pieces of %d: read %d of a record that has %d left, %v", size, n, left, err)
				}
				got = append(got, p[:n]...)
				left -= n
			}
			if more := want != headerLen+MaxPlain; size == len(stream) && c.More() != more {
				t.Errorf("after a record of %d: more is %v", want, !more)
			}
		}
		if !bytes.Equal(got, stream) {
			t.Errorf("pieces of %d: the bytes differ", size)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF { //nolint:errorlint // readers return it bare
			t.Errorf("at the end: %d, %v", n, err)
		}
		if c.in != nil {
			t.Errorf("a buffer is held at the end")
		}
	}
}

func TestEndWithinAHeader(t *testing.T) {
	c := New(&chunks{pieces: [][]byte{{23, 3}}})
	if n, err := c.Read(make([]byte, 10)); n != 2 || err != nil {
		t.Errorf("got %d, %v, want the two bytes that have come", n, err)
	}
	if _, err := c.Read(make([]byte, 10)); err != io.EOF { //nolint:errorlint // readers return it bare
		t.Errorf("then: %v", err)
	}
}

// TestWaitingForAHeader: who has sent part of a header, which takes no key,
// costs no buffer.
func TestWaitingForAHeader(t *testing.T) {
	want := append(record(100), record(7)...)
	for part := range headerLen {
		a, b := tcpPair(t)
		c := New(b)
		p := make([]byte, len(want))
		if part > 0 {
			_, _ = a.Write(want[:part])
			if err := c.fill(); err != nil || c.w != part {
				t.Fatalf("%d bytes: got %d, %v", part, c.w, err)
			}
		}
		_ = b.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		held := true
		_, err := c.sock.Read(waiting{c, func() { held = c.in != nil }})
		if !errors.Is(err, os.ErrDeadlineExceeded) || held {
			t.Errorf("%d bytes of a header: %v, a buffer is held: %v", part, err, held)
		}
		_ = b.SetReadDeadline(time.Time{})
		_, _ = a.Write(want[part:])
		_ = a.Close()
		got, err := 0, error(nil)
		for _, size := range []int{105, 12} {
			for end := got + size; got < end && err == nil; {
				var n int
				n, err = c.Read(p[got:])
				if got += n; got > end {
					t.Errorf("%d bytes of a header: a read crosses the record's end", part)
				}
			}
		}
		if err != nil || !bytes.Equal(p, want) {
			t.Errorf("%d bytes of a header, then the rest: %v, %x", part, err, p)
		}
		if _, err := c.Read(p); err != io.EOF || c.in != nil { //nolint:errorlint // readers return it bare
			t.Errorf("at the end: %v", err)
		}
		_ = b.Close()
	}
}

// waiting tells when the socket is about to wait.
type waiting struct {
	*Conn
	tell func()
}

func (w waiting) Put() { w.Conn.Put(); w.tell() }

// TestEndWithinAHeaderOverTCP: what had been put aside comes out.
func TestEndWithinAHeaderOverTCP(t *testing.T) {
	a, b := tcpPair(t)
	c := New(b)
	_, _ = a.Write([]byte{23, 3})
	if err := c.fill(); err != nil {
		t.Fatal(err)
	}
	c.Put()
	_ = a.Close()
	p := make([]byte, 10)
	if n, err := c.Read(p); !bytes.Equal(p[:n], []byte{23, 3}) || err != nil {
		t.Errorf("got %x, %v", p[:n], err)
	}
	if _, err := c.Read(p); err != io.EOF || c.in != nil { //nolint:errorlint // readers return it bare
		t.Errorf("then: %v", err)
	}
	_ = b.Close()
}

func TestHold(t *testing.T) {
	to := &chunks{}
	c := New(to)
	write := func(n int) {
		t.Helper()
		if got, err := c.Write(record(n)); got != n+headerLen || err != nil {
			t.Errorf("write: %d, %v", got, err)
		}
	}
	sizes := func(want ...int) {
		t.Helper()
		var got []int
		for _, p := range to.wrote {
			got = append(got, len(p))
		}
		if len(got) != len(want) {
			t.Fatalf("wrote %v, want %v", got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("wrote %v, want %v", got, want)
			}
		}
		to.wrote = nil
	}
	write(10)
	sizes(15)
	c.Hold()
	for range 3 {
		write(100)
	}
	sizes()
	if err := c.Flush(); err != nil {
		t.Error(err)
	}
	sizes(315)
	write(10)
	sizes(15)
	c.Hold()
	for range 10 {
		write(MaxPlain)
	}
	sizes(8 * (MaxPlain + headerLen))
	_ = c.Flush()
	sizes(2 * (MaxPlain + headerLen))
	if c.out != nil {
		t.Error("a buffer is held after Flush")
	}
	to.err = errors.New("boom")
	c.Hold()
	write(1)
	if err := c.Flush(); err == nil {
		t.Error("the error of a write is lost")
	}
	to.err = nil
	if _, err := c.Write(record(1)); err == nil {
		t.Error("a record follows one that was lost")
	}
}

// TestOverTCP is TLS over real sockets: with bulk, in both directions at once,
// with deadlines.
func TestOverTCP(t *testing.T) {
	a, b := tcpPair(t)
	client, server := New(a), New(b)
	cert := certificate(t)
	ends := [2]*tls.Conn{
		tls.Client(client, &tls.Config{InsecureSkipVerify: true}),
		tls.Server(server, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}),
	}
	payload := bytes.Repeat([]byte("0123456789abcde"), 1<<17)
	var all sync.WaitGroup
	for i, end := range ends {
		all.Go(func() {
			if err := end.Handshake(); err != nil {
				t.Errorf("handshake: %v", err)
			}
			below := [2]*Conn{client, server}[i]
			for rest := payload; len(rest) > 0; {
				below.Hold()
				n := min(len(rest), 60_000)
				if _, err := end.Write(rest[:n]); err != nil {
					t.Errorf("write: %v", err)
				}
				if err := below.Flush(); err != nil {
					t.Errorf("flush: %v", err)
				}
				rest = rest[n:]
			}
		})
		all.Go(func() {
			got := make([]byte, len(payload))
			if _, err := io.ReadFull(end, got); err != nil || !bytes.Equal(got, payload) {
				t.Errorf("read: %v", err)
			}
		})
	}
	all.Wait()
	_ = ends[0].SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := ends[0].Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v, want a timeout", err)
	}
	if client.in != nil {
		t.Error("a buffer is held while nothing comes")
	}
	_ = ends[0].SetReadDeadline(time.Time{})
	_ = ends[1].Close()
	if _, err := ends[0].Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // readers return it bare
		t.Errorf("read after the peer's end: %v", err)
	}
	_ = ends[0].Close()
}

// FuzzRead: the bytes come out as they went in, whatever they are.
func FuzzRead(f *testing.F) {
	f.Add(bytes.Join([][]byte{record(3), record(300)}, nil), 7, 11)
	f.Add([]byte{23, 3}, 1, 1)
	f.Fuzz(func(t *testing.T, data []byte, in, out int) {
		in, out = 1+abs(in)%(1<<16), 1+abs(out)%(1<<16)
		from := &chunks{}
		for rest := data; len(rest) > 0; rest = rest[min(in, len(rest)):] {
			from.pieces = append(from.pieces, rest[:min(in, len(rest))])
		}
		c := New(from)
		var got []byte
		for {
			p := make([]byte, out)
			n, err := c.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
			c.More()
		}
		if !bytes.Equal(got, data) {
			t.Errorf("got %x, want %x", got, data)
		}
	})
}

func abs(n int) int { return max(n, -(n + 1)) }
