package chwriter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/crash"
)

// partition writes one ledger partition, from its assignment to its revocation. What makes each record come into
// ClickHouse exactly once, whatever is killed, stalled or repeated:
//
//   - A batch is announced before its first insert: the group's committed offset becomes its first record's, with its
//     last record's in the metadata. The next owner finds both and knows what the one before may have begun.
//   - All rows of a batch for one table are one insert, which happens wholly or not at all, under a token made of the
//     range. ClickHouse drops an insert whose token it has had. So the next owner repeats the announced range, and
//     whichever of the two inserts comes second, however late, does nothing.
//   - A commit carries the group's generation, so that Kafka refuses that of an owner who was replaced; and the group
//     takes a partition away only after close has returned.
//   - Where an insert may have been made before, its rows are counted first: the token alone would not do, because
//     ClickHouse writes it and the rows one after the other, and may be killed in between.
//
// A redaction is carried out when its batch is in the tables and before that counts: see erase.
type partition struct {
	w      *Writer
	id     int32
	logger *slog.Logger
	queue  queue

	cancel context.CancelFunc // ends run at once
	done   chan struct{}      // closed when run has returned

	// What the group knew at the assignment; noOffset where it knew nothing.
	committed int64 // first record that may be missing
	announced int64 // last record of the announced batch

	// Owned by run.

	// inTable is, for each table, the offset below which records are in it although the group does not know: its
	// committed offset was moved back.
	inTable map[string]int64
	next    int64 // offset after the last record that leaves has, 0 for none known
	// pending says that next has not been committed.
	pending bool
	// announcedOn and announcedAt are the connection and the first record of the last announcement. See announce.
	announcedOn *ch.Client
	announcedAt int64
	// lookedAt is when leaves was last seen to have the record before next.
	lookedAt time.Time
}

const noOffset = -1

// batch is a run of records, all of them written or none.
type batch struct {
	records     []*kgo.Record
	first, last int64
	epoch       int32 // leader epoch of first
	// takenOver says that another owner may have inserted some of it.
	takenOver bool
}

func newBatch(records []*kgo.Record) *batch {
	return &batch{
		records: records, first: records[0].Offset, last: records[len(records)-1].Offset, epoch: records[0].LeaderEpoch,
	}
}

// idleCommit is how long the last batch of a burst stays uncommitted, so that under a steady trickle one commit both
// ends a batch and announces the next.
const idleCommit = time.Second

// errStopped ends run when the partition is closed or the writer drains.
var errStopped = errors.New("stopped")

// haltError says why a partition cannot go on without a person.
type haltError struct {
	err    error
	reason string // a label of immutable_chwriter_halted_partitions

	requestID, traceID string // of the record that it is about, where it has them
}

func (e *haltError) Error() string { return e.err.Error() }
func (e *haltError) Unwrap() error { return e.err }

func halt(reason, format string, args ...any) error {
	return &haltError{err: fmt.Errorf(format, args...), reason: reason}
}

// badRecord halts at a record, and names where it came from.
func badRecord(r *kgo.Record, err error) error {
	e := &haltError{err: fmt.Errorf("offset %d: %w", r.Offset, err), reason: haltRecord}
	e.requestID, e.traceID = origin(r.Value)
	return e
}

// haltReason returns the label of an error that a partition was halted for. Every such error has one.
func haltReason(err error) string {
	if e, ok := errors.AsType[*haltError](err); ok {
		return e.reason
	}
	return haltFetching
}

// run writes until ctx ends, the writer drains, or the partition has to be halted: that error is returned.
func (p *partition) run(ctx context.Context) error {
	err := p.takeOver(ctx)
	for err == nil {
		err = p.step(ctx)
	}
	if _, ok := errors.AsType[*haltError](err); ok {
		return err
	}
	return nil // stopped, which is nobody's fault
}

// step writes one batch, or commits what was written when no more comes.
func (p *partition) step(ctx context.Context) error {
	idle := time.Duration(-1)
	if p.pending {
		idle = idleCommit
	}
	switch p.queue.waitRecord(ctx, p.w.draining, idle) {
	case timedOut:
		return p.commitPending(ctx)
	case draining:
		return errors.Join(errStopped, p.commitPending(ctx))
	case cancelled:
		return errStopped
	case ready:
	}
	p.queue.waitBatch(ctx, p.w.draining, p.w.cfg.Linger, p.w.cfg.BatchRows, p.w.cfg.BatchBytes)
	b := newBatch(p.queue.take(p.w.cfg.BatchRows, p.w.cfg.BatchBytes, p.sameSide))
	if err := p.checkSame(ctx, b); err != nil {
		return err
	}
	if p.has(tableLeaves, b) && p.has(tableEvents, b) {
		p.w.metrics.skipped.Add(float64(len(b.records)))
		if err := p.eraseOf(ctx, b.records); err != nil {
			return err
		}
		p.wrote(b)
		return nil
	}
	return p.write(ctx, b)
}

// has says that all records of b are in a table since before the take-over.
func (p *partition) has(table string, b *batch) bool { return b.last < p.inTable[table] }

// sameSide keeps a batch from having records on both sides of what a table has: it must be inserted as a whole or not
// at all.
func (p *partition) sameSide(prev, cur int64) bool {
	for _, mark := range p.inTable {
		if prev < mark && cur >= mark {
			return false
		}
	}
	return true
}

func (p *partition) wrote(b *batch) {
	p.next, p.pending = b.last+1, true
	p.queue.wrote(b.last + 1)
}

// write brings a batch into the tables and carries out its redactions. When it returns nil the rows are in ClickHouse and
// can be read, and what was redacted cannot.
func (p *partition) write(ctx context.Context, b *batch) error {
	b, d, bad, err := p.bring(ctx, b)
	if err != nil {
		return err
	}
	if err := p.erase(ctx, d); err != nil {
		return err
	}
	p.wrote(b)
	if bad != nil {
		return errors.Join(bad, p.commitPending(ctx))
	}
	return nil
}

// bring brings a batch into the tables, or what of it stands before a bad record. It returns what is in the tables then,
// what its redactions demand, and what is wrong with the record after it.
func (p *partition) bring(ctx context.Context, b *batch) (brought *batch, d demands, bad, err error) {
	i, err := p.w.borrow(ctx)
	if err != nil {
		return nil, d, nil, err
	}
	defer p.w.giveBack(i)

	n, verified, bad := i.load(p.id, b.records, p.w.cfg.VerifyEvery, p.w.view.Redactions())
	p.w.metrics.verified.Add(float64(verified))
	if bad != nil {
		bad = badRecord(b.records[n], bad)
		if n == 0 || b.takenOver {
			return nil, d, nil, errors.Join(bad, p.commitPending(ctx))
		}
		// What stands before it is as good as ever; its rows are loaded.
		b = newBatch(b.records[:n])
	}
	for _, table := range []string{tableLeaves, tableEvents} {
		if p.has(table, b) || i.rows(table) == 0 {
			continue
		}
		if err := p.insert(ctx, i, table, b); err != nil {
			return nil, d, nil, err
		}
	}
	crash.Point("chwriter-after-insert")
	// Durable: both tables have the batch. Not yet durable: that they do; until the next commit, another owner would
	// repeat the batch and ClickHouse drop it.
	p.w.metrics.batches.Inc()
	p.w.metrics.leaves.Add(float64(i.rows(tableLeaves)))
	p.w.metrics.events.Add(float64(i.rows(tableEvents)))
	p.w.metrics.readableSeconds.Observe(time.Since(b.records[0].Timestamp).Seconds())
	return b, i.demands, bad, nil
}

// announce commits that everything before b is written and that b is about to be, once for each connection that b is
// inserted on.
//
// The connection matters because a process may be stopped for minutes between any two instructions, and afterwards send
// an insert that another owner has made in the meantime, with so many others since that ClickHouse has forgotten its
// token. As it is, the server has closed that process's connection (serverTimeout), and before it sends anything on
// another, Kafka refuses this commit.
func (p *partition) announce(ctx context.Context, i *inserter, b *batch) error {
	if p.announcedOn == i.client && p.announcedAt == b.first {
		return nil
	}
	err := p.commit(ctx, kgo.EpochOffset{Epoch: b.epoch, Offset: b.first}, strconv.FormatInt(b.last, 10))
	if err != nil {
		return err
	}
	p.announcedOn, p.announcedAt, p.pending = i.client, b.first, false
	return nil
}

// commitPending commits that everything is written and nothing announced.
func (p *partition) commitPending(ctx context.Context) error {
	if !p.pending {
		return nil
	}
	if err := p.commit(ctx, kgo.EpochOffset{Epoch: -1, Offset: p.next}, ""); err != nil {
		return err
	}
	p.pending = false
	return nil
}

// commit commits, as often as it takes. A generation that is over is refused each time, until close ends ctx.
func (p *partition) commit(ctx context.Context, at kgo.EpochOffset, metadata string) error {
	crash.Point("chwriter-before-commit")
	return p.retry(ctx, systemKafka, func(ctx context.Context) error {
		return p.w.commit(ctx, p.id, at, metadata)
	})
}

// insert brings the loaded rows of one table in, as often as it takes.
func (p *partition) insert(ctx context.Context, i *inserter, table string, b *batch) error {
	token := fmt.Sprintf("%s/%d/%d-%d", p.w.topic, p.id, b.first, b.last)
	uncertain := b.takenOver // whether the rows may be there already, or the token without them
	return p.retry(ctx, systemClickHouse, func(ctx context.Context) error {
		if err := i.connect(ctx); err != nil {
			return err
		}
		if err := p.checkLast(ctx, i); err != nil {
			return err
		}
		if uncertain {
			if there, err := p.inserted(ctx, i, table, b); there || err != nil {
				return err
			}
		}
		if err := p.announce(ctx, i, b); err != nil {
			return err
		}
		begin := time.Now()
		dropped, err := i.insert(ctx, table, token)
		if err != nil {
			uncertain = true
			return err
		}
		// Nobody may have inserted it, and yet the server had the token: rows that were deleted since leave theirs.
		uncertain = uncertain || dropped
		p.w.metrics.insertSeconds.Observe(time.Since(begin).Seconds())
		if !uncertain {
			return nil
		}
		there, err := p.inserted(ctx, i, table, b)
		if there || err != nil {
			return err
		}
		// The server had the token and yet has no row: it was killed after it wrote down the one and before the other, or
		// somebody deleted the rows. Replicated tables write both at once; there, it is this replica that has not caught up.
		if !p.w.replicated {
			token += "/again"
		}
		return fmt.Errorf("%s has no row of offsets %d to %d after their insert", table, b.first, b.last)
	})
}

// inserted says whether a table has the batch.
func (p *partition) inserted(ctx context.Context, i *inserter, table string, b *batch) (bool, error) {
	n, err := i.count(ctx, table, p.id, b.first, b.last)
	if err != nil {
		return false, err
	}
	if want := i.rows(table); n != 0 && n != want {
		return false, halt(haltTables, "%s has %d rows of offsets %d to %d, which are %d", table, n, b.first, b.last, want)
	}
	return n != 0, nil
}

// ask puts a question to ClickHouse, as often as it takes.
func ask[T any](ctx context.Context, p *partition, question func(context.Context, *inserter) (T, error)) (answer T, err error) {
	i, err := p.w.borrow(ctx)
	if err != nil {
		return answer, err
	}
	defer p.w.giveBack(i)
	err = p.retry(ctx, systemClickHouse, func(ctx context.Context) error {
		if err := i.connect(ctx); err != nil {
			return err
		}
		answer, err = question(ctx, i)
		return err
	})
	return answer, err
}

// check is ask for questions whose answer is what is wrong.
func (p *partition) check(ctx context.Context, question func(context.Context, *inserter) error) error {
	_, err := ask(ctx, p, func(ctx context.Context, i *inserter) (struct{}, error) { return struct{}{}, question(ctx, i) })
	return err
}

// retry calls attempt until it succeeds, asks for a halt, or ctx ends. Each attempt has InsertTimeout.
func (p *partition) retry(ctx context.Context, system string, attempt func(context.Context) error) error {
	delay := backoff.NewExponentialBackOff()
	delay.InitialInterval, delay.MaxInterval = 50*time.Millisecond, 5*time.Second
	failed := false
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, p.w.cfg.InsertTimeout)
			defer cancel()
			return attempt(ctx)
		}()
		if err == nil {
			if failed {
				p.logger.InfoContext(ctx, "it works again", "system", system)
			}
			return nil
		}
		if ctx.Err() != nil {
			return errStopped
		}
		if _, ok := errors.AsType[*haltError](err); ok {
			return err
		}
		p.w.outages.begin(system, p.id, err)
		if system == systemKafka {
			p.w.metrics.commitRetries.Inc()
		} else {
			p.w.metrics.retries.Inc()
		}
		if !failed {
			failed = true
			defer p.w.outages.end(system, p.id)
			p.logger.WarnContext(ctx, "trying again until it works", "system", system, "error", err)
		}
		select {
		case <-ctx.Done():
			return errStopped
		case <-time.After(delay.NextBackOff()):
		}
	}
}

// close ends run and waits for it. Afterwards nothing of the partition is inserted or committed.
func (p *partition) close() {
	p.cancel()
	<-p.done
}
