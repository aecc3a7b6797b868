package config

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	c, err := Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.XDSAddress != "https://localhost:15012" || c.ClusterID != "Kubernetes" || c.SecretTTL != 24*time.Hour || c.PacketMark != 1337 {
		t.Errorf("%+v", c)
	}
	if !c.PortReuse || !c.IPv6 || c.PreserveSource != nil || c.DrainTimeout != 5*time.Second || c.StreamWindow != 4<<20 || c.Ignored != nil {
		t.Errorf("%+v", c)
	}
	if c.Mode != Shared || !c.Proxy || !c.DNS || c.DNSAddresses != nil || c.UserTimeout != 0 || c.Socks5 || !c.AppTunnelLocal || !c.GC || !c.Memory || c.SelfProxy() {
		t.Errorf("%+v", c)
	}
	if c, err = Parse([]string{"KUBERNETES_SERVICE_HOST=10.96.0.1"}); err != nil || c.CAAddress != "https://istiod.istio-system.svc:15012" {
		t.Errorf("%v %+v", err, c)
	}
}

func TestValues(t *testing.T) {
	c, err := Parse([]string{
		"SECRET_TTL=1m30s", "XDS_ADDRESS=istiod:15012", "ENABLE_ORIG_SRC=false", "CLUSTER_ID=a", "ISTIO_META_CLUSTER_ID=b",
		"PACKET_MARK=0x10", "ISTIO_METAJSON_X={}", "ISTIO_META_Y=z", "CA_ADDRESS=", "AUTH_TOKEN=literal", "XDS_HEADER_X-A=1", "CA_HEADER_b=2",
		"USER_TIMEOUT_ENABLED=true", "COMPLIANCE_POLICY=pqc", "ISTIO_META_DNS_PROXY_ADDR=127.0.0.1:53", "CRL_PATH=/crl.pem", "GOGC=50",
		"POD_NAME=z", "POD_NAMESPACE=ns", "SERVICE_ACCOUNT=sa",
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.SecretTTL != 90*time.Second || c.XDSAddress != "https://istiod:15012" || *c.PreserveSource || c.ClusterID != "b" || c.PacketMark != 16 {
		t.Errorf("%+v", c)
	}
	if string(c.RawMetadata["X"]) != "{}" || c.Metadata["Y"] != "z" {
		t.Errorf("metadata %v %v", c.RawMetadata, c.Metadata)
	}
	if c.CAAddress != "" || c.Token != "literal" || c.TokenPath != "" || c.XDSHeaders["x-a"] != "1" || c.CAHeaders["b"] != "2" || len(c.XDSHeaders) != 1 {
		t.Errorf("%+v", c)
	}
	if c.UserTimeout != 30*time.Minute || !c.PQC || c.DNSAddresses[0] != netip.MustParseAddrPort("127.0.0.1:53") || c.CRLPath == "" || c.GC || !c.SelfProxy() {
		t.Errorf("%+v", c)
	}
	if text := fmt.Sprintf("%v %+v %#v", c, c, c); strings.Contains(text, "literal") {
		t.Errorf("the token is printed: %s", text)
	}
	dump, err := json.Marshal(c.Dump())
	if err != nil || strings.Contains(string(dump), "literal") || !strings.Contains(string(dump), `"xdsHeaders":{"x-a":"[redacted]"}`) {
		t.Errorf("%v in dump %s", err, dump)
	}
}

func TestDNSAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"localhost:5353": "[127.0.0.1:5353 [::1]:5353]", "[::1]:53": "[[::1]:53]", "": "[]",
	} {
		if c, err := Parse([]string{"ISTIO_META_DNS_PROXY_ADDR=" + text}); err != nil || fmt.Sprint(c.DNSAddresses) != want {
			t.Errorf("%q: %v, %v, want %s", text, c, err, want)
		}
	}
	if c, err := Parse([]string{"ISTIO_META_DNS_PROXY_ADDR=localhost:53", "IPV6_ENABLED=false"}); err != nil || len(c.DNSAddresses) != 1 {
		t.Errorf("without IPv6: %v, %v", c, err)
	}
}

func TestDedicated(t *testing.T) {
	c, err := Parse([]string{"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=ns/vm-1/sa/x", "XDS_ADDRESS=", "LOCAL_XDS_PATH=/f"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Workload != (Workload{"ns", "vm-1", "sa/x"}) || c.PacketMark != 0 || c.PreserveSource == nil || *c.PreserveSource || c.XDSAddress != "" {
		t.Errorf("%+v", c)
	}
	c, err = Parse([]string{"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=ns/vm/sa", "PACKET_MARK=1337", "POD_NAME=z", "POD_NAMESPACE=ns", "SERVICE_ACCOUNT=sa"})
	if err != nil || c.PacketMark != 1337 || c.PreserveSource != nil || c.SelfProxy() {
		t.Errorf("%v %+v", err, c)
	}
}

func TestErrorsNameTheVariable(t *testing.T) {
	for _, bad := range [][]string{
		{
			"SECRET_TTL=soon", "KEEPALIVE_TIME=-1s", "IPV6_ENABLED=yes", "PACKET_MARK=0x100000000", "HTTP2_FRAME_SIZE=16777216", "PROXY_MODE=sidecar",
			"LOG_FORMAT=xml", "XDS_ADDRESS=http://istiod", "CA_ADDRESS=http://istiod", "ISTIO_METAJSON_X={", "FAKE_CA=true",
			"POOL_MAX_STREAMS_PER_CONNECTION=65536", "COMPLIANCE_POLICY=fips-140-2", "TERMINATION_GRACE_PERIOD_SECONDS=x", "XDS_HEADER_a b=c", "CA_HEADER_grpc-x=1",
			"ISTIO_META_DNS_PROXY_ADDR=example.com:53", "ZTUNNEL_WORKER_THREADS=many", "ZTUNNEL_CPU_LIMIT=-1", "PROXY_CONFIG=[", "XDS_ON_DEMAND=true",
		},
		{"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=ns/name"},
		{"ENABLE_PROXY=false", "ISTIO_META_DNS_CAPTURE=false"},
		{"LOCAL_XDS=workloads: []", "LOCAL_XDS_PATH=/f"},
	} {
		_, err := Parse(bad)
		if err == nil {
			t.Fatalf("%v: no error", bad)
		}
		lines := strings.Split(err.Error(), "\n")
		named := 0
		for _, entry := range bad {
			name, _, _ := strings.Cut(entry, "=")
			if slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+": ") }) {
				named++
			} else if len(bad) > 2 {
				t.Errorf("no line for %s in:\n%v", entry, err)
			}
		}
		if named == 0 {
			t.Errorf("%v: none of them is named in:\n%v", bad, err)
		}
	}
}

func TestDrainTimeout(t *testing.T) {
	for entry, want := range map[string]time.Duration{
		"TERMINATION_GRACE_PERIOD_SECONDS=30": 25 * time.Second,
		"TERMINATION_GRACE_PERIOD_SECONDS=10": 9 * time.Second,
		"TERMINATION_GRACE_PERIOD_SECONDS=1":  time.Second,
		"CONNECTION_TERMINATION_DEADLINE=7s":  7 * time.Second,
	} {
		if c, err := Parse([]string{entry}); err != nil || c.DrainTimeout != want {
			t.Errorf("%s: %v, %v", entry, c.DrainTimeout, err)
		}
	}
}

func TestThreads(t *testing.T) {
	for _, c := range []struct {
		environ []string
		cpus    int
		want    int
	}{
		{nil, 1, 2},
		{nil, 16, 4},
		{nil, 17, 5},
		{[]string{"ZTUNNEL_WORKER_THREADS=3"}, 16, 3},
		{[]string{"ZTUNNEL_WORKER_THREADS=0"}, 16, 16},
		{[]string{"ZTUNNEL_WORKER_THREADS=50%"}, 5, 3},
		{[]string{"ZTUNNEL_WORKER_THREADS=0%"}, 5, 1},
		{[]string{"ZTUNNEL_WORKER_THREADS=50%", "ZTUNNEL_CPU_LIMIT=8"}, 64, 4},
		{[]string{"ZTUNNEL_WORKER_THREADS=100%", "ZTUNNEL_RESOURCE_CPU_LIMIT=1500m", "ZTUNNEL_CPU_LIMIT=8"}, 64, 2},
		{[]string{"PROXY_CONFIG={concurrency: 7}"}, 4, 7},
		{[]string{"PROXY_CONFIG={concurrency: 0}"}, 4, 4},
		{[]string{"ZTUNNEL_RESOURCE_CPU_LIMIT=2.5"}, 16, 3},
		{[]string{"ZTUNNEL_RESOURCE_CPU_LIMIT=1", "ZTUNNEL_RESOURCE_CPU_REQUEST=4"}, 16, 4},
		{[]string{"ZTUNNEL_RESOURCE_CPU_REQUEST=6"}, 16, 6},
	} {
		if got, err := parse(c.environ, nil, c.cpus); err != nil || got.Threads != c.want {
			t.Errorf("%v on %d CPUs: %v, %v, want %d", c.environ, c.cpus, got, err, c.want)
		}
	}
}

func TestProxyConfig(t *testing.T) {
	mesh := []byte(`
trustDomain: other
defaultConfig:
  discoveryAddress: istiod.file:15012
  statsPort: 15090
  proxyMetadata: {A: file, B: file, ISTIO_META_C: file, DNS_CAPTURE: "false"}
`)
	c, err := parse([]string{
		`PROXY_CONFIG={"discoveryAddress":"istiod.env:15012","proxyAdminPort":15999,"proxyMetadata":{"A":"env"}}`, "ISTIO_META_B=variable",
	}, mesh, 1)
	if err != nil {
		t.Fatal(err)
	}
	if c.XDSAddress != "https://istiod.env:15012" || c.AdminPort != 15999 || c.MetricsPort != 15090 || c.DNS {
		t.Errorf("%+v", c)
	}
	if got := fmt.Sprint(c.Metadata); got != "map[A:env B:variable C:file DNS_CAPTURE:false]" {
		t.Errorf("metadata %s", got)
	}
	if _, err := parse(nil, []byte("defaultConfig: 1"), 1); err == nil || !strings.Contains(err.Error(), meshFile) {
		t.Errorf("a broken mesh file: %v", err)
	}
}

// TestEveryVariableIsDocumented compares what Parse looks up with the table.
func TestEveryVariableIsDocumented(t *testing.T) {
	e := newEnv([]string{"PROXY_MODE=dedicated"})
	e.refuse(e.read(e.proxyConfig(nil), 1))
	documented := map[string]bool{}
	for _, g := range Variables {
		for _, v := range g.Variables {
			if documented[v.Name] {
				t.Errorf("%s is in the table twice", v.Name)
			}
			documented[v.Name] = true
			if !e.looked[v.Name] {
				t.Errorf("%s is in the table and never looked up", v.Name)
			}
		}
	}
	// Known to Parse through their prefixes.
	for name := range e.looked {
		if _, refused := required[name]; !documented[name] && !refused {
			t.Errorf("%s is looked up and not in the table", name)
		}
	}
	for name := range ignored {
		if documented[name] {
			t.Errorf("%s is ignored and in the table", name)
		}
	}
	if usage := Usage(); !strings.Contains(usage, "SECRET_TTL") || !strings.Contains(usage, "[24h]") {
		t.Errorf("usage:\n%s", usage)
	}
}

// TestDefaultsAreDocumented sets every variable to what the table calls its
// default: the outcome must be that of setting none.
func TestDefaultsAreDocumented(t *testing.T) {
	var environ []string
	for _, g := range Variables {
		for _, v := range g.Variables {
			switch v.Name {
			case "CONNECTION_TERMINATION_DEADLINE", "AUTH_TOKEN", "GOGC", "GOMAXPROCS", "ISTIO_META_DNS_CAPTURE", "ISTIO_META_DNS_PROXY_ADDR", "INSTANCE_IP":
				continue // whether they are set shows
			}
			if v.Default != "" {
				environ = append(environ, v.Name+"="+v.Default)
			}
		}
	}
	got, err := Parse(environ)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("defaults of the table:\n%s\nof the code:\n%s", g, w)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("PROXY_CONFIG={concurrency: 1}\nZTUNNEL_WORKER_THREADS=1e9%", "defaultConfig: {proxyMetadata: {a: b}}")
	f.Fuzz(func(_ *testing.T, environ, mesh string) {
		if c, err := parse(strings.Split(environ, "\n"), []byte(mesh), 4); err == nil {
			_ = c.Dump()
		}
	})
}
