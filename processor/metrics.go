package processor

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	leaves       prometheus.Counter
	duplicates   prometheus.Counter
	dead         prometheus.Counter
	committed    prometheus.Counter
	aborted      prometheus.Counter
	failed       prometheus.Counter
	sessions     prometheus.Counter
	seconds      prometheus.Histogram
	records      prometheus.Histogram
	takeOver     prometheus.Histogram
	halted       prometheus.Gauge
	chains       prometheus.Gauge
	dedupSeconds *prometheus.GaugeVec // partition
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "immutable_processor_seal_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: "immutable_processor_seal_" + name, Help: help})
	}
	transactions := f.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_processor_seal_transactions_total",
		Help: "Transactions by result: committed; aborted, whose input is sealed again; failed, of which the same is true.",
	}, []string{"result"})
	return &metrics{
		leaves:     counter("leaves_total", "Leaves sealed, genesis leaves among them."),
		duplicates: counter("duplicates_total", "Events dropped because their keyed id was in the deduplication window."),
		dead:       counter("dead_total", "Records that could not be sealed and went to the dead-letter topic."),
		committed:  transactions.WithLabelValues("committed"),
		aborted:    transactions.WithLabelValues("aborted"),
		failed:     transactions.WithLabelValues("failed"),
		sessions:   counter("sessions_total", "Sessions with the group; each takes every partition over afresh."),
		seconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_processor_seal_transaction_seconds", Help: "From a transaction's first record to its commit.",
			Buckets: []float64{.005, .01, .025, .05, .1, .15, .25, .5, 1, 2.5, 5, 10},
		}),
		records: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_processor_seal_transaction_records", Help: "Input records of a committed transaction.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 8), // 1 to 16,384
		}),
		takeOver: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_processor_seal_take_over_seconds", Help: "Time to take assigned partitions over.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 25, 60},
		}),
		halted: gauge("halted_partitions", "Assigned partitions that are not sealed; the log and readiness say why."),
		chains: gauge("chains", "Chains of the assigned partitions, whose heads are in memory."),
		dedupSeconds: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "immutable_processor_seal_dedup_window_seconds",
			Help: "Age of the oldest complete block of the deduplication window when the newest leaf was recorded.",
		}, []string{"partition"}),
	}
}

// window sets what the metric says of a partition's deduplication window.
func (m *metrics) window(p *partition) {
	if oldest := p.window.oldest(); oldest > 0 {
		m.dedupSeconds.WithLabelValues(strconv.Itoa(int(p.number))).Set(float64(p.recordedAt-oldest) / 1e6)
	}
}

// forget drops what the metrics say of a partition that was given up.
func (m *metrics) forget(number int32) { m.dedupSeconds.DeleteLabelValues(strconv.Itoa(int(number))) }
