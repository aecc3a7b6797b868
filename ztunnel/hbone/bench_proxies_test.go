package hbone_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/identity/identitytest"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// proxiesEnv tells the test binary to be the proxies: "engine target", target
// being the application's address.
const proxiesEnv = "AMBIT_BENCH_PROXIES"

// usage is what the process of the proxies has consumed since it began.
type usage struct {
	CPU     time.Duration
	Mallocs uint64
	Memory  uint64 // heap and stacks, after a collection
}

// TestBenchProxies is not a test: it is the process of the proxies.
func TestBenchProxies(t *testing.T) {
	engine, target, ok := strings.Cut(os.Getenv(proxiesEnv), " ")
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	addr, wait := startProxies(t, ctx, engine, target)
	fmt.Println(addr)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() { // a line asks for the usage
		if in.Text() == "gc" {
			runtime.GC()
			runtime.GC()
		}
		var r syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		_ = json.NewEncoder(os.Stdout).Encode(usage{
			CPU: time.Duration(r.Utime.Nano() + r.Stime.Nano()), Mallocs: m.Mallocs, Memory: m.HeapInuse + m.StackInuse,
		})
	}
	cancel()
	wait()
	os.Exit(0)
}

// startProxies runs A and B, and returns A's address.
func startProxies(t *testing.T, ctx context.Context, engine, target string) (addr string, wait func()) {
	t.Helper()
	ca := identitytest.New(t, "cluster.local")
	a, b := ca.ID("bench", "a"), ca.ID("bench", "b")
	certA, certB := ca.Issue(a, time.Hour), ca.Issue(b, time.Hour)
	server := mtls.ServerConfig(ctx, func(context.Context) (*mtls.Certificate, error) { return certB, nil })
	client := mtls.ClientConfig(certA, []spiffe.ID{b})
	var work sync.WaitGroup
	lb := listen(t)
	var open func() func(conn *net.TCPConn)
	switch engine {
	case "ambit":
		serveAmbit(ctx, &work, lb, server, target)
		open = func() func(*net.TCPConn) { return dialAmbit(ctx, lb.Addr().String(), client) }
	case "nethttp":
		serveNetHTTP(ctx, &work, lb, server, target)
		open = func() func(*net.TCPConn) { return dialNetHTTP(lb.Addr().String(), client) }
	default:
		t.Fatalf("engine %q", engine)
	}
	la := listen(t)
	carry := open()
	work.Go(func() { accept(la, func(c *net.TCPConn) { work.Go(func() { carry(c) }) }) })
	return la.Addr().String(), func() {
		_ = la.Close()
		_ = lb.Close()
	}
}

func listen(tb testing.TB) *net.TCPListener {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("listen: %v", err)
	}
	return l.(*net.TCPListener)
}

func accept(l *net.TCPListener, serve func(*net.TCPConn)) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		serve(c)
	}
}

func dialTarget(target string) (*net.TCPConn, error) {
	c, err := net.Dial("tcp", target)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func serveAmbit(ctx context.Context, work *sync.WaitGroup, l *net.TCPListener, cfg *tls.Config, target string) {
	handle := func(in *hbone.Incoming) {
		app, err := dialTarget(target)
		if err != nil {
			_ = in.Reject(503)
			return
		}
		s, err := in.Accept()
		if err != nil {
			_ = app.Close()
			return
		}
		_ = relay.Copy(s, app, &relay.Counters{})
	}
	work.Go(func() {
		accept(l, func(c *net.TCPConn) {
			work.Go(func() { _ = hbone.Serve(ctx, tls.Server(hbone.Batched(c), cfg), hbone.Config{}, handle) })
		})
	})
}

func dialAmbit(ctx context.Context, addr string, cfg *tls.Config) func(*net.TCPConn) {
	pool := hbone.NewPool(func(ctx context.Context, _ int) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		secure := tls.Client(hbone.Batched(c), cfg)
		return secure, secure.HandshakeContext(ctx)
	}, hbone.Config{MaxStreams: 200})
	return func(app *net.TCPConn) {
		s, err := pool.Open(ctx, 1, hbone.Request{Authority: "10.0.0.1:80"})
		if err != nil {
			_ = app.Close()
			return
		}
		_ = relay.Copy(app, s, &relay.Counters{})
	}
}

// The baseline: what one writes with the library.

func serveNetHTTP(_ context.Context, work *sync.WaitGroup, l *net.TCPListener, cfg *tls.Config, target string) {
	//nolint:staticcheck // the baseline is this library
	server := &http2.Server{MaxReadFrameSize: 1 << 20, MaxUploadBufferPerStream: 4 << 20, MaxUploadBufferPerConnection: 16 << 20}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		app, err := dialTarget(target)
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		defer func() { _ = app.Close() }()
		flush := http.NewResponseController(w)
		w.WriteHeader(http.StatusOK)
		_ = flush.Flush()
		var up sync.WaitGroup
		up.Go(func() {
			_, _ = io.CopyBuffer(struct{ io.Writer }{app}, r.Body, make([]byte, 64<<10))
			_ = app.CloseWrite()
		})
		buf := make([]byte, 64<<10)
		for {
			n, err := app.Read(buf)
			if n > 0 {
				_, _ = w.Write(buf[:n])
				_ = flush.Flush()
			}
			if err != nil {
				break
			}
		}
		up.Wait()
	})
	work.Go(func() {
		accept(l, func(c *net.TCPConn) {
			work.Go(func() {
				secure := tls.Server(c, cfg)
				if secure.Handshake() == nil {
					server.ServeConn(secure, &http2.ServeConnOpts{Handler: handler}) //nolint:staticcheck // the baseline is this library
				}
			})
		})
	})
}

func dialNetHTTP(addr string, cfg *tls.Config) func(*net.TCPConn) {
	//nolint:staticcheck // the baseline is this library
	transport := &http2.Transport{
		MaxReadFrameSize: 1 << 20,
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			secure := tls.Client(c, cfg)
			return secure, secure.HandshakeContext(ctx)
		},
	}
	return func(app *net.TCPConn) {
		defer func() { _ = app.Close() }()
		r, w := io.Pipe()
		defer func() { _ = w.Close() }()
		req, _ := http.NewRequest(http.MethodConnect, "https://10.0.0.1:80", r)
		res, err := transport.RoundTrip(req) //nolint:staticcheck // as above
		if err != nil || res.StatusCode != http.StatusOK {
			return
		}
		defer func() { _ = res.Body.Close() }()
		var up sync.WaitGroup
		up.Go(func() {
			_, _ = io.CopyBuffer(w, struct{ io.Reader }{app}, make([]byte, 64<<10))
			_ = w.Close()
		})
		_, _ = io.CopyBuffer(struct{ io.Writer }{app}, res.Body, make([]byte, 64<<10))
		_ = app.CloseWrite()
		up.Wait()
	}
}
