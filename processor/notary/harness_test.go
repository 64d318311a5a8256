package notary

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/processor"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// deadline is how long a test waits for what must happen. It is never reached when all is well.
const deadline = time.Minute

// testPartitions is the number of partitions that kafkatest makes, and of lanes of these tests' workspaces.
const testPartitions = 4

const testOrigin = "log.example/test"

// await waits until done returns nil.
func await(tb testing.TB, what string, done func(ctx context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), deadline)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			tb.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// testConfig is a configuration with short epochs, and a key and a lock file of its own.
func testConfig(tb testing.TB, c *kafkatest.Cluster) Config {
	tb.Helper()
	dir := tb.TempDir()
	cfg := Config{
		Kafka: c.Config, Layout: c.Layout, KeyFile: filepath.Join(dir, "key"), LockFile: filepath.Join(dir, "lock"),
		EpochInterval: 20 * time.Millisecond, IdleInterval: time.Hour,
	}
	if _, err := CreateKey(cfg.KeyFile, testOrigin); err != nil {
		tb.Fatal(err)
	}
	return cfg
}

// running is a notary that runs beside the test.
type running struct {
	*Notary
	registry *prometheus.Registry
	cancel   context.CancelFunc
	done     chan error
	ended    bool
}

func newNotary(tb testing.TB, cfg Config) *running {
	tb.Helper()
	registry := prometheus.NewPedanticRegistry()
	n, err := New(cfg, registry, slog.New(slog.NewTextHandler(tb.Output(), nil)))
	if err != nil {
		tb.Fatal(err)
	}
	return &running{Notary: n, registry: registry, done: make(chan error, 1)}
}

// start runs a notary until stop, or the end of the test.
func start(tb testing.TB, cfg Config) *running {
	tb.Helper()
	n := newNotary(tb, cfg)
	n.start(tb)
	return n
}

func (n *running) start(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() { n.done <- n.Run(ctx) }()
	tb.Cleanup(func() { n.stop(tb) })
}

// stop ends the notary and waits for it.
func (n *running) stop(tb testing.TB) {
	tb.Helper()
	if n.ended {
		return
	}
	n.cancel()
	select {
	case err := <-n.done:
		if err != nil {
			tb.Errorf("the notary ended with %v", err)
		}
		n.ended = true
	case <-time.After(deadline):
		tb.Fatal("the notary does not end")
	}
}

// metric returns the value of a counter or gauge, its children added up.
func (n *running) metric(tb testing.TB, name string) float64 {
	tb.Helper()
	families, err := n.registry.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() == "immutable_notary_"+name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// fillBytes returns n bytes that depend on the numbers.
func fillBytes(n int, numbers ...uint64) []byte {
	var b []byte
	for _, x := range numbers {
		b = binary.BigEndian.AppendUint64(b, x)
	}
	sum := sha256.Sum256(b)
	return sum[:n]
}

// recordedAt is the time of the first event, in microseconds: the year 2100. What is older than the topics' retention, a
// real broker deletes under the test.
const recordedAt = 4_102_444_800_000_000

// produceEvents writes events number first to first+n-1, of as many workspaces over all lanes, as ingest would have.
func produceEvents(tb testing.TB, c *kafkatest.Cluster, workspaces, first, n int) {
	tb.Helper()
	records := make([]*kgo.Record, n)
	for i := range records {
		number := uint64(first + i)
		ws := number % uint64(workspaces)
		lane := uint32(number / uint64(workspaces) % testPartitions)
		e := &recordpb.Event{
			Id: fillBytes(16, number, 1), Kind: recordpb.Kind_KIND_EVENT, Workspace: fillBytes(16, ws, 2),
			Incarnation: fillBytes(16, ws, 3), Lane: lane, Lanes: testPartitions, RecordedAt: recordedAt + int64(number),
			Seed: fillBytes(16, number, 4), Body: []byte(`{"action":"deploy"}`), FieldCount: 1, BodyRoot: fillBytes(32, number, 5),
			Action: "deploy",
		}
		value, err := proto.Marshal(e)
		if err != nil {
			tb.Fatal(err)
		}
		workspace := [16]byte(e.GetWorkspace())
		records[i] = &kgo.Record{
			Topic: schemas.TopicEvents, Partition: event.Partition(workspace, lane, testPartitions),
			Key: event.RecordKey(workspace, lane), Value: value, Timestamp: time.UnixMicro(e.GetRecordedAt()),
		}
	}
	c.Produce(tb, records...)
}

// sealer is a processor that runs beside the test until its end.
func sealer(tb testing.TB, c *kafkatest.Cluster) {
	tb.Helper()
	p, err := processor.New(processor.Config{
		Kafka: c.Config, Layout: c.Layout, TransactionInterval: 10 * time.Millisecond, DedupLeaves: 1000,
	}, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(tb.Output(), nil)))
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
}

// awaitCovered waits until the newest signed checkpoint covers all leaves of events, of which there are none under way.
func awaitCovered(tb testing.TB, c *kafkatest.Cluster, events int) *audit {
	tb.Helper()
	var a *audit
	admin := kadm.NewClient(c.Client(tb))
	await(tb, "a checkpoint that covers everything", func(ctx context.Context) error {
		var err error
		if a, err = auditTopics(ctx, tb, c, admin); err != nil {
			return err
		}
		if a.covered != events {
			return fmt.Errorf("%d of %d events are covered by the checkpoint of size %d", a.covered, events, a.newest)
		}
		return nil
	})
	return a
}

// readAll returns the committed records of a topic, named without the prefix.
func readAll(ctx context.Context, tb testing.TB, c *kafkatest.Cluster, admin *kadm.Client, topic string) ([]*kgo.Record, error) {
	tb.Helper()
	name := c.Config.Topic(topic)
	ends, err := admin.ListCommittedOffsets(ctx, name)
	if err != nil {
		return nil, err
	}
	starts, err := admin.ListStartOffsets(ctx, name)
	if err != nil {
		return nil, err
	}
	var records []*kgo.Record
	from := make(map[int32]kgo.Offset)
	left := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		first, _ := starts.Lookup(name, o.Partition)
		if first.Offset < o.Offset {
			from[o.Partition] = kgo.NewOffset().At(first.Offset)
			left[o.Partition] = o.Offset
		}
	})
	if len(left) == 0 {
		return nil, nil
	}
	cl := c.Client(tb, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: from}), kgo.KeepControlRecords(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(50*time.Millisecond))
	defer cl.Close()
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		for r := range fetches.RecordsAll() {
			if !r.Attrs.IsControl() {
				records = append(records, r)
			}
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
		}
	}
	return records, nil
}

func hasPrefix(key []byte, prefix string) bool { return bytes.HasPrefix(key, []byte(prefix)) }

func kadmOf(tb testing.TB, c *kafkatest.Cluster) *kadm.Client {
	tb.Helper()
	return kadm.NewClient(c.Client(tb))
}

func kgoTransactionalID(c *kafkatest.Cluster) kgo.Opt {
	return kgo.TransactionalID(c.Config.Group(schemas.TransactionalIDNotary))
}

// long skips a test of more than a second or two in a short run.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes more than a second or two")
	}
}
