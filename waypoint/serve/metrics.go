package serve

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// Labels of spec/control-plane.md §10.1, in its order.
var (
	tcpLabels = []string{
		"reporter", "source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster",
		"destination_workload", "destination_workload_namespace", "destination_principal", "destination_app",
		"destination_version", "destination_service", "destination_canonical_service", "destination_canonical_revision",
		"destination_service_name", "destination_service_namespace", "destination_cluster",
		"request_protocol", "response_flags", "connection_security_policy",
	}
	httpLabels = append(append([]string{}, tcpLabels...), "response_code", "grpc_response_status")

	buckets = []float64{
		0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000,
	}
)

// Metrics are the standard metrics of a waypoint. What a request needs of them
// is resolved once per source, service, endpoint, code and flags.
type Metrics struct {
	requests                *prometheus.CounterVec
	duration, reqs, ress    *prometheus.HistogramVec
	opened, closed          *prometheus.CounterVec
	sent, received          *prometheus.CounterVec
	httpHandles, tcpHandles sync.Map
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels []string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		r.MustRegister(v)
		return v
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, httpLabels)
		r.MustRegister(v)
		return v
	}
	return &Metrics{
		requests: counter("istio_requests_total", "Requests served.", httpLabels),
		duration: histogram("istio_request_duration_milliseconds", "Time from a request's head to the end of its response."),
		reqs:     histogram("istio_request_bytes", "Size of requests, heads included."),
		ress:     histogram("istio_response_bytes", "Size of responses, heads included."),
		opened:   counter("istio_tcp_connections_opened_total", "Byte streams opened.", tcpLabels),
		closed:   counter("istio_tcp_connections_closed_total", "Byte streams closed.", tcpLabels),
		sent:     counter("istio_tcp_sent_bytes_total", "Bytes from server to client.", tcpLabels),
		received: counter("istio_tcp_received_bytes_total", "Bytes from client to server.", tcpLabels),
	}
}

// key identifies a set of handles. Workloads are interned, so comparing
// pointers is enough.
type key struct {
	source, target *Workload
	service        string
	code           int
	flags          Flags
	grpc           string
}

type httpHandles struct {
	requests                   prometheus.Counter
	duration, request, respond prometheus.Observer
}

type tcpHandles struct{ opened, closed, sent, received prometheus.Counter }

func (m *Metrics) http(k key, service config.Service) *httpHandles {
	if known, ok := m.httpHandles.Load(k); ok {
		return known.(*httpHandles)
	}
	code := strconv.Itoa(k.code)
	labels := append(values(k.source, k.target, service, "http", k.flags), code, k.grpc)
	known, _ := m.httpHandles.LoadOrStore(k, &httpHandles{
		requests: m.requests.WithLabelValues(labels...),
		duration: m.duration.WithLabelValues(labels...),
		request:  m.reqs.WithLabelValues(labels...),
		respond:  m.ress.WithLabelValues(labels...),
	})
	return known.(*httpHandles)
}

func (m *Metrics) tcp(source, target *Workload, service config.Service, flags Flags) *tcpHandles {
	k := key{source: source, target: target, service: service.Hostname, flags: flags}
	if known, ok := m.tcpHandles.Load(k); ok {
		return known.(*tcpHandles)
	}
	labels := values(source, target, service, "tcp", flags)
	known, _ := m.tcpHandles.LoadOrStore(k, &tcpHandles{
		opened:   m.opened.WithLabelValues(labels...),
		closed:   m.closed.WithLabelValues(labels...),
		sent:     m.sent.WithLabelValues(labels...),
		received: m.received.WithLabelValues(labels...),
	})
	return known.(*tcpHandles)
}

// values are the values of tcpLabels.
func values(source, target *Workload, service config.Service, protocol string, flags Flags) []string {
	labels := []string{
		"waypoint", source.Name, source.Canonical, source.Revision, source.Namespace,
		source.Identity.String(), source.App, source.Version, source.Cluster,
		target.Name, target.Namespace, target.Identity.String(), target.App,
		target.Version, service.Hostname, target.Canonical, target.Revision,
		service.Name, service.Namespace, target.Cluster,
		protocol, flags.String(), "mutual_tls",
	}
	for i, v := range labels {
		if v == "" {
			labels[i] = "unknown"
		}
	}
	return labels
}
