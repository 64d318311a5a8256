package chwriter

import (
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

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/kafka/realkafka"
	"getimmutable.dev/immutable/schemas"
)

// BenchmarkWriter brings the same ledger records into the same tables in three ways, one after the other and around
// again, and reports each one's rows a second and how many of raw's the others make:
//
//	raw      blocks that were encoded beforehand, without tokens: what the server can take
//	columns  decoding, verifying a sample, building columns, inserting with tokens: the writer without Kafka
//	writer   the writer, from the topic to the tables, with its announcements and commits
//
// The medians are compared: of wall time, and of processor time of this process and the server together, which other
// load on the machine disturbs less. This process is also the broker, in all arms' count and only the last one's work.
func BenchmarkWriter(b *testing.B) {
	const events, rounds = 120_000, 5
	r := benchRig(b)
	r.kafka.Produce(b, r.sealer.events(events)...)
	ledger := r.ledger()
	rows := 0
	for _, records := range ledger {
		rows += len(records)
	}
	var batches []*batch
	for _, records := range ledger {
		for part := range slices.Chunk(records, 15_000) {
			batches = append(batches, newBatch(part))
		}
	}
	raw := encodeRaw(b, r, batches)

	arms := []struct {
		name string
		run  func(dsn string)
	}{
		{"raw", func(dsn string) { insertRaw(b, dsn, raw) }},
		{"columns", func(dsn string) { insertColumns(b, dsn, batches) }},
		{"writer", func(dsn string) { r.writeAll(b, dsn) }},
	}
	var wall, self, all [3][]float64
	for b.Loop() {
		for range rounds {
			for k, arm := range arms {
				db := clickhousetest.Start(b)
				conn := db.Conn(b)
				begin, used := time.Now(), cpuSeconds(b, db.Chdb.PID())
				arm.run(db.DSN())
				wall[k] = append(wall[k], float64(rows)/time.Since(begin).Seconds())
				now := cpuSeconds(b, db.Chdb.PID())
				self[k] = append(self[k], (now.self-used.self)/float64(rows)*1e6)
				all[k] = append(all[k], (now.self+now.server-used.self-used.server)/float64(rows)*1e6)
				var n uint64
				if err := conn.QueryRow(b.Context(), "SELECT count() FROM leaves").Scan(&n); err != nil || n != uint64(rows) {
					b.Fatalf("%s: %d rows of %d, %v", arm.name, n, rows, err)
				}
				for _, table := range []string{tableEvents, tableLeaves} {
					if err := conn.Exec(b.Context(), "TRUNCATE TABLE "+table+" SYNC"); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
	}
	for k, arm := range arms {
		b.ReportMetric(median(wall[k]), arm.name+"-rows/s")
		b.ReportMetric(median(self[k]), arm.name+"-own-cpu-us/row")
		b.ReportMetric(median(all[k]), arm.name+"-all-cpu-us/row")
		if k > 0 {
			b.ReportMetric(median(wall[k])/median(wall[0]), arm.name+"/raw")
			b.ReportMetric(median(all[0])/median(all[k]), arm.name+"/raw-by-cpu")
		}
		slices.Sort(wall[k])
		b.Logf("%s: rows/s %.0f", arm.name, wall[k])
	}
	b.ReportMetric(0, "ns/op")
}

// benchRig is newRig, on a real broker where that is asked for.
func benchRig(b *testing.B) *rig {
	b.Helper()
	if c := realkafka.ForBenchmark(b); c != nil {
		return newRigWith(b, c.Installation(b), clickhousetest.Start(b).DSN())
	}
	return newRig(b)
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

type cpuTime struct{ self, server float64 }

// cpuSeconds returns what this process and the server have used.
func cpuSeconds(b *testing.B, server int) cpuTime {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", server))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(after)
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return cpuTime{
		self:   float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6,
		server: (user + system) / 100, // Linux counts in hundredths
	}
}

// encodeRaw returns, for each batch, the columns of leaves and of events in ClickHouse's own encoding.
func encodeRaw(b *testing.B, r *rig, batches []*batch) [][2]proto.Input {
	b.Helper()
	i := r.inserter()
	var all [][2]proto.Input
	for _, bt := range batches {
		if _, _, err := i.load(bt.records[0].Partition, bt.records, 1<<30, new(control.Redactions)); err != nil {
			b.Fatal(err)
		}
		var both [2]proto.Input
		for k, input := range []proto.Input{i.leaves.input, i.events.input} {
			for _, col := range input {
				if p, ok := col.Data.(proto.Preparable); ok {
					if err := p.Prepare(); err != nil {
						b.Fatal(err)
					}
				}
				var buf proto.Buffer
				if s, ok := col.Data.(proto.StateEncoder); ok {
					s.EncodeState(&buf)
				}
				col.Data.EncodeColumn(&buf)
				both[k] = append(both[k], proto.InputColumn{
					Name: col.Name, Data: rawColumn{typ: col.Data.Type(), encoded: buf.Buf, rows: col.Data.Rows()},
				})
			}
		}
		all = append(all, both)
	}
	return all
}

// rawColumn is a column that was encoded before.
type rawColumn struct {
	typ     proto.ColumnType
	encoded []byte
	rows    int
}

func (c rawColumn) Type() proto.ColumnType       { return c.typ }
func (c rawColumn) Rows() int                    { return c.rows }
func (c rawColumn) EncodeColumn(b *proto.Buffer) { b.PutRaw(c.encoded) }
func (c rawColumn) WriteColumn(w *proto.Writer)  { w.ChainWrite(c.encoded) }

// benchInserters is how many connections each arm uses: the writer's default.
const benchInserters = 2

func insertRaw(b *testing.B, dsn string, raw [][2]proto.Input) {
	b.Helper()
	work := make(chan [2]proto.Input)
	var g errgroup.Group
	for range benchInserters {
		g.Go(func() error {
			i, err := newInserter(clickhouse.Config{DSN: dsn}, serverTimeout)
			if err != nil {
				return err
			}
			defer i.close()
			if err := i.connect(b.Context()); err != nil {
				return err
			}
			for both := range work {
				for k, table := range []string{tableLeaves, tableEvents} {
					if err := i.do(b.Context(), ch.Query{Body: both[k].Into(table), Input: both[k]}); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	for _, both := range raw {
		work <- both
	}
	close(work)
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

func insertColumns(b *testing.B, dsn string, batches []*batch) {
	b.Helper()
	work := make(chan *batch)
	var g errgroup.Group
	for range benchInserters {
		g.Go(func() error {
			i, err := newInserter(clickhouse.Config{DSN: dsn}, serverTimeout)
			if err != nil {
				return err
			}
			defer i.close()
			if err := i.connect(b.Context()); err != nil {
				return err
			}
			for bt := range work {
				if _, _, err := i.load(bt.records[0].Partition, bt.records, 64, new(control.Redactions)); err != nil {
					return err
				}
				for _, table := range []string{tableLeaves, tableEvents} {
					if _, err := i.insert(b.Context(), table, fmt.Sprint(bt.records[0].Partition, bt.first)); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	for _, bt := range batches {
		work <- bt
	}
	close(work)
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

// writeAll runs a writer, as a group that knows nothing, until it has written the topic.
func (r *rig) writeAll(b *testing.B, dsn string) {
	b.Helper()
	cfg := r.config()
	cfg.ClickHouse.DSN, cfg.Linger, cfg.VerifyEvery = dsn, 0, 0 // the defaults
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	view := newView(b, r.kafka.Config)
	w, err := New(cfg, view, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	var run sync.WaitGroup
	run.Go(func() { _ = view.Run(ctx) })
	run.Go(func() {
		if err := w.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	want := float64(0)
	for _, h := range r.sealer.heads {
		want += float64(h.Size)
	}
	await(b, "waiting for the writer", func() error {
		if n := counterValue(b, w.metrics.leaves); n < want {
			return fmt.Errorf("%v rows of %v", n, want)
		}
		return nil
	})
	cancel()
	run.Wait()
	if _, err := r.admin.DeleteGroup(b.Context(), r.kafka.Config.Group(schemas.GroupClickHouse)); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkReadable measures how long a single event takes from its record in the ledger to its row, at the default
// settings: the time that the timeline is behind under little load.
func BenchmarkReadable(b *testing.B) {
	r := benchRig(b)
	cfg := r.config()
	cfg.Linger = 0 // the default
	r.start(cfg)
	r.produce(100)
	r.awaitWritten()
	cl := r.kafka.Client(b, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	var times []float64
	for b.Loop() {
		records := r.sealer.events(1)
		for _, rec := range records {
			rec.Topic = r.kafka.Config.Topic(schemas.TopicLedger)
		}
		begin := time.Now()
		if err := cl.ProduceSync(b.Context(), records...).FirstErr(); err != nil {
			b.Fatal(err)
		}
		var s sealed
		if err := s.decode(records[len(records)-1].Value); err != nil {
			b.Fatal(err)
		}
		await(b, "waiting for the row", func() error {
			if r.count("SELECT count() FROM events WHERE id = ?", string(s.id)) == 0 {
				return errors.New("not there")
			}
			return nil
		})
		times = append(times, time.Since(begin).Seconds()*1e3)
	}
	slices.Sort(times)
	b.ReportMetric(times[len(times)/2], "p50-ms")
	b.ReportMetric(times[len(times)*99/100], "p99-ms")
	b.ReportMetric(0, "ns/op")
	b.Log(strconv.Itoa(len(times)) + " events")
}
