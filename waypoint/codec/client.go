package codec

import (
	"net"
	"sync"
	"time"
)

// ClientConn is our end of a connection on which we send requests. It carries
// one request at a time.
type ClientConn struct {
	conn   net.Conn
	in     reader
	out    writer
	reuse  scratch
	method string
	body   *Body // of the current response
	broken bool
	used   int // requests that were begun

	mu      sync.Mutex
	aborted bool
}

// NewClientConn sends requests on conn.
func NewClientConn(conn net.Conn) *ClientConn {
	return &ClientConn{conn: conn, in: reader{src: conn}, out: writer{dst: conn}}
}

// Used returns how many requests were begun.
func (c *ClientConn) Used() int { return c.used }

// Conn returns the connection, for its addresses.
func (c *ClientConn) Conn() net.Conn { return c.conn }

// Head writes the head of a request; it leaves with the first bytes of its
// body, or by Flush.
func (c *ClientConn) Head(req *Request) {
	c.method, c.body = req.Method, nil
	c.used++
	c.out.text(req.Method)
	c.out.text(" ")
	c.out.text(req.Path)
	c.out.text(" HTTP/1.1\r\nhost: ")
	c.out.text(req.Authority)
	c.out.text("\r\n")
	c.out.fields(req.Fields)
	if req.ExpectContinue {
		c.out.text("expect: 100-continue\r\n")
	}
	length := req.Length
	if length == 0 && !namesBody(req.Method) {
		length = UntilClose // says nothing
	}
	c.out.framing(length, false, req.Upgrade)
}

// namesBody reports whether a request of this method says that it has no body,
// RFC 9110 §8.6.
func namesBody(method string) bool { return method == "POST" || method == "PUT" || method == "PATCH" }

// Bytes writes content that is all here.
func (c *ClientConn) Bytes(p []byte) { c.out.bytes(p) }

// Flush sends what is written.
func (c *ClientConn) Flush() error {
	err := c.out.flush()
	if err != nil {
		c.broken = true
	}
	return err
}

// Stream sends the body of a request, whose head was written, as it comes. It
// may run beside Response.
func (c *ClientConn) Stream(req *Request, body *Body) (readErr, writeErr error) {
	return c.out.copyBody(body, req.Length == Chunked)
}

// Response reads the next response head, informational ones among them. io.EOF
// means that the endpoint closed without a byte of response.
func (c *ClientConn) Response() (*Response, error) {
	head, err := c.in.head()
	if err != nil {
		c.broken = true
		return nil, badResponse(err)
	}
	res, err := parseResponse(head, c.method, &c.reuse)
	c.in.skip(len(head))
	if err != nil {
		c.broken = true
		return nil, badResponse(err)
	}
	if res.Status < 200 && res.Status != 101 {
		return res, nil
	}
	length := res.Length
	if res.Bodyless {
		length = 0
	}
	c.body = newBody(&c.in, length)
	if c.body.Done() {
		c.in.release()
	}
	c.broken = c.broken || res.Close
	return res, nil
}

func badResponse(err error) error {
	if refused, ok := err.(*Error); ok { //nolint:errorlint // made by this package, never wrapped
		return &Error{Status: 502, Reason: refused.Reason}
	}
	return err
}

// Body returns the body of the current response.
func (c *ClientConn) Body() *Body { return c.body }

// Reusable reports whether another request may follow: the response was read to
// its end, nothing more came, and neither side closes.
func (c *ClientConn) Reusable() bool {
	return !c.broken && c.out.err == nil && c.body != nil && c.body.Done() && c.in.r == c.in.w
}

// Detach hands the connection over with what was read from it but not used; the
// codec must not be used after.
func (c *ClientConn) Detach() (net.Conn, []byte) {
	rest := append([]byte(nil), c.in.buffered()...)
	c.in.r = c.in.w
	c.in.release()
	return c.conn, rest
}

// Abort makes reads and writes return, now and from now on. It may be called
// beside everything else.
func (c *ClientConn) Abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.aborted = true
	_ = c.conn.SetDeadline(time.Unix(1, 0))
}

// SetDeadline bounds reads and writes; the zero time removes the bound. It does
// not undo Abort.
func (c *ClientConn) SetDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.aborted {
		_ = c.conn.SetDeadline(t)
	}
}

// Close closes the connection.
func (c *ClientConn) Close() error {
	c.broken = true
	return c.conn.Close()
}
