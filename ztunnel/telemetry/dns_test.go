package telemetry_test

import (
	"bytes"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

func TestDNSMetrics(t *testing.T) {
	m := telemetry.NewMetrics("1.0")
	d := telemetry.NewDNSMetrics()
	if err := m.Register(d); err != nil {
		t.Fatal(err)
	}
	l := telemetry.DNSLabels{Type: "a", Protocol: "udp", Service: "web", Revision: "v1"}
	d.Asked(l)
	d.Asked(l)
	d.Forwarded(l, 20*time.Millisecond, false)
	d.Forwarded(telemetry.DNSLabels{Type: "mx", Protocol: "tcp"}, time.Second, true)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	const web = `{request_protocol="udp",request_query_type="a",source_canonical_revision="v1",source_canonical_service="web"}`
	const unknown = `{request_protocol="tcp",request_query_type="mx",source_canonical_revision="unknown",source_canonical_service="unknown"}`
	for _, want := range []string{
		"istio_dns_requests_total" + web + " 2.0",
		"istio_dns_upstream_requests_total" + web + " 1.0",
		"istio_dns_upstream_requests_total" + unknown + " 1.0",
		"istio_dns_upstream_failures_total" + unknown + " 1.0",
		`istio_dns_upstream_request_duration_seconds_bucket{request_protocol="udp",request_query_type="a",source_canonical_revision="v1",source_canonical_service="web",le="0.1"} 1`,
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("missing %q in:\n%s", want, w.Body)
		}
	}
}

// Pods come and go for months: what is counted apart stays bounded.
func TestDNSMetricsBounded(t *testing.T) {
	d := telemetry.NewDNSMetrics()
	m := telemetry.NewMetrics("")
	if err := m.Register(d); err != nil {
		t.Fatal(err)
	}
	for i := range 10_000 {
		d.Asked(telemetry.DNSLabels{Type: "a", Protocol: "udp", Service: "job-" + strconv.Itoa(i)})
	}
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	n := strings.Count(w.Body.String(), "\nistio_dns_requests_total{")
	if n != 2001 {
		t.Errorf("got %d series, want 2000 services and one for all others", n)
	}
}

func TestDNSLine(t *testing.T) {
	var out bytes.Buffer
	levels, err := telemetry.NewLevels("info,dns=debug")
	if err != nil {
		t.Fatal(err)
	}
	log := telemetry.NewLogger(&out, telemetry.Text, levels).With(telemetry.KeyScope, "dns")
	line := telemetry.DNSLine{
		Workload: "web-1", Namespace: "shop", Type: "A", Domain: "cart.shop.svc.cluster.local",
		Result: telemetry.DNSSuccess, Endpoints: []netip.Addr{netip.MustParseAddr("10.96.0.7")},
	}
	line.Log(t.Context(), log)
	const want = "\tdebug\tdns\tdns query\t" +
		`src.workload="web-1" src.namespace="shop" query="A" domain="cart.shop.svc.cluster.local" result="success" endpoints="[10.96.0.7]"`
	if _, got, _ := strings.Cut(strings.TrimSpace(out.String()), "Z"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
