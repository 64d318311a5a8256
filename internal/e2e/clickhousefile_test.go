package e2e

import (
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"getimmutable.dev/immutable/internal/chdb"
	"getimmutable.dev/immutable/internal/clickhouse"
)

// logTables are the logs that the configuration of ClickHouse 26.7, which the compose file's is laid over, turns on, and
// those that it may turn on next.
var logTables = strings.Fields(`query_log trace_log query_thread_log query_views_log part_log text_log metric_log
	transposed_metric_log bucketed_metric_log latency_log error_log query_metric_log asynchronous_metric_log
	opentelemetry_span_log crash_log processors_profile_log asynchronous_insert_log backup_log s3queue_log blob_storage_log
	background_schedule_pool_log aggregated_zookeeper_log zookeeper_connection_log`)

// TestComposeClickHouse gives a ClickHouse the compose file's configuration, laid over another as in its container, and
// reads back what it makes of it.
func TestComposeClickHouse(t *testing.T) {
	config, err := os.ReadFile(filepath.Join(root, "deploy/clickhouse/config.xml"))
	if err != nil {
		t.Fatal(err)
	}
	secrets := t.TempDir()
	createSecrets(t, secrets)
	files := secretFiles(t, secrets)
	base := "<clickhouse>"
	for _, name := range logTables {
		base += fmt.Sprintf("<%s><database>system</database><table>%[1]s</table></%[1]s>", name)
	}
	dir := t.TempDir()
	for path, content := range map[string]string{
		"config.d/base.xml":      base + "</clickhouse>",
		"config.d/immutable.xml": strings.Replace(string(config), ">0.0.0.0<", ">127.0.0.1<", 1),
		// The embedded server is started by the user default, which is not there in production.
		"users.d/immutable.xml": strings.Replace(files["clickhouse_user.xml"], `<default remove="remove"/>`, "", 1),
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server, err := chdb.Start(t.Context(), chdb.Config{Library: library(t), Dir: dir, User: "starter"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}()

	// As the services connect: what `immutable migrate` does works, and another password does not.
	dsn := url.URL{
		Scheme: "clickhouse", Host: server.NativeAddr(), Path: "/immutable",
		User: url.UserPassword("immutable", files["clickhouse_password"]),
	}
	cfg := clickhouse.Config{DSN: dsn.String()}
	if err := clickhouse.CreateDatabase(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	conn, err := clickhouse.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := clickhouse.Migrate(t.Context(), conn, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	dsn.User = url.UserPassword("immutable", files["master_key"])
	if err := clickhouse.CreateDatabase(t.Context(), clickhouse.Config{DSN: dsn.String()}); err == nil ||
		!strings.Contains(err.Error(), "Authentication failed") {
		t.Errorf("with another password: %v", err)
	}

	for _, c := range []struct{ query, want string }{
		{"SELECT value FROM system.server_settings WHERE name = 'max_server_memory_usage_to_ram_ratio'", "0.8"},
		{"SELECT value FROM system.server_settings WHERE name = 'mark_cache_size'", "268435456"},
		{"SELECT toString(keep_free_space) FROM system.disks WHERE name = 'default'", "1073741824"},
	} {
		var got string
		if err := conn.QueryRow(t.Context(), c.query).Scan(&got); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %s", c.query, got, err, c.want)
		}
	}

	if err := conn.Exec(t.Context(), "SYSTEM FLUSH LOGS"); err != nil { // which creates their tables
		t.Fatal(err)
	}
	rows, err := conn.Query(t.Context(), "SELECT name, engine_full FROM system.tables WHERE database = 'system' AND name LIKE '%\\_log'")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var limited []string
	for rows.Next() {
		var name, engine string
		if err := rows.Scan(&name, &engine); err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.Contains(engine, "TTL event_date + toIntervalDay(7)"):
			limited = append(limited, name)
		case !slices.Contains([]string{"crash_log", "backup_log", "asynchronous_insert_log"}, name):
			t.Errorf("system.%s grows for ever: %s", name, engine)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if slices.Sort(limited); !slices.Equal(limited, []string{"part_log", "query_log"}) {
		t.Errorf("logs of 7 days are %v", limited)
	}

	// The embedded server has no endpoint for Prometheus: only that both files mean the same port is held here.
	scrapes, err := os.ReadFile(filepath.Join(root, "deploy/prometheus/prometheus.yml"))
	if err != nil {
		t.Fatal(err)
	}
	port := regexp.MustCompile(`<prometheus>\s*<port>(\d+)</port>`).FindStringSubmatch(string(config))
	if port == nil || !strings.Contains(string(scrapes), `"clickhouse:`+port[1]+`"`) {
		t.Errorf("ClickHouse shows its metrics on port %v, which Prometheus does not scrape", port)
	}
}
