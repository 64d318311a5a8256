package processor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// readyInterval is how often a take-over looks whether the last owner's transactions have ended.
const readyInterval = 50 * time.Millisecond

// takeOver is called with the group's committed offsets of newly assigned partitions, which the broker answers only once
// no transaction on them is open, and returns those to be read from. It runs beside the loop, which goes on with the
// partitions that it has.
//
// Heads and committed offset move in one transaction, but Kafka writes its markers partition by partition, after that
// answer: a head that is read now may be one transaction old, and sealing from there would seal the same input twice.
// So the high watermarks are taken first, and nothing is read until the last stable offsets have reached them: then
// every transaction that had written anything has its marker in every topic.
//
// A partition that cannot be taken over is left out of what is returned: it stays assigned and is not read.
func (s *session) takeOver(
	ctx context.Context, offsets map[string]map[int32]kgo.Offset,
) (map[string]map[int32]kgo.Offset, error) {
	assigned := offsets[s.cfg.Kafka.Topic(schemas.TopicEvents)]
	if len(assigned) == 0 {
		return offsets, nil
	}
	begun := time.Now()
	ts := make(takes, len(assigned))
	for number, offset := range assigned {
		t := &take{restorer: newRestorer(newPartition(number, s.cfg.Layout.Partitions, s.cfg.DedupLeaves))}
		if at := offset.EpochOffset().Offset; at >= 0 {
			committed := uint64(at)
			t.committed = &committed
		}
		t.err = s.lost[number]
		ts[number] = t
	}
	s.restore(ctx, ts)
	if ctx.Err() != nil {
		// Another rebalance has begun. What is still assigned after it comes here again.
		return nil, ctx.Err()
	}

	partitions, halted := make(map[int32]*partition), make(map[int32]halt)
	for number, t := range ts {
		if t.end != nil {
			var next int64
			if t.committed != nil {
				next = int64(*t.committed)
			}
			s.metrics.lags.set(number, next, *t.end)
		}
		if t.err == nil {
			partitions[number] = t.p
			if t.committed == nil {
				assigned[number] = kgo.NewOffset().At(0)
			}
			continue
		}
		delete(assigned, number)
		h := halt{reason: t.err}
		switch _, isLost := s.lost[number]; {
		case isLost:
			h.kind = haltLost
		case errors.Is(t.err, errDisagreement):
			h.kind = haltDisagreement
		default:
			h.kind = haltUnavailable
			h.retry = time.Now().Add(s.cfg.RetryInterval)
		}
		halted[number] = h
		s.logger.LogAttrs(ctx, slog.LevelError, "partition halted", slog.Int("partition", int(number)),
			slog.String("reason", h.kind), slog.Any("error", t.err), slog.Bool("retried", !h.retry.IsZero()))
	}
	s.metrics.takeOver.Observe(time.Since(begun).Seconds())
	s.owned.takenOver(partitions, halted)
	return offsets, nil
}

// take is the taking over of one partition.
type take struct {
	*restorer
	committed *uint64 // nil: none
	end       *int64  // of the input; nil: not known
	err       error   // why it cannot be taken over
}

// takes are those of one call.
type takes map[int32]*take

// fail halts every partition that is still to be taken over.
func (ts takes) fail(err error) {
	for _, t := range ts {
		if t.err == nil {
			t.err = err
		}
	}
}

// restore takes the partitions over, each into its take.
func (s *session) restore(ctx context.Context, ts takes) {
	// Three times: asking, waiting, and reading.
	ctx, cancel := context.WithTimeout(ctx, 3*s.cfg.TakeOverTimeout)
	defer cancel()
	l, err := s.limits(ctx)
	if err != nil {
		ts.fail(err)
		return
	}
	s.awaitStable(ctx, ts, l)
	if err := s.readHeads(ctx, ts, l); err != nil {
		ts.fail(err)
		return
	}
	if err := s.readLedger(ctx, ts, l); err != nil {
		ts.fail(err)
	}
}

// limits are the first offsets and the high watermarks of a take-over's topics, by full name.
type limits struct{ start, end kadm.ListedOffsets }

// limits asks until every broker has answered: the leaders that a take-over needs may be changing just then.
func (s *session) limits(ctx context.Context) (limits, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.TakeOverTimeout)
	defer cancel()
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	for {
		l, err := s.listOffsets(ctx)
		if err == nil {
			return l, nil
		}
		select {
		case <-ctx.Done():
			return limits{}, fmt.Errorf("listing offsets: %w", err)
		case <-tick.C:
		}
	}
}

func (s *session) listOffsets(ctx context.Context) (l limits, err error) {
	names := []string{}
	for _, name := range []string{schemas.TopicEvents, schemas.TopicHeads, schemas.TopicDedup, schemas.TopicLedger} {
		names = append(names, s.cfg.Kafka.Topic(name))
	}
	admin := kadm.NewClient(s.admin)
	if l.end, err = admin.ListEndOffsets(ctx, names...); err == nil {
		err = l.end.Error()
	}
	if err == nil {
		if l.start, err = admin.ListStartOffsets(ctx, names...); err == nil {
			err = l.start.Error()
		}
	}
	return l, err
}

// of returns the first offset and the high watermark of a partition.
func (l limits) of(topic string, partition int32) (start, end int64) {
	first, _ := l.start.Lookup(topic, partition)
	last, _ := l.end.Lookup(topic, partition)
	return first.Offset, last.Offset
}

// awaitStable waits until the last stable offsets of the output topics have reached their high watermarks, and halts the
// partitions where they do not in time. A last stable offset does not go back, so each is waited for once.
func (s *session) awaitStable(ctx context.Context, ts takes, l limits) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.TakeOverTimeout)
	defer cancel()
	outputs := []string{
		s.cfg.Kafka.Topic(schemas.TopicHeads), s.cfg.Kafka.Topic(schemas.TopicDedup), s.cfg.Kafka.Topic(schemas.TopicLedger),
	}
	type output struct {
		topic  string
		number int32
	}
	waiting := make(map[output]error) // why, as far as is known
	for number, t := range ts {
		for _, topic := range outputs {
			if t.err == nil {
				waiting[output{topic, number}] = nil
			}
		}
	}
	admin := kadm.NewClient(s.admin)
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	for {
		// Where a broker does not answer, err says so and stable has what the others said.
		stable, err := admin.ListCommittedOffsets(ctx, outputs...)
		for o, why := range waiting {
			_, end := l.of(o.topic, o.number)
			switch at, ok := stable.Lookup(o.topic, o.number); {
			case ok && at.Err == nil && at.Offset >= end:
				delete(waiting, o)
			case ok && at.Err == nil:
				waiting[o] = fmt.Errorf("a transaction on %s is open from offset %d, the end is %d: if it stays so for minutes, nobody "+
					"ends it any more but `kafka-transactions.sh --bootstrap-server HOST:PORT abort --topic %[1]s --partition %[4]d "+
					"--start-offset %[2]d`", o.topic, at.Offset, end, o.number)
			case why == nil:
				waiting[o] = fmt.Errorf("listing stable offsets of %s: %w", o.topic, errors.Join(err, at.Err))
			}
		}
		if len(waiting) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			for o, why := range waiting {
				ts[o.number].err = fmt.Errorf("waited %s for the last owner: %w", s.cfg.TakeOverTimeout, why)
			}
			return
		case <-tick.C:
		}
	}
}

// readHeads reads heads and dedup, and compares them with what the group committed.
func (s *session) readHeads(ctx context.Context, ts takes, l limits) error {
	heads, dedup := s.cfg.Kafka.Topic(schemas.TopicHeads), s.cfg.Kafka.Topic(schemas.TopicDedup)
	var ranges spans
	for number, t := range ts {
		if t.err == nil {
			ranges.add(l, heads, number, 0)
			ranges.add(l, dedup, number, 0)
		}
	}
	err := s.read(ctx, ranges, func(r *kgo.Record) {
		switch t := ts[r.Partition]; {
		case t.err != nil:
		case r.Topic == heads:
			t.err = t.heads(r.Key, r.Value)
		default:
			t.err = t.dedup(r.Key, r.Value, r.Timestamp.UnixMicro())
		}
	})
	if err != nil {
		return fmt.Errorf("reading heads: %w", err)
	}
	events := s.cfg.Kafka.Topic(schemas.TopicEvents)
	for number, t := range ts {
		_, end := l.of(events, number)
		t.end = &end
		if t.err != nil {
			continue
		}
		var next int64
		if t.committed != nil {
			next = int64(*t.committed)
		}
		switch start, end := l.of(events, number); {
		case next < start:
			t.err = disagree("input offsets %d to %d were deleted before they were sealed", next, start-1)
		case next > end:
			t.err = disagree("the group committed offset %d, the input ends at %d: it was truncated", next, end)
		}
	}
	return nil
}

// readLedger reads the end of the ledger, which must be where heads says.
func (s *session) readLedger(ctx context.Context, ts takes, l limits) error {
	topic := s.cfg.Kafka.Topic(schemas.TopicLedger)
	var ranges spans
	for number, t := range ts {
		if t.err != nil {
			continue
		}
		var from uint64
		if from, t.err = t.done(t.committed); t.err == nil {
			ranges.add(l, topic, number, int64(from))
		}
	}
	err := s.read(ctx, ranges, func(r *kgo.Record) {
		if t := ts[r.Partition]; t.err == nil {
			t.err = t.ledger(uint64(r.Offset), r.Value)
		}
	})
	if err != nil {
		return fmt.Errorf("reading the end of the ledger: %w", err)
	}
	for number, t := range ts {
		if t.err != nil {
			continue
		}
		start, end := l.of(topic, number)
		if t.p.leaves > 0 && uint64(end) <= t.p.lastOffset {
			t.err = disagree("heads says that the last leaf is at ledger offset %d, the ledger ends at %d: it was truncated",
				t.p.lastOffset, end)
			continue
		}
		t.p, t.err = t.finish(uint64(start))
	}
	return nil
}

// spans to read.
type spans []kafka.Span

// add adds a partition's offsets from from, or its start, to its high watermark, if there are any.
func (ss *spans) add(l limits, topic string, partition int32, from int64) {
	start, end := l.of(topic, partition)
	*ss = append(*ss, kafka.Span{Topic: topic, Partition: partition, From: max(from, start), To: end})
}

// read gives each committed record of ranges to use, those of one partition in order.
func (s *session) read(ctx context.Context, ranges spans, use func(*kgo.Record)) error {
	return kafka.Read(ctx, ranges, func(r *kgo.Record) bool {
		use(r)
		return true
	}, slices.Concat(s.lookups(), []kgo.Opt{
		kgo.FetchMaxBytes(s.cfg.FetchBytes), kgo.FetchMaxPartitionBytes(s.cfg.FetchBytes),
	})...)
}
