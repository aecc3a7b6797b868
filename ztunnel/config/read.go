package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// read makes a Config of the environment over the proxy configuration.
func (e *env) read(pc proxyConfig, cpus int) *Config {
	istiod := "https://localhost:15012"
	if e.get("KUBERNETES_SERVICE_HOST") != "" {
		istiod = "https://istiod.istio-system.svc:15012"
	}
	c := &Config{
		Mode: Mode(cmp.Or(e.get("PROXY_MODE"), string(Shared))), Proxy: e.on("ENABLE_PROXY"),
		NodeName: e.get("NODE_NAME"), Network: e.get("NETWORK"), ClusterDomain: cmp.Or(e.get("CLUSTER_DOMAIN"), mesh.DefaultClusterDomain),
		ClusterID: cmp.Or(e.get("ISTIO_META_CLUSTER_ID"), e.get("CLUSTER_ID"), mesh.DefaultClusterID),
		PodName:   e.get("POD_NAME"), PodNamespace: e.get("POD_NAMESPACE"), ServiceAccount: e.get("SERVICE_ACCOUNT"),
		InstanceIP: e.get("INSTANCE_IP"), TrustDomain: e.get("TRUST_DOMAIN"),

		XDSAddress: e.address("XDS_ADDRESS", cmp.Or(pc.DiscoveryAddress, istiod)), CAAddress: e.address("CA_ADDRESS", istiod),
		XDSRoot: cmp.Or(e.get("XDS_ROOT_CA"), mesh.RootCertPath), CARoot: cmp.Or(e.get("CA_ROOT_CA"), mesh.RootCertPath),
		XDSAltName: e.get("ALT_XDS_HOSTNAME"), CAAltName: e.get("ALT_CA_HOSTNAME"),
		XDSHeaders: e.headers("XDS_HEADER_"), CAHeaders: e.headers("CA_HEADER_"), XDSOnDemand: e.off("XDS_ON_DEMAND"),
		SecretTTL: e.duration("SECRET_TTL", 24*time.Hour),
		LocalPath: e.get("LOCAL_XDS_PATH"), Local: e.get("LOCAL_XDS"),
		Metadata: maps.Clone(pc.ProxyMetadata), RawMetadata: map[string]json.RawMessage{},

		ZDSSocket: cmp.Or(e.get("INPOD_UDS"), mesh.ZDSSocketPath), PortReuse: e.on("INPOD_PORT_REUSE"), IPv6: e.on("IPV6_ENABLED"),
		ResponseBaggage: e.on("ENABLE_RESPONSE_BAGGAGE"), AppTunnelLocal: e.on("LOCALHOST_APP_TUNNEL"), Socks5: e.off("UNSTABLE_ENABLE_SOCKS5"),
		AuthzInfo:          e.off("AUTHZ_POLICY_INFO_LOGGING"),
		PreferredNamespace: e.get("PREFERED_SERVICE_NAMESPACE"), //nolint:misspell // as charts spell it

		TLS12: e.off("TLS12_ENABLED"), CRLPath: e.get("CRL_PATH"),

		StreamWindow: uint32(e.number("HTTP2_STREAM_WINDOW_SIZE", 4<<20, 31)),
		ConnWindow:   uint32(e.number("HTTP2_CONNECTION_WINDOW_SIZE", 16<<20, 31)),
		FrameSize:    uint32(e.number("HTTP2_FRAME_SIZE", 1<<20, 24)),
		MaxStreams:   uint32(e.number("POOL_MAX_STREAMS_PER_CONNECTION", 100, 16)),
		PoolIdle:     e.duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute),
		DrainTimeout: e.drainTimeout(),
		KeepAlive: net.KeepAliveConfig{
			Enable: e.on("KEEPALIVE_ENABLED"), Idle: e.duration("KEEPALIVE_TIME", 180*time.Second),
			Interval: e.duration("KEEPALIVE_INTERVAL", 180*time.Second), Count: int(e.number("KEEPALIVE_RETRIES", 9, 16)),
		},
		Threads: e.threads(pc, cpus), GC: e.get("GOGC") == "", Memory: e.get("GOMEMLIMIT") == "",
		LogLevel: cmp.Or(e.get("RUST_LOG"), "info"), LogFormat: cmp.Or(e.get("LOG_FORMAT"), "plain"),
		AdminPort: cmp.Or(pc.ProxyAdminPort, mesh.PortAdmin), MetricsPort: cmp.Or(pc.StatsPort, mesh.PortMetrics), ReadinessPort: mesh.PortReadiness,
	}
	mark := uint64(mesh.MarkZtunnel)
	if c.Mode == Dedicated {
		mark = 0
	}
	c.PacketMark = uint32(e.number("PACKET_MARK", mark, 32))
	if e.off("USER_TIMEOUT_ENABLED") {
		c.UserTimeout = c.KeepAlive.Idle + time.Duration(c.KeepAlive.Count)*c.KeepAlive.Interval
	}
	e.metadata(c)
	e.dns(c)
	e.token(c)
	e.preserveSource(c)
	e.workload(c)
	return c
}

// preserveSource leaves the choice to the kernel, but where nothing marks our
// packets no rule can route the replies of an application back to us.
func (e *env) preserveSource(c *Config) {
	if e.get("ENABLE_ORIG_SRC") != "" || (c.Mode == Dedicated && c.PacketMark == 0) {
		v := e.off("ENABLE_ORIG_SRC")
		c.PreserveSource = &v
	}
}

func (e *env) workload(c *Config) {
	const name = "PROXY_WORKLOAD_INFO"
	text := e.get(name)
	if c.Mode != Dedicated {
		return
	}
	parts := strings.SplitN(text, "/", 3)
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		e.fail(name, fmt.Errorf("%q is not namespace/name/serviceaccount, which PROXY_MODE=dedicated needs", text))
		return
	}
	c.Workload = Workload{Namespace: parts[0], Name: parts[1], ServiceAccount: parts[2]}
}

// token finds the caller's token: a file, or the text itself.
func (e *env) token(c *Config) {
	switch v := e.get("AUTH_TOKEN"); {
	case v == "" && e.exists(mesh.TokenPath):
		c.TokenPath = mesh.TokenPath
	case v != "" && (e.exists(v) || strings.HasPrefix(v, "/") || strings.HasPrefix(v, ".")):
		c.TokenPath = v // a path that is not there yet is no token
	default:
		c.Token = Secret(v)
	}
}

func (e *env) metadata(c *Config) {
	e.looked["ISTIO_META_*"], e.looked["ISTIO_METAJSON_*"] = true, true
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
	for _, name := range []string{"DNS_CAPTURE", "DNS_PROXY_ADDR", "ISTIO_VERSION"} {
		e.looked["ISTIO_META_"+name] = true
	}
	c.Version = c.Metadata["ISTIO_VERSION"]
}

// dns is on unless it is turned off.
func (e *env) dns(c *Config) {
	capture, set := c.Metadata["DNS_CAPTURE"]
	c.DNS = !set || capture == "true"
	if at := c.Metadata["DNS_PROXY_ADDR"]; at != "" {
		c.DNSAddresses = e.dnsAddresses("ISTIO_META_DNS_PROXY_ADDR", at, c.IPv6)
	}
}

// refuse names what cannot be, or cannot be together.
func (e *env) refuse(c *Config) {
	if c.Mode != Shared && c.Mode != Dedicated {
		e.fail("PROXY_MODE", fmt.Errorf("%q is neither shared nor dedicated", c.Mode))
	}
	if !c.Proxy && !c.DNS {
		e.fail("ENABLE_PROXY", errors.New("false, with DNS off, too, leaves nothing to do"))
	}
	if c.XDSOnDemand && c.DNS {
		e.fail("XDS_ON_DEMAND", errors.New("names are not known on demand; set ISTIO_META_DNS_CAPTURE=false"))
	}
	if c.Local != "" && c.LocalPath != "" {
		e.fail("LOCAL_XDS", errors.New("LOCAL_XDS_PATH is set, too"))
	}
	switch v := e.get("COMPLIANCE_POLICY"); v {
	case "":
	case "pqc":
		c.PQC = true
	default:
		e.fail("COMPLIANCE_POLICY", fmt.Errorf("%q is not supported, only pqc; unset it to run without", v))
	}
	for name, what := range required {
		if v := e.get(name); v != "" && v != "false" {
			e.fail(name, fmt.Errorf("%q: %s is not supported; unset it to run without", v, what))
		}
	}
	if f := c.LogFormat; f != "json" && f != "plain" {
		e.fail("LOG_FORMAT", fmt.Errorf("%q is neither plain nor json", f))
	}
}
