package processor

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
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
	now := time.Now().UnixMicro() // a real broker deletes what is old
	for i := range records {
		ws := &event.Workspace{
			ID: [16]byte(fill(16, uint64(i%20), 2)), Incarnation: [16]byte(fill(16, uint64(i%20), 3)), Lanes: testLanes,
		}
		in := event.Input{
			JSON:       fmt.Appendf(nil, benchEvent, i%1000, i%5000, i),
			RecordedAt: time.UnixMicro(now + int64(i)),
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
				// An id of its own: the value's is at a fixed place, behind the tag and the length of field 1.
				binary.BigEndian.PutUint64(r.Value[10:18], offset*0x9E3779B97F4A7C15)
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

// BenchmarkWindow measures what the deduplication window adds to a leaf, when it is full, by transactions of 10,000. CPU is
// that of the process.
func BenchmarkWindow(b *testing.B) {
	w, s := newWindow(defaultDedupLeaves), new(windowStep)
	var leaf uint64
	seal := func(n int) {
		for range n {
			if leaf%10_000 == 0 {
				if leaf > 0 {
					s.publish()
				}
				s.begin(w)
			}
			var id [16]byte
			binary.BigEndian.PutUint64(id[8:], leaf*0x9E3779B97F4A7C15)
			if s.holds(&id) {
				b.Fatal("a duplicate")
			}
			s.add(&id)
			if leaf++; leaf%blockLeaves == 0 {
				s.closeBlock(int64(leaf))
			}
		}
	}
	seal(defaultDedupLeaves + 20_000)
	b.ReportAllocs()
	cpu := cpuTime(b)
	b.ResetTimer()
	seal(b.N)
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
	runtime.KeepAlive(w)
}

// BenchmarkSealTopic seals a topic of 200,000 records, and copies the same topic, exactly once and with the same
// settings, for comparison: on a broker that syncs to disk, as the one under `up` does, and on one that does not, which
// leaves nothing to wait for but CPU; or on a real one. Goal: sealing at 0.6 of the copy's records a second.
func BenchmarkSealTopic(b *testing.B) {
	benchBrokers(b, func(b *testing.B, cluster func(*testing.B) *kafkatest.Cluster) {
		b.Helper()
		compare(b, cluster, 200_000, arm{"copied", copyTopic}, arm{"sealed", sealTopic})
	})
}

// BenchmarkSealTopicAtLeastOnce compares with a copy that has no transactions.
func BenchmarkSealTopicAtLeastOnce(b *testing.B) {
	benchBrokers(b, func(b *testing.B, cluster func(*testing.B) *kafkatest.Cluster) {
		b.Helper()
		compare(b, cluster, 200_000, arm{"copied", copyAtLeastOnce}, arm{"sealed", sealTopic})
	})
}

// BenchmarkTwoProcessors seals with two processors and with one, from the moment when they start, so that the time in which
// two share the partitions counts. Goal: 1.6 where broker and processors have cores of their own.
func BenchmarkTwoProcessors(b *testing.B) {
	two := func(ctx context.Context, cfg Config) error {
		var g errgroup.Group
		for range 2 {
			g.Go(func() error { return sealTopic(ctx, cfg) })
		}
		return g.Wait()
	}
	benchBrokers(b, func(b *testing.B, cluster func(*testing.B) *kafkatest.Cluster) {
		b.Helper()
		compare(b, cluster, 400_000, arm{"one", sealTopic}, arm{"two", two})
	})
}

// benchBrokers runs a comparison on the embedded broker, syncing to disk and not, or on a real one.
func benchBrokers(b *testing.B, run func(*testing.B, func(*testing.B) *kafkatest.Cluster)) {
	b.Helper()
	arm := func(name string, cluster func(*testing.B) *kafkatest.Cluster) {
		b.Run(name, func(b *testing.B) { run(b, cluster) })
	}
	if apache := realkafka.ForBenchmark(b); apache != nil {
		arm("apache", func(b *testing.B) *kafkatest.Cluster { b.Helper(); return apache.Installation(b) }) // each on topics of its own; the broker is warm for all
		return
	}
	embedded := func(opts ...kfake.Opt) func(*testing.B) *kafkatest.Cluster {
		return func(b *testing.B) *kafkatest.Cluster { b.Helper(); return kafkatest.Start(b, opts...) }
	}
	arm("sync", embedded(kfake.SyncWrites()))
	arm("nosync", embedded())
}

type arm struct {
	name string
	run  func(context.Context, Config) error
}

// compare reports what this does, and its ratio to base.
func compare(b *testing.B, cluster func(*testing.B) *kafkatest.Cluster, records int, base, this arm) {
	b.Helper()
	n := float64(records)
	input := benchRecords(b, records, true)
	var bases, these, ratios, cpu []float64
	for b.Loop() {
		// A cluster of its own for each: the second must not find it warm.
		x, y := benchTopic(b, input, base.run, cluster(b)), benchTopic(b, input, this.run, cluster(b))
		bases, these = append(bases, n/x.wall.Seconds()), append(these, n/y.wall.Seconds())
		ratios, cpu = append(ratios, x.wall.Seconds()/y.wall.Seconds()), append(cpu, x.cpu.Seconds()/y.cpu.Seconds())
		b.Logf("records a second: %s %.0f, %s %.0f; microseconds of CPU each: %.2f, %.2f",
			base.name, n/x.wall.Seconds(), this.name, n/y.wall.Seconds(), x.cpu.Seconds()/n*1e6, y.cpu.Seconds()/n*1e6)
	}
	b.ReportMetric(median(bases), base.name+"/s")
	b.ReportMetric(median(these), this.name+"/s")
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
	b *testing.B, records []*kgo.Record, run func(context.Context, Config) error, c *kafkatest.Cluster,
) cost {
	b.Helper()
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
	if c.Fake != nil {
		c.Fake.Close()
	}
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

// copyAtLeastOnce is the plain copy from events to ledger: it commits what it has read once that is acknowledged.
func copyAtLeastOnce(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	clients, err := cfg.Kafka.Options(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(append(clients,
		kgo.ConsumerGroup(cfg.Kafka.Group(schemas.GroupSeal)), kgo.ConsumeTopics(cfg.Kafka.Topic(schemas.TopicEvents)),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	topic := cfg.Kafka.Topic(schemas.TopicLedger)
	for ctx.Err() == nil {
		fetches := cl.PollRecords(ctx, cfg.TransactionRecords)
		fetches.EachRecord(func(r *kgo.Record) {
			cl.Produce(ctx, &kgo.Record{Topic: topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}, nil)
		})
		if fetches.NumRecords() == 0 {
			continue
		}
		if err := cl.Flush(ctx); err != nil {
			return err
		}
		if err := cl.CommitUncommittedOffsets(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkSmallLoad measures how long an event takes from being accepted to being in the ledger for those who read what is
// committed, at 10,000 events a second: a tenth of what sealing takes at most, or less. Times are in milliseconds.
func BenchmarkSmallLoad(b *testing.B) {
	benchBrokers(b, func(b *testing.B, cluster func(*testing.B) *kafkatest.Cluster) {
		b.Helper()
		const every, burst = 10 * time.Millisecond, 100
		c := cluster(b)
		start(b, Config{Kafka: c.Config, Layout: c.Layout})
		producer := c.Client(b, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
		reader := c.Client(b, kgo.ConsumeTopics(c.Config.Topic(schemas.TopicLedger)), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		ws := event.Workspace{ID: [16]byte{1}, Lanes: testLanes}
		events := event.NewBuilder()
		n := 0
		send := func() {
			var records []*kgo.Record
			for range burst {
				r, err := events.Build(&ws, event.Input{JSON: fmt.Appendf(nil, benchEvent, n%1000, n%5000, n), RecordedAt: time.Now()})
				if err != nil {
					b.Fatal(err)
				}
				n++
				records = append(records, &kgo.Record{
					Topic: c.Config.Topic(schemas.TopicEvents), Partition: event.Partition(ws.ID, r.Lane, testPartitions),
					Key: r.Key, Value: r.Value, Timestamp: r.RecordedAt,
				})
			}
			for _, r := range records {
				producer.Produce(b.Context(), r, nil)
			}
		}
		var took []float64
		read := func() {
			fetches := reader.PollFetches(b.Context())
			if err := fetches.Err(); err != nil {
				b.Fatal(err)
			}
			fetches.EachRecord(func(r *kgo.Record) { took = append(took, float64(time.Since(r.Timestamp).Milliseconds())) })
		}
		// The first ones wait for the processor to begin.
		for send(); len(took) < burst; {
			read()
		}
		took, n = nil, 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			tick := time.NewTicker(every)
			defer tick.Stop()
			for range b.N {
				<-tick.C
				send()
			}
		}()
		for len(took) < b.N*burst {
			read()
		}
		<-done
		slices.Sort(took)
		b.ReportMetric(took[len(took)/2], "p50-ms")
		b.ReportMetric(took[len(took)*99/100], "p99-ms")
		b.ReportMetric(0, "ns/op")
	})
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

// BenchmarkSealCore measures sealing without Kafka: the pure step over one partition, its records written to a file that is
// synced with each transaction. Beside it, in turns, what no ledger can do without: one SHA-256 over each record and the
// hash before it, the record and the hash written, and synced as often.
func BenchmarkSealCore(b *testing.B) {
	const batch, batches = 10_000, 20
	var records []*kgo.Record
	for _, r := range benchRecords(b, 40_000, false) {
		if r.Partition == 0 {
			records = append(records, r)
		}
	}
	file, err := os.Create(filepath.Join(b.TempDir(), "ledger"))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	var out []byte
	written := func() {
		if _, err := file.WriteAt(out, 0); err != nil {
			b.Fatal(err)
		}
		if err := file.Sync(); err != nil {
			b.Fatal(err)
		}
		out = out[:0]
	}
	p := newPartition(0, testPartitions, defaultDedupLeaves)
	s, values := new(step), new(arena)
	var offset uint64
	seal := func() {
		for range batches {
			s.begin(p, values)
			for range batch {
				r := records[offset%uint64(len(records))]
				binary.BigEndian.PutUint64(r.Value[10:18], offset*0x9E3779B97F4A7C15) // an id of its own, as in BenchmarkSeal
				sealed, dead := s.seal(input{key: r.Key, value: r.Value, offset: offset})
				if dead != nil {
					b.Fatal(dead)
				}
				if len(sealed) == 0 {
					b.Fatal("taken for a duplicate")
				}
				for _, l := range sealed {
					out = append(out, l.value...)
				}
				offset++
			}
			states, err := s.finish(func(leaf uint64) uint64 { return leaf })
			if err != nil {
				b.Fatal(err)
			}
			for _, state := range states {
				out = append(out, state.value...)
			}
			written()
			s.publish()
			values.reset()
		}
	}
	var previous [32]byte
	var buf []byte
	chain := func() {
		for range batches {
			for i := range batch {
				buf = append(append(buf[:0], previous[:]...), records[i%len(records)].Value...)
				previous = sha256.Sum256(buf)
				out = append(append(out, records[i%len(records)].Value...), previous[:]...)
			}
			written()
		}
	}
	var sealed, chained []float64
	rate := func(arm func()) float64 {
		begun := time.Now()
		arm()
		return batch * batches / time.Since(begun).Seconds()
	}
	for b.Loop() {
		sealed = append(sealed, rate(seal))
		chained = append(chained, rate(chain))
	}
	b.ReportMetric(median(sealed), "sealed/s")
	b.ReportMetric(median(chained), "chained/s")
	b.ReportMetric(0, "ns/op")
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}
