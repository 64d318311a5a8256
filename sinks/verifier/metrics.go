package verifier

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"getimmutable.dev/immutable/ledger"
)

// Why leaves were verified, a label of immutable_verifier_leaves_total.
const (
	whyNewest  = "newest"  // they have come since the last run
	whyHistory = "history" // their turn has come
	whyAgain   = "again"   // a fault was found in their part
)

// verdicts are those that a part of a chain, or the root log, can come to.
func verdicts() []ledger.Verdict {
	return []ledger.Verdict{
		ledger.Modified, ledger.Missing, ledger.Inserted, ledger.Reordered, ledger.Duplicate, ledger.Truncated, ledger.CrossChain,
		ledger.NonCanonical, ledger.ColumnMismatch, ledger.TimeAnomaly, ledger.InvalidProof, ledger.Withheld, ledger.WrongKey,
		ledger.KeyOutOfRange, ledger.QuorumNotMet,
	}
}

type metrics struct {
	faults         *prometheus.CounterVec
	newest         prometheus.Counter
	history        prometheus.Counter
	again          prometheus.Counter
	failing        prometheus.Gauge
	behind         prometheus.Gauge
	progress       prometheus.Gauge
	passes         prometheus.Counter
	runErrors      prometheus.Counter
	runSeconds     prometheus.Histogram
	events         prometheus.Counter
	eventErrors    prometheus.Counter
	eventsLeftOut  prometheus.Counter
	unconfirmed    prometheus.Counter
	partitionsLost prometheus.Counter

	mu sync.Mutex
	// ran is when the last run went through, covered when the last complete pass over the history began; both begin with the process.
	ran, covered time.Time
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "immutable_verifier_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: "immutable_verifier_" + name, Help: help})
	}
	leaves := f.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_verifier_leaves_total", Help: "Leaves recomputed from their content in ClickHouse, by why.",
	}, []string{"why"})
	now := time.Now()
	m := &metrics{
		ran: now, covered: now,
		faults: f.NewCounterVec(prometheus.CounterOpts{
			Name: "immutable_verifier_faults_total", Help: "Faults found in ClickHouse and confirmed, each once in the life of a process.",
		}, []string{"verdict"}),
		newest: leaves.WithLabelValues(whyNewest), history: leaves.WithLabelValues(whyHistory), again: leaves.WithLabelValues(whyAgain),
		failing:  gauge("failing_chains", "Chains of the owned partitions that have a fault, and the root log where it has one."),
		behind:   gauge("behind_chains", "Chains of the owned partitions that could not be verified because ClickHouse has not all of their leaves yet."),
		progress: gauge("history_progress_ratio", "Part of the history that the pass under way has gone through."),
		passes:   counter("history_passes_total", "Passes over the whole history of the owned partitions that are complete."),
		runErrors: counter("run_errors_total",
			"Runs that did not go through because Kafka or ClickHouse did not answer, or the root log could not be read."),
		runSeconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_verifier_run_seconds", Help: "Duration of a run that went through.",
			Buckets: []float64{.01, .05, .1, .5, 1, 2, 5, 10, 30, 60, 120, 300, 900},
		}),
		events:         counter("events_total", "Events that report a fault and have been written."),
		eventErrors:    counter("event_errors_total", "Events that report a fault and could not be written; the next run tries again."),
		eventsLeftOut:  counter("events_left_out_total", "Faults without an event of their own: too many in a run, or of no workspace."),
		unconfirmed:    counter("unconfirmed_total", "Faults that were gone when they were looked at again: rows were being written."),
		partitionsLost: counter("results_dropped_total", "Parts whose result was dropped because another instance has taken their partition over."),
	}
	for _, v := range verdicts() {
		m.faults.WithLabelValues(string(v))
	}
	since := func(name, help string, at *time.Time) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: "immutable_verifier_" + name, Help: help}, func() float64 {
			m.mu.Lock()
			defer m.mu.Unlock()
			return max(0, time.Since(*at).Seconds())
		})
	}
	since("run_age_seconds", "Time since the end of the last run that went through; since the start of the process while there is none.", &m.ran)
	since("history_age_seconds", "All leaves of the owned partitions were verified since this long ago; since the start of the process "+
		"while no pass over them is complete.", &m.covered)
	return m
}

// wentThrough notes the end of a run.
func (m *metrics) wentThrough(began time.Time) {
	m.runSeconds.Observe(time.Since(began).Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ran = time.Now()
}

// passed notes the end of a pass over the history.
func (m *metrics) passed(began time.Time) {
	m.passes.Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.covered = began
}
