package diagnose

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	chgo "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// minClickHouse is the oldest major version that is known to do what is asked of it.
const minClickHouse = 26

// ClickHouse error codes (src/Common/ErrorCodes.cpp).
const (
	codeUnknownDatabase = 81
	codeAuthentication  = 516
)

// server is a ClickHouse to be looked at.
type server struct {
	cfg  Config
	opts *chgo.Options
	conn driver.Conn
}

func newServer(cfg Config) (*server, error) {
	opts, err := cfg.ClickHouse.Options()
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(cfg.ClickHouse)
	if err != nil {
		return nil, err
	}
	return &server{cfg: cfg, opts: opts, conn: conn}, nil
}

func (s *server) close() { _ = s.conn.Close() } // nothing is pending on it

func (s *server) reachable(ctx context.Context) []Finding {
	began := time.Now()
	err := s.conn.Ping(ctx)
	if err == nil {
		return ok("%s answers in %d ms", strings.Join(s.opts.Addr, ","), time.Since(began).Milliseconds())
	}
	f := Finding{
		Level: Problem, Seen: fmt.Sprintf("%s: %v", strings.Join(s.opts.Addr, ","), err),
		Why: "nothing can be read; events are still accepted, and wait on the topic ledger until its retention ends",
		Do:  "start the server, or correct --clickhouse; the native protocol's port is 9000, or 9440 with ?secure=true",
	}
	if e, is := errors.AsType[*chgo.Exception](err); is {
		switch e.Code {
		case codeAuthentication:
			f.Do = "correct the user in --clickhouse and the password there or in --clickhouse-password-file"
		case codeUnknownDatabase:
			f.Do = "immutable migrate, with the same --clickhouse, creates the database and its tables"
		}
	}
	return []Finding{f}
}

func (s *server) version(context.Context) []Finding {
	v, err := s.conn.ServerVersion()
	if err != nil {
		return failed("asking for the version", err)
	}
	if v.Version.Major < minClickHouse {
		return []Finding{{
			Level: Warning, Seen: "ClickHouse " + v.Version.String(),
			Why: fmt.Sprintf("what is promised was tested with %d.7", minClickHouse), Do: "upgrade the server",
		}}
	}
	return ok("ClickHouse %s", v.Version)
}

func (s *server) certificates(ctx context.Context) []Finding {
	return shown(ctx, s.opts.Addr, s.opts.TLS)
}

func (s *server) clock(ctx context.Context) []Finding {
	var now time.Time
	asked := time.Now()
	if err := s.conn.QueryRow(ctx, "SELECT now64(6)").Scan(&now); err != nil {
		return failed("asking for the time", err)
	}
	return skew("ClickHouse's clock", asked, now, time.Now())
}

func (s *server) disks(ctx context.Context) []Finding {
	var disks []struct {
		Name     string `ch:"name"`
		Free     uint64 `ch:"free_space"`
		Total    uint64 `ch:"total_space"`
		ReadOnly bool   `ch:"read_only"`
	}
	err := s.conn.Select(ctx, &disks,
		"SELECT name, free_space, total_space, is_read_only != 0 AS read_only FROM system.disks WHERE type != 'ObjectStorage' ORDER BY name")
	if err != nil {
		return failed("asking for the disks", err)
	}
	var found []Finding
	for _, d := range disks {
		found = append(found, s.cfg.room("disk "+d.Name, d.Free, d.Total, "a full disk stops inserts and merges",
			"make room or add a disk; what is not inserted waits on the topic ledger until its retention ends")...)
		if d.ReadOnly {
			found = append(found, readOnly("disk "+d.Name))
		}
	}
	return found
}

func readOnly(what string) Finding {
	return Finding{
		Level: Problem, Seen: what + " is read-only", Why: "no row can be inserted; the ledger waits on its topic until its retention ends",
		Do: "clickhouse-client -q 'SYSTEM RESTART REPLICA TABLE' for a replica without its Keeper; else make it writable again",
	}
}

func (s *server) schema(ctx context.Context) []Finding {
	err := clickhouse.CheckSchema(ctx, s.conn)
	f := Finding{Level: Problem, Why: "services do not start on tables of another version"}
	switch {
	case err == nil:
		return ok("the tables are those of this version")
	case errors.Is(err, clickhouse.ErrSchemaOlder):
		f.Do = "immutable migrate"
	case errors.Is(err, clickhouse.ErrSchemaNewer):
		f.Do = "run the version of immutable that migrated them, or a later one"
	case errors.Is(err, clickhouse.ErrSchemaChanged):
		f.Do = "run a released version of immutable: a migration never changes after its release"
	default:
		return failed("reading schema_migrations", err)
	}
	f.Seen = err.Error()
	return []Finding{f}
}

// mustHave are settings of the tables without which a power cut takes rows away that were reported as written, or a
// repeated insert doubles them.
var mustHave = []string{ //nolint:gochecknoglobals // a constant that Go cannot write as one
	"fsync_after_insert = 1", "fsync_part_directory = 1", "min_rows_to_fsync_after_merge = 1", "non_replicated_deduplication_window = 10000",
}

func (s *server) tables(ctx context.Context) []Finding {
	var tables []struct {
		Name     string `ch:"name"`
		Engine   string `ch:"engine_full"`
		ReadOnly bool   `ch:"read_only"`
	}
	err := s.conn.Select(ctx, &tables, `
		SELECT name, engine_full,
			name IN (SELECT table FROM system.replicas WHERE database = currentDatabase() AND is_readonly) AS read_only
		FROM system.tables WHERE database = currentDatabase() AND name IN ('events', 'leaves', 'root_log', 'checkpoints')
		ORDER BY name`)
	if err != nil {
		return failed("asking for the tables", err)
	}
	var detached []struct {
		Table string `ch:"table"`
		Parts uint64 `ch:"parts"`
	}
	err = s.conn.Select(ctx, &detached,
		"SELECT table, count() AS parts FROM system.detached_parts WHERE database = currentDatabase() GROUP BY table ORDER BY table")
	if err != nil {
		return failed("asking for detached parts", err)
	}
	var found []Finding
	for _, t := range tables {
		for _, setting := range mustHave {
			if !strings.Contains(t.Engine, setting) {
				found = append(found, Finding{
					Level: Problem, Seen: fmt.Sprintf("table %s lacks %s", t.Name, setting),
					Why: "a power cut can take away rows that Kafka believes written, or a repeated insert doubles them",
					Do:  fmt.Sprintf("clickhouse-client -q 'ALTER TABLE %s MODIFY SETTING %s'", t.Name, setting),
				})
			}
		}
		if t.ReadOnly || strings.Contains(t.Engine, "table_readonly = 1") {
			found = append(found, readOnly("table "+t.Name))
		}
	}
	for _, d := range detached {
		found = append(found, Finding{
			Level: Warning, Seen: fmt.Sprintf("table %s has %d detached parts", d.Table, d.Parts),
			Why: "ClickHouse put them aside, as broken or by hand; their rows are not read",
			Do:  "clickhouse-client -q 'SELECT table, name, reason FROM system.detached_parts'; then docs/operations.md, Losing ClickHouse",
		})
	}
	if len(tables) < 4 {
		found = append(found, Finding{
			Level: Problem, Seen: "the tables events, leaves, root_log and checkpoints are not all there", Why: "nothing can be read or written",
			Do: "restore them from a backup: docs/operations.md, Losing ClickHouse",
		})
	}
	return orOK(found, "events, leaves, root_log and checkpoints are written through to disk, and writable")
}

// holdsLedger compares, for each partition, what the group has committed with the last row: between the two there may
// be transaction markers and nothing else.
func (s *server) holdsLedger(ctx context.Context) []Finding {
	cl, err := newClient(s.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return failed("opening a kafka client", err)
	}
	defer cl.Close()
	topic, group := s.cfg.Kafka.Topic(schemas.TopicLedger), s.cfg.Kafka.Group(schemas.GroupClickHouse)
	admin := kadm.NewClient(cl)
	var commits kadm.OffsetResponses
	err = coordinated(ctx, func() (err error) {
		commits, err = admin.FetchOffsets(ctx, group)
		return err
	})
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return failed("asking for the offsets of "+group, err)
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return failed("asking for the end of "+topic, err)
	}
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return failed("asking for the beginning of "+topic, err)
	}
	var rows []struct {
		Partition uint16 `ch:"ledger_partition"`
		Next      uint64 `ch:"next"`
	}
	err = s.conn.Select(ctx, &rows, "SELECT ledger_partition, max(ledger_offset) + 1 AS next FROM leaves GROUP BY ledger_partition")
	if err != nil {
		return failed("asking for the last rows", err)
	}
	next := map[int32]int64{}
	for _, r := range rows {
		next[int32(r.Partition)] = int64(r.Next)
	}
	var found []Finding
	var gaps []kafka.Span
	for p, end := range ends[topic] {
		commit, known := commits.Lookup(topic, p)
		whose, to := "ClickHouse has rows", next[p]
		if known && commit.At > to {
			whose, to = "the group committed", commit.At
		}
		if to > end.Offset {
			found = append(found, Finding{
				Level: Problem, Seen: fmt.Sprintf("%s/%d ends at offset %d, and %s to %d", topic, p, end.Offset, whose, to),
				Why: "the topic lost records or was created anew; the writer halts rather than mix two ledgers",
				Do:  "restore the topic: docs/operations.md, Losing Kafka",
			})
			continue
		}
		// Where the group is not further than the rows, there is nothing between.
		gaps = append(gaps, kafka.Span{Topic: topic, Partition: p, From: max(next[p], starts[topic][p].Offset), To: to})
	}
	waiting, err := firstRecords(ctx, s.cfg, gaps)
	if err != nil {
		return append(found, failed("reading "+topic, err)...)
	}
	for _, r := range waiting {
		found = append(found, Finding{
			Level: Problem,
			Seen:  fmt.Sprintf("%s/%d: ClickHouse lacks rows from offset %d on, and the group committed past them", topic, r.Partition, r.Offset),
			Why:   "events that were accepted are not on the timeline: ClickHouse has lost rows, or was restored from an older backup",
			Do:    "stop every sinks, or `up`, and run immutable rebuild: docs/operations.md, Losing ClickHouse",
		})
	}
	return orOK(found, "every record that the group committed is in the table leaves")
}
