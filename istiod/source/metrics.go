package source

import "github.com/prometheus/client_golang/prometheus"

var (
	objectsDesc = prometheus.NewDesc("istiod_source_objects",
		"Objects of a kind that the API server has told of.", []string{"group", "kind"}, nil)
	stateDesc = prometheus.NewDesc("istiod_source_kinds",
		"1 for the state that a kind is in: absent, listing, watching or failing.", []string{"group", "kind", "state"}, nil)
)

// Describe implements prometheus.Collector.
func (k *Kubernetes) Describe(out chan<- *prometheus.Desc) {
	out <- objectsDesc
	out <- stateDesc
}

// Collect implements prometheus.Collector.
func (k *Kubernetes) Collect(out chan<- prometheus.Metric) {
	for _, w := range k.Watched() {
		out <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(w.Objects), w.Group, w.Kind)
		out <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, 1, w.Group, w.Kind, w.State)
	}
}
