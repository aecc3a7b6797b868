package config

import (
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
	if c, err = Parse([]string{"KUBERNETES_SERVICE_HOST=10.96.0.1"}); err != nil || c.CAAddress != "https://istiod.istio-system.svc:15012" {
		t.Errorf("%v %+v", err, c)
	}
}

func TestValues(t *testing.T) {
	c, err := Parse([]string{
		"SECRET_TTL=1m30s", "XDS_ADDRESS=istiod:15012", "ENABLE_ORIG_SRC=false", "CLUSTER_ID=a", "ISTIO_META_CLUSTER_ID=b",
		"PACKET_MARK=0x10", "ISTIO_METAJSON_X={}", "ISTIO_META_Y=z",
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
}

func TestErrorsNameTheVariable(t *testing.T) {
	bad := []string{
		"SECRET_TTL=soon", "KEEPALIVE_TIME=-1s", "IPV6_ENABLED=yes", "PACKET_MARK=0x100000000", "HTTP2_FRAME_SIZE=16777216", "PROXY_MODE=dedicated",
		"ENABLE_PROXY=false", "LOG_FORMAT=xml", "XDS_ADDRESS=", "CA_ADDRESS=http://istiod", "CA_ROOT_CA=SYSTEM", "ISTIO_METAJSON_X={",
		"POOL_MAX_STREAMS_PER_CONNECTION=65536", "COMPLIANCE_POLICY=pqc", "CRL_PATH=/etc/crl.pem", "TERMINATION_GRACE_PERIOD_SECONDS=x",
	}
	_, err := Parse(bad)
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	for _, entry := range bad {
		name, _, _ := strings.Cut(entry, "=")
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+": ") }) {
			t.Errorf("no line for %s in:\n%v", entry, err)
		}
	}
}

func TestIgnoredAreNamed(t *testing.T) {
	c, err := Parse([]string{"PROXY_CONFIG=x", "TLS12_ENABLED=false", "XDS_HEADER_a=b", "UNSTABLE_ENABLE_SOCKS5=true"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"PROXY_CONFIG", "UNSTABLE_ENABLE_SOCKS5", "XDS_HEADER_a"}; !slices.Equal(c.Ignored, want) {
		t.Errorf("ignored %v, want %v", c.Ignored, want)
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
