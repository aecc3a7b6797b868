package codec

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

type said struct {
	net.Conn
	io.Reader
	bytes.Buffer
}

func (s *said) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s *said) Write(p []byte) (int, error) { return s.Buffer.Write(p) }

// TestIdleHoldsNoPooledBuffer: what waits for a peer has given its large buffer
// back, whatever kind of message it took before.
func TestIdleHoldsNoPooledBuffer(t *testing.T) {
	for _, text := range []string{
		"POST / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 3000) + "\r\nContent-Length: 2\r\n\r\nhi",
		"POST / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 3000) + "\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nY: z\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 3000) + "\r\n\r\n",
	} {
		s := NewServerConn(&said{Reader: strings.NewReader(text)}, nil)
		if _, err := s.Next(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(s.Body()); err != nil {
			t.Fatal(err)
		}
		_ = s.Waiting()
		if s.in.pooled != nil {
			t.Errorf("after %.20q the server's end keeps its buffer", text)
		}
	}
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
	} {
		c := NewClientConn(&said{Reader: strings.NewReader(text)})
		if _, err := c.Response(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c.Body()); err != nil {
			t.Fatal(err)
		}
		if c.in.buf != nil {
			t.Errorf("after %.40q the client's end keeps its buffer", text)
		}
	}
}

// TestFirstBytesOfAnyLength: what was read before is all read again.
func TestFirstBytesOfAnyLength(t *testing.T) {
	for _, n := range []int{1, smallSize, smallSize + 1, readSize + 1, MaxHeadBytes + 1} {
		first := strings.Repeat("x", n)
		s := NewServerConn(&said{Reader: strings.NewReader("")}, []byte(first))
		if _, got := s.Detach(); string(got) != first {
			t.Errorf("%d bytes: got %d", n, len(got))
		}
	}
}

// TestAbortLasts: a deadline that is set at the same moment does not undo it.
func TestAbortLasts(t *testing.T) {
	ours, theirs := net.Pipe()
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	c := NewClientConn(ours)
	c.Abort()
	c.SetDeadline(time.Time{})
	if _, err := c.Response(); !Timeout(err) {
		t.Errorf("got %v, want a timeout", err)
	}
}
