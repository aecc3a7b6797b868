package xds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
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

// DialConfig says how to reach the control plane.
type DialConfig struct {
	Address      string // "https://host:port" or "host:port"
	RootCertPath string // PEM file, read at each handshake
	TokenPath    string // read for each call; empty: no token is sent
	ClusterID    string // sent with the token unless empty
	AltHostname  string // accepted in the server's certificate beside the host; may be empty
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
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(&rootFile{path: cfg.RootCertPath, host: host, alt: cfg.AltHostname}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepAliveTime, Timeout: keepAliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
	}
	if cfg.TokenPath != "" {
		options = append(options, grpc.WithPerRPCCredentials(tokenFile{path: cfg.TokenPath, clusterID: cfg.ClusterID}))
	}
	conn, err := grpc.NewClient("dns:///"+target, options...)
	if err != nil {
		return nil, fmt.Errorf("control plane %s: %w", cfg.Address, err)
	}
	return conn, nil
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

// rootFile is TLS 1.3 that trusts what a file says at the time of a handshake:
// the file changes when the mesh's root does.
type rootFile struct{ path, host, alt string }

// ClientHandshake implements [credentials.TransportCredentials].
func (r *rootFile) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	roots, err := readRoots(r.path)
	if err != nil {
		return nil, nil, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: r.host}
	if r.alt != "" {
		r.acceptAlt(cfg)
	}
	tlsConn, info, err := credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
	if err != nil {
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
			return nil, nil, fmt.Errorf("server's certificate is not from a root in %s: %w", r.path, err)
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

func readRoots(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("root certificate: %s holds no certificate", path)
	}
	return roots, nil
}

// tokenFile sends the service-account token, which the kubelet renews.
type tokenFile struct{ path, clusterID string }

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (t tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	b, err := os.ReadFile(t.path)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return nil, fmt.Errorf("token: %s is empty", t.path)
	}
	md := map[string]string{"authorization": "Bearer " + token}
	if t.clusterID != "" {
		md["clusterid"] = t.clusterID
	}
	return md, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials]: a token
// never travels in the clear.
func (t tokenFile) RequireTransportSecurity() bool { return true }
