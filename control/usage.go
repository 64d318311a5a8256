package control

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

const (
	defUsageInterval = time.Minute
	// usageTimeout bounds one writing down of uses.
	usageTimeout = 10 * time.Second
	// lastUsageTimeout bounds the last one, at a stop.
	lastUsageTimeout = 2 * time.Second
	// maxUsageRecords bounds the records that wait for Kafka.
	maxUsageRecords = 1_000
)

// usage is when each key was last used: what the topic key_usage says, and what this process has seen itself. It grows
// with the keys that ever were, as the state of a View does. A request only takes note; everything else is done beside
// it, and what fails is done again an interval later.
type usage struct {
	topic string

	mu   sync.RWMutex
	uses map[[16]byte]*use // by key id

	// complete says that everything has been read that was on the topic at start.
	complete atomic.Bool
	// next is the offset behind the last record read. The reader owns it.
	next int64
}

// use has times in microseconds since the Unix epoch; 0 is never.
type use struct {
	noted  atomic.Int64 // in this process
	stored atomic.Int64 // on the topic
}

func newUsage(cfg kafka.Config) *usage {
	return &usage{topic: cfg.Topic(schemas.TopicKeyUsage), uses: map[[16]byte]*use{}}
}

// of returns what is known of a key.
func (u *usage) of(id [16]byte) *use {
	u.mu.RLock()
	k := u.uses[id]
	u.mu.RUnlock()
	if k != nil {
		return k
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if k = u.uses[id]; k == nil {
		k = new(use)
		u.uses[id] = k
	}
	return k
}

// note takes note of a use.
func (u *usage) note(id [16]byte, now time.Time) { raise(&u.of(id).noted, now.UnixMicro()) }

// raise sets a time to a later one.
func raise(at *atomic.Int64, micros int64) {
	for old := at.Load(); micros > old && !at.CompareAndSwap(old, micros); old = at.Load() {
	}
}

// last returns the zero time for a key that is not known to have been used.
func (u *usage) last(id [16]byte) time.Time {
	u.mu.RLock()
	defer u.mu.RUnlock()
	if k := u.uses[id]; k != nil {
		return k.last()
	}
	return time.Time{}
}

func (k *use) last() time.Time {
	micros := max(k.noted.Load(), k.stored.Load())
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}

// run reads and writes until ctx ends, and then writes what is left.
func (u *usage) run(ctx context.Context, interval time.Duration, opts []kgo.Opt, m *viewMetrics, logger *slog.Logger) {
	cl, err := u.client(opts)
	if err != nil {
		m.usageReadErrors.Inc()
		m.usageWriteErrors.Inc()
		logger.ErrorContext(ctx, "uses of API keys are not written down", "error", err)
		return
	}
	defer cl.Close()
	var reader sync.WaitGroup
	defer reader.Wait()
	reader.Go(func() { u.read(ctx, cl, m, logger) })
	write := func(ctx context.Context, timeout time.Duration) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if err := u.write(ctx, cl, m.usesWritten); err != nil && !errors.Is(err, context.Canceled) { // at a stop the last writing down follows
			m.usageWriteErrors.Inc()
			logger.WarnContext(ctx, "uses of API keys could not be written down", "error", err)
		}
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			write(ctx, usageTimeout)
		case <-ctx.Done():
			write(context.WithoutCancel(ctx), lastUsageTimeout)
			return
		}
	}
}

func (u *usage) client(opts []kgo.Opt) (*kgo.Client, error) {
	cl, err := kgo.NewClient(append(append(readOptions(u.topic, 0), opts...),
		kgo.ProducerLinger(0),
		kgo.MaxBufferedRecords(maxUsageRecords),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		// A record that is there twice says nothing else, and one that is given up need not be waited for.
		kgo.DisableIdempotentWrite(),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
	)...)
	if err != nil {
		return nil, fmt.Errorf("open the client of key usage: %w", err)
	}
	return cl, nil
}

// read takes in what is on the topic, and what other processes write, until ctx ends.
func (u *usage) read(ctx context.Context, cl *kgo.Client, m *viewMetrics, logger *slog.Logger) {
	failed := func(err error) {
		m.usageReadErrors.Inc()
		logger.WarnContext(ctx, "uses of API keys could not be read", "error", err)
	}
	follow := func() error {
		if err := u.catchUp(ctx, cl, failed); err != nil {
			return err
		}
		u.complete.Store(true)
		for {
			if err := u.poll(ctx, cl, failed); err != nil {
				return err
			}
		}
	}
	for {
		err := follow()
		if ctx.Err() != nil {
			return
		}
		failed(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(restartWait):
		}
	}
}

// catchUp reads everything below the high watermark of this moment. unusable is given the error of a record that says
// nothing.
func (u *usage) catchUp(ctx context.Context, cl *kgo.Client, unusable func(error)) error {
	end, err := endOffset(ctx, cl, u.topic)
	if err != nil {
		return err
	}
	start, err := startOffset(ctx, cl, u.topic)
	if err != nil {
		return err
	}
	u.next = max(u.next, start)
	for u.next < end {
		if err := u.poll(ctx, cl, unusable); err != nil {
			return err
		}
	}
	return nil
}

// poll waits for records and takes them in.
func (u *usage) poll(ctx context.Context, cl *kgo.Client, unusable func(error)) error {
	fetches := cl.PollFetches(ctx)
	for r := range fetches.RecordsAll() {
		u.next = r.Offset + 1
		if err := u.take(r); err != nil {
			unusable(fmt.Errorf("key usage record at offset %d: %w", r.Offset, err))
		}
	}
	if err := fetches.Err(); err != nil {
		return fmt.Errorf("read key usage: %w", err)
	}
	return nil
}

// take takes one record in.
func (u *usage) take(r *kgo.Record) error {
	if r.Attrs.IsControl() || r.Value == nil {
		return nil
	}
	id, err := hex.DecodeString(string(r.Key))
	if err != nil || len(id) != 16 {
		return fmt.Errorf("%q is no key id", r.Key)
	}
	var pb recordpb.KeyUsage
	if err := proto.Unmarshal(r.Value, &pb); err != nil {
		return fmt.Errorf("decode it: %w", err)
	}
	raise(&u.of([16]byte(id)).stored, pb.GetUsedAt())
	return nil
}

// write puts what is later than what the topic says on it, where another process has not written a later one. What it
// returns nil for is on every in-sync replica; what is lost by a kill before is the time of a use, and nothing else. It
// does not wait for longer than ctx, whatever Kafka does.
func (u *usage) write(ctx context.Context, cl *kgo.Client, written prometheus.Counter) error {
	var failed error // promises are called one at a time, and all before Flush returns nil
	for _, id := range u.pending() {
		k := u.of(id)
		micros := k.noted.Load()
		value, err := proto.Marshal(&recordpb.KeyUsage{UsedAt: micros})
		if err != nil {
			return fmt.Errorf("encode key usage: %w", err)
		}
		r := &kgo.Record{Topic: u.topic, Key: hex.AppendEncode(nil, id[:]), Value: value, Timestamp: time.UnixMicro(micros)}
		cl.Produce(ctx, r, func(_ *kgo.Record, err error) {
			if err != nil {
				failed = cmp.Or(failed, err)
				return
			}
			written.Inc()
			raise(&k.stored, micros)
		})
	}
	err := cl.Flush(ctx)
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("write key usage: %w", err)
	}
	return nil
}

// pending returns the keys whose latest use is not on the topic.
func (u *usage) pending() [][16]byte {
	u.mu.RLock()
	defer u.mu.RUnlock()
	var ids [][16]byte
	for id, k := range u.uses {
		if k.noted.Load() > k.stored.Load() {
			ids = append(ids, id)
		}
	}
	return ids
}

// LastUsed returns when each key was last used that ever was, as far as the services have written it down: what a service
// has seen within its ViewConfig.UsageInterval is missing. Records that say nothing are passed over; the services count
// them.
func (w *Writer) LastUsed(ctx context.Context) (map[[16]byte]time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	u := newUsage(w.cfg.Kafka)
	cl, err := u.client(w.opts)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	if err := u.catchUp(ctx, cl, func(error) {}); err != nil {
		return nil, err
	}
	times := make(map[[16]byte]time.Time, len(u.uses))
	for id, k := range u.uses {
		times[id] = k.last()
	}
	return times, nil
}
