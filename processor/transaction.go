package processor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/crash"
	"getimmutable.dev/immutable/schemas"
)

// transaction is the one that is open: a step for each partition that it touches, and what was produced. Its memory is
// used again by the next. Owned by the session's loop.
type transaction struct {
	steps  []*step          // of this transaction
	by     map[int32]*batch // of every partition that a transaction touched, for its memory
	dead   []*kgo.Record    // for the dlq
	values arena
	// slabs are what records are cut from, and used again by the next transaction: the client is done with them.
	slabs [][]kgo.Record
	cut   int // records cut

	begun   time.Time
	records int
	bytes   int
}

// batch is what a transaction does to one partition.
type batch struct {
	step
	leaves []*kgo.Record // on the ledger topic, in order
	oldest time.Time     // when the first of the input was accepted
	active bool
}

func (t *transaction) begin() {
	if t.by == nil {
		t.by = make(map[int32]*batch)
	}
	t.begun, t.records, t.bytes = time.Now(), 0, 0
}

// release ends the transaction and lets go of its input: an idle processor must not hold on to what it last fetched.
func (t *transaction) release() {
	for _, b := range t.by {
		clear(b.leaves)
		b.leaves, b.active = b.leaves[:0], false
	}
	for _, slab := range t.slabs {
		clear(slab)
	}
	t.values.reset()
	clear(t.dead)
	t.steps, t.dead, t.cut = t.steps[:0], t.dead[:0], 0
}

// batch returns the partition's part of the transaction.
func (t *transaction) batch(p *partition) *batch {
	b, ok := t.by[p.number]
	if !ok {
		b = new(batch)
		t.by[p.number] = b
	}
	if !b.active {
		b.active, b.oldest = true, time.Time{}
		b.begin(p, &t.values)
		t.steps = append(t.steps, &b.step)
	}
	return b
}

// slabRecords is the number of records of a slab.
const slabRecords = 256

// record returns a record to fill in.
func (t *transaction) record() *kgo.Record {
	slab, i := t.cut/slabRecords, t.cut%slabRecords
	if slab == len(t.slabs) {
		t.slabs = append(t.slabs, make([]kgo.Record, slabRecords))
	}
	t.cut++
	return &t.slabs[slab][i]
}

// transact seals one transaction, which begins with the input in fetches. It returns nil once it is committed; after
// any error nothing that the session knows of its partitions may be used again.
func (s *session) transact(ctx context.Context, fetches kgo.Fetches) error {
	// The broker aborts the transaction at that time; the end of ctx only ends the taking in of more. The limit also
	// frees End where a lost group session keeps it waiting for a heartbeat that no one will send.
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.TransactionTimeout)
	defer cancel()
	committed, err := s.attempt(ctx, within, fetches)
	switch {
	case err != nil:
		s.metrics.failed.Inc()
		return err
	case !committed:
		s.metrics.aborted.Inc()
		return errUncommitted
	}
	s.progress = true
	s.settle(ctx)
	return nil
}

// attempt fills the transaction and ends it. ctx ends the filling, within the whole.
func (s *session) attempt(ctx, within context.Context, fetches kgo.Fetches) (committed bool, err error) {
	if err := s.group.Begin(); err != nil {
		return false, fmt.Errorf("beginning a transaction: %w", err)
	}
	err = s.fill(ctx, within, fetches)
	if err == nil {
		err = s.conclude(within)
	}
	if err != nil {
		// Readers of the ledger need not wait for the broker to find out.
		if _, abortErr := s.group.End(within, kgo.TryAbort); abortErr != nil {
			s.logger.LogAttrs(ctx, slog.LevelWarn, "aborting a transaction failed", slog.Any("error", abortErr))
		}
		return false, err
	}
	crash.Point("seal-before-end")
	// Before: the leaves, heads and ids are on the brokers, and no reader sees them. After, if committed: they and the
	// input offsets are durable and visible together. Whatever else End says, it may be either.
	committed, err = s.group.End(within, kgo.TryCommit)
	if err != nil {
		return false, fmt.Errorf("ending a transaction: %w", err)
	}
	if committed {
		crash.Point("seal-after-end")
	}
	return committed, nil
}

// fill seals fetches and what else arrives until the transaction is full.
func (s *session) fill(ctx, within context.Context, fetches kgo.Fetches) error {
	t := &s.txn
	t.begin()
	s.produce.Store(nil)
	for {
		if err := s.take(within, fetches); err != nil {
			return err
		}
		wait := s.cfg.TransactionInterval - time.Since(t.begun)
		room := s.cfg.TransactionRecords - t.records
		full := wait <= 0 || room <= 0 || t.bytes >= s.cfg.TransactionBytes
		if full || ctx.Err() != nil {
			return nil //nolint:nilerr // no more is taken in; what there is will be committed
		}
		var err error
		if fetches, err = s.poll(ctx, wait, room); err != nil {
			return err
		}
	}
}

// take seals the records of fetches and produces the leaves.
func (s *session) take(within context.Context, fetches kgo.Fetches) error {
	t := &s.txn
	for _, fetch := range fetches {
		for _, topic := range fetch.Topics {
			for i := range topic.Partitions {
				records := topic.Partitions[i].Records
				if len(records) == 0 {
					continue
				}
				p, ok := s.owned.partition(topic.Partitions[i].Partition)
				if !ok {
					return fmt.Errorf("input of partition %d, which was not taken over", topic.Partitions[i].Partition)
				}
				b := t.batch(p)
				if b.oldest.IsZero() {
					b.oldest = records[0].Timestamp
				}
				s.metrics.lags.fetched(p.number, topic.Partitions[i].HighWatermark, records[0].Timestamp)
				t.records += len(records)
				for some := range slices.Chunk(records, burstRecords) {
					if err := s.seal(within, b, some); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// burstRecords are sealed, and then produced together: the client sends at once what there is, and small batches cost
// more than the sealing; while it sends, the next are sealed.
const burstRecords = 1000

// seal seals records of one partition and produces the leaves.
func (s *session) seal(within context.Context, b *batch, records []*kgo.Record) error {
	t := &s.txn
	ledger := s.cfg.Kafka.Topic(schemas.TopicLedger)
	first := len(b.leaves)
	for _, r := range records {
		offset := uint64(r.Offset)
		if offset < b.counts.next {
			return fmt.Errorf("input of partition %d goes back from offset %d to %d", r.Partition, b.counts.next, offset)
		}
		out, dead := b.seal(input{key: r.Key, value: r.Value, offset: offset, marker: r.Attrs.IsControl()})
		if dead != nil {
			t.dead = append(t.dead, s.deadLetter(r, dead))
		}
		for i := range out {
			leaf := t.record()
			*leaf = kgo.Record{
				Topic: ledger, Partition: r.Partition, Key: r.Key, Value: out[i].value,
				Timestamp: time.UnixMicro(out[i].recordedAt),
			}
			b.leaves = append(b.leaves, leaf)
		}
		t.bytes += len(r.Key) + len(r.Value)
	}
	for _, leaf := range b.leaves[first:] {
		s.group.Produce(within, leaf, s.acked)
	}
	return nil
}

// deadLetter returns r for the dlq.
func (s *session) deadLetter(r *kgo.Record, reason error) *kgo.Record {
	header := func(name, value string) kgo.RecordHeader { return kgo.RecordHeader{Key: name, Value: []byte(value)} }
	dead := &kgo.Record{
		Topic: s.cfg.Kafka.Topic(schemas.TopicDLQ), Partition: r.Partition % s.dlqPartitions, Key: r.Key, Value: r.Value,
		Headers: []kgo.RecordHeader{
			header(schemas.DLQHeaderTopic, r.Topic),
			header(schemas.DLQHeaderPartition, strconv.Itoa(int(r.Partition))),
			header(schemas.DLQHeaderOffset, strconv.FormatInt(r.Offset, 10)),
			header(schemas.DLQHeaderError, reason.Error()),
		},
	}
	if len(r.Key)+len(r.Value) > maxRecordBytes {
		// With the headers it would not fit into a batch, and sealing would stop at it for ever. It stays where the
		// headers say for as long as the events topic keeps it.
		dead.Key, dead.Value = nil, nil
	}
	return dead
}

// maxDeadLines bounds the log lines of one transaction: a producer gone wrong must not fill the log's disk.
const maxDeadLines = 10

// logDead says which records are on the dlq, by where they came from; never what is in them.
func (s *session) logDead(ctx context.Context, dead []*kgo.Record) {
	for i, r := range dead {
		if i == maxDeadLines {
			s.logger.LogAttrs(ctx, slog.LevelWarn, "more records sent to the dlq", slog.Int("records", len(dead)-i))
			return
		}
		attrs := make([]slog.Attr, 0, len(r.Headers)+2)
		for _, h := range r.Headers {
			attrs = append(attrs, slog.String(h.Key, string(h.Value)))
		}
		requestID, traceID := event.Origin(r.Value)
		if requestID != "" {
			attrs = append(attrs, slog.String("request_id", requestID))
		}
		if traceID != "" {
			attrs = append(attrs, slog.String("trace_id", traceID))
		}
		s.logger.LogAttrs(ctx, slog.LevelWarn, "record sent to the dlq", attrs...)
	}
}

// conclude waits for the leaves and produces what rests on their offsets.
func (s *session) conclude(within context.Context) error {
	t := &s.txn
	if err := s.flush(within); err != nil {
		return err
	}
	crash.Point("seal-after-produce")
	for _, step := range t.steps {
		b := t.by[step.p.number]
		records, err := step.finish(func(leaf uint64) uint64 { return uint64(b.leaves[leaf].Offset) })
		if err != nil {
			return err
		}
		for i := range records {
			r := &kgo.Record{
				Topic: s.cfg.Kafka.Topic(records[i].topic), Partition: step.p.number, Key: records[i].key, Value: records[i].value,
			}
			if at := records[i].recordedAt; at != 0 {
				r.Timestamp = time.UnixMicro(at)
			}
			s.group.Produce(within, r, s.acked)
		}
	}
	for _, r := range t.dead {
		s.group.Produce(within, r, s.acked)
	}
	return s.flush(within)
}

// flush waits until everything that was produced is acknowledged by all replicas in sync. End does not look at failed
// records: a transaction commits what succeeded.
func (s *session) flush(within context.Context) error {
	err := s.group.Client().Flush(within)
	if failed := s.produce.Load(); failed != nil {
		err = errors.Join(*failed, err)
	}
	if err != nil {
		return fmt.Errorf("producing: %w", err)
	}
	return nil
}

// settle makes the transaction's outcome the session's state: it is committed.
func (s *session) settle(ctx context.Context) {
	t, m := &s.txn, s.metrics
	s.owned.publish(t.steps)
	s.logDead(ctx, t.dead)
	now, ahead := time.Now(), time.Duration(0)
	for _, step := range t.steps {
		newest := time.UnixMicro(step.recordedAt)
		m.lags.sealed(step.p.number, int64(step.counts.next), newest)
		if step.counts.leaves > 0 {
			m.age.Observe(now.Sub(t.by[step.p.number].oldest).Seconds())
			ahead = max(ahead, newest.Sub(now))
		}
		m.leaves.Add(float64(step.counts.leaves))
		m.duplicates.Add(float64(step.counts.duplicates))
		m.dead.Add(float64(step.counts.dead))
	}
	m.committed.Inc()
	m.clockAhead.Set(ahead.Seconds())
	m.records.Observe(float64(t.records))
	m.bytes.Observe(float64(t.bytes))
	m.seconds.Observe(time.Since(t.begun).Seconds())
	t.release()
}
