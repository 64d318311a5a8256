package processor

import (
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Reasons why a partition is halted, a label of immutable_processor_seal_halted_partitions.
const (
	haltLost         = "input_lost"   // input was deleted before it was sealed: an operator decides
	haltDisagreement = "disagreement" // the topics contradict each other: an operator decides
	haltUnavailable  = "unavailable"  // the take-over failed or timed out: tried again after RetryInterval
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
	halted       map[string]prometheus.Gauge // by reason
	sealing      prometheus.Gauge
	chains       prometheus.Gauge
	bytes        prometheus.Histogram
	age          prometheus.Histogram
	clockAhead   prometheus.Gauge
	dedupSeconds *prometheus.GaugeVec // partition
	dedupLeaves  *prometheus.GaugeVec // partition
	lags         *lags
}

func newMetrics(reg prometheus.Registerer, cfg *Config) *metrics {
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
	halted := f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "immutable_processor_seal_halted_partitions",
		Help: "Assigned partitions that are not sealed, by reason; the log and readiness say more.",
	}, []string{"reason"})
	gauge("topic_partitions", "Partitions of the events topic: what all processors together have to seal.").
		Set(float64(cfg.Layout.Partitions))
	gauge("dedup_window_max_leaves", "Leaves of a partition that the deduplication window holds when it is full.").
		Set(float64(cfg.DedupLeaves))
	lags := newLags()
	reg.MustRegister(lags)
	return &metrics{
		lags: lags,
		halted: map[string]prometheus.Gauge{
			haltLost:         halted.WithLabelValues(haltLost),
			haltDisagreement: halted.WithLabelValues(haltDisagreement),
			haltUnavailable:  halted.WithLabelValues(haltUnavailable),
		},
		sealing: gauge("partitions", "Assigned partitions that are taken over and sealed here."),
		bytes: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_processor_seal_transaction_bytes", Help: "Keys and values of a committed transaction's input.",
			Buckets: prometheus.ExponentialBuckets(1<<10, 4, 9), // 1 KiB to 64 MiB
		}),
		age: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "immutable_processor_seal_sealed_seconds",
			Help:    "From the acceptance of an event until its leaf is committed: of a transaction, each partition's oldest.",
			Buckets: []float64{.025, .05, .1, .15, .2, .3, .5, .75, 1, 2, 5, 10, 30, 60, 300, 3600},
		}),
		clockAhead: gauge("clock_ahead_seconds",
			"How far the clock that stamped the newest sealed event is ahead of this processor's; 0 if it is not."),
		dedupLeaves: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "immutable_processor_seal_dedup_window_leaves",
			Help: "Leaves in the complete blocks of the deduplication window.",
		}, []string{"partition"}),
		leaves:     counter("leaves_total", "Leaves sealed, genesis leaves among them."),
		duplicates: counter("duplicates_total", "Events dropped because their id was in the deduplication window."),
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
		chains: gauge("chains", "Chains of the assigned partitions, whose heads are in memory."),
		dedupSeconds: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "immutable_processor_seal_dedup_window_seconds",
			Help: "Age of the oldest complete block of the deduplication window when the newest leaf was recorded.",
		}, []string{"partition"}),
	}
}

// window sets what the metrics say of a partition's deduplication window.
func (m *metrics) window(p *partition) {
	number := strconv.Itoa(int(p.number))
	m.dedupLeaves.WithLabelValues(number).Set(float64(min(p.leaves/blockLeaves, p.window.blocks) * blockLeaves))
	if oldest := p.window.oldest(); oldest > 0 {
		m.dedupSeconds.WithLabelValues(number).Set(float64(p.recordedAt-oldest) / 1e6)
	}
}

// forget drops what the metrics say of a partition that was given up.
func (m *metrics) forget(number int32) {
	m.dedupSeconds.DeleteLabelValues(strconv.Itoa(int(number)))
	m.dedupLeaves.DeleteLabelValues(strconv.Itoa(int(number)))
	m.lags.forget(number)
}

// lag is how far sealing is behind on one partition.
type lag struct {
	next, end int64 // the next input offset to be sealed; the end of the input when it was last heard of
	// oldest is when the oldest event was accepted that is not sealed, or one before it; zero if none is known of.
	oldest time.Time
}

// lags are those of the partitions of this processor. They outlast a session, so that the age of what waits grows while
// no session succeeds. It implements prometheus.Collector: an age is of the moment at which it is asked for.
type lags struct {
	scraping         sync.Mutex           // one scrape at a time
	records, seconds *prometheus.GaugeVec // filled in at a scrape

	mu sync.Mutex // never held while a scrape may wait
	by map[int32]lag
}

func newLags() *lags {
	return &lags{
		by: make(map[int32]lag),
		records: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "immutable_processor_seal_lag_records",
			Help: "Offsets of an assigned partition of the events topic that are not sealed, as of its last fetch or take-over.",
		}, []string{"partition"}),
		seconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "immutable_processor_seal_lag_seconds",
			Help: "Age of the oldest fetched event of a partition that is not sealed; 0 if there is none.",
		}, []string{"partition"}),
	}
}

// Describe implements prometheus.Collector.
func (l *lags) Describe(ch chan<- *prometheus.Desc) {
	l.records.Describe(ch)
	l.seconds.Describe(ch)
}

// Collect implements prometheus.Collector.
func (l *lags) Collect(ch chan<- prometheus.Metric) {
	l.scraping.Lock()
	defer l.scraping.Unlock()
	l.mu.Lock()
	by := maps.Clone(l.by)
	l.mu.Unlock()
	l.records.Reset()
	l.seconds.Reset()
	for number, lag := range by {
		var age time.Duration
		if !lag.oldest.IsZero() {
			age = max(0, time.Since(lag.oldest))
		}
		partition := strconv.Itoa(int(number))
		l.records.WithLabelValues(partition).Set(float64(max(0, lag.end-lag.next)))
		l.seconds.WithLabelValues(partition).Set(age.Seconds())
	}
	l.records.Collect(ch)
	l.seconds.Collect(ch)
}

// set says what a take-over found.
func (l *lags) set(number int32, next, end int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.by[number]
	was.next, was.end = next, end
	if next >= end {
		was.oldest = time.Time{}
	}
	l.by[number] = was
}

// fetched says that input was fetched, the first of it accepted at oldest, and where the input ends.
func (l *lags) fetched(number int32, end int64, oldest time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.by[number]
	was.end = max(was.end, end)
	if was.oldest.IsZero() {
		was.oldest = oldest
	}
	l.by[number] = was
}

// sealed says that a transaction was committed. What follows its last event was not accepted before that.
func (l *lags) sealed(number int32, next int64, newest time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.by[number]
	was.next, was.oldest = next, time.Time{}
	if next < was.end {
		was.oldest = newest
	}
	l.by[number] = was
}

func (l *lags) forget(number int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.by, number)
}

// keep forgets all partitions but these.
func (l *lags) keep(numbers []int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.by, func(n int32, _ lag) bool { return !slices.Contains(numbers, n) })
}
