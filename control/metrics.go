package control

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"getimmutable.dev/immutable/internal/httpserver"
)

type viewMetrics struct {
	offset     prometheus.Gauge
	lag        prometheus.Gauge
	workspaces prometheus.Gauge
	keys       prometheus.Gauge
	redactions prometheus.Gauge
	refused    prometheus.Gauge
	restarts   prometheus.Counter
	records    map[outcome]prometheus.Counter
	refusals   map[string]prometheus.Counter

	usesWritten                       prometheus.Counter
	usageReadErrors, usageWriteErrors prometheus.Counter
}

func newViewMetrics(reg prometheus.Registerer, age func() float64) *viewMetrics {
	f := promauto.With(reg)
	records := f.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_control_config_records_total",
		Help: "Records of the config topic that were read, by what came of them: applied, ignored (transaction markers, " +
			"versions already held, kinds of a newer version), undecodable.",
	}, []string{"outcome"})
	refusals := f.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_control_refused_requests_total",
		Help: "Requests that were refused for their API key, by error code.",
	}, []string{"code"})
	usageErrors := f.NewCounterVec(prometheus.CounterOpts{
		Name: "immutable_control_key_usage_errors_total",
		Help: "Times that the topic key_usage could not be read or written, which is tried again, and records of it that " +
			"cannot be used, by operation.",
	}, []string{"operation"})
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "immutable_control_config_age_seconds",
		Help: "Time since the view was last known to hold everything on the config topic; -1 before the first time.",
	}, age)
	return &viewMetrics{
		offset: f.NewGauge(prometheus.GaugeOpts{
			Name: "immutable_control_config_offset",
			Help: "Offset of the config topic up to which the view has read: the version of what it shows.",
		}),
		lag: f.NewGauge(prometheus.GaugeOpts{
			Name: "immutable_control_config_lag_records",
			Help: "Records between the view and the end of the config topic when they were last compared.",
		}),
		workspaces: f.NewGauge(prometheus.GaugeOpts{
			Name: "immutable_control_workspaces",
			Help: "Workspaces that can be used.",
		}),
		keys: f.NewGauge(prometheus.GaugeOpts{
			Name: "immutable_control_keys",
			Help: "API keys that were not revoked, expired ones among them.",
		}),
		redactions: f.NewGauge(prometheus.GaugeOpts{
			Name: "immutable_control_redacted_events",
			Help: "Events of which a field was redacted.",
		}),
		refused: f.NewGauge(prometheus.GaugeOpts{
			Name: "immutable_control_broken_objects",
			Help: "Configured objects whose newest version cannot be read and which are refused.",
		}),
		restarts: f.NewCounter(prometheus.CounterOpts{
			Name: "immutable_control_config_reader_restarts_total",
			Help: "Times that the reader of the config topic started over after an error.",
		}),
		records: map[outcome]prometheus.Counter{
			outcomeApplied:     records.WithLabelValues(string(outcomeApplied)),
			outcomeIgnored:     records.WithLabelValues(string(outcomeIgnored)),
			outcomeUndecodable: records.WithLabelValues(string(outcomeUndecodable)),
		},
		refusals: map[string]prometheus.Counter{
			httpserver.CodeUnauthenticated: refusals.WithLabelValues(httpserver.CodeUnauthenticated),
			httpserver.CodeForbidden:       refusals.WithLabelValues(httpserver.CodeForbidden),
			httpserver.CodeUnavailable:     refusals.WithLabelValues(httpserver.CodeUnavailable),
		},
		usesWritten: f.NewCounter(prometheus.CounterOpts{
			Name: "immutable_control_key_usage_written_total",
			Help: "Records written to the topic key_usage: of each key that was used, the latest time, once an interval.",
		}),
		usageReadErrors:  usageErrors.WithLabelValues("read"),
		usageWriteErrors: usageErrors.WithLabelValues("write"),
	}
}
