package rootlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/notarytest"
	"getimmutable.dev/immutable/ledger"

	"getimmutable.dev/immutable/schemas/recordpb"
)

func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }

const testDeadline = 30 * time.Second

// rig is a Kafka, a database, and a notary's root log in the former.
type rig struct {
	tb     testing.TB
	kafka  *kafkatest.Cluster
	db     *clickhousetest.Server
	conn   driver.Conn
	notary *notarytest.Notary
}

func newRig(tb testing.TB) *rig {
	tb.Helper()
	db := clickhousetest.Start(tb)
	return &rig{
		tb: tb, kafka: kafkatest.Start(tb, kfake.GroupMinSessionTimeout(time.Second)), db: db, conn: db.Conn(tb),
		notary: notarytest.New("example.com/ledger"),
	}
}

func (r *rig) commit(records ...*kgo.Record) {
	r.tb.Helper()
	notarytest.Commit(r.tb, r.kafka, records...)
}

// grow enters n epochs in one transaction, and a checkpoint after it; the first time with a key before them.
func (r *rig) grow(n int) {
	r.tb.Helper()
	var records []*kgo.Record
	if r.notary.Log.Size == 0 {
		records = r.notary.Rotate(r.tb)
	}
	for range n {
		records = append(records, r.notary.Epoch(r.tb)...)
	}
	r.commit(records...)
	r.commit(r.notary.Checkpoint(r.tb))
}

// running is a writer that runs.
type running struct {
	*Writer
	tb   testing.TB
	reg  *prometheus.Registry
	log  *logBuffer
	stop func() // and waits
}

func (r *rig) start(change ...func(*Config)) *running {
	r.tb.Helper()
	cfg := Config{Kafka: r.kafka.Config, ClickHouse: r.db.Config(), SessionTimeout: 2 * time.Second}
	for _, f := range change {
		f(&cfg)
	}
	log, reg := new(logBuffer), prometheus.NewRegistry()
	w, err := New(cfg, reg, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		r.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.tb.Context()))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.tb.Errorf("Run: %v", err)
			}
		case <-time.After(testDeadline):
			r.tb.Error("Run does not end")
		}
	})
	r.tb.Cleanup(func() {
		stop()
		if r.tb.Failed() {
			r.tb.Logf("the writer's log:\n%s", log)
		}
	})
	return &running{Writer: w, tb: r.tb, reg: reg, log: log, stop: stop}
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// await asks until the answer is nil.
func await(tb testing.TB, what string, ask func() error) {
	tb.Helper()
	deadline := time.After(testDeadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			tb.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// metric returns a metric's value, its children added up: those that have each of the values as a label's.
func (w *running) metric(name string, values ...string) float64 {
	w.tb.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "immutable_rootlog_"+name {
			var sum float64
			for _, m := range f.GetMetric() {
				if slices.ContainsFunc(values, func(v string) bool { return !strings.Contains(m.String(), strconv.Quote(v)) }) {
					continue
				}
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
			return sum
		}
	}
	w.tb.Fatalf("no metric %s", name)
	return 0
}

// awaitHalted waits until readiness names each text.
func (w *running) awaitHalted(reason string, texts ...string) {
	w.tb.Helper()
	await(w.tb, "waiting for a halt", func() error {
		err := w.Ready(w.tb.Context())
		for _, text := range append(texts, "the root log is halted") {
			if err == nil || !strings.Contains(err.Error(), text) {
				return fmt.Errorf("readiness says: %w", errors.Join(err, errors.New("not "+text)))
			}
		}
		return nil
	})
	if w.metric("halted", reason) != 1 || w.metric("halted") != 1 || w.metric("halts_total") != 1 {
		w.tb.Errorf("not halted for %s, or not counted once", reason)
	}
	if !strings.Contains(w.log.String(), "root log halted") {
		w.tb.Error("no halt logged")
	}
}

func (r *rig) count(query string) (n uint64) {
	r.tb.Helper()
	if err := r.conn.QueryRow(r.tb.Context(), query).Scan(&n); err != nil {
		r.tb.Fatalf("%s: %v", query, err)
	}
	return n
}

func (r *rig) exec(statement string) {
	r.tb.Helper()
	if err := r.conn.Exec(r.tb.Context(), statement); err != nil {
		r.tb.Fatalf("%s: %v", statement, err)
	}
}

// check is the oracle: the tables have the whole root log, once, and the tree that their hashes make is the notary's.
func (r *rig) check(w *running, checkpoints uint64) {
	r.tb.Helper()
	size := r.notary.Log.Size
	await(r.tb, "waiting for the rows", func() error {
		entries, have := r.count("SELECT uniqExact(entry_index) FROM root_log"), r.count("SELECT uniqExact(size, witnesses) FROM checkpoints")
		if entries != size || have != checkpoints {
			return fmt.Errorf("%d entries, want %d; %d checkpoints, want %d: %w", entries, size, have, checkpoints, w.Ready(r.tb.Context()))
		}
		return nil
	})
	if n := r.count("SELECT count() FROM root_log"); n != size {
		r.tb.Errorf("%d rows of %d entries", n, size)
	}
	if n := r.count("SELECT count() FROM checkpoints"); n != checkpoints {
		r.tb.Errorf("%d rows of %d checkpoints", n, checkpoints)
	}
	rows, err := r.conn.Query(r.tb.Context(), "SELECT entry_index, hash, node, type, time, entry FROM root_log ORDER BY entry_index")
	if err != nil {
		r.tb.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var head ledger.Head
	for rows.Next() {
		var index uint64
		var hash [32]byte
		var node, kind, text string
		var at time.Time
		if err := rows.Scan(&index, &hash, &node, &kind, &at, &text); err != nil {
			r.tb.Fatal(err)
		}
		e, err := ledger.ParseEntry([]byte(text))
		if err != nil {
			r.tb.Fatal(err)
		}
		var completed []byte
		for _, h := range head.AppendHash(ledger.EntryHash([]byte(text))) {
			completed = append(completed, h[:]...)
		}
		if e.Index != index || head.LastLeafHash != ledger.Hash(hash) || node != string(completed) || !at.Equal(e.Time) ||
			(kind == "key") != (e.Key != nil) {
			r.tb.Errorf("the row of entry %d is not that entry", index)
		}
	}
	if err := rows.Err(); err != nil {
		r.tb.Fatal(err)
	}
	if diff := cmp.Diff(r.notary.Log, head); diff != "" {
		r.tb.Errorf("root log (-notary's +tables'):\n%s", diff)
	}
}

func TestWrites(t *testing.T) {
	r := newRig(t)
	w := r.start()
	r.grow(3)
	r.check(w, 1)
	r.commit(append(r.notary.Rotate(t), r.notary.Checkpoint(t), r.notary.Checkpoint(t))...) // twice in one batch
	again := r.notary.Checkpoint(t)
	r.commit(r.notary.Checkpoint(t)) // the same once more
	var c recordpb.SignedCheckpoint
	if err := proto.Unmarshal(again.Value, &c); err != nil {
		t.Fatal(err)
	}
	c.Witnesses, c.Quorum = 1, true // and with a cosignature
	again.Value, _ = proto.Marshal(&c)
	r.commit(again)
	r.check(w, 3)
	r.grow(700) // completes subtrees of 256
	r.check(w, 4)
	if err := w.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if n := w.metric("rows_total"); n != float64(r.notary.Log.Size+4) {
		t.Errorf("%v rows counted", n)
	}
	if n := w.metric("records_skipped_total"); n != 2 {
		t.Errorf("%v records skipped, want those of the checkpoint that came three times", n)
	}
	var note string
	var quorum bool
	row := r.conn.QueryRow(t.Context(), "SELECT note, quorum FROM checkpoints ORDER BY size, witnesses LIMIT 1 OFFSET 2")
	if err := row.Scan(&note, &quorum); err != nil || note != string(c.Note) || !quorum {
		t.Errorf("%v: note %q, quorum %t", err, note, quorum)
	}
}

// A writer goes on where the tables are, whatever its group remembers.
func TestGoesOn(t *testing.T) {
	r := newRig(t)
	w := r.start()
	r.grow(300)
	r.check(w, 1)
	w.stop()
	r.grow(5)
	w = r.start()
	r.check(w, 2)
	w.stop()
	if err := Rebuild(t.Context(), r.kafka.Config, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	r.grow(5)
	w = r.start(func(c *Config) { c.BatchRecords = 7 }) // other batches than before
	r.check(w, 3)
}

// Two writers: one writes, the other takes over.
func TestTakesOver(t *testing.T) {
	r := newRig(t)
	first := r.start()
	r.grow(2)
	r.check(first, 1)
	second := r.start()
	await(t, "waiting for the second", func() error { return second.Ready(t.Context()) })
	first.stop()
	r.grow(2)
	r.check(second, 2)
}

// Rows are lost: the writer halts rather than leave a gap, and writes them again after a rebuild.
func TestRowsLost(t *testing.T) {
	for name, where := range map[string]string{"all": "true", "the last": "entry_index >= 200", "some": "entry_index IN (5, 77)"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			w := r.start()
			r.grow(300)
			r.check(w, 1)
			w.stop()
			r.exec("ALTER TABLE root_log DELETE WHERE " + where + " SETTINGS mutations_sync = 1") // it leaves the inserts' tokens
			r.exec("ALTER TABLE checkpoints DELETE WHERE true SETTINGS mutations_sync = 1")
			r.grow(1)
			w = r.start()
			w.awaitHalted(haltRows, "root_log lacks entry", "immutable rebuild")
			w.stop()
			if n := r.count("SELECT count() FROM checkpoints"); n != 0 {
				t.Errorf("%d checkpoints without their entries", n)
			}
			if err := Rebuild(t.Context(), r.kafka.Config, slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
			w = r.start()
			if name != "some" { // from the first that is missing on, rows are there twice: readers take one
				r.check(w, 2)
				return
			}
			await(t, "waiting for the rows", func() error {
				if n := r.count("SELECT uniqExact(entry_index) FROM root_log"); n != r.notary.Log.Size {
					return fmt.Errorf("%d entries", n)
				}
				return w.Ready(t.Context())
			})
		})
	}
}

// What is not as it must be halts the writer, and what stands before it is written.
func TestHalts(t *testing.T) {
	t.Parallel()
	entry := func(tb testing.TB, r *kgo.Record, change func(*recordpb.LogEntry)) {
		tb.Helper()
		var e recordpb.LogEntry
		if err := proto.Unmarshal(r.Value, &e); err != nil {
			tb.Fatal(err)
		}
		change(&e)
		r.Value, _ = proto.Marshal(&e)
	}
	checkpoint := func(tb testing.TB, r *kgo.Record, change func(*recordpb.SignedCheckpoint)) {
		tb.Helper()
		var c recordpb.SignedCheckpoint
		if err := proto.Unmarshal(r.Value, &c); err != nil {
			tb.Fatal(err)
		}
		change(&c)
		r.Value, _ = proto.Marshal(&c)
	}
	epoch := func(r *rig) *kgo.Record { return r.notary.Epoch(r.tb)[0] }
	for _, tc := range []struct {
		name   string
		record func(*rig) *kgo.Record
		reason string
		want   string
	}{
		{"key", func(r *rig) *kgo.Record { e := epoch(r); e.Key = []byte("x"); return e }, haltRecord, `key "x"`},
		{"no protobuf", func(r *rig) *kgo.Record { e := epoch(r); e.Value = []byte("x"); return e }, haltRecord, "decoding the entry"},
		{"no entry", func(r *rig) *kgo.Record {
			e := epoch(r)
			entry(r.tb, e, func(l *recordpb.LogEntry) { l.Entry = []byte("{}") })
			return e
		}, haltRecord, "invalid entry"},
		{"hash", func(r *rig) *kgo.Record {
			e := epoch(r)
			entry(r.tb, e, func(l *recordpb.LogEntry) { l.Hash[0] ^= 1 })
			return e
		}, haltRecord, "its bytes have"},
		{"node", func(r *rig) *kgo.Record {
			e := epoch(r)
			entry(r.tb, e, func(l *recordpb.LogEntry) { l.Node = l.Hash })
			return e
		}, haltRecord, "completes nodes"},
		{"root", func(r *rig) *kgo.Record {
			e := epoch(r)
			entry(r.tb, e, func(l *recordpb.LogEntry) { l.Root[0] ^= 1 })
			return e
		}, haltRecord, "leads to root"},
		{"another history", func(r *rig) *kgo.Record { r.notary.Log.LastLeafHash[0] ^= 1; return epoch(r) }, haltRecord, "follows hash"},
		{"a gap", func(r *rig) *kgo.Record { epoch(r); return epoch(r) }, haltRows, "root_log lacks entry 3"},
		{"checkpoint of nothing", func(r *rig) *kgo.Record { epoch(r); return r.notary.Checkpoint(r.tb) }, haltRows, "root_log lacks entry 3"},
		{"checkpoint's root", func(r *rig) *kgo.Record {
			c := r.notary.Checkpoint(r.tb)
			checkpoint(r.tb, c, func(s *recordpb.SignedCheckpoint) { s.Root[0] ^= 1 })
			return c
		}, haltRecord, "has a note of size"},
		{"checkpoint's witnesses", func(r *rig) *kgo.Record {
			c := r.notary.Checkpoint(r.tb)
			checkpoint(r.tb, c, func(s *recordpb.SignedCheckpoint) { s.Witnesses = 1 << 20 })
			return c
		}, haltRecord, "at most 1000"},
		{"checkpoint of another tree", func(r *rig) *kgo.Record {
			r.notary.Log.Range[0][0] ^= 1
			return r.notary.Checkpoint(r.tb)
		}, haltRecord, "states root"},
		{"no note", func(r *rig) *kgo.Record {
			c := r.notary.Checkpoint(r.tb)
			checkpoint(r.tb, c, func(s *recordpb.SignedCheckpoint) { s.Note = nil })
			return c
		}, haltRecord, "invalid checkpoint"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.grow(2)
			r.commit(tc.record(r))
			w := r.start()
			w.awaitHalted(tc.reason, tc.want)
			if n := r.count("SELECT count() FROM root_log"); n != 3 {
				t.Errorf("%d entries, want those before", n)
			}
			if n := r.count("SELECT count() FROM checkpoints"); n != 1 {
				t.Errorf("%d checkpoints, want the one before", n)
			}
		})
	}
}

// The tables have another root log than the topic.
func TestAnotherLog(t *testing.T) {
	r := newRig(t)
	w := r.start()
	r.grow(2)
	r.check(w, 1)
	w.stop()
	other := newRig(t)
	other.notary.Start = other.notary.Start.Add(time.Hour)
	other.db, other.conn = r.db, r.conn
	other.grow(2)
	w = other.start()
	w.awaitHalted(haltTables, "root_log has entry 2 with hash")
	w.stop()
	if n := r.count("SELECT count() FROM root_log"); n != 3 {
		t.Errorf("%d entries", n)
	}
	// A stored hash that was changed shows when the tree is made of it.
	r.exec("ALTER TABLE root_log UPDATE hash = unhex(repeat('00', 32)) WHERE entry_index = 1 SETTINGS mutations_sync = 1")
	r.grow(1)
	w = r.start()
	w.awaitHalted(haltRecord, "leads to root")
}

func TestClickHouseAway(t *testing.T) {
	r := newRig(t)
	r.exec("RENAME TABLE root_log TO away")
	r.grow(2)
	w := r.start()
	await(t, "waiting for the outage", func() error {
		if w.metric("insert_retries_total") == 0 || w.metric("outage") != 1 || w.Ready(t.Context()) == nil {
			return errors.New("none")
		}
		return nil
	})
	r.exec("RENAME TABLE away TO root_log")
	r.check(w, 1)
	await(t, "waiting for readiness", func() error { return w.Ready(t.Context()) })
}

func TestKafkaAway(t *testing.T) {
	r := newRig(t)
	var refusals int
	// The client itself tries again what a connection loses; what the broker refuses it leaves to the writer.
	r.kafka.Fake.ControlKey(int16(kmsg.OffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.Fake.KeepControl()
		if refusals++; refusals > 3 {
			return nil, nil, false
		}
		commit := req.(*kmsg.OffsetCommitRequest)
		resp := commit.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, topic := range commit.Topics {
			refused := kmsg.OffsetCommitResponseTopic{Topic: topic.Topic, TopicID: topic.TopicID}
			for _, p := range topic.Partitions {
				refused.Partitions = append(refused.Partitions, kmsg.OffsetCommitResponseTopicPartition{
					Partition: p.Partition, ErrorCode: kerr.UnknownServerError.Code,
				})
			}
			resp.Topics = append(resp.Topics, refused)
		}
		return resp, nil, true
	})
	w := r.start()
	r.grow(2)
	r.check(w, 1)
	await(t, "waiting for the commit", func() error {
		if w.metric("commit_retries_total") == 0 {
			return errors.New("none was tried again")
		}
		return w.Ready(t.Context())
	})
}

func TestSchema(t *testing.T) {
	r := newRig(t)
	w, err := New(Config{Kafka: r.kafka.Config, ClickHouse: clickhousetest.StartEmpty(t).Config()}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r.exec("ALTER TABLE schema_migrations DELETE WHERE version = 2 SETTINGS mutations_sync = 1")
	w.cfg.ClickHouse = r.db.Config()
	if err := w.Run(t.Context()); !errors.Is(err, clickhouse.ErrSchemaOlder) {
		t.Errorf("Run: %v", err)
	}
}

func TestValidate(t *testing.T) {
	good := Config{ClickHouse: clickhouse.Config{DSN: "clickhouse://127.0.0.1:9/db"}}
	good.Kafka.Brokers = []string{"127.0.0.1:9"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*Config){
		func(c *Config) { c.Kafka.Brokers = nil }, func(c *Config) { c.ClickHouse.DSN = "" }, func(c *Config) { c.BatchRecords = -1 },
		func(c *Config) { c.FetchBytes = 1 }, func(c *Config) { c.InsertTimeout = 1 }, func(c *Config) { c.SessionTimeout = time.Hour },
		func(c *Config) { c.DrainTimeout = time.Hour },
	} {
		c := good
		change(&c)
		if _, err := New(c, prometheus.NewRegistry(), slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

// FuzzRecords: whatever is on the topic is read or refused.
func FuzzRecords(f *testing.F) {
	n := notarytest.New("example.com/ledger")
	f.Add(n.Rotate(f)[0].Value)
	f.Add(n.Checkpoint(f).Value)
	f.Fuzz(func(t *testing.T, value []byte) {
		if e, err := readEntry(value); err == nil && ledger.EntryHash(e.record.GetEntry()) != ledger.Hash(e.record.GetHash()) {
			t.Error("an entry whose hash is another's")
		}
		if c, err := readCheckpoint(value); err == nil && (c.GetSize() == 0 || c.root != ledger.Hash(c.GetRoot())) {
			t.Error("a checkpoint that its note does not state")
		}
	})
}
