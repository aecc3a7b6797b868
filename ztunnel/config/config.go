// Package config turns ztunnel's environment into one immutable, validated
// Config. It is the only package of ztunnel that reads the environment; names
// and defaults are those of spec/ztunnel.md §9.2, so that existing charts work.
// What is honoured is listed in Variables, from which the command prints its
// help; a test compares the list with what Parse looks up. A variable of theirs
// that this version does not honour is named in Config.Ignored, for one warning
// at start; one that asks for more security than this version gives is an error.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Mode is how a process relates to workloads.
type Mode string

// The modes, spec/ztunnel.md §1.2.
const (
	Shared    Mode = "shared"    // every enrolled pod of the node
	Dedicated Mode = "dedicated" // the one workload whose network namespace it is in
)

// Workload is what Mode Dedicated serves.
type Workload struct{ Namespace, Name, ServiceAccount string }

// Secret is text that prints as [redacted].
type Secret string

// String implements [fmt.Stringer].
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[redacted]"
}

// GoString implements [fmt.GoStringer].
func (s Secret) GoString() string { return s.String() }

// Config is how one ztunnel process runs.
type Config struct {
	Mode     Mode
	Workload Workload // of Mode Dedicated
	Proxy    bool     // carry connections; without it only DNS is served

	NodeName       string // workloads of this node are ours; empty: all
	Network        string
	ClusterID      string
	ClusterDomain  string
	PodName        string // ztunnel's own pod
	PodNamespace   string
	ServiceAccount string
	InstanceIP     string
	TrustDomain    string // as configured; certificates have that of the workload
	Version        string // of the mesh, for istio_build

	XDSAddress  string // empty: no control plane
	XDSRoot     string // path, "SYSTEM" or PEM text
	XDSAltName  string
	XDSHeaders  map[string]Secret
	XDSOnDemand bool
	CAAddress   string // empty: no certificates
	CARoot      string // path, "SYSTEM" or PEM text
	CAAltName   string
	CAHeaders   map[string]Secret
	TokenPath   string // empty: Token
	Token       Secret // both empty: none is sent
	SecretTTL   time.Duration
	LocalPath   string                     // of a file with workloads, services and policies
	Local       string                     // the same, as text
	Metadata    map[string]string          // ISTIO_META_* and proxyMetadata
	RawMetadata map[string]json.RawMessage // ISTIO_METAJSON_*

	ZDSSocket       string
	PacketMark      uint32 // 0: none
	PortReuse       bool
	PreserveSource  *bool // nil: if the kernel lets us
	IPv6            bool
	ResponseBaggage bool
	AppTunnelLocal  bool // LOCALHOST_APP_TUNNEL
	Socks5          bool
	AuthzInfo       bool // log policy decisions at info, not debug

	DNS                bool
	DNSAddresses       []netip.AddrPort // nil: port 15053 of the loopback addresses that there are
	PreferredNamespace string           // of services that share a name, deprecated

	TLS12   bool
	PQC     bool   // COMPLIANCE_POLICY=pqc
	CRLPath string // empty: no revocations

	StreamWindow  uint32
	ConnWindow    uint32
	FrameSize     uint32
	MaxStreams    uint32 // on one pooled tunnel
	PoolIdle      time.Duration
	DrainTimeout  time.Duration
	KeepAlive     net.KeepAliveConfig
	UserTimeout   time.Duration // TCP_USER_TIMEOUT; 0: the kernel's
	Threads       int           // that carry traffic, at least 1
	GC, Memory    bool          // the collector's target, the memory limit are ours to set: GOGC, GOMEMLIMIT are not
	LogLevel      string
	LogFormat     string
	AdminPort     uint16
	MetricsPort   uint16
	ReadinessPort uint16

	Ignored []string // variables that are set and have no effect, sorted
}

// SelfProxy reports whether ztunnel's own pod is to be reached over HBONE
// (spec/ztunnel.md §1.8).
func (c *Config) SelfProxy() bool {
	return c.Mode == Shared && c.Proxy && c.PodName != "" && c.PodNamespace != "" && c.ServiceAccount != ""
}

// ignored are variables of existing charts that this version does not honour.
// The value is the one that needs no warning, since it asks for what we do.
var ignored = map[string]string{}

// required are variables that ask for what this version does not give and must
// not be believed to have.
var required = map[string]string{
	"FAKE_CA": "signing its own certificates, which only test builds of ztunnel do,",
}

// meshFile is where charts put the mesh's configuration, below the working
// directory.
const meshFile = "etc/istio/config/mesh"

// FromEnvironment reads the process's environment, and the files that belong to
// it.
func FromEnvironment() (*Config, error) {
	data, err := os.ReadFile(meshFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("mesh configuration: %w", err)
	}
	return parse(os.Environ(), data, runtime.GOMAXPROCS(0)) // which knows the container's limit
}

// Parse reads an environment as os.Environ returns it. The error names every
// variable that is wrong.
func Parse(environ []string) (*Config, error) { return parse(environ, nil, runtime.GOMAXPROCS(0)) }

func parse(environ []string, mesh []byte, cpus int) (*Config, error) {
	e := newEnv(environ)
	pc := e.proxyConfig(mesh)
	c := e.read(pc, cpus)
	e.refuse(c)
	for name, harmless := range ignored {
		if v := e.get(name); v != "" && v != harmless {
			c.Ignored = append(c.Ignored, name)
		}
	}
	slices.Sort(c.Ignored)
	if len(e.errs) > 0 {
		slices.SortFunc(e.errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return nil, errors.Join(e.errs...)
	}
	return c, nil
}
