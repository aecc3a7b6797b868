package telemetry

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DNSLabels are the labels of one question, spec/ztunnel.md §8.1. Empty values read
// "unknown".
type DNSLabels struct {
	Type              string // lower case, such as "aaaa"
	Protocol          string // "udp" or "tcp"
	Service, Revision string // canonical, of the pod that asks
}

// DNSMetrics are the metrics of the DNS proxies of one process: a collector, to be given
// to Metrics.Register.
type DNSMetrics struct {
	requests, forwarded, failed *prometheus.CounterVec
	duration                    *prometheus.HistogramVec

	mu      sync.Mutex
	sources map[[2]string]struct{}
}

// maxDNSSources bounds the canonical services that are counted apart: pods come and go.
// Beyond it questions are counted with their source unknown.
const maxDNSSources = 2000

// NewDNSMetrics returns metrics that have counted nothing.
func NewDNSMetrics() *DNSMetrics {
	labels := []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return &DNSMetrics{
		requests:  counter("istio_dns_requests_total", "Total number of DNS requests (unstable)."),
		forwarded: counter("istio_dns_upstream_requests_total", "Total number of DNS requests forwarded to a resolver (unstable)."),
		failed:    counter("istio_dns_upstream_failures_total", "Total number of DNS requests that no resolver answered (unstable)."),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "istio_dns_upstream_request_duration_seconds", Help: "Time that a resolver took to answer a DNS request (unstable).",
			Buckets: []float64{0.0005, 0.001, 0.01, 0.1, 1, 5},
		}, labels),
		sources: map[[2]string]struct{}{},
	}
}

// Describe implements prometheus.Collector.
func (m *DNSMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *DNSMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(ch)
	}
}

func (m *DNSMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.forwarded, m.failed, m.duration}
}

// Asked counts a question of a pod.
func (m *DNSMetrics) Asked(l DNSLabels) { m.requests.WithLabelValues(m.values(l)...).Inc() }

// Forwarded counts a question that was given to a resolver, and whether it failed to
// answer.
func (m *DNSMetrics) Forwarded(l DNSLabels, took time.Duration, failed bool) {
	values := m.values(l)
	m.forwarded.WithLabelValues(values...).Inc()
	m.duration.WithLabelValues(values...).Observe(took.Seconds())
	if failed {
		m.failed.WithLabelValues(values...).Inc()
	}
}

func (m *DNSMetrics) values(l DNSLabels) []string {
	if !m.known([2]string{l.Service, l.Revision}) {
		l.Service, l.Revision = "", ""
	}
	values := []string{l.Type, l.Protocol, l.Service, l.Revision}
	for i, v := range values {
		if v == "" {
			values[i] = "unknown"
		}
	}
	return values
}

// known says whether the source is counted apart.
func (m *DNSMetrics) known(source [2]string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.sources[source]; ok {
		return true
	}
	if len(m.sources) >= maxDNSSources {
		return false
	}
	m.sources[source] = struct{}{}
	return true
}

// DNSLine is what is logged of one question, at level debug, spec/ztunnel.md §7.4.
type DNSLine struct {
	Workload, Namespace string // of the pod that asks
	Type, Domain        string
	Result              string
	Endpoints           []netip.Addr // the answer, when it is ours
}

// Results of a question. A failure to forward is DNSForwardingFailed and the error.
const (
	DNSSuccess          = "success"
	DNSNoRecords        = "no records"
	DNSOtherFamily      = "service does not support this record type"
	DNSForwarded        = "forwarded"
	DNSForwardingFailed = "forwarding failed"
	DNSUnknownSource    = "the pod's own workload is not known"
)

// Log writes the line.
func (l *DNSLine) Log(ctx context.Context, log *slog.Logger) {
	if !log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	log.LogAttrs(ctx, slog.LevelDebug, "dns query",
		slog.String("src.workload", l.Workload), slog.String("src.namespace", l.Namespace),
		slog.String("query", l.Type), slog.String("domain", l.Domain), slog.String("result", l.Result), slog.Any("endpoints", l.Endpoints))
}
