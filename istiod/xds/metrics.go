package xds

import (
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// metrics have the names that people's dashboards know, spec/control-plane.md
// §10.3.
type metrics struct {
	clients      *prometheus.GaugeVec
	pushes       *prometheus.CounterVec
	rejects      *prometheus.CounterVec
	expiredNonce *prometheus.CounterVec
	writeTimeout prometheus.Counter
	sendTime     prometheus.Histogram
	convergence  prometheus.Histogram

	versions map[string]int // guarded by Server.mu
}

func newMetrics(r prometheus.Registerer) *metrics {
	factory := promauto.With(r)
	byType := func(name, help string) *prometheus.CounterVec {
		return factory.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"type"})
	}
	buckets := []float64{.01, .1, .5, 1, 3, 5, 10, 20, 30}
	return &metrics{
		clients: factory.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pilot_xds", Help: "Proxies connected, by their version.",
		}, []string{"version"}),
		pushes:       byType("pilot_xds_pushes", "Responses sent."),
		rejects:      byType("pilot_total_xds_rejects", "Responses that a proxy rejected."),
		expiredNonce: byType("pilot_xds_expired_nonce", "Requests that answered a response that is out of date."),
		writeTimeout: factory.NewCounter(prometheus.CounterOpts{
			Name: "pilot_xds_write_timeout", Help: "Streams ended because the proxy did not read.",
		}),
		sendTime: factory.NewHistogram(prometheus.HistogramOpts{
			Name: "pilot_xds_send_time", Help: "Seconds to send one response.", Buckets: buckets,
		}),
		convergence: factory.NewHistogram(prometheus.HistogramOpts{
			Name: "pilot_proxy_convergence_time", Help: "Seconds from a change in the store until it was sent to a proxy.", Buckets: buckets,
		}),
		versions: map[string]int{},
	}
}

// connected counts proxies by version. A version that nobody has any more is no
// series any more.
func (m *metrics) connected(node *corev3.Node, by int) {
	version := node.GetMetadata().GetFields()["ISTIO_VERSION"].GetStringValue()
	if version == "" {
		version = "unknown"
	}
	version = strings.ToValidUTF8(version[:min(len(version), 64)], "") // a label must be
	m.versions[version] += by
	if m.versions[version] == 0 {
		delete(m.versions, version)
		m.clients.DeleteLabelValues(version)
		return
	}
	m.clients.WithLabelValues(version).Set(float64(m.versions[version]))
}

func (m *metrics) pushed(typeURL string, took time.Duration) {
	m.pushes.WithLabelValues(label(typeURL)).Inc()
	m.sendTime.Observe(took.Seconds())
}

func (m *metrics) converged(since time.Time) {
	if !since.IsZero() {
		m.convergence.Observe(time.Since(since).Seconds())
	}
}

// label is the short name of a type. Proxies choose the URLs, so those that we
// do not know share one.
func label(typeURL string) string {
	switch typeURL {
	case typeCluster:
		return "cds"
	case typeEndpoint:
		return "eds"
	case typeListener:
		return "lds"
	case typeRoute:
		return "rds"
	case mesh.TypeAddress:
		return "wds"
	case mesh.TypeAuthorization:
		return "wads"
	default:
		return "other"
	}
}
