package telemetry

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Peer is one end of a connection in metric labels. Empty values read "unknown".
type Peer struct {
	Workload, Namespace, Principal string
	CanonicalService, CanonicalRev string
	App, Version, Cluster          string
	Region, Zone                   string
	Known                          bool // istiod told us of it
}

// Labels are the labels of one connection, spec/ztunnel.md §8.1.
type Labels struct {
	Direction   Direction
	Source      Peer
	Destination Peer
	// The service that was asked for.
	Service, ServiceName, ServiceNamespace string
	MutualTLS                              bool
}

// seriesKey is Labels and the flag with which a connection ended.
type seriesKey struct {
	Labels
	flag string
}

// series is what is counted for one set of labels.
type series struct {
	opened, closed, failed, received, sent atomic.Uint64
	key                                    Labels
	labels                                 []*dto.LabelPair
}

// Traffic counts connections and their bytes. Labels are resolved once per
// connection; bytes are read from the connection's own counters when metrics
// are collected and when it ends, so that the data path touches no metric.
type Traffic struct {
	mu     sync.RWMutex
	series map[seriesKey]*series
	live   map[*Connection]struct{}
}

// NewTraffic returns the collector of the istio_tcp_* metrics.
func NewTraffic() *Traffic {
	return &Traffic{series: map[seriesKey]*series{}, live: map[*Connection]struct{}{}}
}

// Connection reports one connection from Open to Close.
type Connection struct {
	traffic *Traffic
	series  *series // with its labels, which are large, for all connections that have them
	bytes   func() (received, sent uint64)

	mu             sync.Mutex
	received, sent uint64 // reported so far
}

// Open counts a connection as opened. bytes returns how much has gone from
// client to server ("received") and back ("sent"), whoever reports.
func (t *Traffic) Open(l Labels, bytes func() (received, sent uint64)) *Connection {
	c := &Connection{traffic: t, series: t.get(seriesKey{l, OK.Flag()}), bytes: bytes}
	c.series.opened.Add(1)
	t.mu.Lock()
	t.live[c] = struct{}{}
	t.mu.Unlock()
	return c
}

// Close counts the connection as closed, and as failed if it did.
func (c *Connection) Close(r Reason) {
	t := c.traffic
	t.mu.Lock()
	delete(t.live, c)
	t.mu.Unlock()
	c.flush()
	s := c.series
	if r != OK {
		s = t.get(seriesKey{s.key, r.Flag()})
		s.failed.Add(1)
	}
	s.closed.Add(1)
}

// flush adds what has been transferred since the last time.
func (c *Connection) flush() {
	if c.bytes == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	received, sent := c.bytes()
	c.series.received.Add(received - c.received)
	c.series.sent.Add(sent - c.sent)
	c.received, c.sent = received, sent
}

// maxSeries bounds what is counted apart: workloads come and go, and some labels
// are a peer's own word. Beyond it connections are counted with ends unknown.
const maxSeries = 50_000

func (t *Traffic) get(k seriesKey) *series {
	t.mu.RLock()
	s := t.series[k]
	t.mu.RUnlock()
	if s != nil {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.series[k] == nil && len(t.series) >= maxSeries {
		k.Labels = Labels{Direction: k.Direction, MutualTLS: k.MutualTLS}
	}
	if s = t.series[k]; s == nil {
		s = &series{key: k.Labels, labels: k.pairs()}
		t.series[k] = s
	}
	return s
}

// Describe sends nothing: series whose ends are both unknown lack the locality
// labels, which a checked collector could not do.
func (t *Traffic) Describe(chan<- *prometheus.Desc) {}

// family is one metric name and the counter of a series that it shows.
type family struct {
	desc    *prometheus.Desc
	counter func(*series) *atomic.Uint64
}

func newFamily(name, help string, counter func(*series) *atomic.Uint64) family {
	return family{desc: prometheus.NewDesc(name, help, nil, nil), counter: counter}
}

var families = []family{
	newFamily("istio_tcp_connections_opened_total", "The total number of TCP connections opened.", func(s *series) *atomic.Uint64 { return &s.opened }),
	newFamily("istio_tcp_connections_closed_total", "The total number of TCP connections closed.", func(s *series) *atomic.Uint64 { return &s.closed }),
	newFamily("istio_tcp_received_bytes_total", "The size of total bytes received in TCP connections.", func(s *series) *atomic.Uint64 { return &s.received }),
	newFamily("istio_tcp_sent_bytes_total", "The size of total bytes sent in TCP connections.", func(s *series) *atomic.Uint64 { return &s.sent }),
	newFamily("istio_tcp_connections_failed_total", "The total number of TCP connections that failed (unstable).", func(s *series) *atomic.Uint64 { return &s.failed }),
}

// Collect sends every series that counted something.
func (t *Traffic) Collect(ch chan<- prometheus.Metric) {
	t.mu.RLock()
	live := make([]*Connection, 0, len(t.live))
	for c := range t.live {
		live = append(live, c)
	}
	all := make([]*series, 0, len(t.series))
	for _, s := range t.series {
		all = append(all, s)
	}
	t.mu.RUnlock()
	for _, c := range live {
		c.flush()
	}
	for _, f := range families {
		for _, s := range all {
			if n := f.counter(s).Load(); n > 0 {
				ch <- sample{f.desc, s.labels, n}
			}
		}
	}
}

// sample is one value of a counter.
type sample struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair
	value  uint64
}

// Desc implements prometheus.Metric.
func (s sample) Desc() *prometheus.Desc { return s.desc }

// Write implements prometheus.Metric.
func (s sample) Write(m *dto.Metric) error {
	m.Label = s.labels
	m.Counter = &dto.Counter{Value: new(float64(s.value))}
	return nil
}

// pairs lists the labels of spec/ztunnel.md §8.1.
func (k *seriesKey) pairs() []*dto.LabelPair {
	security := "unknown"
	if k.MutualTLS {
		security = "mutual_tls"
	}
	src, dst := &k.Source, &k.Destination
	out := []*dto.LabelPair{
		pair("reporter", k.Direction.Reporter()),
		pair("source_workload", src.Workload),
		pair("source_canonical_service", src.CanonicalService),
		pair("source_canonical_revision", src.CanonicalRev),
		pair("source_workload_namespace", src.Namespace),
		pair("source_principal", src.Principal),
		pair("source_app", src.App),
		pair("source_version", src.Version),
		pair("source_cluster", src.Cluster),
		pair("destination_service", k.Service),
		pair("destination_service_namespace", k.ServiceNamespace),
		pair("destination_service_name", k.ServiceName),
		pair("destination_workload", dst.Workload),
		pair("destination_canonical_service", dst.CanonicalService),
		pair("destination_canonical_revision", dst.CanonicalRev),
		pair("destination_workload_namespace", dst.Namespace),
		pair("destination_principal", dst.Principal),
		pair("destination_app", dst.App),
		pair("destination_version", dst.Version),
		pair("destination_cluster", dst.Cluster),
		pair("request_protocol", "tcp"),
		pair("response_flags", k.flag),
		pair("connection_security_policy", security),
	}
	if src.Known || dst.Known {
		out = append(out, pair("source_region", src.Region), pair("source_zone", src.Zone),
			pair("destination_region", dst.Region), pair("destination_zone", dst.Zone))
	}
	slices.SortFunc(out, func(a, b *dto.LabelPair) int { return cmp.Compare(a.GetName(), b.GetName()) }) // as the registry wants them
	return out
}

func pair(name, value string) *dto.LabelPair {
	if value == "" {
		value = "unknown"
	}
	return &dto.LabelPair{Name: new(name), Value: new(value)}
}
