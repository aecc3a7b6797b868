package xds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// The transport of spec/ztunnel.md §4.1.
const (
	connectTimeout   = 5 * time.Second
	keepAliveTime    = 30 * time.Second
	keepAliveTimeout = 10 * time.Second
)

// System as DialConfig.RootCertPath stands for the machine's own roots.
const System = "SYSTEM"

// DialConfig says how to reach the control plane.
type DialConfig struct {
	Address string // "https://host:port" or "host:port"
	// RootCertPath is a PEM file, read at each handshake; or System; or PEM text.
	RootCertPath string
	TokenPath    string            // read for each call; empty: Token
	Token        string            // both empty: no token is sent, and no ClusterID
	ClusterID    string            // sent with the token unless empty
	AltHostname  string            // accepted in the server's certificate beside the host; may be empty
	Headers      map[string]string // sent with each call
	// Secure changes the TLS configuration; nil: TLS 1.3.
	Secure func(*tls.Config) *tls.Config
	// Connect opens TCP connections; nil: as the operating system does.
	Connect func(ctx context.Context, address string) (net.Conn, error)
}

// Dial returns a connection to the control plane over TLS. It does not wait
// for it: an unreachable server shows in the calls. The caller closes it.
func Dial(cfg DialConfig) (*grpc.ClientConn, error) {
	host, target, err := splitAddress(cfg.Address)
	if err != nil {
		return nil, err
	}
	if cfg.RootCertPath == "" {
		return nil, fmt.Errorf("control plane %s: no root certificate file is given", cfg.Address)
	}
	if cfg.Secure == nil {
		cfg.Secure = func(c *tls.Config) *tls.Config {
			c.MinVersion = tls.VersionTLS13
			return c
		}
	}
	if cfg.Connect == nil {
		cfg.Connect = connect
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(&rootFile{path: cfg.RootCertPath, host: host, alt: cfg.AltHostname, secure: cfg.Secure}),
		grpc.WithContextDialer(cfg.Connect),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepAliveTime, Timeout: keepAliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
	}
	if len(cfg.Headers) > 0 || cfg.TokenPath != "" || cfg.Token != "" {
		options = append(options, grpc.WithPerRPCCredentials(callHeaders{path: cfg.TokenPath, token: cfg.Token, clusterID: cfg.ClusterID, headers: cfg.Headers}))
	}
	conn, err := grpc.NewClient("dns:///"+target, options...)
	if err != nil {
		return nil, fmt.Errorf("control plane %s: %w", cfg.Address, err)
	}
	return conn, nil
}

// connect opens a TCP connection that notices a dead peer even where HTTP/2's
// PING does not get as far.
func connect(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 300 * time.Second, Interval: 75 * time.Second, Count: 9}}
	return d.DialContext(ctx, "tcp", address)
}

// splitAddress returns the host to verify and the host:port to dial.
func splitAddress(address string) (host, target string, err error) {
	target = address
	if scheme, rest, ok := strings.Cut(address, "://"); ok {
		if scheme != "https" {
			return "", "", fmt.Errorf("control plane address %q: scheme must be https; plaintext is not supported", address)
		}
		target = strings.TrimSuffix(rest, "/")
	}
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return "", "", fmt.Errorf("control plane address %q is not host:port: %w", address, err)
	}
	if host == "" || port == "" {
		return "", "", fmt.Errorf("control plane address %q lacks the host or the port", address)
	}
	return host, target, nil
}

// rootFile is TLS that trusts what a file says at the time of a handshake: the
// file changes when the mesh's root does.
type rootFile struct {
	path, host, alt string
	secure          func(*tls.Config) *tls.Config
}

// ClientHandshake implements [credentials.TransportCredentials].
func (r *rootFile) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	roots, err := readRoots(r.path)
	if err != nil {
		return nil, nil, err
	}
	cfg := r.secure(&tls.Config{RootCAs: roots, ServerName: r.host})
	if r.alt != "" {
		r.acceptAlt(cfg)
	}
	tlsConn, info, err := credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
	if err != nil {
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
			return nil, nil, fmt.Errorf("server's certificate is not from a root in %s: %w", rootName(r.path), err)
		}
		return nil, nil, err
	}
	return tlsConn, info, nil
}

// acceptAlt makes the server's certificate good for either of two names.
func (r *rootFile) acceptAlt(cfg *tls.Config) {
	roots := cfg.RootCAs
	cfg.InsecureSkipVerify = true // VerifyConnection does it
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		opts := x509.VerifyOptions{Roots: roots, DNSName: r.host, Intermediates: x509.NewCertPool()}
		for _, cert := range s.PeerCertificates[1:] {
			opts.Intermediates.AddCert(cert)
		}
		_, err := s.PeerCertificates[0].Verify(opts)
		if _, ok := errors.AsType[x509.HostnameError](err); !ok {
			return err
		}
		opts.DNSName = r.alt
		_, altErr := s.PeerCertificates[0].Verify(opts)
		if _, ok := errors.AsType[x509.HostnameError](altErr); !ok {
			return altErr // good, or bad for another reason
		}
		return err
	}
}

// ServerHandshake implements [credentials.TransportCredentials].
func (r *rootFile) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("client credentials cannot serve")
}

// Info implements [credentials.TransportCredentials].
func (r *rootFile) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements [credentials.TransportCredentials].
func (r *rootFile) Clone() credentials.TransportCredentials { c := *r; return &c }

// OverrideServerName implements [credentials.TransportCredentials].
func (r *rootFile) OverrideServerName(name string) error {
	r.host = name
	return nil
}

// readRoots returns the roots of a DialConfig; nil are the machine's.
func readRoots(path string) (*x509.CertPool, error) {
	if path == System {
		return nil, nil //nolint:nilnil // means the machine's, as for crypto/tls
	}
	pem, err := rootText(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("root certificate: %s holds no certificate", rootName(path))
	}
	return roots, nil
}

func rootText(path string) ([]byte, error) {
	if isPEM(path) {
		return []byte(path), nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	return text, nil
}

func isPEM(path string) bool { return strings.HasPrefix(strings.TrimSpace(path), "-----BEGIN") }

// rootName is what an error calls the roots.
func rootName(path string) string {
	if isPEM(path) {
		return "the PEM text given"
	}
	return path
}

// callHeaders sends the service-account token, which the kubelet renews, and
// other headers.
type callHeaders struct {
	path, token, clusterID string
	headers                map[string]string
}

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (h callHeaders) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	md := maps.Clone(h.headers)
	if md == nil {
		md = map[string]string{}
	}
	token := h.token
	if h.path != "" {
		b, err := os.ReadFile(h.path)
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		if token = strings.TrimSpace(string(b)); token == "" {
			return nil, fmt.Errorf("token: %s is empty", h.path)
		}
	}
	if token == "" {
		return md, nil
	}
	md["authorization"] = "Bearer " + token
	if h.clusterID != "" {
		md["clusterid"] = h.clusterID
	}
	return md, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials]: a token
// never travels in the clear.
func (h callHeaders) RequireTransportSecurity() bool { return true }
