package processor

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// scenarios are what is tested on kfake and on a real broker.
var scenarios = []struct {
	name string
	run  func(*testing.T, *kafkatest.Cluster)
}{
	{"seals what is there and what arrives", sealsWhatIsThereAndWhatArrives},
	{"goes on where the last one ended", goesOnWhereTheLastOneEnded},
	{"duplicates and dead letters", duplicatesAndDeadLetters},
	{"input with transactions", inputWithTransactions},
	{"commits what is in hand at the end", commitsWhatIsInHandAtTheEnd},
	{"rebalances", churn},
	{"one instance twice", sameInstanceTwice},
	{"takes over after retention", takesOverAfterRetention},
	{"a take-over waits for open transactions", takeOverWaitsForOpenTransactions},
}

func TestScenarios(t *testing.T) {
	for i, s := range scenarios {
		if testing.Short() && i > 0 {
			break
		}
		t.Run(s.name, func(t *testing.T) { s.run(t, kafkatest.Start(t)) })
	}
}

func sealsWhatIsThereAndWhatArrives(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	produce(t, c, 0, 3000)
	p := start(t, testConfig(c))
	awaitSealed(t, c)
	await(t, "ready", p.Ready)
	produce(t, c, 3000, 3000)
	awaitSealed(t, c)
	p.stop(t)
	r := checkTopics(t, c, 2*blockLeaves)
	r.wantTotals(t, 6000, 0, 0)
	if r.Chains != 12 {
		t.Errorf("%d chains, want 12", r.Chains)
	}
	for name, want := range map[string]float64{
		"leaves_total": 6012, "duplicates_total": 0, "sessions_total": 1, "halted_partitions": 0, "partitions": 0,
		"topic_partitions": testPartitions, "dedup_window_max_leaves": 2 * blockLeaves,
	} {
		if got := p.metric(t, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	// The test's events are of a year to come.
	if ahead := p.metric(t, "clock_ahead_seconds"); ahead < 1e8 {
		t.Errorf("their clock is %v s ahead", ahead)
	}
	if err := p.Ready(t.Context()); err == nil {
		t.Error("ready after its end")
	}
}

func goesOnWhereTheLastOneEnded(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	for i := range 4 {
		produce(t, c, i*1500, 1500)
		p := start(t, testConfig(c))
		awaitSealed(t, c)
		p.stop(t)
	}
	checkTopics(t, c, 2*blockLeaves).wantTotals(t, 6000, 0, 0)
}

func duplicatesAndDeadLetters(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	// With and without an idempotency key: the copy of a record is a duplicate, whoever wrote it.
	good := func(n uint64) *kgo.Record { return eventRecord(t, newEvent(1, 0, n, n%2 == 0)) }
	produceAll := func(records ...*kgo.Record) { c.Produce(t, records...) }
	elsewhere := good(7)
	elsewhere.Partition = (elsewhere.Partition + 1) % testPartitions
	lanes := newEvent(1, 0, 8, true)
	lanes.Lanes = 17
	produceAll(good(1), good(2), good(1), // a duplicate in one transaction
		&kgo.Record{Topic: schemas.TopicEvents, Partition: 2, Key: []byte("k"), Value: []byte("{}")},
		&kgo.Record{Topic: schemas.TopicEvents, Partition: 2}, elsewhere, eventRecord(t, lanes), good(3))
	p := start(t, testConfig(c))
	awaitSealed(t, c)
	produceAll(good(2), good(3)) // across transactions
	awaitSealed(t, c)
	p.stop(t)
	if d, dead := p.metric(t, "duplicates_total"), p.metric(t, "dead_total"); d != 3 || dead != 4 {
		t.Errorf("metrics say %v duplicates and %v dead, want 3 and 4", d, dead)
	}
	p = start(t, testConfig(c))
	await(t, "ready", p.Ready)
	produceAll(good(1), good(3), good(4)) // across processors
	awaitSealed(t, c)
	p.stop(t)
	checkTopics(t, c, 2*blockLeaves).wantTotals(t, 13, 5, 4)
}

// Input that ends in transactions: aborted records, markers, and a tail of markers only.
func inputWithTransactions(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	p := start(t, testConfig(c))
	number := 0
	transact := func(n int, commit kgo.TransactionEndTry) {
		t.Helper()
		cl := c.Client(t, kgo.TransactionalID(c.Config.Group("test")), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		defer cl.Close()
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for range n {
			r := eventRecord(t, newEvent(1, uint32(number%testLanes), uint64(number), true))
			r.Topic = c.Config.Topic(r.Topic)
			number++
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := cl.EndTransaction(t.Context(), commit); err != nil {
			t.Fatal(err)
		}
	}
	transact(10, kgo.TryAbort)
	transact(10, kgo.TryCommit)
	produce(t, c, 1000, 100)
	transact(10, kgo.TryAbort)
	awaitSealed(t, c) // the committed offset comes to the end: past the last markers
	transact(10, kgo.TryAbort)
	awaitSealed(t, c)
	p.stop(t)
	r := checkTopics(t, c, 2*blockLeaves)
	r.wantTotals(t, 110, 0, 0)
	if want := uint64(30 + 4*testPartitions); r.Skipped != want {
		t.Errorf("%d offsets skipped, want 30 aborted records and 16 markers", r.Skipped)
	}
}

func commitsWhatIsInHandAtTheEnd(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	cfg := testConfig(c)
	cfg.TransactionInterval = time.Second
	p := start(t, cfg)
	await(t, "ready", p.Ready)
	// The transaction has begun when its first leaf is on the ledger, and goes on for a second from there.
	produce(t, c, 0, 500)
	admin, ledger := kadm.NewClient(c.Client(t)), c.Config.Topic(schemas.TopicLedger)
	await(t, "a leaf", func(ctx context.Context) error {
		ends, err := admin.ListEndOffsets(ctx, ledger)
		for _, o := range ends.Offsets().Sorted() {
			if o.At > 0 {
				return nil
			}
		}
		return errors.Join(err, errUncommitted)
	})
	p.stop(t)
	if r := checkTopics(t, c, 2*blockLeaves); r.Inputs == 0 {
		t.Error("nothing was committed")
	}
}
