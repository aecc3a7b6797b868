package serve_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

func TestKeepAlive(t *testing.T) {
	r := newRig(t, options{})
	var connections atomic.Int32
	p, l := r.newBarePod("reviews")
	server := &http.Server{
		Handler: answers("ok"), ReadHeaderTimeout: time.Minute,
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				connections.Add(1)
			}
		},
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	r.service([]pod{p})
	s := r.stream(vip)
	in := bufio.NewReader(s)
	for i := range 50 {
		if _, err := fmt.Fprintf(s, "GET /%d HTTP/1.1\r\nHost: reviews\r\n\r\n", i); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(res.Body); string(body) != "ok" || res.Close {
			t.Fatalf("request %d: got %q, close %v", i, body, res.Close)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Fatalf("50 requests used %d connections to the endpoint, want 1", n)
	}
}

func TestStaleConnectionIsReplaced(t *testing.T) {
	r := newRig(t, options{})
	p, l := r.newBarePod("reviews")
	server := &http.Server{Handler: answers("ok"), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(closingListener{l}) }()
	t.Cleanup(func() { _ = server.Close() })
	r.service([]pod{p})
	c := r.client()
	for range 10 {
		if code, _ := get(t, c, "/"); code != 200 {
			t.Fatalf("got %d, want 200", code)
		}
	}
}

// closingListener's connections promise to stay and close after one response.
type closingListener struct{ net.Listener }

func (l closingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &closingConn{Conn: c}, err
}

type closingConn struct {
	net.Conn
	wrote bool
}

func (c *closingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if !c.wrote {
		c.wrote = true
		_ = c.Close()
	}
	return n, err
}

func TestLargeBodiesBothWays(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		h := sha256.New()
		_, _ = io.Copy(io.MultiWriter(w, h), req.Body)
		w.Header().Set("X-Sum", fmt.Sprintf("%x", h.Sum(nil)))
	}))})
	data := make([]byte, 8<<20)
	_, _ = rand.Read(data)
	want := fmt.Sprintf("%x", sha256.Sum256(data))
	for _, length := range []int64{int64(len(data)), -1} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://reviews/", bytes.NewReader(data))
		req.ContentLength = length
		res, err := r.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		n, err := io.Copy(h, res.Body)
		_ = res.Body.Close()
		if got := fmt.Sprintf("%x", h.Sum(nil)); err != nil || n != int64(len(data)) || got != want || res.Trailer.Get("X-Sum") != want {
			t.Fatalf("length %d: echoed %d bytes, sum right %v, trailer right %v, error %v", length, n, got == want,
				res.Trailer.Get("X-Sum") == want, err)
		}
	}
}

// TestStreamingIsNotHeldBack: each side sees a part before the other goes on.
func TestStreamingIsNotHeldBack(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		in := bufio.NewReader(req.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, "echo "+line)
			_ = control.Flush()
		}
	}))})
	body, send := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://reviews/", body)
	type result struct {
		res *http.Response
		err error
	}
	got := make(chan result, 1)
	c := r.client()
	go func() {
		res, err := c.Do(req)
		got <- result{res, err}
	}()
	_, _ = io.WriteString(send, "one\n")
	first := <-got
	if first.err != nil {
		t.Fatal(first.err)
	}
	defer func() { _ = first.res.Body.Close() }()
	in := bufio.NewReader(first.res.Body)
	for i, want := range []string{"one\n", "two\n", "three\n"} {
		if i > 0 {
			_, _ = io.WriteString(send, want)
		}
		if line, err := in.ReadString('\n'); err != nil || line != "echo "+want {
			t.Fatalf("got %q, %v, want echo %q", line, err, want)
		}
	}
	_ = send.Close()
	if rest, err := io.ReadAll(in); err != nil || len(rest) != 0 {
		t.Fatalf("rest %q, %v", rest, err)
	}
}

func TestBodylessResponses(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(304)
		default:
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hello")
		}
	}))})
	s := r.stream(vip)
	in := bufio.NewReader(s)
	for _, c := range []struct {
		method, path string
		status       int
		length       string
	}{{"HEAD", "/", 200, "5"}, {"GET", "/204", 204, ""}, {"GET", "/304", 304, ""}, {"HEAD", "/204", 204, ""}, {"GET", "/", 200, "5"}} {
		_, _ = fmt.Fprintf(s, "%s %s HTTP/1.1\r\nHost: reviews\r\n\r\n", c.method, c.path)
		req, _ := http.NewRequestWithContext(t.Context(), c.method, "http://reviews"+c.path, nil)
		res, err := http.ReadResponse(in, req)
		if err != nil {
			t.Fatalf("%s %s: %v", c.method, c.path, err)
		}
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != c.status || res.Header.Get("Content-Length") != c.length || len(res.TransferEncoding) > 0 ||
			(len(body) > 0) != (c.method == "GET" && c.path == "/") {
			t.Errorf("%s %s: got %d, length %q, coding %v, body %q", c.method, c.path, res.StatusCode,
				res.Header.Get("Content-Length"), res.TransferEncoding, body)
		}
	}
}

func TestExpectContinue(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/refuse" {
			w.WriteHeader(413)
			return
		}
		_, _ = io.Copy(w, req.Body)
	}))})
	s := r.stream(vip)
	in := bufio.NewReader(s)
	_, _ = io.WriteString(s, "POST / HTTP/1.1\r\nHost: reviews\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	if line, err := in.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q, %v, want 100", line, err)
	}
	_, _ = in.ReadString('\n')
	_, _ = io.WriteString(s, "body")
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(res.Body); string(body) != "body" {
		t.Fatalf("got %q, want body", body)
	}
	_, _ = io.WriteString(s, "POST /refuse HTTP/1.1\r\nHost: reviews\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	if res, err = http.ReadResponse(in, nil); err != nil || res.StatusCode != 413 || !res.Close {
		t.Fatalf("got %v, %v, want 413 and close", res, err)
	}
}

func TestWebSocket(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Upgrade") != "websocket" {
			w.WriteHeader(400)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
		_, _ = io.Copy(conn, buffered)
	}))})
	s := r.stream(vip)
	in := bufio.NewReader(s)
	_, _ = io.WriteString(s, "GET /ws HTTP/1.1\r\nHost: reviews\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("got %v, %v, want 101", res, err)
	}
	_, _ = io.WriteString(s, " and late")
	_ = s.CloseWrite()
	if all, err := io.ReadAll(in); err != nil || string(all) != "helloearly and late" {
		t.Fatalf("got %q, %v", all, err)
	}
}

func TestUnreadableRequestsAreAnswered(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", answers("ok"))})
	for text, status := range map[string]int{
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
		"GET / HTTP/1.1\nHost: a\n\n": 400,
		"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 70<<10) + "\r\n\r\n": 431,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                                            505,
	} {
		s := r.stream(vip)
		_, _ = io.WriteString(s, text)
		res, err := http.ReadResponse(bufio.NewReader(s), nil)
		if err != nil || res.StatusCode != status {
			t.Errorf("%.40q: got %v, %v, want %d", text, res, err, status)
		}
	}
	r.wantLine(" 400 DPE http1.codec_error ")
}

func TestBrokenEndpoints(t *testing.T) {
	r := newRig(t, options{})
	for _, c := range []struct {
		says, flags string
		status      int
	}{
		{"", "UC", 503},
		{"HTTP/1.1 200 OK\r\nContent-Le", "UC", 503},
		{"garbage\r\n\r\n", "UPE", 502},
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "UPE", 502},
		{"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "UPE", 502},
	} {
		p, l := r.newBarePod("reviews")
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = http.ReadRequest(bufio.NewReader(conn))
				_, _ = io.WriteString(conn, c.says)
				_ = conn.Close()
			}
		}()
		r.service([]pod{p})
		if code, _ := get(t, r.client(), "/"); code != c.status {
			t.Errorf("%q: got %d, want %d", c.says, code, c.status)
		}
		r.wantLine(fmt.Sprintf(" %d %s ", c.status, c.flags))
		_ = l.Close()
	}
}

// TestTruncatedResponseIsNotTakenForWhole: the client sees an error.
func TestTruncatedResponseIsNotTakenForWhole(t *testing.T) {
	r := newRig(t, options{})
	p, l := r.newBarePod("reviews")
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		_ = conn.Close()
	}()
	t.Cleanup(func() { _ = l.Close() })
	r.service([]pod{p})
	res, err := r.client().Get("http://reviews/")
	if err == nil {
		defer func() { _ = res.Body.Close() }()
		_, err = io.ReadAll(res.Body)
	}
	if err == nil {
		t.Fatal("half a response looked whole")
	}
	r.wantLine(" 200 UC ")
}

func TestClientThatLeavesEndsTheRequest(t *testing.T) {
	r := newRig(t, options{})
	arrived, left := make(chan struct{}), make(chan struct{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		close(arrived)
		<-req.Context().Done()
		close(left)
	}))})
	s := r.stream(vip)
	_, _ = io.WriteString(s, "GET / HTTP/1.1\r\nHost: reviews\r\n\r\n")
	<-arrived
	s.Reset()
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Fatal("the endpoint still works for a client that is gone")
	}
	r.wantLine(" DC ")
}

func TestDirectResponseRedirectAndHeaders(t *testing.T) {
	r := newRig(t, options{})
	direct := &routev3.Route{
		Name: "direct", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/teapot"}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 418, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "short"}},
		}},
	}
	redirect := &routev3.Route{
		Name: "redirect", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/old"}},
		Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{
			PathRewriteSpecifier: &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: "/new"},
			ResponseCode:         routev3.RedirectAction_FOUND,
		}},
	}
	rest := to("rest", stable)
	rest.RequestHeadersToAdd = []*corev3.HeaderValueOption{{
		Header:       &corev3.HeaderValue{Key: "X-Via", Value: "100%% waypoint"},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}
	rest.ResponseHeadersToRemove = []string{"X-Internal"}
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("X-Internal", "1")
		_, _ = fmt.Fprint(w, req.Header.Get("X-Via"), req.Header.Get("Connection"), req.Header.Get("Private"))
	}))}, direct, redirect, rest)
	c := r.client()
	if code, body := get(t, c, "/teapot"); code != 418 || body != "short" {
		t.Errorf("direct: got %d %q", code, body)
	}
	res, err := c.Get("http://reviews:9080/old/page?q=1")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if got := res.Header.Get("Location"); res.StatusCode != 302 || got != "http://reviews:9080/new/page?q=1" {
		t.Errorf("redirect: got %d %q", res.StatusCode, got)
	}
	if _, body := get(t, c, "/", "X-Via", "client", "Connection", "private", "Private", "1"); body != "100% waypoint" {
		t.Errorf("headers at the endpoint: %q", body)
	}
}

// TestSwitchToAnotherProtocolIsRefused: only what the client asked for is
// passed on.
func TestSwitchToAnotherProtocolIsRefused(t *testing.T) {
	r := newRig(t, options{})
	p, l := r.newBarePod("reviews")
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
		_ = conn.Close()
	}()
	r.service([]pod{p})
	s := r.stream(vip)
	_, _ = io.WriteString(s, "GET / HTTP/1.1\r\nHost: reviews\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(s), nil); err != nil || res.StatusCode != 502 {
		t.Fatalf("got %v, %v, want 502", res, err)
	}
}

// TestBrokenChunksAreTheEndpointsFault: and not taken for a closed connection.
func TestBrokenChunksAreTheEndpointsFault(t *testing.T) {
	r := newRig(t, options{})
	p, l := r.newBarePod("reviews")
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello and more\r\n")
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}()
	r.service([]pod{p})
	if res, err := r.client().Get("http://reviews/"); err == nil {
		_, _ = io.ReadAll(res.Body)
		_ = res.Body.Close()
	}
	r.wantLine(" 200 UPE ")
}
