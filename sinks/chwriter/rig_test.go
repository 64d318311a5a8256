package chwriter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/loadgen"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "writer" {
		os.Exit(writerProcess(os.Args[2:]))
	}
	os.Exit(clickhousetest.Main(m))
}

const testDeadline = 30 * time.Second

// await asks until the answer is nil.
func await(tb testing.TB, what string, ask func() error) {
	tb.Helper()
	deadline := time.After(testDeadline)
	tick := time.NewTicker(10 * time.Millisecond)
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

// sealer makes the ledger records of a workspace as the processor does.
type sealer struct {
	tb         testing.TB
	ws         event.Workspace
	partitions int32
	builder    *event.Builder
	generator  *loadgen.Generator
	heads      map[ledger.ChainID]*ledger.Head
	offsets    map[int32]uint64 // of the input
	clock      time.Time
}

func newSealer(tb testing.TB, partitions int32) *sealer {
	tb.Helper()
	generator, err := loadgen.New(loadgen.Config{Seed: 1})
	if err != nil {
		tb.Fatal(err)
	}
	return &sealer{
		tb: tb, ws: event.Workspace{ID: [16]byte{1}, Incarnation: [16]byte{2}, Lanes: uint32(partitions)}, partitions: partitions,
		builder: event.NewBuilder(), generator: generator, heads: make(map[ledger.ChainID]*ledger.Head),
		offsets: make(map[int32]uint64), clock: time.Now(),
	}
}

// events returns the ledger records of n generated events.
func (s *sealer) events(n int) (records []*kgo.Record) {
	s.tb.Helper()
	for range n {
		json, _ := s.generator.Append(nil)
		records = append(records, s.event(json)...)
	}
	return records
}

// event returns the ledger records of one event: itself, with a genesis before it where it is its chain's first.
func (s *sealer) event(json []byte) (records []*kgo.Record) {
	s.tb.Helper()
	return s.input(event.Input{JSON: json})
}

func (s *sealer) input(in event.Input) (records []*kgo.Record) {
	s.tb.Helper()
	s.clock = s.clock.Add(time.Microsecond)
	in.RecordedAt = s.clock
	r, err := s.builder.Build(&s.ws, in)
	if err != nil {
		s.tb.Fatal(err)
	}
	var e recordpb.Event
	if err := proto.Unmarshal(r.Value, &e); err != nil {
		s.tb.Fatal(err)
	}
	partition := event.Partition(s.ws.ID, r.Lane, s.partitions)
	chain := ledger.NewChainID(s.ws.ID, s.ws.Incarnation, r.Lane)
	head := s.heads[chain]
	if head == nil {
		head = &ledger.Head{Chain: chain}
		s.heads[chain] = head
		leaf := ledger.Genesis(s.ws.ID, s.ws.Incarnation, r.Lane, s.ws.Lanes, e.RecordedAt, 0)
		genesis := &recordpb.Event{
			Kind: recordpb.Kind_KIND_GENESIS, Workspace: e.Workspace, Incarnation: e.Incarnation, Lane: e.Lane, Lanes: e.Lanes,
			RecordedAt: e.RecordedAt, BodyRoot: leaf.BodyRoot[:],
		}
		records = append(records, s.record(head, &leaf, genesis, r.Key, partition, s.clock))
	}
	leaf := ledger.Leaf{
		Kind: ledger.Kind(e.Kind), ID: r.ID, RecordedAt: e.RecordedAt, Partition: uint16(partition), Offset: s.offsets[partition],
		FieldCount: uint16(e.FieldCount), BodyRoot: ledger.Hash(e.BodyRoot),
	}
	s.offsets[partition]++
	return append(records, s.record(head, &leaf, &e, r.Key, partition, s.clock))
}

func (s *sealer) record(
	head *ledger.Head, leaf *ledger.Leaf, e *recordpb.Event, key []byte, partition int32, at time.Time,
) *kgo.Record {
	s.tb.Helper()
	hash, nodes := head.Append(leaf)
	sealed := &recordpb.Sealed{
		Event: e, Chain: leaf.Chain[:], Sequence: leaf.Sequence, Previous: leaf.Previous[:], LeafHash: hash[:],
		Partition: uint32(leaf.Partition), Offset: leaf.Offset,
	}
	for _, n := range nodes {
		sealed.Node = append(sealed.Node, n[:]...)
	}
	value, err := proto.Marshal(sealed)
	if err != nil {
		s.tb.Fatal(err)
	}
	return &kgo.Record{Topic: schemas.TopicLedger, Partition: partition, Key: key, Value: value, Timestamp: at}
}

// rig is a Kafka, a database, and a sealer for them.
type rig struct {
	tb     testing.TB
	kafka  *kafkatest.Cluster
	dsn    string
	sealer *sealer
	conn   driver.Conn
	admin  *kadm.Client
}

func newRig(tb testing.TB) *rig {
	tb.Helper()
	db := clickhousetest.Start(tb)
	return newRigOn(tb, db.DSN())
}

func newRigOn(tb testing.TB, dsn string) *rig {
	tb.Helper()
	return newRigWith(tb, kafkatest.Start(tb, kfake.GroupMinSessionTimeout(time.Second)), dsn)
}

func newRigWith(tb testing.TB, k *kafkatest.Cluster, dsn string) *rig {
	tb.Helper()
	conn, err := clickhouse.Open(clickhouse.Config{DSN: dsn})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return &rig{
		tb: tb, kafka: k, dsn: dsn, conn: conn, sealer: newSealer(tb, k.Layout.Partitions), admin: kadm.NewClient(k.Client(tb)),
	}
}

func (r *rig) config() Config {
	return Config{
		Kafka: r.kafka.Config, ClickHouse: clickhouse.Config{DSN: r.dsn},
		Linger: 20 * time.Millisecond, VerifyEvery: 1, SessionTimeout: 2 * time.Second,
	}
}

func (r *rig) produce(n int) {
	r.tb.Helper()
	r.kafka.Produce(r.tb, r.sealer.events(n)...)
}

// running is a writer that runs.
type running struct {
	*Writer
	tb   testing.TB
	reg  *prometheus.Registry
	log  *logBuffer
	stop func() // and waits
}

// newView is a view of redactions that does not run.
func newView(tb testing.TB, cfg kafka.Config) *control.View {
	tb.Helper()
	view, err := control.NewView(control.ViewConfig{Kafka: cfg, RedactionsOnly: true}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	return view
}

// start runs a writer until the test's end or stop.
func (r *rig) start(cfg Config) *running {
	r.tb.Helper()
	log := &logBuffer{}
	reg := prometheus.NewRegistry()
	view := newView(r.tb, r.kafka.Config)
	w, err := New(cfg, view, reg, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		r.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.tb.Context()))
	done := make(chan error, 1)
	var viewing sync.WaitGroup
	viewing.Go(func() { _ = view.Run(ctx) })
	go func() { done <- w.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		defer viewing.Wait()
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

// metric returns a metric's value, its children added up.
func (w *running) metric(name string) float64 {
	w.tb.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "immutable_chwriter_"+name {
			var sum float64
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
			return sum
		}
	}
	w.tb.Fatalf("no metric %s", name)
	return 0
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

func (r *rig) count(query string, args ...any) (n uint64) {
	r.tb.Helper()
	if err := r.conn.QueryRow(r.tb.Context(), query, args...).Scan(&n); err != nil {
		r.tb.Fatalf("%s: %v", query, err)
	}
	return n
}

// awaitWritten waits until the tables have every leaf that was sealed.
func (r *rig) awaitWritten() {
	r.tb.Helper()
	var want uint64
	for _, h := range r.sealer.heads {
		want += h.Size - 1
	}
	await(r.tb, "waiting for the rows", func() error {
		if n := r.count("SELECT uniqExact(id) FROM events"); n < want {
			return fmt.Errorf("events has %d of %d", n, want)
		}
		return nil
	})
}

// check is the oracle: after anything that may have happened, the tables have each sealed record once.
func (r *rig) check() {
	r.tb.Helper()
	r.awaitWritten()
	var leaves, events uint64
	for _, h := range r.sealer.heads {
		leaves += h.Size
		events += h.Size - 1
	}
	type sums struct{ Leaves, Distinct, Dense, Events, IDs, DenseEvents uint64 }
	got := sums{
		Leaves:      r.count("SELECT count() FROM leaves"),
		Distinct:    r.count("SELECT uniqExact(chain, sequence) FROM leaves"),
		Dense:       r.count("SELECT toUInt64(sum(m + 1)) FROM (SELECT max(sequence) AS m FROM leaves GROUP BY chain)"),
		Events:      r.count("SELECT count() FROM events"),
		IDs:         r.count("SELECT uniqExact(id) FROM events"),
		DenseEvents: r.count("SELECT toUInt64(sum(m)) FROM (SELECT max(sequence) AS m FROM events GROUP BY chain)"),
	}
	want := sums{leaves, leaves, leaves, events, events, events}
	if diff := cmp.Diff(want, got); diff != "" {
		r.tb.Errorf("the tables are not what was sealed (-want +got):\n%s", diff)
	}
	// Each leaf follows from the one before: the hashes are those of the topic.
	for chain, h := range r.sealer.heads {
		var last string
		err := r.conn.QueryRow(r.tb.Context(), "SELECT leaf_hash FROM leaves WHERE chain = ? ORDER BY sequence DESC LIMIT 1",
			string(chain[:])).Scan(&last)
		if err != nil {
			r.tb.Fatal(err)
		}
		if last != string(h.LastLeafHash[:]) {
			r.tb.Errorf("the last leaf of chain %x is not the one that was sealed", chain)
		}
	}
}

// committed returns the group's offsets and metadata by partition, as "offset metadata".
func (r *rig) committed() map[int32]string {
	r.tb.Helper()
	offsets, err := r.admin.FetchOffsets(r.tb.Context(), r.kafka.Config.Group(schemas.GroupClickHouse))
	if err != nil {
		r.tb.Fatal(err)
	}
	got := make(map[int32]string)
	offsets.Each(func(o kadm.OffsetResponse) {
		if o.At >= 0 {
			got[o.Partition] = strings.TrimSpace(fmt.Sprint(o.At, " ", o.Metadata))
		}
	})
	return got
}

// setCommitted commits offsets as "offset metadata" for a group that nobody is in.
func (r *rig) setCommitted(offsets map[int32]kadm.Offset) {
	r.tb.Helper()
	all := make(kadm.Offsets)
	for p, o := range offsets {
		o.Topic, o.Partition, o.LeaderEpoch = r.kafka.Config.Topic(schemas.TopicLedger), p, -1
		all.Add(o)
	}
	if err := r.admin.CommitAllOffsets(r.tb.Context(), r.kafka.Config.Group(schemas.GroupClickHouse), all); err != nil {
		r.tb.Fatal(err)
	}
}

// ends returns the topic's end offsets as committed shows them: everything written, nothing announced.
func (r *rig) ends() map[int32]string {
	r.tb.Helper()
	offsets, err := r.admin.ListCommittedOffsets(r.tb.Context(), r.kafka.Config.Topic(schemas.TopicLedger))
	if err != nil {
		r.tb.Fatal(err)
	}
	got := make(map[int32]string)
	offsets.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			got[o.Partition] = fmt.Sprint(o.Offset)
		}
	})
	return got
}

func (w *running) awaitReady() {
	w.tb.Helper()
	await(w.tb, "waiting for readiness", func() error { return w.Ready(w.tb.Context()) })
}

// awaitHalted waits until readiness names each text.
func (w *running) awaitHalted(texts ...string) {
	w.tb.Helper()
	await(w.tb, "waiting for a halt", func() error {
		err := w.Ready(w.tb.Context())
		for _, text := range texts {
			if err == nil || !strings.Contains(err.Error(), text) {
				return fmt.Errorf("readiness says: %w", errors.Join(err, errors.New("not "+text)))
			}
		}
		return nil
	})
	if w.metric("halts_total") == 0 {
		w.tb.Error("no halt counted")
	}
	if !strings.Contains(w.log.String(), "partition halted") {
		w.tb.Error("no halt logged")
	}
}

func counterValue(tb testing.TB, c prometheus.Metric) float64 {
	tb.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		tb.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// long skips a test of more than a second or two in a short run.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes more than a second or two")
	}
}
