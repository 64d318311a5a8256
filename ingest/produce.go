package ingest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/event"
)

// minDeliveryTimeout is the least that the Kafka client takes.
const minDeliveryTimeout = time.Second

// producerOptions are what ingest needs of Kafka's client, beside the connection's.
func producerOptions(cfg Config, topic string) []kgo.Opt {
	return []kgo.Opt{
		kgo.DefaultProduceTopic(topic),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(cfg.Linger),
		kgo.MaxBufferedRecords(cfg.MaxBufferedRecords),
		kgo.MaxBufferedBytes(cfg.MaxBufferedBytes),
		// A record outlives the request that waits for it by little: once the client was told 503, it will send the event
		// again. Without cancellation a record that may have been written would stay until Kafka says so, and hold all
		// that follow on its partition. The client moves to a new epoch before it writes again, which fences the old
		// attempt; nothing that was cancelled was answered with a 202, and nothing else is written twice.
		kgo.RecordDeliveryTimeout(max(minDeliveryTimeout, cfg.ProduceTimeout)),
		kgo.AllowIdempotentProduceCancellation(),
		kgo.ProduceRequestTimeout(cfg.ProduceTimeout),
		// A broker that takes a request and never answers is given up, with its connection, after twice ProduceTimeout.
		kgo.RequestTimeoutOverhead(cfg.ProduceTimeout),
		kgo.DialTimeout(cfg.ProduceTimeout),
		// The defaults, up to 5 s, would keep answering 503 long after Kafka is back.
		kgo.RetryBackoffFn(func(tries int) time.Duration { return min(time.Second, 50*time.Millisecond<<min(tries, 5)) }),
		kgo.MetadataMinAge(250 * time.Millisecond),
	}
}

// pending waits for the records of one request.
type pending struct {
	left  atomic.Int64
	first sync.Once
	err   error         // of the first record that failed; read after done
	done  chan struct{} // closed when every record is acknowledged, or failed
}

// promise is called by the Kafka client once for every record, one at a time.
func (p *pending) promise(_ *kgo.Record, err error) {
	if err != nil {
		p.first.Do(func() { p.err = err })
	}
	if p.left.Add(-1) == 0 {
		close(p.done)
	}
}

// produce writes the records and returns nil once every one of them is acknowledged by all in-sync replicas: only then
// may a 202 be given. After an error some may have been written, or may be yet, up to about ProduceTimeout later.
//
// The records are bound to no request: the Kafka client fails all of a partition's records together, so one client that
// leaves would take others' events with it.
func (s *Service) produce(ctx context.Context, records []event.Record, workspace [16]byte) error {
	// Held while records are under way: Run takes it for writing to stop, after the last of them.
	if !s.running.TryRLock() {
		return &produceError{reasonStopping, errStopped}
	}
	defer s.running.RUnlock()

	var size int64
	slab := make([]kgo.Record, len(records))
	for i := range records {
		r := &records[i]
		size += int64(len(r.Key) + len(r.Value))
		slab[i] = kgo.Record{
			Key: r.Key, Value: r.Value, Timestamp: r.RecordedAt,
			Partition: event.Partition(workspace, r.Lane, s.cfg.Partitions),
		}
	}
	// The client would notice only with half a batch written; most of what cannot fit is refused whole.
	if s.client.BufferedProduceRecords()+int64(len(slab)) > int64(s.cfg.MaxBufferedRecords) ||
		s.client.BufferedProduceBytes()+size > int64(s.cfg.MaxBufferedBytes) {
		return &produceError{reasonFull, kgo.ErrMaxBuffered}
	}

	p := &pending{done: make(chan struct{})}
	p.left.Store(int64(len(slab)))
	promise, unbound := p.promise, context.WithoutCancel(ctx)
	for i := range slab {
		s.client.TryProduce(unbound, &slab[i], promise)
	}
	timeout := time.NewTimer(s.cfg.ProduceTimeout)
	defer timeout.Stop()
	select {
	case <-p.done:
	case <-timeout.C:
		return &produceError{reasonTimeout, fmt.Errorf("no acknowledgement within %s", s.cfg.ProduceTimeout)}
	case <-ctx.Done():
		return fmt.Errorf("wait for Kafka's acknowledgement: %w", context.Cause(ctx))
	}
	switch err := p.err; {
	case err == nil:
		return nil
	case errors.Is(err, kgo.ErrMaxBuffered):
		return &produceError{reasonFull, err}
	case errors.Is(err, kgo.ErrRecordTimeout):
		return &produceError{reasonTimeout, err}
	default:
		return &produceError{reasonRefused, err}
	}
}

// produceError is why records did not reach Kafka.
type produceError struct {
	reason string // a label of immutable_ingest_produce_errors_total
	err    error
}

func (e *produceError) Error() string { return "produce: " + e.err.Error() }
func (e *produceError) Unwrap() error { return e.err }

var errStopped = errors.New("ingest is not running")
