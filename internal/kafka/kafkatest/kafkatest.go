// Package kafkatest gives tests a Kafka: franz-go's in-memory broker, over TCP, with its log in a directory of the
// test and Immutable's topics in place.
package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/localkafka"
	"getimmutable.dev/immutable/schemas"
)

// deadline is how long the broker may take over what a test asks of it. It is never reached when all is well.
const deadline = 30 * time.Second

// Cluster is one broker. The test's end stops it.
type Cluster struct {
	// Config reaches the cluster; its prefix is schemas.DefaultTopicPrefix.
	Config kafka.Config
	// Fake controls the broker: faults, moved leaders, shutdown.
	Fake *kfake.Cluster
	// Layout has 4 partitions and 1 replica.
	Layout schemas.TopicLayout
}

// Start runs a broker with every topic of Immutable's. opts come after the defaults and override them.
func Start(tb testing.TB, opts ...kfake.Opt) *Cluster {
	tb.Helper()
	c := StartEmpty(tb, opts...)
	ctx, cancel := context.WithTimeout(tb.Context(), deadline)
	defer cancel()
	if err := kafka.CreateTopics(ctx, c.Client(tb), schemas.Topics(c.Layout)); err != nil {
		tb.Fatal(err)
	}
	return c
}

// StartEmpty is Start without the topics.
func StartEmpty(tb testing.TB, opts ...kfake.Opt) *Cluster {
	tb.Helper()
	defaults := []kfake.Opt{kfake.NumBrokers(1), kfake.DataDir(tb.TempDir())}
	fake, err := kfake.NewCluster(append(defaults, opts...)...)
	if err != nil {
		tb.Fatalf("starting a broker: %v", err)
	}
	tb.Cleanup(fake.Close)
	localkafka.BoundFetches(fake)
	return &Cluster{
		Fake: fake,
		Config: kafka.Config{
			Brokers: fake.ListenAddrs(), TopicPrefix: schemas.DefaultTopicPrefix, ClientID: "test",
		},
		Layout: schemas.TopicLayout{
			Prefix: schemas.DefaultTopicPrefix, Partitions: 4, Replicas: 1, LedgerRetentionDays: 30,
		},
	}
}

// Client returns a client of the cluster that learns of changes within 10 ms. The test's end closes it.
func (c *Cluster) Client(tb testing.TB, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	all, err := c.Config.Options(slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	cl, err := kgo.NewClient(append(append(all, kgo.MetadataMinAge(10*time.Millisecond)), opts...)...)
	if err != nil {
		tb.Fatalf("making a client: %v", err)
	}
	tb.Cleanup(cl.Close)
	return cl
}

// Produce appends records, whose Topic is without the prefix and whose Partition is taken as it is, and returns them
// with their offsets.
func (c *Cluster) Produce(tb testing.TB, records ...*kgo.Record) []*kgo.Record {
	tb.Helper()
	for _, r := range records {
		r.Topic = c.Config.Topic(r.Topic)
	}
	cl := c.Client(tb, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(tb.Context(), deadline)
	defer cancel()
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		tb.Fatalf("producing: %v", err)
	}
	return records
}

// Consume returns the first n committed records of a topic, named without the prefix, or fails the test when they do
// not come. Records of one partition are in order.
func (c *Cluster) Consume(tb testing.TB, topic string, n int) []*kgo.Record {
	tb.Helper()
	cl := c.Client(tb, kgo.ConsumeTopics(c.Config.Topic(topic)), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100*time.Millisecond))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(tb.Context(), deadline)
	defer cancel()
	var records []*kgo.Record
	for len(records) < n {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("%d of %d records came: %w", len(records), n, err)
			}
			tb.Fatalf("consuming %s: %v", topic, err)
		}
		records = append(records, fetches.Records()...)
	}
	return records[:n]
}
