package hbone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// tcpPair returns two ends of a TCP connection over loopback.
func tcpPair(tb testing.TB) (client, server net.Conn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("listen: %v", err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		tb.Fatalf("dial: %v", err)
	}
	server, err = l.Accept()
	if err != nil {
		tb.Fatalf("accept: %v", err)
	}
	return client, server
}

const interopSize = 1 << 20

// TestInteropTransport: the client is golang.org/x/net/http2's.
func TestInteropTransport(t *testing.T) {
	client, server := tcpPair(t)
	served := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		served <- Serve(ctx, server, Config{}, func(in *Incoming) {
			if in.Request.Authority != "10.0.0.1:80" {
				_ = in.Reject(503)
				return
			}
			echo(t)(in)
		})
	}()
	cc, err := (&http2.Transport{}).NewClientConn(client) //nolint:staticcheck // that implementation is what we must work with
	if err != nil {
		t.Fatalf("client conn: %v", err)
	}
	payload := bytes.Repeat([]byte("0123456789abcdef"), interopSize/16)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			body, w := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodConnect, "https://10.0.0.1:80", body)
			if err != nil {
				t.Errorf("request: %v", err)
				return
			}
			res, err := cc.RoundTrip(req)
			if err != nil || res.StatusCode != 200 {
				t.Errorf("round trip: %v, %v", res, err)
				return
			}
			go func() {
				_, _ = w.Write(payload)
				_ = w.Close()
			}()
			if got, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(got, payload) {
				t.Errorf("echo: %d bytes, %v", len(got), err)
			}
			_ = res.Body.Close()
		})
	}
	all.Wait()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodConnect, "https://other:80", nil)
	if err != nil {
		t.Fatalf("request: %v", err)
	}
	if res, err := cc.RoundTrip(req); err != nil || res.StatusCode != 503 {
		t.Errorf("rejected: got %v, %v, want 503", res, err)
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	_ = cc.Close()
}

// TestInteropServer: the server is golang.org/x/net/http2's.
func TestInteropServer(t *testing.T) {
	client, server := tcpPair(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		(&http2.Server{}).ServeConn(server, //nolint:staticcheck // that implementation is what we must work with
			&http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodConnect || r.Host != "10.0.0.1:80" {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				w.Header().Set("seen", r.Header.Get("forwarded"))
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush()
				buf := make([]byte, 32<<10)
				for {
					n, err := r.Body.Read(buf)
					if _, werr := w.Write(buf[:n]); werr != nil || err != nil {
						return
					}
					_ = http.NewResponseController(w).Flush()
				}
			})})
	})
	tunnel, err := NewTunnel(client, Config{})
	if err != nil {
		t.Fatalf("tunnel: %v", err)
	}
	payload := bytes.Repeat([]byte("0123456789abcdef"), interopSize/16)
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			s, err := tunnel.Open(t.Context(), Request{Authority: "10.0.0.1:80", Header: []Field{{Name: "forwarded", Value: fmt.Sprint(i)}}})
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			defer func() { _ = s.Close() }()
			var sending sync.WaitGroup
			sending.Go(func() {
				if _, err := s.Write(payload); err != nil {
					t.Errorf("write: %v", err)
				}
				closeWrite(t, s)
			})
			if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, payload) {
				t.Errorf("echo: %d bytes, %v", len(got), err)
			}
			sending.Wait()
		})
	}
	all.Wait()
	var status *StatusError
	if _, err := tunnel.Open(t.Context(), Request{Authority: "other:80"}); !errors.As(err, &status) || status.Status != 503 {
		t.Errorf("rejected: got %v, want status 503", err)
	}
	_ = tunnel.Close()
	serving.Wait()
}
