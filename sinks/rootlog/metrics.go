package rootlog

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Reasons why the writer is halted, a label of immutable_rootlog_halted.
const (
	haltLost     = "records_lost" // the topic no longer has what is not in ClickHouse, or is another
	haltRecord   = "bad_record"   // a record cannot be read, or does not follow from those before it
	haltTables   = "bad_tables"   // the tables have another root log than the topic
	haltRows     = "rows_lost"    // the tables lack rows that were written
	haltFetching = "fetch_failed" // Kafka refuses to say what the topic has
)

type metrics struct {
	halted, outage       *prometheus.GaugeVec
	entries, checkpoints prometheus.Counter
	skipped              prometheus.Counter
	retries              prometheus.Counter
	commitRetries        prometheus.Counter
	halts                prometheus.Counter
	readableSeconds      prometheus.Histogram
}

// newMetrics registers the writer's metrics.
func newMetrics(reg prometheus.Registerer, w *Writer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "immutable_rootlog_" + name, Help: help})
	}
	halted := f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "immutable_rootlog_halted",
		Help: "1 while the topic of checkpoints is owned and not written, by reason, else 0; readiness and the log say more.",
	}, []string{"reason"})
	for _, reason := range []string{haltLost, haltRecord, haltTables, haltRows, haltFetching} {
		halted.WithLabelValues(reason)
	}
	outage := f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "immutable_rootlog_outage", Help: "1 while what the writer asks of a system fails and is tried again, else 0.",
	}, []string{"system"})
	for _, system := range []string{systemKafka, systemClickHouse} {
		outage.WithLabelValues(system)
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "immutable_rootlog_lag_seconds",
		Help: "Age of the oldest fetched record of the topic of checkpoints that is not yet in ClickHouse; 0 if there is none.",
	}, func() float64 { return w.lag().Seconds() })
	rows := f.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_rootlog_rows_total", Help: "Rows inserted, by table.",
	}, []string{"table"})
	return &metrics{
		halted: halted, outage: outage,
		entries:       rows.WithLabelValues(tableEntries),
		checkpoints:   rows.WithLabelValues(tableCheckpoints),
		skipped:       counter("records_skipped_total", "Records passed over because they are in ClickHouse already."),
		retries:       counter("insert_retries_total", "Attempts at an insert or a query of ClickHouse's that failed and were followed by another."),
		commitRetries: counter("commit_retries_total", "Offset commits that failed and were tried again."),
		halts:         counter("halts_total", "Times that the writer was halted."),
		readableSeconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_rootlog_readable_seconds", Help: "From the writing of a batch's oldest record until it can be read in ClickHouse.",
			Buckets: []float64{.01, .025, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 300, 3600},
		}),
	}
}
