package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

func TestForwarded(t *testing.T) {
	if got := forwarded(netip.MustParseAddrPort("[::1]:80"), ""); got != `for="[::1]:80"` {
		t.Error(got)
	}
	text := forwarded(netip.MustParseAddrPort("10.0.0.1:80"), "a.example")
	if text != `for="10.0.0.1:80";host=a.example` || forwardedHost(text) != "a.example" {
		t.Error(text)
	}
	for text, want := range map[string]string{
		`host="a.example";for=x`: "a.example", `for=x`: "", "": "", "host=ä": "", "host=a b": "", "Host=b": "b",
	} {
		if got := forwardedHost(text); got != want {
			t.Errorf("%q: host %q, want %q", text, got, want)
		}
	}
}

func TestBaggage(t *testing.T) {
	w := &workload.Workload{
		ClusterID: "c", Namespace: "n", WorkloadType: "deployment", WorkloadName: "w", CanonicalName: "s", CanonicalRevision: "v",
		Locality: workload.Locality{Region: "r", Zone: "z"},
	}
	text := baggage(w)
	if text != "k8s.cluster.name=c,k8s.namespace.name=n,k8s.deployment.name=w,service.name=s,service.version=v,cloud.region=r,cloud.availability_zone=z" {
		t.Error(text)
	}
	want := telemetry.Peer{Cluster: "c", Namespace: "n", Workload: "w", App: "w", CanonicalService: "s", CanonicalRev: "v", Version: "v", Region: "r", Zone: "z"}
	if got := parseBaggage(text); got != want {
		t.Errorf("read %+v", got)
	}
	// What a peer says of itself becomes a metric label: nothing that would make
	// the metrics unreadable or large.
	bad := ",=,x=y,service.name,service.version=\xff,cloud.region=a\x01,k8s.namespace.name=ä,k8s.cluster.name=" + strings.Repeat("x", 254)
	if got := parseBaggage(bad); got != (telemetry.Peer{}) {
		t.Errorf("read %+v", got)
	}
}

func TestTraceparent(t *testing.T) {
	got := traceparent()
	if len(got) != 55 || strings.Count(got, "-") != 3 || !strings.HasSuffix(got, "-00") || got == traceparent() {
		t.Error(got)
	}
}

func FuzzBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=c,service.name==,,")
	f.Fuzz(func(_ *testing.T, text string) { parseBaggage(text) })
}

func FuzzForwarded(f *testing.F) {
	f.Add(`for="[::1]:80";host="a"`)
	f.Fuzz(func(t *testing.T, text string) {
		for _, c := range []byte(forwardedHost(text)) {
			if c <= ' ' || c > '~' {
				t.Errorf("host of %q has byte %#x", text, c)
			}
		}
	})
}
