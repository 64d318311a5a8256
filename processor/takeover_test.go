package processor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
)

// A transaction is aborted while a take-over waits for its end: the last record before the high watermark is one that no
// reader is given.
func TestTakeOverReadsToTheEndOfAnAbortedTransaction(t *testing.T) {
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
