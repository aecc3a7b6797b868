package serve_test

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/serve"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
)

func exchange(t *testing.T, s *hbone.Stream, in *bufio.Reader, text string) {
	t.Helper()
	_, _ = io.WriteString(s, text)
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("got %v, %v, want 200", res, err)
	}
	if _, err := io.ReadAll(res.Body); err != nil {
		t.Fatal(err)
	}
}

// TestHalfAHeadIsBounded: a client that does not finish its request's head is
// told so and let go; one that does in time is served, however often it paused.
func TestHalfAHeadIsBounded(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", answers("ok"))})
	s := r.stream(vip)
	in := bufio.NewReader(s)
	now := time.Now()
	for range 3 {
		_, _ = io.WriteString(s, "GET / HTTP/1.1\r\nHo")
		eventually(t, "half a head is read", func() bool { return r.server.Reading() == 1 })
		r.server.Sweep(now)
		now = now.Add(serve.HeadLimit - time.Second)
		r.server.Sweep(now)
		exchange(t, s, in, "st: reviews\r\n\r\n")
	}
	_, _ = io.WriteString(s, "GET / HTTP/1.1\r\nHo")
	eventually(t, "half a head is read", func() bool { return r.server.Reading() == 1 })
	r.server.Sweep(now)
	r.server.Sweep(now.Add(serve.HeadLimit))
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != http.StatusRequestTimeout || !res.Close {
		t.Fatalf("got %v, %v, want 408 and the end", res, err)
	}
	if _, err := io.ReadAll(in); err != nil {
		t.Fatalf("after 408: %v, want the end", err)
	}
	r.wantLine(" 408 - request_header_timeout ")
}

// TestQuietClientIsBounded: a kept connection without requests ends cleanly,
// one with a request now and then does not, and one with a long request
// neither.
func TestQuietClientIsBounded(t *testing.T) {
	r := newRig(t, options{})
	arrived, release := make(chan struct{}), make(chan struct{})
	r.service([]pod{r.newPod("reviews", http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/long" {
			close(arrived)
			<-release
		}
	}))})
	s, silent := r.stream(vip), r.stream(vip)
	in := bufio.NewReader(s)
	const request = "GET / HTTP/1.1\r\nHost: reviews\r\n\r\n"
	now := time.Now()
	eventually(t, "both wait", func() bool { return r.server.Quiet() == 2 })
	r.server.Sweep(now)
	now = now.Add(serve.QuietLimit - time.Second)
	r.server.Sweep(now)
	exchange(t, s, in, request)
	eventually(t, "both wait", func() bool { return r.server.Quiet() == 2 })
	r.server.Sweep(now.Add(time.Second))
	if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("silent client: %v, want the clean end", err)
	}
	_, _ = io.WriteString(s, "GET /long HTTP/1.1\r\nHost: reviews\r\n\r\n")
	<-arrived
	now = now.Add(2 * serve.QuietLimit)
	r.server.Sweep(now)
	r.server.Sweep(now.Add(2 * serve.QuietLimit))
	close(release)
	exchange(t, s, in, "")
	exchange(t, s, in, request)
}
