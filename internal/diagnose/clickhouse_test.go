package diagnose_test

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/diagnose"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

func TestClickHouse(t *testing.T) {
	s := clickhousetest.StartEmpty(t)
	want(t, run(t, diagnose.Config{ClickHouse: s.Config()}), diagnose.Problem, "clickhouse", "immutable migrate")
	if err := clickhouse.CreateDatabase(t.Context(), s.Config()); err != nil {
		t.Fatal(err)
	}
	found := run(t, diagnose.Config{ClickHouse: s.Config()})
	want(t, found, diagnose.Problem, "schema", "immutable migrate")
	want(t, found, diagnose.NotRun, "tables", "needs schema")
	want(t, found, diagnose.NotRun, "kafka", "--kafka or --data was not given")

	s = clickhousetest.Start(t)
	conn := s.Conn(t)
	exec := func(statement string) {
		t.Helper()
		if err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	found = run(t, diagnose.Config{ClickHouse: s.Config(), MinFreeBytes: 1})
	for check, seen := range map[string]string{
		"clickhouse": "answers in", "clickhouse version": "ClickHouse 2", "clickhouse clock": "+0.000 s", "clickhouse disks": "MiB free",
		"schema": "are those of this version", "tables": "are written through to disk",
	} {
		want(t, found, diagnose.OK, check, seen)
	}
	want(t, run(t, diagnose.Config{ClickHouse: s.Config(), MinFreeBytes: 1 << 60}), diagnose.Problem, "clickhouse disks", "make room")

	exec("INSERT INTO leaves (part, chain) VALUES (202611, repeat('x', 16))")
	exec("ALTER TABLE leaves DETACH PARTITION 202611")
	exec("ALTER TABLE events MODIFY SETTING fsync_after_insert = 0")
	exec("ALTER TABLE checkpoints MODIFY SETTING min_rows_to_fsync_after_merge = 0")
	exec("ALTER TABLE events MODIFY SETTING table_readonly = 1")
	found = run(t, diagnose.Config{ClickHouse: s.Config()})
	want(t, found, diagnose.Warning, "tables", "table leaves has 1 detached part")
	want(t, found, diagnose.Problem, "tables", "ALTER TABLE events MODIFY SETTING fsync_after_insert = 1")
	want(t, found, diagnose.Problem, "tables", "ALTER TABLE checkpoints MODIFY SETTING min_rows_to_fsync_after_merge = 1")
	want(t, found, diagnose.Problem, "tables", "table events is read-only")

	exec("DROP TABLE leaves")
	want(t, run(t, diagnose.Config{ClickHouse: s.Config()}), diagnose.Problem, "tables", "not all there")
	exec("INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, '9999_tomorrow', 'x')")
	want(t, run(t, diagnose.Config{ClickHouse: s.Config()}), diagnose.Problem, "schema", "the version of immutable that migrated them")
}

func TestRowsAgainstTheLedger(t *testing.T) {
	s := clickhousetest.Start(t)
	conn := s.Conn(t)
	c := kafkatest.Start(t)
	cfg := diagnose.Config{Kafka: c.Config, Layout: c.Layout, ClickHouse: s.Config()}
	const check = "ledger in clickhouse"
	for range 3 {
		c.Produce(t, &kgo.Record{Topic: schemas.TopicLedger, Partition: 1, Value: []byte("x")})
	}
	commit := func(at int64) {
		t.Helper()
		var o kadm.Offsets
		o.AddOffset(c.Config.Topic(schemas.TopicLedger), 1, at, -1)
		if err := kadm.NewClient(c.Client(t)).CommitAllOffsets(t.Context(), c.Config.Group(schemas.GroupClickHouse), o); err != nil {
			t.Fatal(err)
		}
	}
	row := func(offset int) {
		t.Helper()
		err := conn.Exec(t.Context(), fmt.Sprintf("INSERT INTO leaves (part, ledger_partition, ledger_offset) VALUES (202611, 1, %d)", offset))
		if err != nil {
			t.Fatal(err)
		}
	}
	row(0)
	commit(1)
	want(t, run(t, cfg), diagnose.OK, check, "every record that the group committed")
	commit(3)
	want(t, run(t, cfg), diagnose.Problem, check, "lacks rows from offset 1 on")
	row(2)
	want(t, run(t, cfg), diagnose.OK, check, "every record that the group committed")
	commit(5)
	want(t, run(t, cfg), diagnose.Problem, check, "ends at offset 3, and the group committed to 5")
	row(7)
	want(t, run(t, cfg), diagnose.Problem, check, "ends at offset 3, and ClickHouse has rows to 8")
}
