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
	statementParts  = "redaction_parts"

	statementHashes      = "hashes"
	statementCheckpoints = "checkpoints"
	statementEntries     = "root_log"
	statementSpine       = "spine"
	statementContent     = "content"
	statementChains      = "chains"
	statementSizes       = "map_sizes"
	statementMapHashes   = "map_hashes"
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
	reasonMap      = "map"      // the map of all chains is not known, or not the one that was signed
	reasonHistory  = "history"  // the map of an older epoch is being made
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

	hashesRead    prometheus.Counter
	damaged       prometheus.Counter
	mapMismatches prometheus.Counter
	mapRestarts   prometheus.Counter
	mapRecords    prometheus.Counter
	mapChains     prometheus.Gauge
	mapSize       prometheus.Gauge
	mapMaking     prometheus.Histogram
	mapFailures   prometheus.Counter
}

// newMetrics registers the service's metrics; age is that of the newest checkpoint, in seconds.
func newMetrics(reg prometheus.Registerer, age func() float64) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "immutable_query_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "immutable_query_" + name, Help: help})
	}
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
			Help: "Requests with a good key, or for what needs none, by endpoint and status code of the answer.",
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
		hashesRead:    counter("hashes_read_total", "Stored hashes of the ledger's trees that proofs and tiles were made of."),
		damaged:       counter("damaged_total", "Requests that could not be answered because what ClickHouse holds of the ledger is not what its hashes say."),
		mapMismatches: counter("map_mismatches_total", "Epochs whose map of all chains is not the one that the notary's state makes."),
		mapRestarts:   counter("map_restarts_total", "Times that the notary's state was read again from its beginning, after an error of Kafka's."),
		mapRecords:    counter("map_undecodable_records_total", "Records of the notary's state that could not be read."),
		mapChains:     gauge("map_chains", "Chains in the map that proofs are made of."),
		mapMaking: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "immutable_query_older_map_duration_seconds",
			Help:    "Time that making the map of all chains at an older epoch took, its failure included.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14),
		}),
		mapFailures: counter("older_map_mismatches_total", "Maps of older epochs that the leaves in ClickHouse do not make: lacking, or not what was signed."),
		mapSize:     gauge("map_log_entries", "Entries of the root log whose state of the chains is known from Kafka."),
	}
	for _, name := range []string{
		statementPage, statementCount, statementEvent, statementLeaves, statementHashes, statementCheckpoints, statementEntries,
		statementSpine, statementContent, statementChains, statementTarget, statementErased, statementParts,
		statementSizes, statementMapHashes,
	} {
		m.statements[name] = statements.WithLabelValues(name)
	}
	for _, reason := range []string{skippedRows, skippedTime} {
		m.totalsSkipped[reason] = skipped.WithLabelValues(reason)
	}
	for _, reason := range []string{reasonBusy, reasonAway, reasonTimeout, reasonStopping, reasonUnknown, reasonMap, reasonHistory} {
		m.unavailable[reason] = unavailable.WithLabelValues(reason)
	}
	reg.MustRegister(m.requests, statements, skipped, unavailable, m.shortPages, m.missingLeaves, m.eraseErrors, m.hashesRead, m.damaged,
		m.mapMismatches, m.mapRestarts, m.mapRecords, m.mapChains, m.mapSize, m.mapMaking, m.mapFailures,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "immutable_query_checkpoint_age_seconds",
			Help: "Age of the newest signed checkpoint in ClickHouse; -1 while none is known.",
		}, age))
	return m
}
