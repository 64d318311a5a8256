package verifier

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/internal/notarytest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }

// deadline is how long a test waits for what must happen. It is never reached when all is well.
const deadline = 30 * time.Second

// rig is an installation: a ledger in ClickHouse, what the notary says of it in Kafka, and a verifier.
type rig struct {
	*Verifier

	t        testing.TB
	kafka    *kafkatest.Cluster
	server   *clickhousetest.Server
	conn     driver.Conn
	ledger   *ledgertest.Ledger
	registry *prometheus.Registry
	// entries of the root log are in Kafka.
	entries int

	mu sync.Mutex
	// writtenTo is what the verifier is told; asked is called before it is.
	writtenTo map[int32]int64
	asked     func()
}

func newRig(tb testing.TB, cfg Config) *rig {
	tb.Helper()
	r := &rig{
		t: tb, kafka: kafkatest.Start(tb), server: clickhousetest.Start(tb), ledger: ledgertest.New(), registry: prometheus.NewPedanticRegistry(),
		writtenTo: map[int32]int64{},
	}
	r.conn = r.server.Conn(tb)
	for p := range int32(ledgertest.Partitions) {
		r.writtenTo[p] = 1 << 40
	}
	cfg.Kafka, cfg.ClickHouse = r.kafka.Config, r.server.Config()
	cfg.Settle, cfg.Interval = cmp.Or(cfg.Settle, time.Millisecond), cmp.Or(cfg.Interval, 20*time.Millisecond)
	var err error
	if r.Verifier, err = New(cfg, r.written, r.registry, slog.New(slog.NewTextHandler(tb.Output(), nil))); err != nil {
		tb.Fatal(err)
	}
	return r
}

// opened is for tests that call run.
func (r *rig) opened() *rig {
	r.t.Helper()
	if err := r.open(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.client.Close)
	return r
}

func (r *rig) written() map[int32]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked != nil {
		r.asked()
	}
	return maps.Clone(r.writtenTo)
}

// chain adds a chain on the partition that an installation has it on.
func (r *rig) chain(workspace byte, lane, lanes uint32) *ledgertest.Chain {
	c := r.ledger.Chain(workspace, 1, lane, lanes)
	c.Partition = uint16(event.Partition(c.Workspace, lane, ledgertest.Partitions))
	return c
}

// epoch states all chains as they are, signs that, and puts it into the notary's topics.
func (r *rig) epoch() {
	r.t.Helper()
	r.ledger.Epoch()
	var records []*kgo.Record
	for _, c := range r.ledger.Chains {
		if len(c.Leaves) == 0 {
			continue
		}
		head := ledger.Head{Chain: c.ID}
		for i := range c.Leaves {
			head.AppendHash(c.Leaves[i].Hash)
		}
		root := head.Root()
		records = append(records, r.record(schemas.TopicNotaryState, fmt.Sprintf("%x", c.ID), &recordpb.NotaryChain{
			Epoch: uint64(len(r.ledger.Entries) - 1),
			Head: &recordpb.ChainHead{
				Chain: c.ID[:], Workspace: c.Workspace[:], Incarnation: c.Incarnation[:], Lane: c.Lane, Lanes: c.Lanes, Size: head.Size,
				Root: root[:], LastLeafHash: head.LastLeafHash[:], Range: bytesOf(head.Range),
			},
		}))
	}
	var log ledger.Head
	for i, text := range r.ledger.Entries {
		hash := ledger.EntryHash(text)
		node := log.AppendHash(hash)
		if i < r.entries {
			continue
		}
		root := log.Root()
		records = append(records, r.record(schemas.TopicCheckpoints, fmt.Sprint("entry/", i), &recordpb.LogEntry{
			Entry: text, Hash: hash[:], Node: bytesOf(node), Size: log.Size, Root: root[:],
		}))
	}
	r.entries = len(r.ledger.Entries)
	records = append(records,
		r.record(schemas.TopicNotaryState, "partition/0", &recordpb.NotaryPartition{}),
		r.record(schemas.TopicNotaryState, "log", &recordpb.NotaryLog{Size: log.Size, LastEntryHash: log.LastLeafHash[:], Range: bytesOf(log.Range)}))
	notarytest.Commit(r.t, r.kafka, records...)
}

func bytesOf(hashes []ledger.Hash) (b []byte) {
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b
}

func (r *rig) record(topic, key string, m proto.Message) *kgo.Record {
	r.t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		r.t.Fatal(err)
	}
	return &kgo.Record{Topic: topic, Key: []byte(key), Value: value}
}

// write puts the ledger into the tables, in place of what is there.
func (r *rig) write() {
	r.t.Helper()
	for _, table := range []string{"events", "leaves", "root_log", "checkpoints"} {
		r.exec("TRUNCATE TABLE %s", table)
	}
	if err := r.ledger.Write(r.t.Context(), r.conn); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) exec(format string, args ...any) {
	r.t.Helper()
	text := fmt.Sprintf(format, args...)
	if strings.HasPrefix(text, "ALTER") {
		text += " SETTINGS mutations_sync = 2"
	}
	if err := r.conn.Exec(r.t.Context(), text); err != nil {
		r.t.Fatalf("%s: %v", text, err)
	}
}

// once runs the verifier once.
func (r *rig) once() {
	r.t.Helper()
	if err := r.run(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// reported are the events about faults on the topic events, with the workspace they are in: n of them and not one more.
func (r *rig) reported(n int) (all []*recordpb.Event) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), deadline)
	defer cancel()
	if err := r.client.Flush(ctx); err != nil {
		r.t.Fatal(err)
	}
	if have := int(r.value("immutable_verifier_events_total", "")); have != n {
		r.t.Errorf("%d events were written, want %d", have, n)
		n = have
	}
	if n == 0 {
		return nil
	}
	records := r.kafka.Consume(r.t, schemas.TopicEvents, n)
	for _, rec := range records {
		e := new(recordpb.Event)
		if err := proto.Unmarshal(rec.Value, e); err != nil {
			r.t.Fatal(err)
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *recordpb.Event) int { return strings.Compare(placeOf(a), placeOf(b)) })
	return all
}

// placeOf is what an event says of a fault, in the form of ledger.Fault.
func placeOf(e *recordpb.Event) string {
	at := map[string]string{}
	for i, key := range e.GetMetadataKeys() {
		at[key] = e.GetMetadataValues()[i]
	}
	text := at["verdict"]
	for _, key := range []string{"sequence", "last"} {
		if v, ok := at[key]; ok {
			text += " " + v
		}
	}
	return text
}

func places(events []*recordpb.Event) (all []string) {
	for _, e := range events {
		all = append(all, placeOf(e))
	}
	return all
}

// value of a counter or gauge, summed over those whose labels hold text.
func (r *rig) value(name, label string) (sum float64) {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == label }) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// silent fails the test where anything was found.
func (r *rig) silent() {
	r.t.Helper()
	if n := r.value("immutable_verifier_faults_total", ""); n != 0 {
		r.t.Errorf("%v faults were found", n)
	}
	if n := r.value("immutable_verifier_failing_chains", ""); n != 0 {
		r.t.Errorf("%v chains fail", n)
	}
	r.reported(0)
}

// long skips a test of more than a second or two in a short run.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes more than a second or two")
	}
}
