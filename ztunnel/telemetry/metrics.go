package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metrics are the metrics of one ztunnel process, spec/ztunnel.md §8.1, on a
// registry of its own.
type Metrics struct {
	Traffic     *Traffic
	SocketsOpen [2]prometheus.Gauge // by Direction
	OnDemandDNS *prometheus.CounterVec
	// Tunnels that were refused or closed because of a revoked certificate, and those
	// that could not be checked, by Direction.
	CRLRejections, CRLUntracked [2]prometheus.Counter

	ProxiesActive, ProxiesPending  prometheus.Gauge
	ProxiesStarted, ProxiesStopped prometheus.Counter

	failures [2][reasons]prometheus.Counter // by Direction and Reason
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
	for _, d := range []Direction{Inbound, Outbound} {
		reporter := prometheus.Labels{"reporter": d.Reporter()}
		m.CRLRejections[d] = counter("istio_crl_policy_rejections_total", "Number of tunnels refused or closed because a certificate is revoked (unstable).", reporter)
		m.CRLUntracked[d] = counter("istio_crl_untracked_connections_total", "Number of tunnels that are not checked when revocations change (unstable).", reporter)
		m.registry.MustRegister(m.CRLRejections[d], m.CRLUntracked[d])
	}
	m.registerFailures()
	m.registry.MustRegister(runtimeCollector{})
	m.registry.MustRegister(m.Traffic, build, m.SocketsOpen[Inbound], m.SocketsOpen[Outbound], m.OnDemandDNS,
		m.ProxiesActive, m.ProxiesPending, m.ProxiesStarted, m.ProxiesStopped,
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	return m
}

// registerFailures resolves a counter for each reason beforehand.
func (m *Metrics) registerFailures() {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ambit_tcp_connections_failed_total", Help: "The number of connections that were refused or failed, by the reason in the access log (unstable).",
	}, []string{"reporter", "reason"})
	for d := range m.failures {
		for r := OK + 1; r < reasons; r++ {
			m.failures[d][r] = vec.WithLabelValues(Direction(d).Reporter(), r.String())
		}
	}
	m.registry.MustRegister(vec)
}

// Failed counts a connection that was refused or has failed, early or late.
func (m *Metrics) Failed(d Direction, r Reason) {
	if r != OK {
		m.failures[d][r].Inc()
	}
}

func counter(name, help string, labels prometheus.Labels) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels})
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
