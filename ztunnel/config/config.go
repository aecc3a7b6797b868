// Package config turns ztunnel's environment into one immutable, validated
// Config. It is the only package of ztunnel that reads the environment; names
// and defaults are those of spec/ztunnel.md §9.2, so that existing charts work.
// A variable of theirs that this version does not honour is named in
// Config.Ignored, for one warning at start; one that asks for more security than
// this version gives is an error.
package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// Config is how one ztunnel process runs.
type Config struct {
	NodeName       string // workloads of this node are ours; empty: all
	Network        string
	ClusterID      string
	PodName        string // ztunnel's own pod
	PodNamespace   string
	ServiceAccount string
	InstanceIP     string
	Version        string // of the mesh, for istio_build

	XDSAddress  string
	XDSRoot     string // path
	XDSAltName  string
	CAAddress   string
	CARoot      string // path
	CAAltName   string
	TokenPath   string
	SecretTTL   time.Duration
	Metadata    map[string]string          // ISTIO_META_*
	RawMetadata map[string]json.RawMessage // ISTIO_METAJSON_*

	ZDSSocket       string
	PacketMark      uint32
	PortReuse       bool
	PreserveSource  *bool // nil: if the kernel lets us
	IPv6            bool
	ResponseBaggage bool

	StreamWindow  uint32
	ConnWindow    uint32
	FrameSize     uint32
	MaxStreams    uint32 // on one pooled tunnel
	PoolIdle      time.Duration
	DrainTimeout  time.Duration
	KeepAlive     net.KeepAliveConfig
	LogLevel      string
	LogFormat     string
	AdminPort     uint16
	MetricsPort   uint16
	ReadinessPort uint16
	Ignored       []string // variables that are set and have no effect, sorted
}

// ignored are variables of existing charts that this version does not honour.
// The value is the one that needs no warning, since it asks for what we do.
var ignored = map[string]string{
	"PROXY_WORKLOAD_INFO": "", "XDS_ON_DEMAND": "false", "LOCAL_XDS_PATH": "", "LOCAL_XDS": "",
	"PREFERED_SERVICE_NAMESPACE": "", //nolint:misspell // as charts spell it
	"UNSTABLE_ENABLE_SOCKS5":     "false", "LOCALHOST_APP_TUNNEL": "", "USER_TIMEOUT_ENABLED": "false", "ZTUNNEL_WORKER_THREADS": "",
	"TLS12_ENABLED": "false", "AUTHZ_POLICY_INFO_LOGGING": "false", "PROXY_CONFIG": "",
	"FAKE_CA": "false", "DNS_PROXY_ADDR": "", "ISTIO_META_DNS_CAPTURE": "false", "ISTIO_META_DNS_PROXY_ADDR": "",
}

// required are variables that ask for security that this version does not give,
// and what that is. Who sets one must not believe to have it.
var required = map[string]string{
	"COMPLIANCE_POLICY": "restricting TLS to a compliance policy",
	"CRL_PATH":          "checking certificates against a revocation list",
}

// FromEnvironment reads the process's environment.
func FromEnvironment() (*Config, error) { return Parse(os.Environ()) }

// Parse reads an environment as os.Environ returns it. The error names every
// variable that is wrong.
func Parse(environ []string) (*Config, error) {
	e := env{values: map[string]string{}}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		e.values[name] = value
	}
	c := e.read()
	e.refuse()
	for name, harmless := range ignored {
		if v := e.values[name]; v != "" && v != harmless {
			c.Ignored = append(c.Ignored, name)
		}
	}
	for name := range e.values {
		if strings.HasPrefix(name, "XDS_HEADER_") || strings.HasPrefix(name, "CA_HEADER_") {
			c.Ignored = append(c.Ignored, name)
		}
	}
	slices.Sort(c.Ignored)
	if len(e.errs) > 0 {
		return nil, errors.Join(e.errs...)
	}
	return c, nil
}

func (e *env) read() *Config {
	istiod := "https://localhost:15012"
	if e.values["KUBERNETES_SERVICE_HOST"] != "" {
		istiod = "https://istiod.istio-system.svc:15012"
	}
	c := &Config{
		NodeName: e.values["NODE_NAME"], Network: e.values["NETWORK"], PodName: e.values["POD_NAME"], PodNamespace: e.values["POD_NAMESPACE"],
		ClusterID:      cmp.Or(e.values["ISTIO_META_CLUSTER_ID"], e.values["CLUSTER_ID"], mesh.DefaultClusterID),
		ServiceAccount: e.values["SERVICE_ACCOUNT"], InstanceIP: e.values["INSTANCE_IP"], Version: e.values["ISTIO_META_ISTIO_VERSION"],
		XDSAddress: e.address("XDS_ADDRESS", istiod), CAAddress: e.address("CA_ADDRESS", istiod),
		XDSRoot: e.path("XDS_ROOT_CA", mesh.RootCertPath), CARoot: e.path("CA_ROOT_CA", mesh.RootCertPath),
		XDSAltName: e.values["ALT_XDS_HOSTNAME"], CAAltName: e.values["ALT_CA_HOSTNAME"],
		TokenPath: cmp.Or(e.values["AUTH_TOKEN"], mesh.TokenPath),
		SecretTTL: e.duration("SECRET_TTL", 24*time.Hour),
		Metadata:  map[string]string{}, RawMetadata: map[string]json.RawMessage{},
		ZDSSocket:  cmp.Or(e.values["INPOD_UDS"], mesh.ZDSSocketPath),
		PacketMark: uint32(e.number("PACKET_MARK", uint64(mesh.MarkZtunnel), 32)),
		PortReuse:  e.boolean("INPOD_PORT_REUSE"), IPv6: e.boolean("IPV6_ENABLED"),
		ResponseBaggage: e.boolean("ENABLE_RESPONSE_BAGGAGE"),
		StreamWindow:    uint32(e.number("HTTP2_STREAM_WINDOW_SIZE", 4<<20, 31)),
		ConnWindow:      uint32(e.number("HTTP2_CONNECTION_WINDOW_SIZE", 16<<20, 31)),
		FrameSize:       uint32(e.number("HTTP2_FRAME_SIZE", 1<<20, 24)),
		MaxStreams:      uint32(e.number("POOL_MAX_STREAMS_PER_CONNECTION", 100, 16)),
		PoolIdle:        e.duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute),
		DrainTimeout:    e.drainTimeout(),
		KeepAlive: net.KeepAliveConfig{
			Enable: e.boolean("KEEPALIVE_ENABLED"), Idle: e.duration("KEEPALIVE_TIME", 180*time.Second),
			Interval: e.duration("KEEPALIVE_INTERVAL", 180*time.Second), Count: int(e.number("KEEPALIVE_RETRIES", 9, 16)),
		},
		LogLevel: cmp.Or(e.values["RUST_LOG"], "info"), LogFormat: e.values["LOG_FORMAT"],
		AdminPort: mesh.PortAdmin, MetricsPort: mesh.PortMetrics, ReadinessPort: mesh.PortReadiness,
	}
	if e.values["ENABLE_ORIG_SRC"] != "" {
		v := e.boolean("ENABLE_ORIG_SRC")
		c.PreserveSource = &v
	}
	e.metadata(c)
	return c
}

// refuse names what asks for another way of working than ours.
func (e *env) refuse() {
	if mode := e.values["PROXY_MODE"]; mode != "" && mode != "shared" {
		e.fail("PROXY_MODE", fmt.Errorf("%q is not supported, only shared", mode))
	}
	if !e.boolean("ENABLE_PROXY") {
		e.fail("ENABLE_PROXY", errors.New("false leaves nothing to do"))
	}
	for name, what := range required {
		if v := e.values[name]; v != "" {
			e.fail(name, fmt.Errorf("%q: %s is not supported by this version; unset it to run without", v, what))
		}
	}
	if e.values["LOG_FORMAT"] != "" && e.values["LOG_FORMAT"] != "json" && e.values["LOG_FORMAT"] != "plain" {
		e.fail("LOG_FORMAT", fmt.Errorf("%q is neither plain nor json", e.values["LOG_FORMAT"]))
	}
}

func (e *env) metadata(c *Config) {
	for name, value := range e.values {
		if key, ok := strings.CutPrefix(name, "ISTIO_META_"); ok {
			c.Metadata[key] = value
		}
		if key, ok := strings.CutPrefix(name, "ISTIO_METAJSON_"); ok {
			if !json.Valid([]byte(value)) {
				e.fail(name, errors.New("not JSON"))
				continue
			}
			c.RawMetadata[key] = json.RawMessage(value)
		}
	}
}

// drainTimeout follows spec/ztunnel.md §1.9.
func (e *env) drainTimeout() time.Duration {
	if e.values["CONNECTION_TERMINATION_DEADLINE"] != "" {
		return e.duration("CONNECTION_TERMINATION_DEADLINE", 0)
	}
	if e.values["TERMINATION_GRACE_PERIOD_SECONDS"] == "" {
		return 5 * time.Second
	}
	s := time.Duration(e.number("TERMINATION_GRACE_PERIOD_SECONDS", 0, 31)) * time.Second
	if s > 10*time.Second {
		return s - 5*time.Second
	}
	return max(s-time.Second, time.Second)
}

// env reads typed values and collects what is wrong with them.
type env struct {
	values map[string]string
	errs   []error
}

func (e *env) fail(name string, err error) { e.errs = append(e.errs, fmt.Errorf("%s: %w", name, err)) }

// boolean reads a switch that is on unless it is turned off.
func (e *env) boolean(name string) bool {
	switch v := e.values[name]; v {
	case "", "true":
		return true
	case "false":
		return false
	default:
		e.fail(name, fmt.Errorf("%q is neither true nor false", v))
		return true
	}
}

func (e *env) number(name string, preset uint64, bits int) uint64 {
	v := e.values[name]
	if v == "" {
		return preset
	}
	n, err := strconv.ParseUint(v, 0, bits)
	if err != nil {
		e.fail(name, fmt.Errorf("%q is not a number of at most %d bits", v, bits))
	}
	return n
}

func (e *env) duration(name string, preset time.Duration) time.Duration {
	v := e.values[name]
	if v == "" {
		return preset
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		e.fail(name, fmt.Errorf("%q is not a duration such as 5s or 1m30s", v))
	}
	return d
}

// address normalises an istiod address. Empty is an error: without a control
// plane there is nothing to do.
func (e *env) address(name, preset string) string {
	v, set := e.values[name]
	switch {
	case !set:
		return preset
	case v == "":
		e.fail(name, errors.New("empty; running without istiod is not supported"))
	case strings.HasPrefix(v, "http://"):
		e.fail(name, fmt.Errorf("%q is plaintext", v))
	}
	if !strings.Contains(v, "://") {
		v = "https://" + v
	}
	return v
}

func (e *env) path(name, preset string) string {
	v := e.values[name]
	if v == "SYSTEM" || strings.HasPrefix(v, "-----BEGIN") {
		e.fail(name, errors.New("only a path is supported"))
	}
	return cmp.Or(v, preset)
}
