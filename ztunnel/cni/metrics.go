package cni

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics have the names of spec/control-plane.md §8.8.
type metrics struct {
	registry *prometheus.Registry
	events   *prometheus.CounterVec
	requests *prometheus.CounterVec
	ztunnels prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodeagent_reconcile_events_total",
			Help: "Pods that were enrolled (add), released (remove) or have gone (delete).",
		}, []string{"type"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_cni_plugin_requests_total",
			Help: "Calls of the CNI plugin by HTTP status.",
		}, []string{"response_code"}),
		ztunnels: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ztunnel_connected",
			Help: "Connected ztunnels.",
		}),
	}
	m.registry.MustRegister(m.events, m.requests, m.ztunnels)
	return m
}

func (m *metrics) reconciled(kind string) { m.events.WithLabelValues(kind).Inc() }
func (m *metrics) answered(status int)    { m.requests.WithLabelValues(strconv.Itoa(status)).Inc() }
func (m *metrics) connected(n int)        { m.ztunnels.Set(float64(n)) }

// Metrics serves /metrics.
func (a *Agent) Metrics() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}))
	return mux
}

// Health serves /healthz, and /readyz: 200 once the pods are known and both sockets are
// there.
func (a *Agent) Health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !a.zdsUp.Load() || !a.plugUp.Load() {
			http.Error(w, "not ready: pods not known yet, or a socket is missing", http.StatusServiceUnavailable)
		}
	})
	return mux
}
