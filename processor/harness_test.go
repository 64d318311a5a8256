package processor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// deadline is how long a test waits for what must happen. It is never reached when all is well. It covers what the settings
// of these tests allow where brokers freeze: a take-over that gives up, three times TakeOverTimeout of 18 s, RetryInterval
// of 60 s, and another take-over.
const deadline = 3 * time.Minute

// await waits until done returns nil. A question that a broker leaves unanswered is asked again.
func await(tb testing.TB, what string, done func(ctx context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), deadline)
	defer cancel()
	ask := func() error {
		ctx, cancel := context.WithTimeout(ctx, deadline/18)
		defer cancel()
		return done(ctx)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
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

// running is a processor that runs beside the test.
type running struct {
	*Processor
	registry *prometheus.Registry
	cancel   context.CancelFunc
	done     chan error
	ended    bool
}

// testConfig is a configuration with short transactions.
func testConfig(c *kafkatest.Cluster) Config {
	return Config{
		Kafka: c.Config, Layout: c.Layout, DedupLeaves: 2 * blockLeaves, TransactionInterval: 20 * time.Millisecond,
	}
}

func newProcessor(tb testing.TB, cfg Config) *running {
	tb.Helper()
	registry := prometheus.NewPedanticRegistry()
	p, err := New(cfg, registry, slog.New(slog.NewTextHandler(tb.Output(), nil)))
	if err != nil {
		tb.Fatal(err)
	}
	return &running{Processor: p, registry: registry, done: make(chan error, 1)}
}

// start runs a processor until stop, or the end of the test.
func start(tb testing.TB, cfg Config) *running {
	tb.Helper()
	p := newProcessor(tb, cfg)
	p.start(tb)
	return p
}

func (p *running) start(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go func() { p.done <- p.Run(ctx) }()
	tb.Cleanup(func() { p.stop(tb) })
}

// stop ends the processor and waits for it.
func (p *running) stop(tb testing.TB) {
	tb.Helper()
	if p.ended {
		return
	}
	p.cancel()
	select {
	case err := <-p.done:
		if err != nil {
			tb.Errorf("the processor ended with %v", err)
		}
		p.ended = true
	case <-time.After(deadline):
		tb.Fatal("the processor does not end")
	}
}

// metric returns the value of a counter or gauge, its children added up.
func (p *running) metric(tb testing.TB, name string) float64 {
	tb.Helper()
	families, err := p.registry.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() == "immutable_processor_seal_"+name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// awaitSealed waits until the group has committed all input.
func awaitSealed(tb testing.TB, c *kafkatest.Cluster) {
	tb.Helper()
	admin := kadm.NewClient(c.Client(tb))
	await(tb, "sealing all input", func(ctx context.Context) error {
		err := unsealed(ctx, c, admin)
		if _, ok := errors.AsType[*net.OpError](err); ok {
			// kadm goes on asking the coordinator that it has found once, and be it dead.
			admin = kadm.NewClient(c.Client(tb))
		}
		return err
	})
}

// unsealed says which input is not sealed yet.
func unsealed(ctx context.Context, c *kafkatest.Cluster, admin *kadm.Client) error {
	topic := c.Config.Topic(schemas.TopicEvents)
	committed, err := admin.FetchOffsets(ctx, c.Config.Group(schemas.GroupSeal))
	if err != nil {
		return err
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	var errs []error
	ends.Each(func(end kadm.ListedOffset) {
		var next int64
		if o, ok := committed.Lookup(topic, end.Partition); ok {
			next = o.At
		}
		if next < end.Offset {
			errs = append(errs, fmt.Errorf("partition %d: %d of %d", end.Partition, next, end.Offset))
		}
	})
	return errors.Join(errs...)
}

// eventRecord returns an event's record for the events topic.
func eventRecord(tb testing.TB, e *recordpb.Event) *kgo.Record {
	tb.Helper()
	return &kgo.Record{
		Topic: schemas.TopicEvents, Partition: partitionOf(e), Key: keyOf(e), Value: marshal(tb, e),
		Timestamp: time.UnixMicro(e.GetRecordedAt()),
	}
}

// produce writes n events, numbered from first, of three workspaces over all lanes.
func produce(tb testing.TB, c *kafkatest.Cluster, first, n int) {
	tb.Helper()
	records := make([]*kgo.Record, n)
	for i := range records {
		number := uint64(first + i)
		records[i] = eventRecord(tb, newEvent(number%3, uint32(number/3%testLanes), number, number%2 == 0))
	}
	c.Produce(tb, records...)
}

// long skips a test of more than a second or two in a short run.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes more than a second or two")
	}
}
