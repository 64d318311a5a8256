package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"gopkg.in/yaml.v3"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/ingest"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/telemetry"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/processor"
	"getimmutable.dev/immutable/processor/notary"
	"getimmutable.dev/immutable/query"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/sinks/chwriter"
	"getimmutable.dev/immutable/sinks/rootlog"
	"getimmutable.dev/immutable/sinks/verifier"
	"getimmutable.dev/immutable/witness"
)

var update = flag.Bool("update", false, "rewrite docs/metrics.md")

const (
	metricsPage = "../../docs/metrics.md"
	alertsFile  = "../../deploy/prometheus/alerts.yml"
)

// labels says which values each label of each metric can have: what keeps them bounded.
var labels = map[string]string{
	"immutable_build_info.version":                            "of the build",
	"immutable_build_info.revision":                           "commit of the build, with -dirty where its work tree had changes",
	"immutable_build_info.go_version":                         "of the build",
	"immutable_chwriter_halted_partitions.reason":             "`records_lost`, `bad_record`, `bad_tables`, `rows_lost`, `bad_offset`, `fetch_failed`",
	"immutable_chwriter_lag_records.partition":                "partitions of the ledger topic",
	"immutable_chwriter_lag_seconds.partition":                "partitions of the ledger topic",
	"immutable_chwriter_outage.system":                        "`kafka`, `clickhouse`",
	"immutable_chwriter_rows_total.table":                     "`leaves`, `events`",
	"immutable_control_config_records_total.outcome":          "`applied`, `ignored`, `undecodable`",
	"immutable_control_key_usage_errors_total.operation":      "`read`, `write`",
	"immutable_control_refused_requests_total.code":           "`unauthenticated`, `forbidden`, `unavailable`",
	"immutable_ingest_events_rejected_total.reason":           "`invalid_json`, `validation_failed`, `too_large`, `conflict`",
	"immutable_ingest_events_total.status":                    "`queued`, `duplicate`",
	"immutable_ingest_events_with_secrets_total.outcome":      "`flagged`, `redacted`, `rejected`",
	"immutable_ingest_produce_errors_total.reason":            "`full`, `timeout`, `refused`, `stopping`",
	"immutable_ingest_requests_total.code":                    "status codes that the API answers with",
	"immutable_ingest_requests_total.endpoint":                "`event`, `batch`",
	"immutable_notary_halted.reason":                          "`ledger`, `ledger_lost`, `heads`, `state`, `lock`, `witness`, `key`",
	"immutable_notary_witness_cosigned_entries.witness":       "witnesses of the policy file with a URL",
	"immutable_notary_witness_errors_total.reason":            "`unreachable`, `refused`, `invalid`, `ahead`, `unproved`",
	"immutable_notary_witness_errors_total.witness":           "witnesses of the policy file with a URL",
	"immutable_processor_seal_dedup_window_leaves.partition":  "partitions of the events topic",
	"immutable_processor_seal_dedup_window_seconds.partition": "partitions of the events topic",
	"immutable_processor_seal_halted_partitions.reason":       "`input_lost`, `disagreement`, `unavailable`",
	"immutable_processor_seal_lag_records.partition":          "partitions of the events topic",
	"immutable_processor_seal_lag_seconds.partition":          "partitions of the events topic",
	"immutable_processor_seal_transactions_total.result":      "`committed`, `aborted`, `failed`",
	"immutable_query_requests_total.code":                     "status codes that the API answers with",
	"immutable_query_requests_total.endpoint":                 "endpoints that read, prove or manage",
	"immutable_query_statement_duration_seconds.statement":    "`page`, `count`, `event`, `leaves`, `redaction_target`, `redaction_done`, `hashes`, `checkpoints`, `root_log`, `spine`, `content`, `chains`",
	"immutable_query_totals_skipped_total.reason":             "`rows`, `time`",
	"immutable_query_unavailable_total.reason":                "`busy`, `away`, `timeout`, `stopping`, `unknown`, `map`",
	"immutable_rootlog_halted.reason":                         "`records_lost`, `bad_record`, `bad_tables`, `rows_lost`, `fetch_failed`",
	"immutable_rootlog_outage.system":                         "`kafka`, `clickhouse`",
	"immutable_rootlog_rows_total.table":                      "`root_log`, `checkpoints`",
	"immutable_verifier_faults_total.verdict":                 "verdicts of docs/design/ledger-spec.md",
	"immutable_verifier_leaves_total.why":                     "`newest`, `history`, `again`: a fault was found there",
	"immutable_witness_cosigned_entries.origin":               "logs of the trust file",
	"immutable_witness_forks_total.origin":                    "logs of the trust file",
	"immutable_witness_requests_total.code":                   "status codes of C2SP tlog-witness, and 408, 413, 500 and 503",
}

// described is a registerer that keeps what is registered.
type described struct {
	*prometheus.Registry
	collectors []prometheus.Collector
}

func (d *described) Register(c prometheus.Collector) error {
	d.collectors = append(d.collectors, c)
	return d.Registry.Register(c)
}

func (d *described) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := d.Register(c); err != nil {
			panic(err)
		}
	}
}

// logKey is a verifier key of a log.
const logKey = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"

// everyService makes each service as production does, which registers its metrics, and runs none.
func everyService(t *testing.T) *described {
	t.Helper()
	reg := &described{Registry: prometheus.NewRegistry()}
	logger := slog.New(slog.DiscardHandler)
	broker := kafka.Config{Brokers: []string{"127.0.0.1:9"}, TopicPrefix: "immutable."}
	tables := clickhouse.Config{DSN: "clickhouse://127.0.0.1:9/immutable"}
	layout := schemas.TopicLayout{Prefix: "immutable.", Partitions: 1, Replicas: 1, LedgerRetentionDays: 30}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	view, err := control.NewView(control.ViewConfig{Kafka: broker, MasterKey: control.MasterKey{1}}, reg, logger)
	must(err)
	writer, err := control.NewWriter(control.WriterConfig{Kafka: broker, MasterKey: control.MasterKey{1}, Partitions: 1}, logger)
	must(err)
	_, err = ingest.New(ingest.Config{Kafka: broker, Partitions: 1}, view, reg, logger)
	must(err)
	_, err = processor.New(processor.Config{Kafka: broker, Layout: layout}, reg, logger)
	must(err)
	keyFile := filepath.Join(t.TempDir(), "notary.key")
	_, err = notary.CreateKey(keyFile, "")
	must(err)
	_, err = notary.New(notary.Config{
		Kafka: broker, Layout: layout, KeyFile: keyFile, LockFile: keyFile + ".lock", WitnessPolicy: []byte(logKey),
	}, reg, logger)
	must(err)
	tablesWriter, err := chwriter.New(chwriter.Config{Kafka: broker, ClickHouse: tables}, view, reg, logger)
	must(err)
	_, err = verifier.New(verifier.Config{Kafka: broker, ClickHouse: tables}, tablesWriter.Written, reg, logger)
	must(err)
	_, err = rootlog.New(rootlog.Config{Kafka: broker, ClickHouse: tables}, reg, logger)
	must(err)
	_, err = query.New(query.Config{Kafka: broker, ClickHouse: tables}, view, writer, reg, logger)
	must(err)
	trust, err := ledger.ParseTrust([]byte(logKey))
	must(err)
	_, err = witness.New(witness.Config{Dir: "x"}, nil, trust, reg, logger)
	must(err)
	telemetry.RegisterBuildInfo(reg)
	return reg
}

// metric is a line of the page.
type metric struct {
	name, kind, help string
	labels           []string
}

var descriptor = regexp.MustCompile(`(?s)^Desc\{fqName: "([^"]+)", help: "(.*?)", (?:unit: "[^"]*", )?constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// metrics returns everything that was registered, also what has no value yet.
func (d *described) metrics(t *testing.T) []metric {
	t.Helper()
	var all []metric
	for _, c := range d.collectors {
		descs := make(chan *prometheus.Desc, 16)
		go func() { defer close(descs); c.Describe(descs) }()
		for desc := range descs {
			found := descriptor.FindStringSubmatch(desc.String())
			if found == nil {
				t.Fatalf("cannot read %s", desc)
			}
			m := metric{name: found[1], help: strings.ReplaceAll(found[2], `\"`, `"`), kind: kindOf(c)}
			for l := range strings.SplitSeq(found[3], ",") {
				if name, _, ok := strings.Cut(l, "="); ok {
					m.labels = append(m.labels, name)
				}
			}
			if found[4] != "" {
				m.labels = append(m.labels, strings.Split(found[4], ",")...)
			}
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b metric) int { return strings.Compare(a.name, b.name) })
	return all
}

// kindOf returns a collector's type. Our own collectors, which know their children at a scrape only, have gauges.
func kindOf(c prometheus.Collector) string {
	switch c := c.(type) {
	case *prometheus.CounterVec:
		return "counter"
	case *prometheus.HistogramVec:
		return "histogram"
	case prometheus.Metric:
		var m dto.Metric
		if err := c.Write(&m); err == nil && m.Counter != nil {
			return "counter"
		} else if m.Histogram != nil {
			return "histogram"
		}
	}
	return "gauge"
}

// unit is the last word of a name, before total.
func (m *metric) unit() string {
	words := strings.Split(strings.TrimSuffix(m.name, "_total"), "_")
	switch last := words[len(words)-1]; {
	case slices.Contains([]string{"seconds", "bytes", "records", "leaves", "events"}, last):
		return last
	case strings.HasSuffix(m.name, "_total"), strings.HasSuffix(last, "s"):
		return "count"
	}
	return ""
}

var named = regexp.MustCompile(`immutable_[a-z_]+`)

// usedBy returns which alerts a metric is in.
func usedBy(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	used := make(map[string][]string)
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			for _, name := range named.FindAllString(r.Expr, -1) {
				name = strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
				if !slices.Contains(used[name], r.Alert) {
					used[name] = append(used[name], r.Alert)
				}
			}
		}
	}
	return used
}

const pageHead = `# Metrics

Every service answers ` + "`/metrics`" + ` on its internal address (` + "`--internal-addr`" + `); ` + "`immutable up`" + ` also on its one
address. Names are ` + "`immutable_<service>_<thing>_<unit>`" + `, and the values of every label are bounded as stated. What the Go runtime and the
process show (` + "`go_`, `process_`" + `) is in the documentation of client_golang.

The alerts are in [deploy/prometheus/alerts.yml](../deploy/prometheus/alerts.yml); what to do about each is in [operations.md](operations.md).
This page is written from the code: ` + "`go test ./cmd/immutable -run TestMetricsPage -update`" + `.
`

// TestMetricsPage holds docs/metrics.md to what the services register, and the alerts to the page.
func TestMetricsPage(t *testing.T) {
	used, stated := usedBy(t), make(map[string]bool)
	page := new(strings.Builder)
	page.WriteString(pageHead)
	section := ""
	for _, m := range everyService(t).metrics(t) {
		if m.kind == "counter" != strings.HasSuffix(m.name, "_total") {
			t.Errorf("%s is a %s", m.name, m.kind)
		}
		if of := strings.Split(m.name, "_")[1]; of != section {
			section = of
			fmt.Fprintf(page, "\n## %s\n\n| metric | type | unit | labels | meaning | alerts |\n|---|---|---|---|---|---|\n", section)
		}
		var values []string
		for _, l := range m.labels {
			key := m.name + "." + l
			if labels[key] == "" {
				t.Errorf("label %s: which values can it have?", key)
			}
			stated[key] = true
			values = append(values, "`"+l+"`: "+labels[key])
		}
		var alerts []string
		for _, a := range used[m.name] {
			alerts = append(alerts, fmt.Sprintf("[%s](operations.md#%s)", a, strings.ToLower(a)))
		}
		delete(used, m.name)
		fmt.Fprintf(page, "| `%s` | %s | %s | %s | %s | %s |\n",
			m.name, m.kind, m.unit(), strings.Join(values, "; "), m.help, strings.Join(alerts, ", "))
	}
	for key := range labels {
		if !stated[key] {
			t.Errorf("label %s: there is none", key)
		}
	}
	for name, alerts := range used {
		t.Errorf("%v use %s, which no service has", alerts, name)
	}
	if *update {
		if err := os.WriteFile(metricsPage, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), page.String()); diff != "" {
		t.Errorf("docs/metrics.md is not what the code says; -update rewrites it (-have +want):\n%s", diff)
	}
}
