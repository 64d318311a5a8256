package chwriter

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Reasons why a partition is halted, a label of immutable_chwriter_halted_partitions.
const (
	haltLost     = "records_lost" // the topic no longer has what is not in ClickHouse, or is another
	haltRecord   = "bad_record"   // a record cannot be decoded, or is not what the ledger says
	haltTables   = "bad_tables"   // the tables have other rows than the topic
	haltRows     = "rows_lost"    // the tables lack rows that were written
	haltOffset   = "bad_offset"   // what the group has committed cannot be read
	haltFetching = "fetch_failed" // Kafka refuses to say what the partition has
)

type metrics struct {
	events, leaves  prometheus.Counter
	batches         prometheus.Counter
	retries         prometheus.Counter
	takenOver       prometheus.Counter
	skipped         prometheus.Counter
	verified        prometheus.Counter
	halts           prometheus.Counter
	commitRetries   prometheus.Counter
	erased          prometheus.Counter
	eraseMissing    prometheus.Counter
	eraseDamaged    prometheus.Counter
	eraseUnreadable prometheus.Counter
	eraseSeconds    prometheus.Histogram
	insertSeconds   prometheus.Histogram
	readableSeconds prometheus.Histogram
}

// newMetrics registers the writer's metrics. What concerns its partitions is asked of w at each scrape.
func newMetrics(reg prometheus.Registerer, w *Writer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "immutable_chwriter_" + name, Help: help})
	}
	gauge := func(name, help string, value func() float64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: "immutable_chwriter_" + name, Help: help}, value)
	}
	gauge("partitions", "Ledger partitions that this writer owns.",
		func() float64 { return float64(w.status().owned) })
	gauge("queued_bytes", "Size of the fetched records that wait for an insert.",
		func() float64 { return float64(w.status().queuedBytes) })
	reg.MustRegister(&states{
		w: w,
		halted: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "immutable_chwriter_halted_partitions",
			Help: "Ledger partitions that this writer owns and does not write, by reason; readiness and the log say more.",
		}, []string{"reason"}),
		lagRecords: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "immutable_chwriter_lag_records",
			Help: "Ledger offsets of an owned partition that are not yet in ClickHouse, as of its last fetch.",
		}, []string{"partition"}),
		lagSeconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "immutable_chwriter_lag_seconds",
			Help: "Age of an owned partition's oldest fetched record that is not yet in ClickHouse; 0 if there is none.",
		}, []string{"partition"}),
		outage: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "immutable_chwriter_outage",
			Help: "1 while what the writer asks of a system fails and is tried again, else 0.",
		}, []string{"system"}),
	})
	rows := f.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_chwriter_rows_total", Help: "Rows inserted, by table.",
	}, []string{"table"})
	return &metrics{
		events:          rows.WithLabelValues(tableEvents),
		leaves:          rows.WithLabelValues(tableLeaves),
		batches:         counter("batches_total", "Batches written: one insert into each table."),
		retries:         counter("insert_retries_total", "Attempts at an insert or a query of ClickHouse's that failed and were followed by another."),
		takenOver:       counter("batches_taken_over_total", "Batches that another writer, or this one before a restart, had announced and not committed."),
		skipped:         counter("records_skipped_total", "Records passed over because they are in ClickHouse already."),
		verified:        counter("records_verified_total", "Records recomputed from their content and found as the ledger says."),
		halts:           counter("halts_total", "Times that a partition was halted."),
		commitRetries:   counter("commit_retries_total", "Offset commits that failed and were tried again."),
		erased:          counter("redacted_rows_total", "Rows of redacted events that were rewritten."),
		eraseMissing:    counter("redactions_without_row_total", "Redactions of events that ClickHouse does not have."),
		eraseDamaged:    counter("redactions_of_damaged_rows_total", "Redactions of events whose row is no event's any more; nothing is erased."),
		eraseUnreadable: counter("unreadable_redactions_total", "Redactions whose body does not say what is redacted; nothing is erased."),
		eraseSeconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_chwriter_redaction_seconds", Help: "Time in which ClickHouse has carried out one mutation for redactions.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2.5, 14),
		}),
		insertSeconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_chwriter_insert_seconds", Help: "Duration of one successful insert into one table.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 14),
		}),
		readableSeconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_chwriter_readable_seconds", Help: "From the acceptance of a batch's oldest event until it can be read in ClickHouse.",
			Buckets: []float64{.05, .1, .2, .3, .4, .5, .75, 1, 1.5, 2, 5, 10, 30, 60, 300, 3600},
		}),
	}
}

// states shows the writer's partitions as they are when it is asked. It implements prometheus.Collector.
type states struct {
	w        *Writer
	scraping sync.Mutex // one scrape at a time fills the gauges in

	halted, lagRecords, lagSeconds, outage *prometheus.GaugeVec
}

func (s *states) gauges() []*prometheus.GaugeVec {
	return []*prometheus.GaugeVec{s.halted, s.lagRecords, s.lagSeconds, s.outage}
}

// Describe implements prometheus.Collector.
func (s *states) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range s.gauges() {
		g.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (s *states) Collect(ch chan<- prometheus.Metric) {
	s.scraping.Lock()
	defer s.scraping.Unlock()
	for _, g := range s.gauges() {
		g.Reset()
	}
	now := s.w.status()
	for _, reason := range []string{haltLost, haltRecord, haltTables, haltRows, haltOffset, haltFetching} {
		s.halted.WithLabelValues(reason).Set(float64(now.halted[reason]))
	}
	for id, lag := range now.lags {
		partition := strconv.Itoa(int(id))
		s.lagRecords.WithLabelValues(partition).Set(float64(lag.records))
		s.lagSeconds.WithLabelValues(partition).Set(lag.age.Seconds())
	}
	for _, system := range []string{systemKafka, systemClickHouse} {
		var v float64
		if s.w.outages.on(system) {
			v = 1
		}
		s.outage.WithLabelValues(system).Set(v)
	}
	for _, g := range s.gauges() {
		g.Collect(ch)
	}
}
