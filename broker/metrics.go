package broker

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/postern-zt/postern/broker/identity"
)

// metrics are the counters of one broker (requirements M1 to M14 as far as their event
// exists). Labels have few values.
type metrics struct {
	registry    *prometheus.Registry
	attempts    *prometheus.CounterVec
	failures    *prometheus.CounterVec
	authLatency prometheus.Histogram
	granted     *prometheus.CounterVec
	denied      *prometheus.CounterVec
	evaluation  prometheus.Histogram
	revoked     prometheus.Histogram
	refused     prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_auth_attempts_total", Help: "Sign-ins by identity provider and result."}, []string{"idp", "result"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_auth_failures_total", Help: "Refused sign-ins and tokens by reason."}, []string{"reason"}),
		authLatency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "postern_auth_latency_seconds", Help: "From the sign-in page to the token.", Buckets: prometheus.ExponentialBuckets(0.05, 3, 10)}),
		granted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_access_granted_total", Help: "Grants by app and site."}, []string{"app", "site"}),
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_access_denied_total", Help: "Refusals by app and reason."}, []string{"app", "reason"}),
		evaluation: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "postern_policy_eval_latency_seconds", Help: "One decision with its record.", Buckets: prometheus.ExponentialBuckets(1e-5, 4, 10)}),
		revoked: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "postern_revocation_latency_seconds", Help: "From the revocation at the broker to the connector's acknowledgement.", Buckets: prometheus.ExponentialBuckets(1e-3, 2, 14)}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_handshakes_refused_total", Help: "Connections closed because their source had too many unfinished handshakes."}),
	}
	m.registry.MustRegister(m.attempts, m.failures, m.authLatency, m.granted, m.denied, m.evaluation, m.revoked, m.refused)
	return m
}

// handler serves the counters; gauges are read at the scrape.
func (m *metrics) handler(b *Broker) http.Handler {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	m.registry.MustRegister(
		gauge("postern_live_grants", "Grants in force.", func() float64 { return float64(b.ledger.Len()) }),
		gauge("postern_revocations_unstored", "Revocations in force that the database does not hold yet.", func() float64 { return float64(b.ledger.Queued()) }),
		gauge("postern_audit_lost_records", "Audit records that found no room.", func() float64 { return float64(b.audit.Lost()) }),
		gauge("postern_connectors_online", "Connectors with a control stream.", func() float64 {
			_, connectors, _ := b.api.Online()
			return float64(len(connectors))
		}),
	)
	if b.relay != nil {
		m.registry.MustRegister(relayDrops{b})
	}
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// relayDrops exports the drop counters of the relay inside the broker.
type relayDrops struct{ b *Broker }

// Describe sends nothing: the reasons are known at the scrape.
func (relayDrops) Describe(chan<- *prometheus.Desc) {}

// Collect sends one counter for each reason.
func (r relayDrops) Collect(ch chan<- prometheus.Metric) {
	desc := prometheus.NewDesc("postern_relay_drops_total", "What the relay refused, by reason.", []string{"reason"}, nil)
	for reason, n := range r.b.relay.Drops() {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), reason)
	}
}

// AuthAttempt counts a sign-in.
func (m *metrics) AuthAttempt(idp, result string) { m.attempts.WithLabelValues(idp, result).Inc() }

// AuthFailure counts a refusal.
func (m *metrics) AuthFailure(reason identity.Reason) {
	m.failures.WithLabelValues(string(reason)).Inc()
}

// AuthLatency measures a sign-in.
func (m *metrics) AuthLatency(d time.Duration) { m.authLatency.Observe(d.Seconds()) }

// Granted counts a grant.
func (m *metrics) Granted(app, site string) { m.granted.WithLabelValues(app, site).Inc() }

// Denied counts a refusal.
func (m *metrics) Denied(app, reason string) { m.denied.WithLabelValues(app, reason).Inc() }

// Evaluated measures a decision.
func (m *metrics) Evaluated(took time.Duration) { m.evaluation.Observe(took.Seconds()) }

func (m *metrics) revocation(took time.Duration) { m.revoked.Observe(took.Seconds()) }
