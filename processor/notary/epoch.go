package notary

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/internal/crash"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// leader is what a session does while it leads. It is owned by one goroutine, but for prove. After any error nothing of it is
// used again.
type leader struct {
	*Notary
	admin    *kgo.Client // lists offsets
	producer *kgo.Client // has the transactional id
	// heads, ledger and tail, of checkpoints, are read on and on.
	heads, ledger, tail *kgo.Client
	closers             []func()

	keys   keys
	lock   lockFile
	chains *chains
	log    *rootLog
	// headsAt are the next offsets of heads.
	headsAt []int64
	// signedSize is the size of the newest published checkpoint, witnessed of the newest that has a quorum of witnesses.
	signedSize, witnessed uint64
	progress              bool // a checkpoint was published
}

// pollRecords is how many records are taken in at once.
const pollRecords = 10_000

// lead takes over and makes epochs until ctx ends.
func (n *Notary) lead(ctx context.Context, admin *kgo.Client) (progress bool, err error) {
	l := &leader{Notary: n, admin: admin, lock: lockFile{n.cfg.LockFile}, headsAt: make([]int64, n.cfg.Layout.Partitions)}
	if l.keys, err = loadKeys(n.cfg.KeyFile); err != nil {
		return false, err
	}
	l.producer, err = kgo.NewClient(append(n.lookups(),
		kgo.TransactionalID(n.cfg.Kafka.Group(schemas.TransactionalIDNotary)),
		kgo.TransactionTimeout(n.cfg.TransactionTimeout),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
	)...)
	if err != nil {
		return false, fmt.Errorf("making a client: %w", err)
	}
	l.closers = append(l.closers, l.producer.Close)
	defer func() {
		for _, c := range l.closers {
			c()
		}
	}()
	err = l.run(ctx)
	return l.progress, err
}

func (l *leader) run(ctx context.Context) error {
	if err := l.takeOver(ctx); err != nil {
		return err
	}
	if err := l.recall(ctx); err != nil {
		return err
	}
	// What the last leader has committed and not signed comes first: then each checkpoint is there that could be.
	if l.log.head.Size > l.signedSize {
		if err := l.sign(ctx); err != nil {
			return err
		}
	}
	if err := l.stateKey(ctx); err != nil {
		return err
	}
	l.setReason(nil)
	l.observeWitnesses()
	defer l.metrics.unwitnessed.Set(0) // the next leader's to say
	for {
		begun := time.Now()
		more, err := l.turn(ctx, begun)
		if err != nil {
			return err
		}
		wait := time.Until(begun.Add(l.cfg.EpochInterval))
		if more {
			wait = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// recall refuses, with a haltError, a root log of which a witness has seen more, or another: it was brought back from a backup, lock
// file and all. Nothing has been signed since.
func (l *leader) recall(ctx context.Context) error {
	if l.seen == nil {
		return nil
	}
	var policy strings.Builder
	for _, k := range l.keys {
		fmt.Fprintf(&policy, "log %s\n", k.verifier)
	}
	policy.WriteString("quorum none\n")
	own, err := ledger.ParseTrust([]byte(policy.String()))
	if err != nil {
		return halt(haltKey, "the keys of %s: %w", l.cfg.KeyFile, err)
	}
	asking, cancel := context.WithTimeout(ctx, l.cfg.WitnessTimeout)
	defer cancel()
	for _, c := range l.seen(asking, l.keys.newest().Name(), own) {
		err := l.log.extends(ctx, c, l.prove)
		if errors.Is(err, ledger.ErrProof) {
			return halt(haltSeen, "a witness has a checkpoint of size %d that this log has signed, and that the root log does not continue: %w", c.Size, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// stateKey commits an entry that states the newest key of the key file, unless the root log's last one does.
func (l *leader) stateKey(ctx context.Context) error {
	next, by := l.keys.newest(), l.keys.newest()
	if l.log.head.Size > 0 {
		if by = l.keys.find(l.log.key); by == nil {
			return halt(haltKey, "the root log states key %s, which is not in the key file %s", l.log.key, l.cfg.KeyFile)
		}
		if by == next {
			return nil
		}
	}
	text := ledger.KeyChangeText(l.log.origin, l.log.head.Size, next.verifier)
	signed, err := note.Sign(&note.Note{Text: text}, by)
	if err != nil {
		return fmt.Errorf("signing a key change: %w", err)
	}
	e := &ledger.Entry{Time: time.Now(), Key: &ledger.KeyChange{VerifierKey: next.verifier, Signature: string(signed)}}
	if err := l.commit(ctx, e, nil); err != nil {
		return err
	}
	return l.sign(ctx)
}

// turn makes an epoch if it is time for one. more says that there is enough for another at once.
func (l *leader) turn(ctx context.Context, begun time.Time) (more bool, err error) {
	more, err = l.takeIn(ctx)
	if err != nil || ctx.Err() != nil {
		return false, errors.Join(err, ctx.Err())
	}
	if l.chains.leaves == 0 && l.log.epoch != nil && begun.Sub(l.log.time) < l.cfg.IdleInterval {
		return false, nil
	}
	leaves := l.chains.leaves
	if err := l.commit(ctx, &ledger.Entry{Time: begun, Epoch: l.chains.epoch()}, l.chains); err != nil {
		return false, err
	}
	l.chains.settle()
	l.metrics.epochs.Inc()
	l.metrics.leaves.Add(float64(leaves))
	l.metrics.chains.Set(float64(l.chains.tree.Len()))
	if err := l.sign(ctx); err != nil {
		return false, err
	}
	l.metrics.seconds.Observe(time.Since(begun).Seconds())
	return more, nil
}

// takeIn takes in what is stable of heads, and then of the ledger, up to the limits of an epoch. more says that a limit was met.
//
// Heads come first: the leaves of each are on the brokers before it is, so that a head which the end of the ledger does not
// come up to is a fault.
func (l *leader) takeIn(ctx context.Context) (more bool, err error) {
	admin := kadm.NewClient(l.admin)
	heads, ledgerTopic := l.cfg.Kafka.Topic(schemas.TopicHeads), l.cfg.Kafka.Topic(schemas.TopicLedger)
	list := func(topic string, ask func(context.Context, ...string) (kadm.ListedOffsets, error)) (kadm.ListedOffsets, error) {
		listed, err := ask(ctx, topic)
		if err = errors.Join(err, listed.Error()); err != nil {
			return nil, fmt.Errorf("listing offsets of %s: %w", topic, err)
		}
		return listed, nil
	}
	stableHeads, err := list(heads, admin.ListCommittedOffsets)
	if err != nil {
		return false, err
	}
	compared := l.chains.compared
	defer func() { l.metrics.compared.Add(float64(l.chains.compared - compared)) }()
	_, err = l.follow(ctx, l.heads, heads, stableHeads, func(p int32) int64 { return l.headsAt[p] }, func(r *kgo.Record) error {
		l.headsAt[r.Partition] = r.Offset + 1
		if r.Attrs.IsControl() {
			return nil
		}
		return l.chains.stated(r.Partition, r.Key, r.Value)
	}, func() bool { return false })
	if err != nil {
		return false, err
	}
	ends, err := list(ledgerTopic, admin.ListEndOffsets)
	if err != nil {
		return false, err
	}
	stable, err := list(ledgerTopic, admin.ListCommittedOffsets)
	if err != nil {
		return false, err
	}
	position := func(p int32) int64 { return int64(l.chains.positions[p]) }
	done, err := l.follow(ctx, l.ledger, ledgerTopic, stable, position, func(r *kgo.Record) error {
		if r.Attrs.IsControl() {
			l.chains.passed(r.Partition, uint64(r.Offset)+1)
			return nil
		}
		return l.chains.take(r.Partition, uint64(r.Offset), r.Value)
	}, func() bool { return l.chains.leaves >= l.cfg.EpochLeaves })
	if err != nil {
		return false, err
	}
	var behind int64
	for p := range l.chains.positions {
		at, _ := stable.Lookup(ledgerTopic, int32(p))
		behind += max(0, at.Offset-position(int32(p)))
		if end, _ := ends.Lookup(ledgerTopic, int32(p)); position(int32(p)) >= end.Offset {
			if err := l.chains.caughtUp(int32(p)); err != nil {
				return false, err
			}
		}
	}
	l.metrics.behind.Set(float64(behind))
	return !done && l.chains.leaves > 0, nil
}

// follow gives what a consumer reads to use until every partition has come to what was listed, full says so, or EpochTime or ctx
// ends, which is no error. done says that all have come there.
func (l *leader) follow(
	ctx context.Context, cl *kgo.Client, topic string, listed kadm.ListedOffsets, position func(int32) int64,
	use func(*kgo.Record) error, full func() bool,
) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.EpochTime)
	defer cancel()
	for {
		done = true
		for p := range l.chains.positions {
			at, _ := listed.Lookup(topic, int32(p))
			done = done && position(int32(p)) >= at.Offset
		}
		if done || full() || ctx.Err() != nil {
			return done, nil
		}
		fetches := cl.PollRecords(ctx, pollRecords)
		for _, e := range fetches.Errors() {
			_, dataLoss := errors.AsType[*kgo.ErrDataLoss](e.Err)
			switch {
			case ctx.Err() != nil && errors.Is(e.Err, ctx.Err()):
			case cl == l.ledger && (dataLoss || errors.Is(e.Err, kerr.OffsetOutOfRange)):
				return false, halt(haltLost, "partition %d of the ledger from offset %d on: %w", e.Partition, position(e.Partition), e.Err)
			case dataLoss:
			default:
				return false, fmt.Errorf("reading partition %d of %s: %w", e.Partition, e.Topic, e.Err)
			}
		}
		for r := range fetches.RecordsAll() {
			if err := use(r); err != nil {
				return false, err
			}
		}
	}
}

// keyed is a record of notary_state.
type keyed struct {
	m   proto.Message
	key string
}

// commit appends an entry to the root log, with what notary_state is to say of it: of the chains that have changed, for an
// epoch. When it returns without an error the entry is committed, was read back, and is in l.log.
func (l *leader) commit(ctx context.Context, e *ledger.Entry, changed *chains) error {
	within, cancel := l.concluding(ctx)
	defer cancel()
	m, err := l.log.record(e)
	if err != nil {
		return err
	}
	var offset int64
	err = l.transact(within, func() (err error) {
		name := entryKey + strconv.FormatUint(e.Index, 10)
		if offset, err = l.produce(within, schemas.TopicCheckpoints, keyed{m, name}); err != nil {
			return err
		}
		crash.Point("notary-after-entry")
		_, err = l.produce(within, schemas.TopicNotaryState, l.state(e, m, offset, changed)...)
		return err
	}, "notary-before-end", "notary-after-end")
	if err != nil {
		return fmt.Errorf("committing entry %d of the root log: %w", e.Index, err)
	}
	return l.readBack(within, e.Index, offset)
}

// concludeTimeout is how long after the end of its context a transaction may still take.
const concludeTimeout = 4 * time.Second

// concluding returns the context of a transaction. What is begun is brought to its end where that is soon, also when the notary is
// asked to stop: then the next leader finds it done.
func (l *leader) concluding(ctx context.Context) (context.Context, context.CancelFunc) {
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.TransactionTimeout)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(concludeTimeout, cancel) })
	return within, func() { stop(); cancel() }
}

// state returns the records of notary_state of an entry, which is at this offset of checkpoints.
func (l *leader) state(e *ledger.Entry, m *recordpb.LogEntry, offset int64, changed *chains) []keyed {
	keyIndex := l.log.keyIndex
	var records []keyed
	if e.Key != nil {
		keyIndex = e.Index
		records = append(records, keyed{m, statedKey + strconv.FormatUint(e.Index, 10)})
	}
	if node := m.GetNode(); len(node) > 0 {
		n := &recordpb.NotaryNode{Hash: node[:len(ledger.Hash{})], Offset: uint64(offset)}
		records = append(records, keyed{n, nodeKey + strconv.FormatUint(e.Index/blockEntries, 10)})
	}
	if changed != nil {
		for _, c := range changed.changed {
			records = append(records, keyed{c.message(e.Index), hex.EncodeToString(c.head.Chain[:])})
		}
		for p, next := range changed.positions {
			if l.log.epoch == nil || l.log.epoch.Positions[p] != next {
				n := &recordpb.NotaryPartition{Next: next, Epoch: e.Index}
				records = append(records, keyed{n, partitionKey + strconv.Itoa(p)})
			}
		}
	}
	return append(records, keyed{l.log.after(m, keyIndex), logKey})
}

// errUnknown: a transaction was not committed, or is not known to have been.
var errUnknown = errors.New("the transaction was not committed, or is not known to have been")

// transact commits what produce has produced. before and after are names of crash points.
func (l *leader) transact(within context.Context, produce func() error, before, after string) error {
	if err := l.producer.BeginTransaction(); err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	if err := produce(); err != nil {
		// Readers need not wait for the broker to find out, nor the next take-over.
		abortErr := l.producer.EndTransaction(within, kgo.TryAbort)
		return errors.Join(err, abortErr)
	}
	crash.Point(before)
	// Before: the records are on the brokers, and no reader sees them. After, if there is no error: they are durable and visible
	// together. Whatever else the end says, it may be either.
	if err := l.producer.EndTransaction(within, kgo.TryCommit); err != nil {
		return fmt.Errorf("%w: %w", errUnknown, err)
	}
	crash.Point(after)
	return nil
}

// produce writes records to a topic's only partition, waits until all replicas in sync have them, and returns the last one's offset.
func (l *leader) produce(within context.Context, topic string, records ...keyed) (offset int64, err error) {
	batch := make([]*kgo.Record, len(records))
	for i, r := range records {
		value, err := encode(r.m)
		if err != nil {
			return 0, err
		}
		batch[i] = &kgo.Record{Topic: l.cfg.Kafka.Topic(topic), Key: []byte(r.key), Value: value}
	}
	if err := l.producer.ProduceSync(within, batch...).FirstErr(); err != nil {
		return 0, fmt.Errorf("producing to %s: %w", topic, err)
	}
	return batch[len(batch)-1].Offset, nil
}

// readBack reads the committed entry at this offset of checkpoints and appends it to the log: from here on it is a fact that may
// be signed, whoever asks.
func (l *leader) readBack(within context.Context, index uint64, offset int64) error {
	for {
		fetches := l.tail.PollFetches(within)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("reading entry %d of the root log back: %w", index, err)
		}
		for r := range fetches.RecordsAll() {
			switch {
			case r.Offset < offset && (r.Attrs.IsControl() || bytes.HasPrefix(r.Key, []byte(checkpointKey))):
				continue // what this leader, or one before it, has published meanwhile
			case r.Offset != offset || r.Attrs.IsControl() || string(r.Key) != entryKey+strconv.FormatUint(index, 10):
				return fmt.Errorf("reading entry %d of the root log back: %q is at offset %d of checkpoints, it was written to %d",
					index, r.Key, r.Offset, offset)
			}
			m, err := entryMessage(r)
			if err != nil {
				return err
			}
			e, err := l.log.append(m, offset)
			if err != nil {
				return disagree("reading entry %d of the root log back: %w", index, err)
			}
			l.metrics.entries.Set(float64(l.log.head.Size))
			l.metrics.lastEpoch.Set(float64(e.Time.UnixMicro()) / 1e6)
			return nil
		}
	}
}

// sign signs the root log as it was read back, and publishes that.
func (l *leader) sign(ctx context.Context) error {
	key := l.keys.find(l.log.key)
	if key == nil {
		return halt(haltKey, "the root log states key %s, which is not in the key file %s", l.log.key, l.cfg.KeyFile)
	}
	c := l.log.checkpoint()
	// Whatever is in the file by now: another notary on this machine may share it.
	if err := l.lock.check(ctx, l.log, l.prove); err != nil {
		return err
	}
	signed, err := ledger.SignCheckpoint(c, key)
	if err != nil {
		return err
	}
	crash.Point("notary-before-lock")
	// Before: the entry is committed, and no signature of it has left this process. After: this machine will never sign another
	// root of this size, whatever becomes of the topics; and only now may anyone see the signature.
	if err := l.lock.write(signed); err != nil {
		return err
	}
	crash.Point("notary-after-lock")
	m := &recordpb.SignedCheckpoint{Size: c.Size, Root: c.Root[:], Note: signed}
	if l.cosign != nil {
		asking, cancel := context.WithTimeout(ctx, l.cfg.WitnessTimeout)
		text, n, quorum := l.cosign(asking, signed, l.prove)
		cancel()
		m.Note, m.Witnesses, m.Quorum = text, uint32(n), quorum
	}
	published := time.Now()
	m.PublishedAt = published.UnixMicro()
	within, cancel := l.concluding(ctx)
	defer cancel()
	err = l.transact(within, func() error {
		_, err := l.produce(within, schemas.TopicCheckpoints, keyed{m, checkpointKey + strconv.FormatUint(c.Size, 10)})
		return err
	}, "notary-before-publish", "notary-after-publish")
	if err != nil {
		return fmt.Errorf("publishing the checkpoint of size %d: %w", c.Size, err)
	}
	l.progress = true
	l.signedSize = c.Size
	l.metrics.signed.Inc()
	l.metrics.lastSigned.Set(float64(m.GetPublishedAt()) / 1e6)
	if m.GetQuorum() {
		l.witnessed = c.Size
	}
	l.observeWitnesses()
	return nil
}

func (l *leader) observeWitnesses() {
	if l.cosign != nil {
		l.metrics.unwitnessed.Set(float64(l.log.head.Size - l.witnessed))
	}
}
