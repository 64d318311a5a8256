package processor

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// benchEvent is an event of 450 bytes.
const benchEvent = `{"action":"deployment.completed","actor_id":"ci-runner-%04d","actor_name":"CI runner","actor_type":"service",` +
	`"resource":"service","resource_id":"api-gateway-%04d","resource_name":"API gateway","occurred_at":"2026-09-18T03:12:45.123Z",` +
	`"session_id":"8b0f4a52-1f0f-4d7c-9d53-0a7f0d1a2b3c","ip_address":"10.20.30.40","metadata":{"version":"v1.42.%d",` +
	`"old_version":"v1.41.9","environment":"production","region":"eu-central-1","duration_ms":48213,"commit":"9fceb02d0ae598e9"}}`

// benchRecords returns n records of the events topic, as ingest makes them, of 20 workspaces.
func benchRecords(tb testing.TB, n int, keyed bool) []*kgo.Record {
	tb.Helper()
	b := event.NewBuilder()
	records := make([]*kgo.Record, n)
	for i := range records {
		ws := &event.Workspace{
			ID: [16]byte(fill(16, uint64(i%20), 2)), Incarnation: [16]byte(fill(16, uint64(i%20), 3)), Lanes: testLanes,
		}
		in := event.Input{
			JSON:       fmt.Appendf(nil, benchEvent, i%1000, i%5000, i),
			RecordedAt: time.UnixMicro(1_790_000_000_000_000 + int64(i)),
		}
		if keyed {
			in.IdempotencyKey = fmt.Sprintf("key-%d", i)
		}
		r, err := b.Build(ws, in)
		if err != nil {
			tb.Fatal(err)
		}
		records[i] = &kgo.Record{
			Topic: schemas.TopicEvents, Partition: event.Partition(ws.ID, r.Lane, testPartitions), Key: r.Key, Value: r.Value,
			Timestamp: r.RecordedAt,
		}
	}
	return records
}

// BenchmarkSeal measures the pure step: one record into a partition with 20 chains, by transactions of 10,000.
func BenchmarkSeal(b *testing.B) {
	for _, keyed := range []bool{false, true} {
		b.Run(fmt.Sprintf("keyed=%t", keyed), func(b *testing.B) {
			var records []*kgo.Record
			for _, r := range benchRecords(b, 40_000, keyed) {
				if r.Partition == 0 {
					records = append(records, r)
				}
			}
			p := newPartition(0, testPartitions, defaultDedupLeaves)
			s, values := new(step), new(arena)
			s.begin(p, values)
			b.ReportAllocs()
			var offset uint64
			for b.Loop() {
				r := records[offset%uint64(len(records))]
				if keyed && offset >= uint64(len(records)) {
					// An id of its own: the value's is at a fixed place, behind the tag and the length of field 1.
					copy(r.Value[2:18], fill(16, offset))
				}
				if _, dead := s.seal(input{key: r.Key, value: r.Value, offset: offset}); dead != nil {
					b.Fatal(dead)
				}
				offset++
				if offset%10_000 == 0 {
					if _, err := s.finish(func(uint64) uint64 { return 0 }); err != nil {
						b.Fatal(err)
					}
					s.publish()
					values.reset()
					s.begin(p, values)
				}
			}
		})
	}
}

// BenchmarkSealTopic seals a topic of 200,000 records, and copies the same topic, exactly once and with the same
// settings, for comparison: on a broker that syncs to disk, as the one under `up` does, and on one that does not, which
// leaves nothing to wait for but CPU. Goal: sealing at 0.6 of the copy's records a second.
func BenchmarkSealTopic(b *testing.B) {
	records := benchRecords(b, sealTopicRecords, true)
	b.Run("sync", func(b *testing.B) { compareSealing(b, records, kfake.SyncWrites()) })
	b.Run("nosync", func(b *testing.B) { compareSealing(b, records) })
}

const sealTopicRecords = 200_000

func compareSealing(b *testing.B, records []*kgo.Record, broker ...kfake.Opt) {
	b.Helper()
	const n = sealTopicRecords
	var copied, sealed, ratios, cpu []float64
	for b.Loop() {
		// A broker of its own for each: the second must not find it warm.
		c, s := benchTopic(b, records, copyTopic, broker...), benchTopic(b, records, sealTopic, broker...)
		copied, sealed = append(copied, n/c.wall.Seconds()), append(sealed, n/s.wall.Seconds())
		ratios, cpu = append(ratios, c.wall.Seconds()/s.wall.Seconds()), append(cpu, c.cpu.Seconds()/s.cpu.Seconds())
		b.Logf("records a second: copied %.0f, sealed %.0f; microseconds of CPU each: %.2f, %.2f",
			n/c.wall.Seconds(), n/s.wall.Seconds(), c.cpu.Seconds()/n*1e6, s.cpu.Seconds()/n*1e6)
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	b.ReportMetric(median(copied), "copied/s")
	b.ReportMetric(median(sealed), "sealed/s")
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(median(cpu), "cpu-ratio")
	b.ReportMetric(0, "ns/op")
}

// cost of a run. CPU is the whole process's, the embedded broker's included.
type cost struct{ wall, cpu time.Duration }

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// benchTopic measures until all input of a new cluster is committed.
func benchTopic(
	b *testing.B, records []*kgo.Record, run func(context.Context, Config) error, broker ...kfake.Opt,
) cost {
	b.Helper()
	c := kafkatest.Start(b, broker...)
	fresh := make([]*kgo.Record, len(records))
	for i, r := range records {
		fresh[i] = &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}
	}
	c.Produce(b, fresh...)
	admin := kadm.NewClient(c.Client(b))
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	begun, cpu := time.Now(), cpuTime(b)
	go func() { done <- run(ctx, Config{Kafka: c.Config, Layout: c.Layout}) }()
	await(b, "reading all input", func(ctx context.Context) error { return unsealed(ctx, c, admin) })
	took := cost{wall: time.Since(begun), cpu: cpuTime(b) - cpu}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	c.Fake.Close()
	return took
}

func sealTopic(ctx context.Context, cfg Config) error {
	p, err := New(cfg, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// copyTopic is the plain exactly-once copy from events to ledger.
func copyTopic(ctx context.Context, cfg Config) error {
	p, err := New(cfg, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	s := &session{Processor: p, owned: newAssignment(p.metrics)}
	opts := append(s.options(p), kgo.AdjustFetchOffsetsFn(
		func(_ context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
			return offsets, nil
		}))
	group, err := kgo.NewGroupTransactSession(opts...)
	if err != nil {
		return err
	}
	defer group.CloseAllowingRebalance()
	topic := cfg.Kafka.Topic(schemas.TopicLedger)
	for ctx.Err() == nil {
		fetches := group.PollRecords(ctx, p.cfg.TransactionRecords)
		if fetches.NumRecords() == 0 {
			group.AllowRebalance()
			continue
		}
		if err := group.Begin(); err != nil {
			return err
		}
		begun := time.Now()
		for n := 0; ; {
			for it := fetches.RecordIter(); !it.Done(); n++ {
				r := it.Next()
				out := &kgo.Record{Topic: topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}
				group.Produce(ctx, out, nil)
			}
			wait := p.cfg.TransactionInterval - time.Since(begun)
			if n >= p.cfg.TransactionRecords || wait <= 0 {
				break
			}
			within, cancel := context.WithTimeout(ctx, wait)
			fetches = group.PollRecords(within, p.cfg.TransactionRecords-n)
			cancel()
		}
		if committed, err := group.End(context.WithoutCancel(ctx), kgo.TryCommit); err != nil || !committed {
			return fmt.Errorf("committed %t: %w", committed, err)
		}
		group.AllowRebalance()
	}
	return nil
}

// BenchmarkTakeOver starts on a partition of 10,000 chains and a deduplication window of 50,000 keyed ids, whose heads
// have been written five times each and not been compacted, and measures until it is ready.
func BenchmarkTakeOver(b *testing.B) {
	const chains, rounds = 10_000, 5
	c := kafkatest.Start(b)
	cfg := Config{Kafka: c.Config, Layout: c.Layout}
	lanes := make([]uint32, chains)
	for i := range lanes {
		lanes[i] = laneOn(uint64(i), 0)
	}
	p := start(b, cfg)
	for round := range uint64(rounds) {
		records := make([]*kgo.Record, chains)
		for i := range records {
			records[i] = eventRecord(b, newEvent(uint64(i), lanes[i], round, true))
		}
		c.Produce(b, records...)
		awaitSealed(b, c)
	}
	p.stop(b)
	heads := c.Fake.PartitionInfo(c.Config.Topic(schemas.TopicHeads), 0)
	b.Logf("heads has %d records in %d MiB", heads.HighWatermark, heads.NumBytes>>20)
	var sum time.Duration
	for b.Loop() {
		begun := time.Now()
		p := start(b, cfg)
		await(b, "ready", p.Ready)
		sum += time.Since(begun)
		p.stop(b)
	}
	b.ReportMetric(float64(sum.Milliseconds())/float64(b.N), "ms/take-over")
	b.ReportMetric(0, "ns/op")
}
