package serve_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

// BenchmarkHop compares the CPU that a request costs on one hop, with route,
// metrics and access log, to the same hop by httputil.ReverseProxy over TLS
// connections of their own. Client and endpoint are in the process and cost the
// same in both; their share is measured alone and taken off. Only the ratios of
// one run mean something.
//
//	go test -run '^$' -bench Hop -benchtime 3s ./waypoint/serve
func BenchmarkHop(b *testing.B) {
	const connections = 32
	r := newRig(b, options{discard: true})
	p, l := r.newBarePod("reviews")
	p.plain = true
	go pong(l)
	b.Cleanup(func() { _ = l.Close() })
	r.service([]pod{p})
	results := map[string]time.Duration{}
	for _, c := range []struct {
		name string
		dial func() net.Conn
	}{
		{"direct", func() net.Conn { return dialTCP(b, p.addr.String()) }},
		{"reverseproxy", r.reverseProxy(b, p)},
		{"waypoint", r.streams(vip)},
	} {
		b.Run(c.name, func(b *testing.B) {
			conns := make([]net.Conn, connections)
			for i := range conns {
				conns[i] = c.dial()
				_ = conns[i].SetDeadline(time.Time{})
			}
			b.ReportAllocs()
			b.ResetTimer()
			before := cpuTime()
			hammer(b, conns, b.N)
			spent := cpuTime() - before
			b.StopTimer()
			results[c.name] = spent / time.Duration(b.N)
			b.ReportMetric(float64(spent.Microseconds())/float64(b.N), "cpu-µs/req")
		})
	}
	hop := func(name string) float64 { return float64(results[name]-results["direct"]) / float64(time.Microsecond) }
	if results["reverseproxy"] > 0 {
		fmt.Printf("CPU of the hop and the client's TLS: waypoint %.1f µs, ReverseProxy %.1f µs, ratio %.2f\n",
			hop("waypoint"), hop("reverseproxy"), hop("waypoint")/hop("reverseproxy"))
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const ping = "GET /reviews/1 HTTP/1.1\r\nHost: reviews:9080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nEnd-User: someone\r\n\r\n"

// pong is an endpoint that costs next to nothing.
func pong(l net.Listener) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nhello, world\n"
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			s := codec.NewServerConn(conn, nil)
			for {
				if _, err := s.Next(); err != nil {
					return
				}
				if _, err := io.WriteString(conn, answer); err != nil {
					return
				}
			}
		}()
	}
}

func hammer(b *testing.B, conns []net.Conn, n int) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	var work sync.WaitGroup
	for _, conn := range conns {
		work.Go(func() {
			in := bufio.NewReader(conn)
			for left.Add(-1) >= 0 {
				if err := roundTrip(conn, in); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
}

func roundTrip(conn net.Conn, in *bufio.Reader) error {
	if _, err := io.WriteString(conn, ping); err != nil {
		return err
	}
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			break
		}
	}
	_, err := in.Discard(len("hello, world\n"))
	return err
}

func dialTCP(b *testing.B, address string) net.Conn {
	b.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return conn
}

// streams opens streams in one tunnel, as a client's ztunnel does.
func (r *rig) streams(authority string) func() net.Conn {
	tunnel := r.tunnel("client")
	return func() net.Conn {
		s, err := tunnel.Open(r.t.Context(), hbone.Request{Authority: authority})
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { _ = s.Close() })
		return s
	}
}

// reverseProxy is the same hop by net/http, HTTP/1.1 over mutual TLS.
func (r *rig) reverseProxy(b *testing.B, p pod) func() net.Conn {
	b.Helper()
	target, _ := url.Parse("http://" + p.addr.String())
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 64}
	l := listen(b, "127.0.0.1:0")
	server := &http.Server{Handler: proxy, ReadHeaderTimeout: time.Minute, TLSConfig: r.plainTLS()}
	go func() { _ = server.ServeTLS(l, "", "") }()
	b.Cleanup(func() { _ = server.Close() })
	return func() net.Conn {
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			b.Fatal(fmt.Errorf("reverse proxy: %w", err))
		}
		b.Cleanup(func() { _ = conn.Close() })
		return conn
	}
}

func (r *rig) plainTLS() *tls.Config {
	cfg := mtls.ClientConfig(r.cert.Load(), []spiffe.ID{}) // for its certificate only
	return &tls.Config{Certificates: cfg.Certificates, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
}
