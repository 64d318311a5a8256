package notary

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	leading     prometheus.Gauge
	sessions    prometheus.Counter
	failed      prometheus.Counter
	halted      map[string]prometheus.Gauge // by reason
	epochs      prometheus.Counter
	leaves      prometheus.Counter
	compared    prometheus.Counter
	entries     prometheus.Gauge
	chains      prometheus.Gauge
	behind      prometheus.Gauge
	lastEpoch   prometheus.Gauge
	lastSigned  prometheus.Gauge
	signed      prometheus.Counter
	unwitnessed prometheus.Gauge
	takeOver    prometheus.Histogram
	seconds     prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, cfg *Config) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "immutable_notary_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: "immutable_notary_" + name, Help: help})
	}
	halted := f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "immutable_notary_halted",
		Help: "1 while nothing is signed until a person has looked, by reason; the log and readiness say more.",
	}, []string{"reason"})
	byReason := make(map[string]prometheus.Gauge, len(haltReasons))
	for _, reason := range haltReasons {
		byReason[reason] = halted.WithLabelValues(reason)
	}
	gauge("idle_interval_seconds", "How often an epoch is made when nothing was sealed: the greatest age of a checkpoint when all is well.").
		Set(cfg.IdleInterval.Seconds())
	return &metrics{
		leading:    gauge("leading", "1 on the notary that leads, halted or not; 0 on those that stand by."),
		sessions:   counter("sessions_total", "Memberships in the group; as leader each takes over afresh."),
		failed:     counter("failed_sessions_total", "Sessions that ended without being asked to; another follows."),
		halted:     byReason,
		epochs:     counter("epochs_total", "Epochs committed to the root log."),
		leaves:     counter("leaves_total", "Leaves that were recomputed from the ledger topic's records."),
		compared:   counter("heads_compared_total", "Heads of the heads topic that were compared with the ledger's chains, and agreed."),
		entries:    gauge("entries", "Entries of the root log, on the leader."),
		chains:     gauge("chains", "Chains in the newest epoch, on the leader."),
		behind:     gauge("behind_offsets", "Offsets of the ledger topic that the newest epoch did not come to though they were stable."),
		lastEpoch:  gauge("last_epoch_timestamp_seconds", "Time of the newest entry of the root log, on the leader."),
		lastSigned: gauge("last_checkpoint_timestamp_seconds", "When the newest checkpoint was published, on the leader."),
		signed:     counter("checkpoints_total", "Checkpoints signed and published."),
		unwitnessed: gauge("unwitnessed_entries",
			"Entries since the newest checkpoint that enough witnesses have cosigned, on the leader; 0 where there are no witnesses."),
		takeOver: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_notary_take_over_seconds", Help: "Time to take over as leader.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 25, 60, 300},
		}),
		seconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "immutable_notary_epoch_seconds", Help: "From the beginning of an epoch until its checkpoint is published.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25, 60},
		}),
	}
}
