package cni

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics have the names of spec/control-plane.md §8.8.
type metrics struct {
	registry *prometheus.Registry
	events   *prometheus.CounterVec
	requests *prometheus.CounterVec
	ztunnels prometheus.Gauge
	installs *prometheus.CounterVec
	ready    prometheus.Gauge
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
		installs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_cni_installs_total",
			Help: "Attempts to install the CNI plugin, and checks of it, by result.",
		}, []string{"result"}),
		ready: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "istio_cni_install_ready",
			Help: "1 while the CNI plugin is installed.",
		}),
	}
	m.registry.MustRegister(m.events, m.requests, m.ztunnels)
	return m
}

// Installing makes the metrics of the plugin's installation visible and returns what
// counts its attempts.
func (a *Agent) Installing() func(installed bool) {
	m := a.metrics
	m.registry.MustRegister(m.installs, m.ready)
	return func(installed bool) {
		result, ready := "CREATE_FAILURE", 0.0
		if installed {
			result, ready = "SUCCESS", 1
		}
		m.installs.WithLabelValues(result).Inc()
		m.ready.Set(ready)
	}
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

// healthLimit is how long the owner may take to hear.
const healthLimit = 2 * time.Second

// alive says whether the owner takes what is sent to it.
func (a *Agent) alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthLimit)
	defer cancel()
	select {
	case a.mail <- func() {}:
		return nil
	case <-a.done:
		return errors.New("the agent has ended")
	case <-ctx.Done():
		return fmt.Errorf("the agent's owner has not answered within %s", healthLimit)
	}
}

// Health serves /healthz: 200 while the owner answers; and /readyz: 200 once the pods are known, both sockets are
// there, and the plugin is installed.
func (a *Agent) Health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := a.alive(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !a.zdsUp.Load() || !a.plugUp.Load() {
			http.Error(w, "not ready: pods not known yet, or a socket is missing", http.StatusServiceUnavailable)
			return
		}
		if a.cfg.Installed != nil && !a.cfg.Installed() {
			http.Error(w, "not ready: the CNI plugin is not installed", http.StatusServiceUnavailable)
		}
	})
	return mux
}
