package witness

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	requests    *prometheus.CounterVec // by status code
	cosigned    *prometheus.GaugeVec   // by origin
	forks       *prometheus.CounterVec // by origin
	writeErrors prometheus.Counter
	seconds     prometheus.Histogram
}

// newMetrics shows every log from the start. Origins are those of the trust file.
func newMetrics(reg prometheus.Registerer, origins []string) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "immutable_witness_requests_total",
			Help: "Checkpoints that were submitted, by the status code of the answer.",
		}, []string{"code"}),
		cosigned: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "immutable_witness_cosigned_entries",
			Help: "Size of the newest checkpoint that was cosigned, by the log's origin; 0 for none.",
		}, []string{"origin"}),
		forks: f.NewCounterVec(prometheus.CounterOpts{
			Name: "immutable_witness_forks_total",
			Help: "Checkpoints that their log has signed and that contradict the one of the same size that was cosigned, by origin.",
		}, []string{"origin"}),
		writeErrors: f.NewCounter(prometheus.CounterOpts{
			Name: "immutable_witness_write_errors_total",
			Help: "Checkpoints that could not be written to the disk, and so were not cosigned.",
		}),
		seconds: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "immutable_witness_cosign_seconds",
			Help:    "Time from a request that was read to its cosignature, the write to the disk included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
	}
	for _, origin := range origins {
		m.cosigned.WithLabelValues(origin)
		m.forks.WithLabelValues(origin)
	}
	return m
}
