package ca

import (
	"crypto/x509"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc/codes"
)

// metrics have the names that people's alerts know, spec/control-plane.md §10.3,
// and one of our own that tells the reasons apart.
type metrics struct {
	requests, issued, authentication, identity, parsing, signing prometheus.Counter

	refused *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, a *Authority) *metrics {
	factory := promauto.With(r)
	counter := func(name, help string) prometheus.Counter {
		return factory.NewCounter(prometheus.CounterOpts{Name: "citadel_server_" + name, Help: help})
	}
	m := &metrics{
		requests:       counter("csr_count", "Certificate requests received."),
		issued:         counter("success_cert_issuance_count", "Certificates issued."),
		authentication: counter("authentication_failure_count", "Requests whose caller or wanted identity was refused."),
		identity:       counter("id_extraction_err_count", "Requests without a usable identity."),
		parsing:        counter("csr_parsing_err_count", "Requests that were not acceptable in themselves."),
		signing:        counter("csr_sign_err_count", "Requests that the authority could not sign."),
		refused: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_ca_refused_total", Help: "Certificate requests refused, by reason.",
		}, []string{"reason"}),
	}
	for _, reason := range reasons() {
		m.refused.WithLabelValues(string(reason))
	}
	if a != nil {
		expiry(factory, "root_cert", a.roots[0])
		expiry(factory, "cert_chain", a.signer)
	}
	return m
}

func expiry(factory promauto.Factory, name string, cert *x509.Certificate) {
	factory.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "citadel_server_" + name + "_expiry_timestamp", Help: "Unix time at which the certificate expires.",
	}, func() float64 { return float64(cert.NotAfter.Unix()) })
	factory.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "citadel_server_" + name + "_expiry_seconds", Help: "Seconds until the certificate expires.",
	}, func() float64 { return time.Until(cert.NotAfter).Seconds() })
}

func (m *metrics) refuse(reason Reason) {
	m.refused.WithLabelValues(string(reason)).Inc()
	switch {
	case reason == ReasonIdentity:
		m.identity.Inc()
	case reason.Code() == codes.InvalidArgument:
		m.parsing.Inc()
	case reason == ReasonAuthority:
		m.signing.Inc()
	default:
		m.authentication.Inc()
	}
}
