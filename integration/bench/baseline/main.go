// Command baseline is what bench measures ztunnel against: the shortest mutual
// TLS tunnel over HTTP/2 CONNECT that the standard library gives. It knows no
// policy, no metrics and no log. One process runs in each of two pods, whose
// redirection sends it what an application there opens:
//
//	baseline outbound   takes captured connections, opens CONNECT streams to port 15008
//	baseline inbound    takes CONNECT streams at port 15008, connects to the application
//
// Its windows, frames and number of streams on one connection are ztunnel's
// defaults.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

const (
	streamWindow = 4 << 20
	connWindow   = 16 << 20
	frameSize    = 1 << 20
	maxStreams   = 100
	bufferSize   = 64 << 10
)

func main() {
	var f files
	command := &cobra.Command{Use: "baseline", Short: "CONNECT over net/http, for bench to compare with", SilenceUsage: true, SilenceErrors: true}
	command.PersistentFlags().StringVar(&f.cert, "cert", "", "certificate chain, PEM")
	command.PersistentFlags().StringVar(&f.key, "key", "", "private key, PEM")
	command.PersistentFlags().StringVar(&f.root, "root", "", "root certificates, PEM")
	for name, serve := range map[string]func(context.Context, *tls.Config) error{"outbound": outbound, "inbound": inbound} {
		command.AddCommand(&cobra.Command{Use: name, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			return serve(c.Context(), cfg)
		}})
	}
	if err := command.ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "baseline:", err)
		os.Exit(1)
	}
}

type files struct{ cert, key, root string }

// config is TLS 1.3 with certificates on both sides that the root has signed;
// names are not compared.
func (f files) config() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(f.root)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificate", f.root)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, RootCAs: roots,
		InsecureSkipVerify: true, //nolint:gosec // a SPIFFE certificate has no host name; the chain is verified below
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("no certificate")
			}
			options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
			for _, c := range s.PeerCertificates[1:] {
				options.Intermediates.AddCert(c)
			}
			_, err := s.PeerCertificates[0].Verify(options)
			return err
		},
	}, nil
}

var own *netns.NS // this process's namespace

func outbound(ctx context.Context, cfg *tls.Config) error {
	l, err := own.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), mesh.PortOutbound), netns.ListenOptions{Mark: mesh.MarkZtunnel})
	if err != nil {
		return err
	}
	t := &http.Transport{
		Protocols: onlyHTTP2(),
		HTTP2:     &http.HTTP2Config{MaxReadFrameSize: frameSize, MaxReceiveBufferPerConnection: connWindow, MaxReceiveBufferPerStream: streamWindow},
		DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return nil, err
			}
			c, err := own.Dial(ctx, netip.AddrPortFrom(to.Addr(), mesh.PortHBONE), netns.DialOptions{Mark: mesh.MarkZtunnel})
			if err != nil {
				return nil, err
			}
			secure := tls.Client(c, cfg)
			if err := secure.HandshakeContext(ctx); err != nil {
				_ = c.Close()
				return nil, err
			}
			return secure, nil
		},
	}
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return err
		}
		go open(ctx, t, c)
	}
}

// open carries one captured connection.
func open(ctx context.Context, t *http.Transport, c *net.TCPConn) {
	defer func() { _ = c.Close() }()
	to := netns.OriginalDst(c)
	r := (&http.Request{
		Method: http.MethodConnect, Host: to.String(), Header: http.Header{}, ContentLength: -1,
		// The transport pools by this address; all applications of a pod share its port.
		URL:  &url.URL{Scheme: "https", Host: netip.AddrPortFrom(to.Addr(), mesh.PortHBONE).String()},
		Body: io.NopCloser(c),
	}).WithContext(ctx)
	answer, err := t.RoundTrip(r)
	if err != nil {
		return
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return
	}
	if _, err := io.CopyBuffer(onlyWriter{c}, answer.Body, make([]byte, bufferSize)); err == nil {
		_ = c.CloseWrite()
	}
}

func inbound(ctx context.Context, cfg *tls.Config) error {
	l, err := own.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), mesh.PortHBONE), netns.ListenOptions{Mark: mesh.MarkZtunnel})
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: http.HandlerFunc(deliver), TLSConfig: cfg, ReadHeaderTimeout: time.Minute,
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // clients of a benchmark break off
		BaseContext: func(net.Listener) context.Context { return ctx },
		Protocols:   onlyHTTP2(),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: frameSize,
			MaxReceiveBufferPerConnection: connWindow, MaxReceiveBufferPerStream: streamWindow,
		},
	}
	return server.ServeTLS(l, "", "")
}

func onlyHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP2(true)
	return p
}

// deliver carries one stream to the application.
func deliver(w http.ResponseWriter, r *http.Request) {
	to, err := netip.ParseAddrPort(r.Host)
	if r.Method != http.MethodConnect || err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	app, err := own.Dial(r.Context(), to, netns.DialOptions{Mark: mesh.MarkZtunnel})
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer func() { _ = app.Close() }()
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	if err := flush.Flush(); err != nil {
		return
	}
	up := make(chan struct{})
	go func() {
		defer close(up)
		if _, err := io.CopyBuffer(onlyWriter{app}, r.Body, make([]byte, bufferSize)); err != nil {
			_ = app.Close() // the peer has aborted
			return
		}
		_ = app.CloseWrite()
	}()
	buffer := make([]byte, bufferSize)
	for {
		n, err := app.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				break
			}
			if err := flush.Flush(); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	<-up
}

// onlyWriter hides ReadFrom, which would splice and fall back to a buffer of
// its own.
type onlyWriter struct{ io.Writer }
