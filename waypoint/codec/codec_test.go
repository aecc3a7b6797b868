package codec_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/codec"
)

// wire is a connection that has said in and collects what is written.
type wire struct {
	in  io.Reader
	out bytes.Buffer
}

func (w *wire) Read(p []byte) (int, error)       { return w.in.Read(p) }
func (w *wire) Write(p []byte) (int, error)      { return w.out.Write(p) }
func (w *wire) Close() error                     { return nil }
func (w *wire) LocalAddr() net.Addr              { return nil }
func (w *wire) RemoteAddr() net.Addr             { return nil }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

func serverOn(text string) *codec.ServerConn {
	return codec.NewServerConn(&wire{in: strings.NewReader(text)}, nil)
}

// TestRefused is what two readers could understand differently, and what is
// plainly wrong. Each must be refused with its status.
func TestRefused(t *testing.T) {
	const host = "Host: a\r\n"
	for name, c := range map[string]struct {
		text   string
		status int
	}{
		"CL and TE":             {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		"TE and CL":             {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400},
		"two CL":                {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400},
		"two equal CL":          {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400},
		"CL list":               {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5, 5\r\n\r\n", 400},
		"CL with sign":          {"POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\n", 400},
		"CL negative":           {"POST / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", 400},
		"CL hex":                {"POST / HTTP/1.1\r\n" + host + "Content-Length: 0x5\r\n\r\n", 400},
		"CL empty":              {"POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\n", 400},
		"CL huge":               {"POST / HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\n", 400},
		"TE unknown":            {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\n", 501},
		"TE xchunked":           {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n", 501},
		"TE list":               {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
		"TE twice":              {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		"TE identity":           {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\n", 501},
		"TE vertical tab":       {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \vchunked\r\n\r\n", 400},
		"space before colon":    {"POST / HTTP/1.1\r\n" + host + "Content-Length : 5\r\n\r\n", 400},
		"tab before colon":      {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding\t: chunked\r\n\r\n", 400},
		"folded line":           {"GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", 400},
		"folded first line":     {"GET / HTTP/1.1\r\n X: a\r\n" + host + "\r\n", 400},
		"bare LF in head":       {"GET / HTTP/1.1\r\n" + host + "X: a\nY: b\r\n\r\n", 400},
		"bare LF ends head":     {"GET / HTTP/1.1\r\n" + host + "\n", 400},
		"bare CR in value":      {"GET / HTTP/1.1\r\n" + host + "X: a\rY: b\r\n\r\n", 400},
		"bare CR in line":       {"GET /\r HTTP/1.1\r\n" + host + "\r\n", 400},
		"NUL in value":          {"GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", 400},
		"no name":               {"GET / HTTP/1.1\r\n" + host + ": a\r\n\r\n", 400},
		"no colon":              {"GET / HTTP/1.1\r\n" + host + "X\r\n\r\n", 400},
		"bad name":              {"GET / HTTP/1.1\r\n" + host + "X(y): a\r\n\r\n", 400},
		"no host":               {"GET / HTTP/1.1\r\n\r\n", 400},
		"two hosts":             {"GET / HTTP/1.1\r\n" + host + host + "\r\n", 400},
		"host with path":        {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
		"host with user":        {"GET / HTTP/1.1\r\nHost: u@b\r\n\r\n", 400},
		"absolute with user":    {"GET http://u@b/ HTTP/1.1\r\n" + host + "\r\n", 400},
		"other scheme":          {"GET ftp://b/ HTTP/1.1\r\n" + host + "\r\n", 400},
		"no path":               {"GET a HTTP/1.1\r\n" + host + "\r\n", 400},
		"star for GET":          {"GET * HTTP/1.1\r\n" + host + "\r\n", 400},
		"fragment":              {"GET /#x HTTP/1.1\r\n" + host + "\r\n", 400},
		"two spaces":            {"GET  / HTTP/1.1\r\n" + host + "\r\n", 400},
		"space in target":       {"GET /a b HTTP/1.1\r\n" + host + "\r\n", 400},
		"tab in line":           {"GET\t/ HTTP/1.1\r\n" + host + "\r\n", 400},
		"no version":            {"GET /\r\n" + host + "\r\n", 400},
		"lower-case version":    {"GET / http/1.1\r\n" + host + "\r\n", 400},
		"version 1.10":          {"GET / HTTP/1.10\r\n" + host + "\r\n", 400},
		"version 1.0":           {"GET / HTTP/1.0\r\n" + host + "\r\n", 426},
		"version 2":             {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
		"empty line first":      {"\r\nGET / HTTP/1.1\r\n" + host + "\r\n", 400},
		"CONNECT":               {"CONNECT a:80 HTTP/1.1\r\n" + host + "\r\n", 400},
		"bad method":            {"GE{T / HTTP/1.1\r\n" + host + "\r\n", 400},
		"connection names CL":   {"POST / HTTP/1.1\r\n" + host + "Connection: content-length\r\nContent-Length: 5\r\n\r\n", 400},
		"connection names host": {"POST / HTTP/1.1\r\n" + host + "Connection: Host\r\n\r\n", 400},
		"upgrade with body":     {"GET / HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\n", 400},
		"other expectation":     {"GET / HTTP/1.1\r\n" + host + "Expect: tea\r\n\r\n", 417},
		"many fields":           {"GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 100) + "\r\n", 431},
		"long line":             {"GET /" + strings.Repeat("x", 61<<10) + " HTTP/1.1\r\n" + host + "\r\n", 431},
		"endless line":          {"GET /" + strings.Repeat("x", 200<<10), 431},
	} {
		t.Run(name, func(t *testing.T) {
			for how, in := range map[string]io.Reader{"at once": strings.NewReader(c.text), "by the byte": iotest.OneByteReader(strings.NewReader(c.text))} {
				if how == "by the byte" && len(c.text) > 4096 {
					continue
				}
				_, err := codec.NewServerConn(&wire{in: in}, nil).Next()
				var refused *codec.Error
				if !errors.As(err, &refused) || refused.Status != c.status {
					t.Errorf("%s: got %v, want status %d", how, err, c.status)
				}
			}
		})
	}
}

func TestRefusedBodies(t *testing.T) {
	for name, text := range map[string]string{
		"size not hex":       "g\r\n",
		"no size":            "\r\nabc",
		"negative size":      "-1\r\n",
		"size with 0x":       "0x3\r\nabc\r\n0\r\n\r\n",
		"size with space":    " 3\r\nabc\r\n0\r\n\r\n",
		"size too large":     "fffffffffffffffff\r\n",
		"chunk too long":     "3\r\nabcd\r\n0\r\n\r\n",
		"chunk too short":    "5\r\nabc\r\n0\r\n\r\n",
		"bare LF after size": "3\nabc\r\n0\r\n\r\n",
		"bare LF after data": "3\r\nabc\n0\r\n\r\n",
		"LF in extension":    "3;a\nb\r\nabc\r\n0\r\n\r\n",
		"CR in extension":    "3;a\rb\r\nabc\r\n0\r\n\r\n",
		"long extension":     "3;" + strings.Repeat("a", 1000) + "\r\nabc\r\n0\r\n\r\n",
		"bad trailer":        "0\r\nX : y\r\n\r\n",
		"no end":             "3\r\nabc\r\n0\r\n",
	} {
		s := serverOn("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + text)
		if _, err := s.Next(); err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(s.Body()); err == nil {
			t.Errorf("%s: read %q, want an error", name, body)
		}
	}
}

func TestRequest(t *testing.T) {
	s := serverOn("POST http://Shop.example:80?q=1 HTTP/1.1\r\nHost: ignored\r\nX-Tea:  green \r\nx-tea:\tblack\r\n" +
		"Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nUpgrade: h2c\r\nTransfer-Encoding: Chunked\r\nX-Empty:\r\n\r\n" +
		"3;ext=\"x\"\r\nabc\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 9\r\nHost: evil\r\nContent-Length: 3\r\n\r\n")
	req, err := s.Next()
	if err != nil {
		t.Fatal(err)
	}
	want := &codec.Request{
		Method: "POST", Scheme: "http", Authority: "Shop.example:80", Path: "/?q=1",
		Fields: []codec.Field{{Name: "x-tea", Value: "green"}, {Name: "x-tea", Value: "black"}, {Name: "x-empty"}},
		Length: codec.Chunked, Close: true,
	}
	if diff := cmp.Diff(want, req, cmpopts.EquateComparable(spiffe.ID{})); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if body, err := io.ReadAll(s.Body()); err != nil || string(body) != "abc0123456789" {
		t.Errorf("body %q, %v", body, err)
	}
	if diff := cmp.Diff([]codec.Field{{Name: "x-sum", Value: "9"}}, s.Body().Trailer()); diff != "" {
		t.Errorf("trailer (-want +got):\n%s", diff)
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after close: %v, want EOF", err)
	}
}

// TestPipelined: the second request begins where the body of the first ends.
func TestPipelined(t *testing.T) {
	s := serverOn("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: b\r\n\r\n")
	for _, want := range []struct{ path, host, body string }{{"/1", "a", "abc"}, {"/2", "b", ""}} {
		req, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(s.Body())
		if err != nil || req.Path != want.path || req.Authority != want.host || string(body) != want.body {
			t.Errorf("got %s %s %q, %v, want %v", req.Authority, req.Path, body, err, want)
		}
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("end: %v, want EOF", err)
	}
}

// TestRefusalAfterHEADHasItsText: the request that is refused is not HEAD.
func TestRefusalAfterHEADHasItsText(t *testing.T) {
	w := &wire{in: strings.NewReader("HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGARBAGE\r\n\r\n")}
	s := codec.NewServerConn(w, nil)
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(); err == nil {
		t.Fatal("garbage was accepted")
	}
	if err := s.Text(&codec.Response{Status: 400, Reason: "Bad Request"}, "why\n"); err != nil || !strings.HasSuffix(w.out.String(), "\r\n\r\nwhy\n") {
		t.Errorf("got %q, %v", w.out.String(), err)
	}
}

func TestCutShort(t *testing.T) {
	if _, err := serverOn("GET / HTTP/1.1\r\nHo").Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("head cut short: %v", err)
	}
	s := serverOn("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s.Body()); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("body cut short: %v", err)
	}
}

func TestUnreadBodyClosesTheConnection(t *testing.T) {
	w := &wire{in: strings.NewReader("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n1234")}
	s := codec.NewServerConn(w, nil)
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	if err := s.Text(&codec.Response{Status: 404, Reason: "Not Found"}, "no"); err != nil {
		t.Fatal(err)
	}
	if want := "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"; w.out.String() != want {
		t.Errorf("wrote %q, want %q", w.out.String(), want)
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("an unread body was taken for a request: %v", err)
	}
}

func TestResponses(t *testing.T) {
	for name, c := range map[string]struct {
		method, text string
		bad          bool
		length       int64
		body         string
		reusable     bool
	}{
		"length":         {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, 2, "ok", true},
		"chunked":        {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", false, codec.Chunked, "ok", true},
		"until close":    {"GET", "HTTP/1.1 200 OK\r\n\r\nok", false, codec.UntilClose, "ok", false},
		"close":          {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", false, 2, "ok", false},
		"1.0":            {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false, 2, "ok", false},
		"no reason":      {"GET", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", false, 2, "ok", true},
		"HEAD":           {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", false, 2, "", true},
		"204":            {"GET", "HTTP/1.1 204 No Content\r\n\r\n", false, 0, "", true},
		"304":            {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", false, 7, "", true},
		"more than said": {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokextra", false, 2, "ok", false},
		"204 with body":  {"GET", "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok", true, 0, "", false},
		"two lengths":    {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", true, 0, "", false},
		"CL and TE":      {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok", true, 0, "", false},
		"no version":     {"GET", "200 OK\r\n\r\n", true, 0, "", false},
		"status 99":      {"GET", "HTTP/1.1 099 OK\r\n\r\n", true, 0, "", false},
		"status 1000":    {"GET", "HTTP/1.1 1000 OK\r\n\r\n", true, 0, "", false},
		"bare LF":        {"GET", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", true, 0, "", false},
		"101 unasked":    {"GET", "HTTP/1.1 101 Switching Protocols\r\n\r\n", true, 0, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			conn := codec.NewClientConn(&wire{in: strings.NewReader(c.text)})
			conn.Head(&codec.Request{Method: c.method, Path: "/", Authority: "a"})
			if err := conn.Flush(); err != nil {
				t.Fatal(err)
			}
			res, err := conn.Response()
			if c.bad {
				var refused *codec.Error
				if !errors.As(err, &refused) || refused.Status != 502 {
					t.Fatalf("got %v, want it refused with 502", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(conn.Body())
			if err != nil || string(body) != c.body || res.Length != c.length || conn.Reusable() != c.reusable {
				t.Errorf("length %d, body %q, reusable %v, %v; want %d, %q, %v", res.Length, body, conn.Reusable(), err, c.length, c.body, c.reusable)
			}
		})
	}
}

// FuzzServer: whatever arrives, nothing panics, and a request that we send on is
// the same one request for the next reader, be it ourselves or net/http.
func FuzzServer(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("POST /x?y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("PUT http://b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close, x\r\n\r\nabc"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := codec.NewServerConn(&wire{in: bytes.NewReader(data)}, nil)
		for {
			req, err := s.Next()
			if err != nil {
				return
			}
			body, err := io.ReadAll(s.Body())
			if err != nil {
				return
			}
			checkForwarded(t, req, body)
		}
	})
}

// checkForwarded writes a request as we would send it and reads it as another
// implementation does: it must be the same one, and nothing after it.
func checkForwarded(t *testing.T, req *codec.Request, body []byte) {
	t.Helper()
	w := &wire{}
	c := codec.NewClientConn(w)
	if req.Length == codec.Chunked {
		req.Length = int64(len(body))
	}
	c.Head(req)
	c.Bytes(body)
	_ = c.Flush()
	again := codec.NewServerConn(&wire{in: bytes.NewReader(w.out.Bytes())}, nil)
	second, err := again.Next()
	if err != nil {
		t.Fatalf("what we send is refused by ourselves: %v\n%q", err, w.out.Bytes())
	}
	if second.Method != req.Method || second.Path != req.Path || second.Authority != req.Authority || len(second.Fields) != len(req.Fields) {
		t.Fatalf("sent %+v, read %+v", req, second)
	}
	got, err := io.ReadAll(again.Body())
	if err != nil || !bytes.Equal(got, body) {
		t.Fatalf("sent body %q, read %q, %v", body, got, err)
	}
	if _, err := again.Next(); !errors.Is(err, io.EOF) {
		t.Fatalf("more than one request was sent: %v", err)
	}
	in := bufio.NewReader(bytes.NewReader(w.out.Bytes()))
	other, err := http.ReadRequest(in)
	if err != nil {
		return // it is stricter about targets
	}
	got, err = io.ReadAll(other.Body)
	if err != nil || !bytes.Equal(got, body) || other.Method != req.Method || other.RequestURI != req.Path {
		t.Fatalf("sent %+v %q, net/http reads %+v %q, %v", req, body, other, got, err)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Fatalf("net/http sees more than one request: %v", err)
	}
}

// FuzzClient: whatever an endpoint answers, nothing panics and the body ends.
func FuzzClient(f *testing.F) {
	f.Add("GET", []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add("HEAD", []byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))
	f.Fuzz(func(_ *testing.T, method string, data []byte) {
		c := codec.NewClientConn(&wire{in: bytes.NewReader(data)})
		c.Head(&codec.Request{Method: method, Path: "/", Authority: "a"})
		for range 20 {
			if _, err := c.Response(); err != nil {
				return
			}
			if c.Body() != nil {
				_, _ = io.Copy(io.Discard, c.Body())
				return
			}
		}
	})
}

func BenchmarkHead(b *testing.B) {
	text := []byte("GET /api/v1/products?id=7 HTTP/1.1\r\nHost: productpage:9080\r\nUser-Agent: curl/8.5\r\nAccept: */*\r\nX-Request-Id: 0123\r\nCookie: session=1\r\n\r\n")
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	in := &repeat{text: text}
	s := codec.NewServerConn(&wire{in: in}, nil)
	for b.Loop() {
		if _, err := s.Next(); err != nil {
			b.Fatal(err)
		}
	}
}

type repeat struct{ text []byte }

func (r *repeat) Read(p []byte) (int, error) { return copy(p, r.text), nil }
