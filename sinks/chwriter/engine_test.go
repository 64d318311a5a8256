package chwriter

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/chdb"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
)

// What exactly once rests on, asked of the engine itself.

// load returns an inserter with n events of one partition loaded.
func (r *rig) load(n int) *inserter {
	r.tb.Helper()
	few := r.sealer.events(min(n, 1000))
	records := make([]*kgo.Record, n)
	for k := range records {
		rec := *few[k%len(few)]
		rec.Offset = int64(k)
		records[k] = &rec
	}
	i := r.inserter()
	if _, _, err := i.load(0, records, 64, new(control.Redactions)); err != nil {
		r.tb.Fatal(err)
	}
	return i
}

// A setting that is lost from the migration loses rows in a power cut, or inserts them twice, and no other test sees it.
func TestTablesAsTheWriterNeedsThem(t *testing.T) {
	r := newRig(t)
	for _, table := range []string{tableLeaves, tableEvents} {
		var engine, create string
		err := r.conn.QueryRow(t.Context(), "SELECT engine_full, create_table_query FROM system.tables "+
			"WHERE database = currentDatabase() AND name = ?", table).Scan(&engine, &create)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"fsync_after_insert = 1", "fsync_part_directory = 1", "min_rows_to_fsync_after_merge = 1", "non_replicated_deduplication_window = 10000",
		} {
			if !strings.Contains(engine, want) {
				t.Errorf("%s has no %s: %s", table, want, engine)
			}
		}
		if want := "INDEX ledger_offset_minmax ledger_offset TYPE minmax"; !strings.Contains(create, want) {
			t.Errorf("%s has no %s", table, want)
		}
	}
}

// The parts that rows were inserted in are removed soon after others have taken their place: by then a power cut must not take those away.
func TestEngineSyncsPartsMadeOfOthers(t *testing.T) {
	r := newRig(t)
	exec := func(statement string) {
		t.Helper()
		if err := r.conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	synced := func(statement string) uint64 {
		t.Helper()
		var counts [2]uint64
		for i := range counts {
			if i == 1 {
				exec(statement)
			}
			if err := r.conn.QueryRow(t.Context(), "SELECT sum(value) FROM system.events WHERE event = 'FileSync'").Scan(&counts[i]); err != nil {
				t.Fatal(err)
			}
		}
		return counts[1] - counts[0]
	}
	for _, table := range []string{tableEvents, tableLeaves} {
		exec("SYSTEM STOP MERGES " + table)
		for i := range 2 {
			exec(fmt.Sprintf("INSERT INTO %s (part, sequence) VALUES (202611, %d)", table, i))
		}
		exec("SYSTEM START MERGES " + table)
		for _, statement := range []string{
			"OPTIMIZE TABLE " + table + " FINAL",
			"ALTER TABLE " + table + " UPDATE ledger_offset = 7 WHERE true SETTINGS mutations_sync = 1",
		} {
			with := synced(statement)
			exec("ALTER TABLE " + table + " MODIFY SETTING min_rows_to_fsync_after_merge = 0")
			without := synced(statement)
			exec("ALTER TABLE " + table + " MODIFY SETTING min_rows_to_fsync_after_merge = 1")
			if with < without+2 {
				t.Errorf("%s: %d files were synced, %d without the setting", statement, with, without)
			}
		}
	}
}

func TestEngineDropsASecondInsertAtTheSameTime(t *testing.T) {
	long(t)
	r := newRig(t)
	inserters := make([]*inserter, 8)
	for k := range inserters {
		r.sealer = newSealer(t, 4)
		inserters[k] = r.load(200)
	}
	for round := range 10 {
		var g errgroup.Group
		for _, i := range inserters {
			g.Go(func() error {
				_, err := i.insert(t.Context(), tableEvents, "round "+strconv.Itoa(round))
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if n := r.count("SELECT count() FROM events"); n != uint64(inserters[0].rows(tableEvents)*(round+1)) {
			t.Fatalf("round %d: %d rows", round, n)
		}
	}
}

func TestEngineMakesOnePartOfAnInsert(t *testing.T) {
	long(t)
	r := newRig(t)
	i := r.load(100_000)
	for _, table := range []string{tableLeaves, tableEvents} {
		if _, err := i.insert(t.Context(), table, "one"); err != nil {
			t.Fatal(err)
		}
		var parts uint64
		var rows uint64
		err := r.conn.QueryRow(t.Context(), "SELECT count(), sum(rows) FROM system.parts WHERE database = currentDatabase() "+
			"AND table = ? AND active AND level = 0", table).Scan(&parts, &rows)
		if err != nil || parts != 1 || rows != uint64(i.rows(table)) {
			t.Errorf("%s: %d parts with %d rows of %d, %v", table, parts, rows, i.rows(table), err)
		}
	}
}

func TestEngineRefusesTwoMonthsInOneInsert(t *testing.T) {
	r := newRig(t)
	i := r.load(10)
	i.leaves.part[3]++
	if _, err := i.insert(t.Context(), tableLeaves, "two"); err == nil {
		t.Error("no error")
	}
	if n := r.count("SELECT count() FROM leaves"); n != 0 {
		t.Errorf("%d rows", n)
	}
}

// The server gives up on a connection that says nothing for serverTimeout: between two queries, and within an insert.
func TestEngineClosesASilentConnection(t *testing.T) {
	long(t)
	r := newRig(t)
	p, through := newProxy(t, r.dsn)
	i, err := newInserter(clickhouse.Config{DSN: through}, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer i.close()
	if err := i.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-p.closedByServer

	records := r.sealer.events(100)
	if _, _, err := i.load(0, records, 1, new(control.Redactions)); err != nil {
		t.Fatal(err)
	}
	i.close()
	if err := i.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.arm(hold, 1)
	if _, err := i.insert(t.Context(), tableLeaves, "silent"); err == nil {
		t.Error("the insert succeeded")
	}
	close(p.release)
	if n := r.count("SELECT count() FROM leaves"); n != 0 {
		t.Errorf("%d rows", n)
	}
}

// server is a ClickHouse of the test's own that can be killed and started again at the same address.
type server struct {
	*chdb.Server
	cfg chdb.Config
}

func newServer(t *testing.T) *server {
	t.Helper()
	var ports [2]int
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	s := &server{cfg: chdb.Config{
		Library: clickhousetest.Library(t), Dir: filepath.Join(t.TempDir(), "clickhouse"), Password: "p",
		HTTPPort: ports[0], NativePort: ports[1],
	}}
	s.start(t)
	t.Cleanup(func() { _ = s.Stop(t.Context()) })
	s.migrate(t)
	return s
}

// migrate creates the database and its tables.
func (s *server) migrate(t *testing.T) {
	t.Helper()
	cfg := clickhouse.Config{DSN: s.DSN()}
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
}

func (s *server) start(t *testing.T) {
	t.Helper()
	var err error
	if s.Server, err = chdb.Start(t.Context(), s.cfg, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
}

func (s *server) kill(t *testing.T) {
	t.Helper()
	if err := unix.Kill(s.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
}

func TestEngineKeepsTokensOverAKill(t *testing.T) {
	long(t)
	s := newServer(t)
	r := newRigOn(t, s.DSN())
	i := r.load(100)
	for k := range 5 {
		for again := range 3 {
			if err := i.connect(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := i.insert(t.Context(), tableLeaves, fmt.Sprint("token ", k)); err != nil {
				t.Fatal(err)
			}
			if again == 1 {
				s.kill(t)
				s.start(t)
				i.close()
				if err := r.conn.Ping(t.Context()); err != nil {
					await(t, "waiting for clickhouse", func() error { return r.conn.Ping(t.Context()) })
				}
			}
		}
		if n := r.count("SELECT count() FROM leaves"); n != uint64(i.rows(tableLeaves)*(k+1)) {
			t.Fatalf("%d rows after %d batches of %d", n, k+1, i.rows(tableLeaves))
		}
	}
}
