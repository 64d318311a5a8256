package chwriter

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
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
	gauge("halted_partitions", "Ledger partitions that this writer owns and does not write; readiness and the log say why.",
		func() float64 { return float64(w.status().halted) })
	gauge("lag_records", "Ledger offsets of the owned partitions that are not yet in ClickHouse, as of their last fetch.",
		func() float64 { return float64(w.status().lagRecords) })
	gauge("lag_seconds", "Age of the oldest fetched record that is not yet in ClickHouse; 0 if there is none.",
		func() float64 { return w.status().lag.Seconds() })
	gauge("queued_bytes", "Size of the fetched records that wait for an insert.",
		func() float64 { return float64(w.status().queuedBytes) })
	rows := f.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_chwriter_rows_total", Help: "Rows inserted, by table.",
	}, []string{"table"})
	return &metrics{
		events:        rows.WithLabelValues(tableEvents),
		leaves:        rows.WithLabelValues(tableLeaves),
		batches:       counter("batches_total", "Batches written: one insert into each table."),
		retries:       counter("insert_retries_total", "Attempts at an insert or a query of ClickHouse's that failed and were followed by another."),
		takenOver:     counter("batches_taken_over_total", "Batches that another writer, or this one before a restart, had announced and not committed."),
		skipped:       counter("records_skipped_total", "Records passed over because they are in ClickHouse already."),
		verified:      counter("records_verified_total", "Records recomputed from their content and found as the ledger says."),
		halts:         counter("halts_total", "Times that a partition was halted."),
		commitRetries: counter("commit_retries_total", "Offset commits that failed and were tried again."),
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
