package notary

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// stableInterval is how often a take-over looks whether the last leader's transactions have ended.
const stableInterval = 50 * time.Millisecond

// limits are the first offset and the high watermark of a partition.
type limits struct{ start, end int64 }

// takeOver makes this process the leader: it fences whoever may still have a transaction under way, waits until nothing is
// open on the topics, and restores chains and root log from them. A haltError says that they contradict each other.
//
// Kafka writes the markers of a transaction partition by partition, after it has answered its end. So the high watermarks
// are taken first, and nothing is read before the last stable offsets have reached them: then every transaction that has
// written anything has its marker in both topics.
func (l *leader) takeOver(ctx context.Context) error {
	begun := time.Now()
	within, cancel := context.WithTimeout(ctx, l.cfg.TakeOverTimeout)
	defer cancel()
	if _, _, err := l.producer.ProducerID(within); err != nil {
		return fmt.Errorf("claiming the notary's transactional id: %w", err)
	}
	// From here on no other process commits under this id, unless it fences this one.
	checkpoints, state, err := l.awaitStable(within)
	if err != nil {
		return err
	}
	r := newRestorer(l.keys.newest().Name(), l.cfg.Layout.Partitions)
	if err := l.read(ctx, schemas.TopicNotaryState, state.start, state.end, func(record *kgo.Record) error {
		return r.state(record.Key, record.Value)
	}); err != nil {
		return fmt.Errorf("reading notary_state: %w", err)
	}
	restored := true
	switch {
	case r.records > 0:
		err = l.restore(ctx, r, checkpoints)
	case checkpoints.end > 0:
		restored, err = l.rebuild(ctx, r, checkpoints)
	default:
		restored = false
	}
	if err != nil {
		return err
	}
	l.chains, l.log = r.chains, r.log
	l.tail, err = l.consumer(schemas.TopicCheckpoints, map[int32]kgo.Offset{0: kgo.NewOffset().At(checkpoints.end)})
	if err != nil {
		return err
	}
	if restored {
		if err := l.checkSigned(ctx, &r.tail); err != nil {
			return err
		}
	}
	if err := l.lock.check(ctx, l.log, l.prove); err != nil {
		return err
	}
	if err := l.followLedger(ctx); err != nil {
		return err
	}
	l.metrics.takeOver.Observe(time.Since(begun).Seconds())
	return nil
}

// awaitStable returns the limits of checkpoints and notary_state once no transaction is open before their ends.
func (l *leader) awaitStable(ctx context.Context) (checkpoints, state limits, err error) {
	topics := []string{l.cfg.Kafka.Topic(schemas.TopicCheckpoints), l.cfg.Kafka.Topic(schemas.TopicNotaryState)}
	admin := kadm.NewClient(l.admin)
	tick := time.NewTicker(stableInterval)
	defer tick.Stop()
	var start, end kadm.ListedOffsets
	for {
		err := l.stable(ctx, admin, topics, &start, &end)
		if err == nil {
			of := func(topic string) limits {
				first, _ := start.Lookup(topic, 0)
				last, _ := end.Lookup(topic, 0)
				return limits{first.Offset, last.Offset}
			}
			return of(topics[0]), of(topics[1]), nil
		}
		select {
		case <-ctx.Done():
			return limits{}, limits{}, fmt.Errorf("waiting for the last leader: %w", err)
		case <-tick.C:
		}
	}
}

// stable lists the offsets that have not been listed yet, and says what is open before the ends.
func (l *leader) stable(ctx context.Context, admin *kadm.Client, topics []string, start, end *kadm.ListedOffsets) error {
	for _, list := range []struct {
		offsets *kadm.ListedOffsets
		ask     func(context.Context, ...string) (kadm.ListedOffsets, error)
	}{{end, admin.ListEndOffsets}, {start, admin.ListStartOffsets}} {
		if *list.offsets != nil {
			continue
		}
		listed, err := list.ask(ctx, topics...)
		if err = errors.Join(err, listed.Error()); err != nil {
			return fmt.Errorf("listing offsets: %w", err)
		}
		*list.offsets = listed
	}
	stable, err := admin.ListCommittedOffsets(ctx, topics...)
	if err = errors.Join(err, stable.Error()); err != nil {
		return fmt.Errorf("listing stable offsets: %w", err)
	}
	for _, topic := range topics {
		at, _ := stable.Lookup(topic, 0)
		if to, _ := end.Lookup(topic, 0); at.Offset < to.Offset {
			return fmt.Errorf("a transaction on %s is open from offset %d, the end is %d: if it stays so for minutes, nobody ends it any "+
				"more but `kafka-transactions.sh --bootstrap-server HOST:PORT abort --topic %[1]s --partition 0 --start-offset %[2]d`",
				topic, at.Offset, to.Offset)
		}
	}
	return nil
}

// read gives the committed records of a range of offsets of a topic's only partition to use, until that fails.
func (l *leader) read(ctx context.Context, topic string, from, to int64, use func(*kgo.Record) error) error {
	var failed error
	err := kafka.Read(ctx, []kafka.Span{{Topic: l.cfg.Kafka.Topic(topic), From: from, To: to}}, func(r *kgo.Record) bool {
		failed = use(r)
		return failed == nil
	}, l.lookups()...)
	return errors.Join(failed, err)
}

// restore makes chains and root log of notary_state, and compares them with the end of checkpoints.
func (l *leader) restore(ctx context.Context, r *restorer, checkpoints limits) error {
	if err := r.resume(); err != nil {
		return err
	}
	// As much as holds an epoch, nearly always two blocks.
	for blocks := uint64(1); ; blocks *= 4 {
		from := r.tailFrom(blocks)
		if from < checkpoints.start {
			return disagree("checkpoints begins at offset %d, entries before it were deleted", checkpoints.start)
		}
		if err := l.read(ctx, schemas.TopicCheckpoints, from, checkpoints.end, func(record *kgo.Record) error {
			return r.tail.checkpoints(record.Key, record.Value)
		}); err != nil {
			return fmt.Errorf("reading the end of checkpoints: %w", err)
		}
		if r.tail.epoch != nil || from == 0 {
			return r.finish()
		}
	}
}

// checkSigned refuses a root log that is not the one of the newest signed checkpoint, and remembers how far it is signed.
func (l *leader) checkSigned(ctx context.Context, t *tail) error {
	if t.witnessed != nil {
		l.witnessed = t.witnessed.GetSize()
	}
	if t.signed == nil {
		return nil
	}
	trust, err := ledger.ParseTrust([]byte(l.log.firstKey))
	if err != nil {
		return disagree("the first key of the root log: %w", err)
	}
	opened, fault := trust.Open(t.signed.GetNote(), l.log.keys, time.Now())
	if fault != nil {
		return disagree("the newest signed checkpoint: %s", fault)
	}
	switch err := l.log.extends(ctx, &opened.Checkpoint, l.prove); {
	case errors.Is(err, ledger.ErrProof):
		return disagree("the root log does not continue its newest signed checkpoint, of size %d: %w", opened.Size, err)
	case err != nil:
		return err
	}
	l.signedSize = opened.Size
	l.metrics.lastSigned.Set(float64(t.signed.GetPublishedAt()) / 1e6)
	return nil
}

// prove returns the consistency proof of the root log with its first size entries.
func (l *leader) prove(ctx context.Context, size uint64) ([]ledger.Hash, error) {
	return l.log.prove(ctx, size, l.readBlock)
}

// readBlock returns the entry hashes of a complete block.
func (l *leader) readBlock(ctx context.Context, number uint64) ([]ledger.Hash, error) {
	t := tail{first: number * blockEntries}
	var from int64
	if number > 0 {
		from = l.log.blocks[number-1].offset + 1
	}
	err := l.read(ctx, schemas.TopicCheckpoints, from, l.log.blocks[number].offset+1, func(r *kgo.Record) error {
		return t.checkpoints(r.Key, r.Value)
	})
	if err == nil && len(t.hashes) != blockEntries {
		err = fmt.Errorf("there are %d of %d entries", len(t.hashes), blockEntries)
	}
	return t.hashes, err
}

// followLedger begins to read the ledger at the chains' positions and heads at its beginning.
func (l *leader) followLedger(ctx context.Context) error {
	ledgerTopic := l.cfg.Kafka.Topic(schemas.TopicLedger)
	admin := kadm.NewClient(l.admin)
	start, err := admin.ListStartOffsets(ctx, ledgerTopic)
	if err = errors.Join(err, start.Error()); err != nil {
		return fmt.Errorf("listing offsets of the ledger: %w", err)
	}
	end, err := admin.ListEndOffsets(ctx, ledgerTopic)
	if err = errors.Join(err, end.Error()); err != nil {
		return fmt.Errorf("listing offsets of the ledger: %w", err)
	}
	from, fromStart := make(map[int32]kgo.Offset), make(map[int32]kgo.Offset)
	for number, position := range l.chains.positions {
		p := int32(number)
		first, _ := start.Lookup(ledgerTopic, p)
		last, _ := end.Lookup(ledgerTopic, p)
		switch at := int64(position); {
		case at < first.Offset:
			return halt(haltLost, "ledger offsets %d to %d of partition %d were deleted before they were in an epoch", at, first.Offset-1, p)
		case at > last.Offset:
			return halt(haltLost, "the last epoch comes to ledger offset %d of partition %d, which ends at %d: it was truncated", at, p, last.Offset)
		}
		from[p] = kgo.NewOffset().At(int64(position))
		fromStart[p] = kgo.NewOffset().AtStart()
	}
	if l.ledger, err = l.consumer(schemas.TopicLedger, from); err != nil {
		return err
	}
	// Heads that were compacted away, and a topic that was made anew, are no loss here.
	l.heads, err = l.consumer(schemas.TopicHeads, fromStart, kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	return err
}

// consumer returns a client that reads committed records of a topic from these offsets on, markers included.
func (l *leader) consumer(topic string, from map[int32]kgo.Offset, opts ...kgo.Opt) (*kgo.Client, error) {
	cl, err := kgo.NewClient(slices.Concat(l.lookups(), []kgo.Opt{
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{l.cfg.Kafka.Topic(topic): from}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
	}, opts)...)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	l.closers = append(l.closers, cl.Close)
	return cl, nil
}

func encode(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding a %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return b, nil
}

// entryMessage decodes an entry's record of checkpoints.
func entryMessage(r *kgo.Record) (*recordpb.LogEntry, error) {
	m := new(recordpb.LogEntry)
	return m, decode(m, r.Key, r.Value)
}
