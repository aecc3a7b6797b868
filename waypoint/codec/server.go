package codec

import (
	"errors"
	"io"
	"net"
	"time"
)

// ServerConn is our end of a connection on which a client sends requests.
type ServerConn struct {
	conn net.Conn
	in   reader
	out  writer
	wait [smallSize]byte // of in

	body    *Body
	reuse   scratch
	method  string
	closes  bool // nothing may be read after this request
	inStart uint64
	outMark uint64
}

// NewServerConn reads requests from conn. first is what was read from it
// already; it may be nil.
func NewServerConn(conn net.Conn, first []byte) *ServerConn {
	s := &ServerConn{conn: conn, in: reader{src: conn}, out: writer{dst: conn}}
	s.in.small = &s.wait
	for s.in.w < len(first) {
		s.in.makeRoom(max(len(first), MaxHeadBytes))
		s.in.w += copy(s.in.buf[s.in.w:], first[s.in.w:])
	}
	return s
}

// Next reads the head of the next request. io.EOF is the clean end of the
// connection; an *Error is to be answered with its status, then the connection
// is over. The request is valid until the next call.
func (s *ServerConn) Next() (*Request, error) {
	if s.closes {
		return nil, io.EOF
	}
	s.inStart = s.in.total - uint64(s.in.w-s.in.r)
	s.outMark = s.out.total
	s.method = ""
	head, err := s.in.head()
	if err != nil {
		s.body, s.closes = nil, true
		return nil, err
	}
	req, err := parseRequest(head, &s.reuse)
	s.in.skip(len(head))
	if err != nil {
		s.body, s.closes = nil, true
		return nil, err
	}
	s.method, s.closes = req.Method, req.Close
	s.body = newBody(&s.in, req.Length)
	if s.body.Done() {
		s.in.release()
	}
	return req, nil
}

// Body returns the body of the current request.
func (s *ServerConn) Body() *Body { return s.body }

// CloseAfter makes the current response the last one of this connection.
func (s *ServerConn) CloseAfter() { s.closes = true }

// Closes reports whether the connection is over after the current response.
func (s *ServerConn) Closes() bool { return s.closes }

// Interim sends an informational response at once.
func (s *ServerConn) Interim(res *Response) error {
	s.statusLine(res)
	s.out.fields(res.Fields)
	s.out.text("\r\n")
	return s.out.flush()
}

// Head writes the head of the response; it leaves with the first bytes of the
// body, or by Flush. Whether the body is chunked or ends with the connection is
// decided here.
func (s *ServerConn) Head(res *Response) {
	if res.Length == UntilClose && !res.Bodyless {
		res.Length = Chunked
	}
	if s.body != nil && !s.body.Done() {
		s.closes = true // what the client still sends would be taken for a request
	}
	s.statusLine(res)
	s.out.fields(res.Fields)
	length := res.Length
	if res.Bodyless && (length < 0 || res.Status < 200 || res.Status == 204) {
		length = UntilClose // says nothing
	}
	s.out.framing(length, s.closes, res.Upgrade)
}

func (s *ServerConn) statusLine(res *Response) {
	s.out.text("HTTP/1.1 ")
	s.out.number(int64(res.Status), 10)
	s.out.text(" ")
	s.out.text(res.Reason)
	s.out.text("\r\n")
}

// Stream sends the body of a response, whose head was written, as it comes. The
// caller learns which side failed; either way the connection is over then.
func (s *ServerConn) Stream(res *Response, body *Body) (readErr, writeErr error) {
	if res.Bodyless {
		return nil, s.Flush()
	}
	readErr, writeErr = s.out.copyBody(body, res.Length == Chunked)
	if readErr != nil || writeErr != nil {
		s.closes = true
	}
	return readErr, writeErr
}

// Text sends a whole response that we make ourselves.
func (s *ServerConn) Text(res *Response, content string) error {
	res.Length = int64(len(content))
	res.Bodyless = s.method == "HEAD" || res.Status == 204 || res.Status == 304
	s.Head(res)
	if !res.Bodyless {
		s.out.text(content)
	}
	return s.Flush()
}

// Flush sends what is written.
func (s *ServerConn) Flush() error {
	err := s.out.flush()
	if err != nil {
		s.closes = true
	}
	return err
}

// Waiting blocks until the client sends something or goes away, while no body
// is being read, and returns nil in the first case. A read deadline in the past
// ends it with a timeout.
func (s *ServerConn) Waiting() error {
	if s.in.r < s.in.w {
		return nil
	}
	return s.in.fill(MaxHeadBytes)
}

// Bytes returns how many bytes the current request and its response took so
// far, heads included.
func (s *ServerConn) Bytes() (in, out uint64) {
	return s.in.total - uint64(s.in.w-s.in.r) - s.inStart, s.out.total - s.outMark
}

// Detach hands the connection over with what was read from it but not used; the
// codec must not be used after.
func (s *ServerConn) Detach() (net.Conn, []byte) {
	rest := append([]byte(nil), s.in.buffered()...)
	s.in.r = s.in.w
	s.in.release()
	return s.conn, rest
}

// Linger ends a connection on which the client may still be sending: our side
// is closed and the rest taken in for a moment, so that the client reads the
// response and not a reset.
func (s *ServerConn) Linger(limit time.Duration) {
	half, ok := s.conn.(interface{ CloseWrite() error })
	if !ok || s.body != nil && s.body.Done() {
		return
	}
	if half.CloseWrite() != nil || s.conn.SetReadDeadline(time.Now().Add(limit)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, &s.in, 1<<20)
}

// Timeout reports whether err is a deadline that passed.
func Timeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
