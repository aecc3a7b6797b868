package telemetry

import (
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the metrics of one ztunnel process, spec/ztunnel.md §8.1, on a
// registry of its own.
type Metrics struct {
	Traffic     *Traffic
	SocketsOpen [2]prometheus.Gauge // by Direction
	OnDemandDNS *prometheus.CounterVec

	ProxiesActive, ProxiesPending  prometheus.Gauge
	ProxiesStarted, ProxiesStopped prometheus.Counter

	registry *prometheus.Registry
}

// XDSStats are the counters that the xDS client keeps. Any may be nil.
type XDSStats struct {
	Messages     func() map[string]uint64 // by type URL
	Bytes        func() map[string]uint64 // by type URL
	Terminations func() map[string]uint64 // by reason
}

// NewMetrics returns the metrics, with version as the label "tag" of
// istio_build.
func NewMetrics(version string) *Metrics {
	if version == "" {
		version = "unknown"
	}
	m := &Metrics{Traffic: NewTraffic(), registry: prometheus.NewRegistry()}
	build := gauge("istio_build", "Istio component build info.", prometheus.Labels{"component": "ztunnel", "tag": version})
	build.Set(1)
	m.SocketsOpen[Inbound] = gauge("istio_tcp_sockets_open", "Number of open sockets (unstable).", prometheus.Labels{"reporter": Inbound.Reporter()})
	m.SocketsOpen[Outbound] = gauge("istio_tcp_sockets_open", "Number of open sockets (unstable).", prometheus.Labels{"reporter": Outbound.Reporter()})
	m.OnDemandDNS = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_on_demand_dns_total", Help: "The total number of hostnames resolved for a connection (unstable).",
	}, []string{
		"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster", "hostname",
	})
	m.ProxiesActive = gauge("workload_manager_active_proxy_count", "Number of pods with a running proxy (unstable).", nil)
	m.ProxiesPending = gauge("workload_manager_pending_proxy_count", "Number of pods whose proxy could not start yet (unstable).", nil)
	m.ProxiesStarted = prometheus.NewCounter(prometheus.CounterOpts{Name: "workload_manager_proxies_started_total", Help: "Number of proxies started (unstable)."})
	m.ProxiesStopped = prometheus.NewCounter(prometheus.CounterOpts{Name: "workload_manager_proxies_stopped_total", Help: "Number of proxies stopped (unstable)."})
	m.registry.MustRegister(m.Traffic, build, m.SocketsOpen[Inbound], m.SocketsOpen[Outbound], m.OnDemandDNS,
		m.ProxiesActive, m.ProxiesPending, m.ProxiesStarted, m.ProxiesStopped,
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	return m
}

func gauge(name, help string, labels prometheus.Labels) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels})
}

// Observe adds the counters of the xDS client. Call it once.
func (m *Metrics) Observe(s XDSStats) { m.registry.MustRegister(xdsCollector{s}) }

// Register adds metrics of a part that defines its own, such as a waypoint.
func (m *Metrics) Register(c prometheus.Collector) error { return m.registry.Register(c) }

type xdsCollector struct{ stats XDSStats }

var (
	xdsMessages     = prometheus.NewDesc("istio_xds_message_total", "The total number of xDS messages received (unstable).", []string{"url"}, nil)
	xdsBytes        = prometheus.NewDesc("istio_xds_message_bytes_total", "The total number of bytes of xDS messages received (unstable).", []string{"url"}, nil)
	xdsTerminations = prometheus.NewDesc("istio_xds_connection_terminations_total", "The total number of xDS streams that ended (unstable).", []string{"reason"}, nil)
)

// Describe implements prometheus.Collector.
func (c xdsCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- xdsMessages
	ch <- xdsBytes
	ch <- xdsTerminations
}

// Collect implements prometheus.Collector.
func (c xdsCollector) Collect(ch chan<- prometheus.Metric) {
	send := func(desc *prometheus.Desc, values func() map[string]uint64) {
		if values == nil {
			return
		}
		for label, n := range values() {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), label)
		}
	}
	send(xdsMessages, c.stats.Messages)
	send(xdsBytes, c.stats.Bytes)
	send(xdsTerminations, c.stats.Terminations)
}

const openMetrics = "application/openmetrics-text"

// Handler serves the metrics as OpenMetrics text, whatever the client accepts;
// only the content type follows it (spec §8.1).
func (m *Metrics) Handler() http.Handler {
	inner := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true, Registry: nil})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		contentType := "text/plain; charset=utf-8"
		for _, accept := range r.Header.Values("Accept") {
			if strings.Contains(accept, openMetrics) {
				contentType = openMetrics + ";charset=utf-8;version=1.0.0"
			}
		}
		r = r.Clone(r.Context())
		r.Header.Set("Accept", openMetrics+";version=1.0.0")
		inner.ServeHTTP(&typedWriter{ResponseWriter: w, contentType: contentType}, r)
	})
}

// typedWriter replaces the content type of a successful response.
type typedWriter struct {
	http.ResponseWriter
	contentType string
	started     bool
}

// WriteHeader implements http.ResponseWriter.
func (w *typedWriter) WriteHeader(status int) {
	if status == http.StatusOK && !w.started {
		w.Header().Set("Content-Type", w.contentType)
	}
	w.started = true
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *typedWriter) Write(b []byte) (int, error) {
	if !w.started {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}
