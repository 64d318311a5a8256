package query

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Statements, a label of immutable_query_statement_duration_seconds.
const (
	statementPage   = "page"
	statementCount  = "count"
	statementEvent  = "event"
	statementLeaves = "leaves"
	statementTarget = "redaction_target"
	statementErased = "redaction_done"
)

// Reasons why a total is null, a label of immutable_query_totals_skipped_total.
const (
	skippedRows = "rows"
	skippedTime = "time"
)

// Reasons why a request was answered 503, a label of immutable_query_unavailable_total.
const (
	reasonBusy     = "busy"     // as many requests or changes as may are in hand, or ClickHouse itself is overloaded
	reasonAway     = "away"     // ClickHouse, or Kafka for a change, is out of reach
	reasonTimeout  = "timeout"  // the statements took too long
	reasonStopping = "stopping" // the service is not running
	reasonUnknown  = "unknown"  // whether a change was made is not known
)

// metrics holds resolved children: a request looks no label up, but for the status code of its answer.
type metrics struct {
	requests      *prometheus.CounterVec // by endpoint and status code
	statements    map[string]prometheus.Observer
	totalsSkipped map[string]prometheus.Counter
	unavailable   map[string]prometheus.Counter
	shortPages    prometheus.Counter
	missingLeaves prometheus.Counter
	eraseErrors   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	statements := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "immutable_query_statement_duration_seconds",
		Help:    "Time until ClickHouse had answered a statement, its failure included, by statement.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
	}, []string{"statement"})
	skipped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_query_totals_skipped_total",
		Help: "Pages whose total is null because counting would have read too many rows, or taken too much time.",
	}, []string{"reason"})
	unavailable := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_query_unavailable_total",
		Help: "Requests answered with a 503, by reason.",
	}, []string{"reason"})
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "immutable_query_requests_total",
			Help: "Requests with a good key, by endpoint and status code of the answer.",
		}, []string{"endpoint", "code"}),
		statements:    map[string]prometheus.Observer{},
		totalsSkipped: map[string]prometheus.Counter{},
		unavailable:   map[string]prometheus.Counter{},
		shortPages: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "immutable_query_short_pages_total",
			Help: "Pages with fewer events than asked for, because these would have been too many bytes.",
		}),
		missingLeaves: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "immutable_query_missing_leaves_total",
			Help: "Events shown as not sealed because the ledger's table does not hold their leaf or the one before it.",
		}),
		eraseErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "immutable_query_redaction_check_errors_total",
			Help: "Times that ClickHouse could not be asked which redactions it has carried out; it is asked again.",
		}),
	}
	for _, name := range []string{statementPage, statementCount, statementEvent, statementLeaves, statementTarget, statementErased} {
		m.statements[name] = statements.WithLabelValues(name)
	}
	for _, reason := range []string{skippedRows, skippedTime} {
		m.totalsSkipped[reason] = skipped.WithLabelValues(reason)
	}
	for _, reason := range []string{reasonBusy, reasonAway, reasonTimeout, reasonStopping, reasonUnknown} {
		m.unavailable[reason] = unavailable.WithLabelValues(reason)
	}
	reg.MustRegister(m.requests, statements, skipped, unavailable, m.shortPages, m.missingLeaves, m.eraseErrors)
	return m
}
