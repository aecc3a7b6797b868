package config

import (
	"fmt"
	"strings"
)

// A Variable is one environment variable that is honoured. A name that ends in
// an asterisk stands for all that begin so.
type Variable struct{ Name, Default, Meaning string }

// A Group is a part of the table of variables.
type Group struct {
	Title     string
	Variables []Variable
}

// Variables lists everything that Parse honours.
var Variables = []Group{
	{"Mode and place", []Variable{
		{"PROXY_MODE", "shared", "shared: every enrolled pod of the node; dedicated: the one workload of this network namespace"},
		{"PROXY_WORKLOAD_INFO", "", "namespace/name/serviceaccount of the workload; dedicated mode needs it"},
		{"ENABLE_PROXY", "true", "carry connections; false serves DNS only"},
		{"NODE_NAME", "", "our node; workloads of other nodes get no certificates. Empty: all are ours"},
		{"NETWORK", "", "our network"},
		{"CLUSTER_ID", "Kubernetes", "our cluster; ISTIO_META_CLUSTER_ID wins"},
		{"ISTIO_META_CLUSTER_ID", "", "see CLUSTER_ID"},
		{"CLUSTER_DOMAIN", "cluster.local", "DNS domain of the cluster"},
		{"POD_NAME", "", "ztunnel's own pod; with POD_NAMESPACE and SERVICE_ACCOUNT its port 15008 serves HBONE to itself"},
		{"POD_NAMESPACE", "", "namespace of ztunnel's own pod"},
		{"SERVICE_ACCOUNT", "", "service account of ztunnel's own pod"},
		{"INSTANCE_IP", "1.1.1.1", "our address, as istiod is told"},
		{"TRUST_DOMAIN", "", "shown in the configuration; certificates have the trust domain that istiod names"},
	}},
	{"Control plane", []Variable{
		{"XDS_ADDRESS", "https://localhost:15012", "istiod; in Kubernetes https://istiod.istio-system.svc:15012. Set to nothing: no control plane"},
		{"CA_ADDRESS", "https://localhost:15012", "certificate authority, likewise. Set to nothing: no certificates, so no HBONE"},
		{"XDS_ROOT_CA", "/var/run/secrets/istio/root-cert.pem", "roots of istiod's certificate: a path, SYSTEM, or PEM text"},
		{"CA_ROOT_CA", "/var/run/secrets/istio/root-cert.pem", "roots of the authority's certificate, likewise"},
		{"ALT_XDS_HOSTNAME", "", "another name that istiod's certificate may have"},
		{"ALT_CA_HOSTNAME", "", "another name that the authority's certificate may have"},
		{"AUTH_TOKEN", "/var/run/secrets/tokens/istio-token", "our token: a path, read for each request, or the token itself"},
		{"XDS_HEADER_*", "", "a header sent to istiod, named by the rest of the variable"},
		{"CA_HEADER_*", "", "a header sent to the authority, likewise"},
		{"SECRET_TTL", "24h", "validity of certificates that we ask for"},
		{"XDS_ON_DEMAND", "false", "ask for addresses when connections need them (experimental; not with DNS)"},
		{"LOCAL_XDS_PATH", "", "YAML file with workloads, services and policies, besides istiod's or without; followed when it changes"},
		{"LOCAL_XDS", "", "the same as text"},
		{"KUBERNETES_SERVICE_HOST", "", "says that we are in Kubernetes"},
		{"ISTIO_META_*", "", "metadata for istiod, named by the rest of the variable"},
		{"ISTIO_METAJSON_*", "", "the same as JSON"},
		{"ISTIO_META_ISTIO_VERSION", "", "version of the mesh, as istio_build shows it"},
		{"PROXY_CONFIG", "", "YAML over defaultConfig of ./etc/istio/config/mesh: discoveryAddress, proxyAdminPort, statsPort, concurrency, proxyMetadata"},
	}},
	{"Sockets", []Variable{
		{"INPOD_UDS", "/var/run/ztunnel/ztunnel.sock", "socket of the node agent"},
		{"INPOD_PORT_REUSE", "true", "let an old and a new ztunnel listen at the same time"},
		{"PACKET_MARK", "1337", "mark of our packets; none in dedicated mode"},
		{"ENABLE_ORIG_SRC", "", "connect to the application from the client's address. Empty: if the kernel lets us (in dedicated mode: and there is a mark)"},
		{"IPV6_ENABLED", "true", "use IPv6"},
		{"UNSTABLE_ENABLE_SOCKS5", "false", "SOCKS5 on port 15080"},
		{"LOCALHOST_APP_TUNNEL", "true", "hand tunnels with a PROXY header to the application on its loopback address"},
		{"KEEPALIVE_ENABLED", "true", "TCP keep-alive"},
		{"KEEPALIVE_TIME", "180s", "idle time before the first probe"},
		{"KEEPALIVE_INTERVAL", "180s", "between probes"},
		{"KEEPALIVE_RETRIES", "9", "unanswered probes before a connection is dead"},
		{"USER_TIMEOUT_ENABLED", "false", "TCP_USER_TIMEOUT of time + retries × interval"},
	}},
	{"Tunnels", []Variable{
		{"HTTP2_STREAM_WINDOW_SIZE", "4194304", "flow control window of a stream"},
		{"HTTP2_CONNECTION_WINDOW_SIZE", "16777216", "flow control window of a tunnel"},
		{"HTTP2_FRAME_SIZE", "1048576", "largest frame that we accept"},
		{"POOL_MAX_STREAMS_PER_CONNECTION", "100", "streams on a tunnel that we open"},
		{"POOL_UNUSED_RELEASE_TIMEOUT", "5m", "before an idle tunnel closes"},
		{"ENABLE_RESPONSE_BAGGAGE", "true", "tell peers our labels, and believe theirs"},
		{"TLS12_ENABLED", "false", "allow TLS 1.2, too"},
		{"COMPLIANCE_POLICY", "", "pqc: key exchange X25519MLKEM768 and no other"},
		{"CRL_PATH", "", "file of revocation lists, PEM or DER, followed when it changes"},
	}},
	{"DNS", []Variable{
		{"ISTIO_META_DNS_CAPTURE", "true", "answer DNS for the names of the mesh"},
		{"ISTIO_META_DNS_PROXY_ADDR", "localhost:15053", "where: localhost:port or ip:port"},
		{"PREFERED_SERVICE_NAMESPACE", "", "preferred among services that share a name (deprecated)"}, //nolint:misspell // as charts spell it
	}},
	{"Process", []Variable{
		{"ZTUNNEL_WORKER_THREADS", "", "threads that carry traffic: a count, N% of the CPUs, or 0 for all. Empty: concurrency of PROXY_CONFIG, else a quarter of the CPUs, at least 2"},
		{"ZTUNNEL_CPU_LIMIT", "", "CPUs that we may use"},
		{"ZTUNNEL_RESOURCE_CPU_LIMIT", "", "the same, where a limit is configured: as many threads"},
		{"ZTUNNEL_RESOURCE_CPU_REQUEST", "", "at least so many threads"},
		{"CONNECTION_TERMINATION_DEADLINE", "5s", "for connections to end at shutdown"},
		{"TERMINATION_GRACE_PERIOD_SECONDS", "", "of the pod: the deadline is 5 s less, or 1 s less up to 10 s"},
		{"RUST_LOG", "info", "log levels: a level, and scope=level, separated by commas"},
		{"LOG_FORMAT", "plain", "plain or json"},
		{"AUTHZ_POLICY_INFO_LOGGING", "false", "log decisions of policies at level info, not debug"},
		{"GOMAXPROCS", "", "threads, where nothing above says how many"},
		{"GOGC", "200", "garbage collector's target percentage"},
		{"GOMEMLIMIT", "", "memory limit of the Go runtime. Empty: nine tenths of the container's"},
	}},
}

// Usage returns the table for a terminal.
func Usage() string {
	var b strings.Builder
	for _, g := range Variables {
		fmt.Fprintf(&b, "%s:\n", g.Title)
		for _, v := range g.Variables {
			fmt.Fprintf(&b, "  %-34s %s", v.Name, v.Meaning)
			if v.Default != "" {
				fmt.Fprintf(&b, " [%s]", v.Default)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}
