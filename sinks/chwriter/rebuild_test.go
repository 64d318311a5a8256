package chwriter

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"getimmutable.dev/immutable/schemas"
)

func (r *rig) exec(statement string) {
	r.tb.Helper()
	if err := r.conn.Exec(r.tb.Context(), statement); err != nil {
		r.tb.Fatalf("%s: %v", statement, err)
	}
}

func (r *rig) rebuild(acceptLoss bool) {
	r.tb.Helper()
	if err := Rebuild(r.tb.Context(), r.kafka.Config, acceptLoss, slog.New(slog.DiscardHandler)); err != nil {
		r.tb.Fatal(err)
	}
}

// rowsLost loses rows below the group's offset. They are deleted in a way that leaves their inserts' tokens: a rebuild
// that made the same batches and trusted the answers would write nothing.
func rowsLost(t *testing.T, r *rig) {
	t.Helper()
	for name, where := range map[string]string{"all": "true", "older backup": "ledger_offset >= 20"} {
		w := r.start(r.config())
		r.produce(400)
		r.check()
		w.stop()
		for _, table := range []string{tableLeaves, tableEvents} {
			r.exec("ALTER TABLE " + table + " DELETE WHERE " + where + " SETTINGS mutations_sync = 1")
		}
		rows, committed := r.count("SELECT count() FROM leaves"), r.committed()
		r.produce(100)
		w = r.start(r.config())
		for p := range r.kafka.Layout.Partitions {
			w.awaitHalted(fmt.Sprintf("ledger partition %d is halted: leaves lacks offset", p), "immutable rebuild")
		}
		w.stop()
		if n := r.count("SELECT count() FROM leaves"); n != rows {
			t.Errorf("%s: %d rows, there were %d", name, n, rows)
		}
		if got := r.committed(); fmt.Sprint(got) != fmt.Sprint(committed) {
			t.Errorf("%s: committed %v, was %v", name, got, committed)
		}
		r.rebuild(false)
		w = r.start(r.config())
		r.check()
		w.awaitReady()
		w.stop()
	}
}

// A batch was announced, and the rows below it are lost: it is not written over the hole.
func TestHaltsBeforeAnAnnouncedBatch(t *testing.T) {
	r := newRig(t)
	r.produce(100)
	r.setCommitted(map[int32]kadm.Offset{1: {At: 5, Metadata: "9"}})
	w := r.start(r.config())
	w.awaitHalted("ledger partition 1 is halted: leaves lacks offset 0, which was written")
	if n := r.count("SELECT count() FROM leaves WHERE ledger_partition = 1"); n != 0 {
		t.Errorf("%d rows", n)
	}
}

// ClickHouse is replaced by an empty one while the writer runs: its next insert would go through.
func TestHaltsWhenClickHouseWasReplaced(t *testing.T) {
	long(t)
	s := newServer(t)
	r := newRigOn(t, s.DSN())
	w := r.start(r.config())
	r.produce(200)
	r.check()
	s.kill(t)
	if err := os.RemoveAll(s.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	s.migrate(t)
	r.produce(200)
	for p := range r.kafka.Layout.Partitions {
		w.awaitHalted(fmt.Sprintf("ledger partition %d is halted: leaves lacks offset", p))
	}
	if n := r.count("SELECT count() FROM leaves"); n != 0 {
		t.Errorf("%d rows", n)
	}
	w.stop()
	r.rebuild(false)
	r.start(r.config())
	r.check()
}

// Only the timeline has lost rows, or they are gone because they were to expire.
func TestRowsLostOfOneTable(t *testing.T) {
	long(t)
	r := newRig(t)
	w := r.start(r.config())
	r.produce(400)
	r.check()
	w.stop()
	r.exec("ALTER TABLE events DELETE WHERE ledger_partition = 2 SETTINGS mutations_sync = 1")
	w = r.start(r.config())
	w.awaitHalted("ledger partition 2 is halted: events lacks offset")
	if n := w.metric("halted_partitions"); n != 1 {
		t.Errorf("%v halted partitions", n)
	}
	w.stop()
	r.exec("ALTER TABLE events MODIFY TTL toDateTime(recorded_at) + INTERVAL 90 DAY")
	w = r.start(r.config())
	r.produce(100)
	w.awaitReady()
	await(t, "waiting for the new rows", func() error {
		if n := r.count("SELECT count() FROM events WHERE ledger_partition = 2"); n == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	w.stop()
	r.exec("ALTER TABLE events REMOVE TTL")
	r.exec("ALTER TABLE events DELETE WHERE true SETTINGS mutations_sync = 1")
	r.rebuild(false)
	r.start(r.config())
	r.check()
}

// Rows are missing in the middle: nothing shows it until a rebuild passes there.
func TestRebuildHaltsAtAHole(t *testing.T) {
	long(t)
	r := newRig(t)
	w := r.start(r.config())
	r.produce(400)
	r.check()
	w.stop()
	r.exec("ALTER TABLE leaves DELETE WHERE ledger_partition = 3 AND ledger_offset = 7 SETTINGS mutations_sync = 1")
	r.rebuild(false)
	w = r.start(r.config())
	w.awaitHalted("ledger partition 3 is halted: leaves has", "some were deleted", "ledger_partition = 3 AND ledger_offset >= 0 as well")
	w.stop()
	for _, table := range []string{tableLeaves, tableEvents} {
		r.exec("ALTER TABLE " + table + " DELETE WHERE ledger_partition = 3 AND ledger_offset >= 0 SETTINGS mutations_sync = 1")
	}
	r.rebuild(false)
	r.start(r.config())
	r.check()
}

// A group that has members keeps its offsets. A member with a name is one until its session ends.
func TestRebuildWaitsForTheGroup(t *testing.T) {
	long(t)
	r := newRig(t)
	cfg := r.config()
	cfg.Instance = "0"
	w := r.start(cfg)
	r.produce(100)
	r.check()
	await(t, "waiting for the commit", func() error {
		if n := len(r.committed()); n != int(r.kafka.Layout.Partitions) {
			return fmt.Errorf("%d offsets", n)
		}
		return nil
	})
	err := Rebuild(t.Context(), r.kafka.Config, true, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), schemas.GroupClickHouse+" has members: stop every `immutable sinks`") {
		t.Errorf("Rebuild while the writer runs: %v", err)
	}
	w.stop()
	r.rebuild(false)
	if got := r.committed(); len(got) != 0 {
		t.Errorf("committed %v", got)
	}
	r.rebuild(false) // with nothing to forget
}

// Retention has removed records that ClickHouse lacks: the writer goes on without them only when it is told to.
func TestRebuildAcceptsLoss(t *testing.T) {
	r := newRig(t)
	r.produce(100)
	r.deleteRecords(0, 5)
	r.setCommitted(map[int32]kadm.Offset{0: {At: 3}})
	w := r.start(r.config())
	w.awaitHalted("ledger partition 0 is halted", "immutable rebuild --accept-loss")
	w.stop()
	r.rebuild(false)
	w = r.start(r.config())
	w.awaitHalted("ledger partition 0 is halted", "the topic begins at 5", "immutable rebuild --accept-loss")
	w.stop()
	r.rebuild(true)
	w = r.start(r.config())
	w.awaitReady()
	await(t, "waiting for the rows", func() error {
		first := r.count("SELECT min(ledger_offset) FROM leaves WHERE ledger_partition = 0")
		if first != 5 {
			return fmt.Errorf("the first is %d", first)
		}
		return nil
	})
	w.stop()
	w = r.start(r.config()) // and a restart does not mind
	r.produce(100)
	await(t, "waiting for the commit", func() error {
		if got, want := fmt.Sprint(r.committed()), fmt.Sprint(r.ends()); got != want {
			return fmt.Errorf("committed %s of %s", got, want)
		}
		return nil
	})
	w.awaitReady()
}

// A replica that has not caught up is asked again.
func TestWaitsForAReplica(t *testing.T) {
	r := newRig(t)
	w := r.start(r.config())
	r.produce(100)
	r.check()
	w.stop()
	r.exec("CREATE TABLE kept ENGINE = MergeTree ORDER BY sequence AS SELECT * FROM leaves WHERE ledger_partition = 1")
	r.exec("ALTER TABLE leaves DELETE WHERE ledger_partition = 1 SETTINGS mutations_sync = 1")
	r.exec("RENAME TABLE events TO plain")
	r.exec("CREATE TABLE events AS plain ENGINE = ReplacingMergeTree PARTITION BY part ORDER BY (workspace, occurred_at, id)")
	r.exec("INSERT INTO events SELECT * FROM plain")
	w = r.start(r.config())
	await(t, "waiting for readiness to say it", func() error {
		if err := w.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "clickhouse: leaves lacks offset") {
			return fmt.Errorf("readiness says: %w", err)
		}
		return nil
	})
	r.exec("INSERT INTO leaves SELECT * FROM kept")
	w.awaitReady()
	if n := w.metric("halts_total"); n != 0 {
		t.Errorf("%v halts", n)
	}
}
