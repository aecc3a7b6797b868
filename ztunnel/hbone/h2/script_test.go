package h2

// A script is a conversation with one endpoint. Each line is one of
//
//	peer: FRAME ...      the peer sends a frame
//	want: FRAME ...      the next frame from the endpoint; "nothing" or "EOF" as well;
//	                     a "*" at the end stands for anything, "a & b" for two in any order
//	app: call => result  what the endpoint's user calls and gets; "..." is a call that waits
//	then => result       what the oldest call that waited has returned meanwhile
//	pass: 10s            time passes
//
// Frames that the endpoint sends are compared as summaries, see summary; those
// about windows only if the line asks for one. The other end is x/net's Framer,
// so that both sides of the comparison are not ours.

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/test/bufconn"
)

// connPair returns two ends of a connection in memory, with buffers like those
// of a socket.
func connPair(tb testing.TB) (a, b net.Conn) {
	tb.Helper()
	l := bufconn.Listen(64 << 10)
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	a, err := l.Dial()
	if err != nil {
		tb.Fatalf("dial: %v", err)
	}
	b = <-accepted
	_ = l.Close()
	return a, b
}

// A rig is one endpoint with a peer at its other end.
type rig struct {
	t    *testing.T
	line string
	c    *Conn
	conn net.Conn // the peer's
	fr   *http2.Framer
	enc  *hpack.Encoder
	buf  bytes.Buffer // of enc

	mu      sync.Mutex
	got     []string // frames, oldest first
	streams map[uint32]*Stream
	release map[uint32]chan struct{} // lets a server's handler return
	sink    *slowSink

	waiting []chan string // calls
	ended   chan string   // what Run has returned
}

// play runs a script in a bubble. The prefaces are exchanged before, unless the
// script begins with "raw".
func play(t *testing.T, cfg Config, script string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, cfg)
		defer r.close()
		script = strings.TrimSpace(script)
		rest, raw := strings.CutPrefix(script, "raw\n")
		if !raw {
			r.handshake()
		}
		for line := range strings.Lines(rest) {
			r.do(strings.TrimSpace(line))
		}
	})
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	end, conn := connPair(t)
	r := &rig{t: t, conn: conn, fr: http2.NewFramer(conn, conn), streams: map[uint32]*Stream{}, release: map[uint32]chan struct{}{}, ended: make(chan string, 1)}
	r.fr.AllowIllegalWrites = true
	r.fr.SetMaxReadFrameSize(1 << 24)
	r.enc = hpack.NewEncoder(&r.buf)
	if cfg.PingInterval == 0 {
		cfg.PingInterval = -1
	}
	cfg.Base = t.Context()
	cfg.Handle = func(s *Stream) {
		done := make(chan struct{})
		r.mu.Lock()
		r.streams[s.id], r.release[s.id] = s, done
		r.mu.Unlock()
		<-done
	}
	r.c = New(end, cfg)
	r.c.Start()
	go func() {
		err := r.c.Run()
		r.ended <- fmt.Sprint(err)
	}()
	go r.read()
	return r
}

func (r *rig) close() {
	_ = r.conn.Close()
	r.mu.Lock()
	for _, done := range r.release {
		close(done)
	}
	if r.sink != nil {
		r.sink.stop.Do(func() { close(r.sink.more) })
	}
	for _, s := range r.streams {
		_ = s.Close()
	}
	r.mu.Unlock()
	<-r.c.Done()
	r.c.Wait()
}

func (r *rig) handshake() {
	if !r.c.cfg.Client {
		r.do("peer: PREFACE")
	}
	r.do("peer: SETTINGS")
	if r.c.cfg.Client {
		r.do("want: PREFACE")
	}
	r.do("want: SETTINGS *")
	r.do("want: SETTINGS ACK")
	r.do("peer: SETTINGS ACK")
}

func (r *rig) do(line string) {
	r.t.Helper()
	r.line = line
	kind, rest, _ := strings.Cut(line, " ")
	switch kind {
	case "":
	case "peer:":
		r.send(strings.Fields(rest))
		synctest.Wait()
	case "want:":
		r.want(rest)
	case "app:":
		call, result, _ := strings.Cut(rest, " => ")
		done := make(chan string, 1)
		go func() { done <- r.call(strings.Fields(call)) }()
		synctest.Wait()
		r.result(done, result)
	case "then":
		done := r.waiting[0]
		r.waiting = r.waiting[1:]
		synctest.Wait()
		r.result(done, strings.TrimPrefix(rest, "=> "))
	case "pass:":
		d, err := time.ParseDuration(rest)
		r.check(err)
		time.Sleep(d)
		synctest.Wait()
	default:
		r.t.Fatalf("%s: no such line", line)
	}
}

func (r *rig) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%s: %v", r.line, err)
	}
}

// result compares what a call has returned; "" stands for "ok".
func (r *rig) result(done chan string, want string) {
	r.t.Helper()
	if want == "" {
		want = "ok"
	}
	got := "..."
	select {
	case got = <-done:
	default:
		r.waiting = append(r.waiting, done)
	}
	if prefix, ok := strings.CutSuffix(want, "*"); ok && strings.HasPrefix(got, prefix) {
		return
	}
	if got != want {
		r.t.Errorf("%s: got %q", r.line, got)
	}
}

func (r *rig) want(want string) {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.got) > 0 && strings.HasPrefix(r.got[0], "WINDOW") && !strings.HasPrefix(want, "WINDOW") {
		r.got = r.got[1:]
	}
	got := "nothing"
	if len(r.got) > 0 {
		got, r.got = r.got[0], r.got[1:]
	}
	if prefix, ok := strings.CutSuffix(want, "*"); ok && strings.HasPrefix(got, prefix) {
		return
	}
	if a, b, ok := strings.Cut(want, " & "); ok && len(r.got) > 0 {
		second := r.got[0]
		r.got = r.got[1:]
		if got == b {
			got, second = second, got
		}
		got, want = got+" & "+second, a+" & "+b
	}
	if got != want {
		r.t.Errorf("%s: got %q, then %q", r.line, got, r.got)
	}
}

// number is for the arguments of a script.
func (r *rig) number(s string) int {
	r.t.Helper()
	n, err := strconv.ParseInt(s, 0, 64)
	r.check(err)
	return int(n)
}

// text is an argument itself, or as many bytes as [n] says.
func (r *rig) text(s string) []byte {
	r.t.Helper()
	if strings.HasPrefix(s, "[") {
		return bytes.Repeat([]byte{'x'}, r.number(strings.Trim(s, "[]")))
	}
	return []byte(s)
}

// cut removes a word from args and tells whether it was there.
func cut(args []string, word string) ([]string, bool) {
	for i, a := range args {
		if a == word {
			return append(append([]string(nil), args[:i]...), args[i+1:]...), true
		}
	}
	return args, false
}
