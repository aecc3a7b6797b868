package telemetry

import (
	"compress/zlib"
	"io"
	"net/http"
	"runtime"
	"runtime/metrics"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const openMetrics = "application/openmetrics-text"

// Handler serves the metrics as OpenMetrics text, whatever the client accepts;
// only the content type follows it (spec §8.1). It is compressed with gzip or
// deflate if the client takes one of them.
func (m *Metrics) Handler() http.Handler {
	inner := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true, Registry: nil})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		contentType := "text/plain; charset=utf-8"
		for _, accept := range r.Header.Values("Accept") {
			if strings.Contains(accept, openMetrics) {
				contentType = openMetrics + ";charset=utf-8;version=1.0.0"
			}
		}
		out := &typedWriter{ResponseWriter: w, contentType: contentType, body: w}
		if encodings := r.Header.Get("Accept-Encoding"); accepts(encodings, "deflate") && !accepts(encodings, "gzip") {
			w.Header().Set("Content-Encoding", "deflate")
			z := zlib.NewWriter(w)
			defer func() { _ = z.Close() }() // the client has gone if it fails
			out.body = z
		}
		r = r.Clone(r.Context())
		r.Header.Set("Accept", openMetrics+";version=1.0.0")
		inner.ServeHTTP(out, r)
	})
}

// accepts reports whether an Accept-Encoding header names an encoding and does
// not exclude it.
func accepts(header, encoding string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.EqualFold(strings.TrimSpace(name), encoding) {
			weight := strings.TrimPrefix(strings.TrimSpace(params), "q=")
			return weight == "" || strings.Trim(weight, "0.") != ""
		}
	}
	return false
}

// typedWriter replaces the content type of a successful response.
type typedWriter struct {
	http.ResponseWriter
	contentType string
	body        io.Writer
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
	return w.body.Write(b)
}

// runtimeCollector shows Go's scheduler under the names that dashboards of
// ztunnel read: workers are the threads that may run at once, tasks goroutines.
type runtimeCollector struct{}

const runnable = "/sched/goroutines/runnable:goroutines"

var (
	numWorkers = prometheus.NewDesc("tokio_num_workers", "Number of threads that run tasks at once.", nil, nil)
	aliveTasks = prometheus.NewDesc("tokio_num_alive_tasks", "Number of tasks.", nil, nil)
	queueDepth = prometheus.NewDesc("tokio_global_queue_depth", "Number of tasks that wait for a thread.", nil, nil)
)

// Describe implements prometheus.Collector.
func (runtimeCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- numWorkers
	ch <- aliveTasks
	ch <- queueDepth
}

// Collect implements prometheus.Collector.
func (runtimeCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	gauge(numWorkers, float64(runtime.GOMAXPROCS(0)))
	gauge(aliveTasks, float64(runtime.NumGoroutine()))
	sample := []metrics.Sample{{Name: runnable}}
	if metrics.Read(sample); sample[0].Value.Kind() == metrics.KindUint64 {
		gauge(queueDepth, float64(sample[0].Value.Uint64()))
	}
}
