package ingest

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Reasons why records did not reach Kafka, a label of immutable_ingest_produce_errors_total.
const (
	reasonFull     = "full"     // as many records or bytes wait for Kafka as may
	reasonTimeout  = "timeout"  // Kafka did not acknowledge in time
	reasonRefused  = "refused"  // Kafka refuses, or the client does; a retry would not help
	reasonStopping = "stopping" // the service is not running
)

// Endpoints, a label of immutable_ingest_requests_total.
const (
	endpointEvent = "event"
	endpointBatch = "batch"
)

// metrics holds resolved children: a request looks no label up, but for the status code of its answer.
type metrics struct {
	requests  *prometheus.CounterVec // by endpoint and status code
	queued    prometheus.Counter
	duplicate prometheus.Counter

	secretsFlagged, secretsRedacted, secretsRejected prometheus.Counter

	rejected      *prometheus.CounterVec // by error code, which event and ingest bound
	acceptSeconds prometheus.Histogram
	bodiesBytes   prometheus.Gauge
	produceErrors *prometheus.CounterVec // by reason
}

// registerBuffered shows what waits for Kafka. The functions are called when metrics are read.
func registerBuffered(reg prometheus.Registerer, records, bytes func() float64) {
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "immutable_ingest_buffered_records",
			Help: "Records that wait for Kafka's acknowledgement.",
		}, records),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "immutable_ingest_buffered_bytes",
			Help: "Keys and values of the records that wait for Kafka's acknowledgement.",
		}, bytes),
	)
}

func newMetrics(reg prometheus.Registerer) *metrics {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_ingest_events_total",
		Help: "Events answered with a 202, by status: queued, or duplicate where the idempotency key was known.",
	}, []string{"status"})
	secrets := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_ingest_events_with_secrets_total",
		Help: "Events in which the secret scanner found something, by what their workspace's policy did: flagged, redacted, rejected.",
	}, []string{"outcome"})
	m := &metrics{
		secretsFlagged:  secrets.WithLabelValues("flagged"),
		secretsRedacted: secrets.WithLabelValues("redacted"),
		secretsRejected: secrets.WithLabelValues("rejected"),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "immutable_ingest_requests_total",
			Help: "Requests to write events, by endpoint and status code of the answer.",
		}, []string{"endpoint", "code"}),
		queued:    events.WithLabelValues(statusQueued),
		duplicate: events.WithLabelValues(statusDuplicate),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "immutable_ingest_events_rejected_total",
			Help: "Events refused for what they contain, alone or in a batch, by error code.",
		}, []string{"reason"}),
		acceptSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "immutable_ingest_accept_duration_seconds",
			Help:    "Time from the start of a request to its 202, Kafka's acknowledgement included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		bodiesBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "immutable_ingest_bodies_bytes",
			Help: "Memory of the request bodies that are being read or decoded.",
		}),
		produceErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "immutable_ingest_produce_errors_total",
			Help: "Requests that were answered 503 because their records did not reach Kafka, by reason.",
		}, []string{"reason"}),
	}
	for _, reason := range []string{reasonFull, reasonTimeout, reasonRefused, reasonStopping} {
		m.produceErrors.WithLabelValues(reason)
	}
	reg.MustRegister(m.requests, events, secrets, m.rejected, m.acceptSeconds, m.bodiesBytes, m.produceErrors)
	return m
}

func (m *metrics) answered(endpoint string, code int) {
	m.requests.WithLabelValues(endpoint, strconv.Itoa(code)).Inc()
}
