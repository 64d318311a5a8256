package processor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// A transaction is aborted while a take-over waits for its end: the last record before the high watermark is one that no
// reader is given.
func TestTakeOverReadsToTheEndOfAnAbortedTransaction(t *testing.T) {
	long(t)
	for _, topic := range []string{schemas.TopicHeads, schemas.TopicDedup, schemas.TopicLedger} {
		t.Run(topic, func(t *testing.T) {
			c := kafkatest.Start(t)
			sealSome(t, c)
			stranger := c.Client(t, kgo.TransactionalID("stranger"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
			if err := stranger.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			record := &kgo.Record{Topic: c.Config.Topic(topic), Partition: 1, Key: []byte("x"), Value: []byte("x")}
			if err := stranger.ProduceSync(t.Context(), record).FirstErr(); err != nil {
				t.Fatal(err)
			}
			p := start(t, testConfig(c))
			await(t, "taking over", func(ctx context.Context) error {
				if err := p.Ready(ctx); err == nil || !strings.Contains(err.Error(), "taking over partitions") {
					return fmt.Errorf("ready: %w", errors.Join(err))
				}
				return nil
			})
			if err := stranger.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
				t.Fatal(err)
			}
			await(t, "ready", p.Ready)
			produce(t, c, 2000, 100)
			awaitSealed(t, c)
			p.stop(t)
			checkTopics(t, c, 2*blockLeaves).wantTotals(t, 2100, 0, 0)
		})
	}
}

// Where a take-over's time is up while it waits for an answer, it goes by the one before: only what a transaction is open
// on is halted, and because of that.
func TestTakeOverKnowsWhatItHasWaitedFor(t *testing.T) {
	c := kafkatest.Start(t)
	sealSome(t, c)
	stranger := c.Client(t, kgo.TransactionalID("stranger"), kgo.TransactionTimeout(time.Minute),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := stranger.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	record := &kgo.Record{Topic: c.Config.Topic(schemas.TopicHeads), Partition: 1, Key: []byte("x"), Value: []byte("x")}
	if err := stranger.ProduceSync(t.Context(), record).FirstErr(); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	defer close(release)
	var asked atomic.Int32
	c.Fake.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		const readCommitted = 1
		if req.(*kmsg.ListOffsetsRequest).IsolationLevel == readCommitted && asked.Add(1) == 2 {
			c.Fake.SleepControl(func() { <-release })
		}
		return nil, nil, false
	})
	cfg := testConfig(c)
	cfg.TakeOverTimeout = 500 * time.Millisecond
	p := halts(t, c, cfg, "waited 500ms for the last owner: a transaction on immutable.heads is open")
	abort := fmt.Sprint("abort --topic immutable.heads --partition 1 --start-offset ", record.Offset)
	if err := p.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), abort) {
		t.Errorf("readiness does not say %q: %v", abort, err)
	}
}

// A broker that does not answer at once does not cost a partition the time that a halt takes.
func TestTakeOverAsksAgain(t *testing.T) {
	c := kafkatest.Start(t)
	sealSome(t, c)
	fault := c.Fake.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: c.Config.Topic(schemas.TopicHeads), Err: kerr.UnknownServerError, Count: 3,
	})
	p := start(t, testConfig(c))
	if err := fault.Wait(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	await(t, "ready", p.Ready)
	if sessions := p.metric(t, "sessions_total"); sessions != 1 {
		t.Errorf("%v sessions: the partitions were halted", sessions)
	}
}
