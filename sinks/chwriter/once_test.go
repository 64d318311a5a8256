package chwriter

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// duplicates returns how many inserts ClickHouse has dropped because it had their token.
func (r *rig) duplicates() uint64 {
	r.tb.Helper()
	return r.count("SELECT toUInt64(sum(value)) FROM system.events WHERE event = 'DuplicatedInsertedBlocks'")
}

// scenarios are what is tested with kfake and with a real broker.
var scenarios = []struct {
	name string
	run  func(*testing.T, *rig)
}{
	{"restart", restart},
	{"commits when idle", commitsWhenIdle},
	{"transactions", transactions},
	{"late insert, owner leaves", func(t *testing.T, r *rig) { t.Helper(); lateInsert(t, r, true) }},
	{"late insert, owner gives up half", func(t *testing.T, r *rig) { t.Helper(); lateInsert(t, r, false) }},
	{"insert's answer lost", func(t *testing.T, r *rig) { t.Helper(); uncertainInsert(t, r, cut) }},
	{"insert lost", func(t *testing.T, r *rig) { t.Helper(); uncertainInsert(t, r, lose) }},
	{"rebalance", rebalance},
	{"offsets moved back", offsetsMovedBack},
	{"offsets forgotten", offsetsForgotten},
	{"token without rows", tokenWithoutRows},
	{"rows lost", rowsLost},
	{"kills", kills},
}

func TestScenarios(t *testing.T) {
	for i, s := range scenarios {
		if testing.Short() && i > 0 {
			break
		}
		t.Run(s.name, func(t *testing.T) { s.run(t, newRig(t)) })
	}
}

func restart(t *testing.T, r *rig) {
	t.Helper()
	for range 3 {
		r.produce(500)
		w := r.start(r.config())
		r.check()
		w.stop()
		if diff := cmp.Diff(r.ends(), r.committed()); diff != "" {
			t.Errorf("after a stop, everything is committed and nothing announced (-want +got):\n%s", diff)
		}
	}
}

func commitsWhenIdle(t *testing.T, r *rig) {
	t.Helper()
	w := r.start(r.config())
	r.produce(100)
	r.check()
	await(t, "waiting for the commit", func() error {
		if diff := cmp.Diff(r.ends(), r.committed()); diff != "" {
			return fmt.Errorf("offsets (-want +got):\n%s", diff)
		}
		return nil
	})
	if n := w.metric("lag_records"); n != 0 {
		t.Errorf("lag of %v records", n)
	}
	for p, offset := range r.ends() {
		if got := fmt.Sprint(w.Written()[p]); got != offset {
			t.Errorf("partition %d is written to %s, want %s", p, got, offset)
		}
	}
}

// Ledger records come in transactions: some offsets hold markers, and some records were aborted.
func transactions(t *testing.T, r *rig) {
	t.Helper()
	w := r.start(r.config())
	cl := r.kafka.Client(t, kgo.TransactionalID("t"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := range 12 {
		records := r.sealer.events(20)
		for _, commit := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
			if err := cl.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			for _, rec := range records {
				again := *rec
				again.Topic = r.kafka.Config.Topic(schemas.TopicLedger)
				if err := cl.ProduceSync(t.Context(), &again).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			if err := cl.EndTransaction(t.Context(), commit); err != nil {
				t.Fatal(err)
			}
		}
		if i%4 == 3 { // in between, everything is taken over
			w.stop()
			w = r.start(r.config())
		}
	}
	r.check()
	w.stop()
	// As the announcement of a next batch would: there is a marker between the last row and the offset.
	after := make(map[int32]kadm.Offset)
	ends, err := r.admin.ListEndOffsets(t.Context(), r.kafka.Config.Topic(schemas.TopicLedger))
	if err != nil {
		t.Fatal(err)
	}
	ends.Each(func(o kadm.ListedOffset) { after[o.Partition] = kadm.Offset{At: o.Offset} })
	r.setCommitted(after)
	w = r.start(r.config())
	r.produce(100)
	r.check()
	if n := w.metric("halts_total"); n != 0 {
		t.Errorf("%v halts", n)
	}
}

// An insert that its owner sent before it was replaced, and that arrives after its successor has gone on.
func lateInsert(t *testing.T, r *rig, leave bool) {
	t.Helper()
	p, through := newProxy(t, r.dsn)
	cfg := r.config()
	cfg.ClickHouse.DSN, cfg.DrainTimeout, cfg.Inserters = through, time.Millisecond, 4
	a := r.start(cfg)
	r.produce(200)
	r.check()

	p.arm(hold, 4)
	r.produce(200)
	for range 4 { // one insert of each partition
		<-p.hit
	}
	if leave {
		a.stop()
	}
	b := r.start(r.config())
	if leave {
		r.check()
		if n := b.metric("batches_taken_over_total"); n != 4 {
			t.Errorf("%v batches taken over, want 4", n)
		}
	} else {
		await(t, "waiting for the other half", func() error {
			if n := b.metric("batches_taken_over_total"); n != 2 {
				return fmt.Errorf("%v batches taken over, want 2", n)
			}
			return nil
		})
	}
	r.produce(200)

	before := r.duplicates()
	close(p.release)
	await(t, "waiting for the late inserts", func() error {
		want := uint64(2)
		if leave {
			want = 4
		}
		if n := r.duplicates() - before; n < want {
			return fmt.Errorf("%d inserts dropped, want %d", n, want)
		}
		return nil
	})
	r.produce(200)
	r.check()
}

// The connection breaks when the server has the insert, or has not, and the writer cannot know.
func uncertainInsert(t *testing.T, r *rig, fault faultKind) {
	t.Helper()
	p, through := newProxy(t, r.dsn)
	cfg := r.config()
	cfg.ClickHouse.DSN = through
	w := r.start(cfg)
	r.produce(100)
	r.check()
	p.arm(fault, 3)
	for range 3 {
		r.produce(100)
		<-p.hit
	}
	r.check()
	if n := w.metric("insert_retries_total"); n < 3 {
		t.Errorf("%v retries, want at least 3", n)
	}
	w.awaitReady()
}

// Two writers come and go; each rebalance moves partitions in the middle of their work.
func rebalance(t *testing.T, r *rig) {
	t.Helper()
	cfg := r.config()
	cfg.BatchRows, cfg.Linger = 50, time.Millisecond
	a := r.start(cfg)
	for range 4 {
		r.produce(500)
		b := r.start(cfg)
		await(t, "waiting for the other half", func() error {
			if x, y := a.metric("partitions"), b.metric("partitions"); x != 2 || y != 2 {
				return fmt.Errorf("%v and %v partitions", x, y)
			}
			return nil
		})
		r.produce(500)
		a.stop()
		a = b
	}
	r.check()
}

// The group's offset is moved back, as an operator may do: nothing comes twice.
func offsetsMovedBack(t *testing.T, r *rig) {
	t.Helper()
	w := r.start(r.config())
	r.produce(400)
	r.check()
	w.stop()
	total := 400 + len(r.sealer.heads)
	back := make(map[int32]kadm.Offset)
	for p := range r.kafka.Layout.Partitions {
		back[p] = kadm.Offset{At: 0}
	}
	r.setCommitted(back)
	r.produce(100)
	total += 100
	w = r.start(r.config())
	r.check()
	if n := w.metric("records_skipped_total"); n != float64(total-100) {
		t.Errorf("%v records skipped, want %d", n, total-100)
	}
}

// The group has forgotten its offsets, as Kafka lets it after a week without members.
func offsetsForgotten(t *testing.T, r *rig) {
	t.Helper()
	w := r.start(r.config())
	r.produce(100)
	r.check()
	w.stop()
	if _, err := r.admin.DeleteGroup(t.Context(), r.kafka.Config.Group(schemas.GroupClickHouse)); err != nil {
		t.Fatal(err)
	}
	r.produce(100)
	r.start(r.config())
	r.check()
}

// The topic and the group were lost and made again, ClickHouse was not: what is new on the topic must not be passed over
// because old rows have its offsets.
func TestHaltsAtARecreatedTopic(t *testing.T) {
	long(t)
	for name, c := range map[string]struct {
		events int
		reason string
	}{
		"shorter": {40, "the topic ends at"},
		"longer":  {800, "but not the topic's at offset"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			w := r.start(r.config())
			r.produce(400)
			r.check()
			w.stop()
			rows := r.count("SELECT count() FROM leaves")

			if _, err := r.admin.DeleteGroup(t.Context(), r.kafka.Config.Group(schemas.GroupClickHouse)); err != nil {
				t.Fatal(err)
			}
			if _, err := r.admin.DeleteTopic(t.Context(), r.kafka.Config.Topic(schemas.TopicLedger)); err != nil {
				t.Fatal(err)
			}
			if err := kafka.CreateTopics(t.Context(), r.kafka.Client(t), schemas.Topics(r.kafka.Layout)); err != nil {
				t.Fatal(err)
			}
			r.sealer = newSealer(t, r.kafka.Layout.Partitions)
			r.produce(c.events)
			w = r.start(r.config())
			for p := range r.kafka.Layout.Partitions {
				w.awaitHalted(fmt.Sprintf("ledger partition %d is halted", p), c.reason)
			}
			w.stop()
			if n := r.count("SELECT count() FROM leaves"); n != rows {
				t.Errorf("%d rows, there were %d", n, rows)
			}
			if got := r.committed(); len(got) != 0 {
				t.Errorf("committed %v", got)
			}
		})
	}
}

// ClickHouse was killed when it had written down an insert's token, but not its rows.
func tokenWithoutRows(t *testing.T, r *rig) {
	t.Helper()
	r.produce(100)
	announced := make(map[int32]kadm.Offset)
	for p, records := range r.ledger() {
		i := r.inserter()
		if _, _, err := i.load(p, records, 1, new(control.Redactions)); err != nil {
			t.Fatal(err)
		}
		b := newBatch(records)
		token := fmt.Sprintf("%s/%d/%d-%d", records[0].Topic, p, b.first, b.last)
		for _, table := range []string{tableLeaves, tableEvents} {
			if _, err := i.insert(t.Context(), table, token); err != nil {
				t.Fatal(err)
			}
		}
		announced[p] = kadm.Offset{At: b.first, Metadata: fmt.Sprint(b.last)}
	}
	for _, table := range []string{tableLeaves, tableEvents} {
		if err := r.conn.Exec(t.Context(), "ALTER TABLE "+table+" DELETE WHERE true SETTINGS mutations_sync = 1"); err != nil {
			t.Fatal(err)
		}
	}
	r.setCommitted(announced)
	r.start(r.config())
	r.check()
}

// ledger returns the records of the topic by partition.
func (r *rig) ledger() map[int32][]*kgo.Record {
	r.tb.Helper()
	n := 0
	for _, h := range r.sealer.heads {
		n += int(h.Size)
	}
	got := make(map[int32][]*kgo.Record)
	for _, rec := range r.kafka.Consume(r.tb, schemas.TopicLedger, n) {
		got[rec.Partition] = append(got[rec.Partition], rec)
	}
	return got
}

// inserter returns one that is connected.
func (r *rig) inserter() *inserter {
	r.tb.Helper()
	i, err := newInserter(r.config().ClickHouse, serverTimeout)
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(i.close)
	if err := i.connect(r.tb.Context()); err != nil {
		r.tb.Fatal(err)
	}
	return i
}
