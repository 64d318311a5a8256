package chwriter

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
)

// What an operator can do about a halt.
const (
	writeAgain = "stop every `immutable sinks`, or `up`, and run `immutable rebuild`: what clickhouse lacks is written again"
	goOn       = "To go on without them, stop every `immutable sinks`, or `up`, and run `immutable rebuild --accept-loss`"
)

// takeOver finishes what the owner before has begun, once the tables have what it has finished.
func (p *partition) takeOver(ctx context.Context) error {
	p.lookedAt = time.Now()
	// Everything that was redacted so far is known before the first row is written.
	if err := p.retry(ctx, systemKafka, p.w.view.Current); err != nil {
		return err
	}
	for _, table := range []string{tableLeaves, tableEvents} {
		if err := p.checkHeld(ctx, table); err != nil {
			return err
		}
	}
	from := max(p.committed, 0)
	if p.announced != noOffset {
		if ended := p.queue.waitThrough(ctx, p.w.draining, p.announced); ended != ready {
			return errStopped
		}
		records := p.queue.take(math.MaxInt, math.MaxInt, func(_, cur int64) bool { return cur <= p.announced })
		b := newBatch(records)
		if b.first != p.committed || b.last != p.announced {
			return halt(haltLost, "offsets %d to %d were announced for an insert, and what the topic has begins at %d and ends at "+
				"%d: records have gone that may not be in clickhouse. "+goOn, p.committed, p.announced, b.first, b.last)
		}
		b.takenOver = true
		p.w.metrics.takenOver.Inc()
		if err := p.write(ctx, b); err != nil {
			return err
		}
		from = p.next
	}
	for _, table := range []string{tableLeaves, tableEvents} {
		mark, err := ask(ctx, p, func(ctx context.Context, i *inserter) (int64, error) {
			return i.end(ctx, table, p.id, from, math.MaxInt64)
		})
		if err != nil {
			return err
		}
		p.inTable[table] = mark
	}
	if p.committed == noOffset || p.inTable[tableLeaves] > 0 {
		return p.checkBounds(ctx)
	}
	return nil
}

// nearOffsets is how far below the group's offset the last row is looked for first: with 20 million rows that takes 5 ms,
// and looking everywhere 120 ms.
const nearOffsets = 1000

// checkHeld makes sure that a table has what the group says was written: the records below its offset. They can only be
// missing because they were lost since, with the server or by the restoring of an older backup, and then the last ones
// are. So between the table's last row and the offset, the topic must have nothing but what makes no row: markers, what
// was aborted and, for events, the first leaves of chains. What retention has taken from the topic is nothing either:
// nobody can tell.
func (p *partition) checkHeld(ctx context.Context, table string) error {
	if p.committed <= 0 {
		return nil
	}
	have, err := ask(ctx, p, func(ctx context.Context, i *inserter) (int64, error) {
		near := max(0, p.committed-nearOffsets)
		end, err := i.end(ctx, table, p.id, near, p.committed-1)
		if err == nil && end == 0 && near > 0 {
			end, err = i.end(ctx, table, p.id, 0, near-1)
		}
		return end, err
	})
	if err != nil {
		return err
	}
	if table == tableLeaves {
		p.next = have
	}
	if have == p.committed || table == tableEvents && have == p.next { // as leaves, which lacks nothing
		return nil
	}
	missing, err := p.firstRow(ctx, table, have)
	if err != nil || missing == noOffset {
		return err
	}
	return p.check(ctx, func(ctx context.Context, i *inserter) error { return p.checkRow(ctx, i, table, missing) })
}

// firstRow returns the offset of the first record, from from on and before the group's offset, that has a row in a
// table, noOffset if the topic has none.
func (p *partition) firstRow(ctx context.Context, table string, from int64) (int64, error) {
	found := int64(noOffset)
	err := p.retry(ctx, systemKafka, func(ctx context.Context) error {
		start, end, err := p.w.bounds(ctx, p.id)
		if err != nil {
			return err
		}
		if end < p.committed {
			return halt(haltLost, "the group has committed offset %d, and the topic ends at %d: it has lost records or was created anew",
				p.committed, end)
		}
		span := kafka.Span{Topic: p.w.topic, Partition: p.id, From: max(from, start), To: p.committed}
		first, err := kafka.FirstRecords(ctx, []kafka.Span{span}, func(r *kgo.Record) bool {
			var s sealed
			// What cannot be decoded was never written: somebody moved the group past it.
			return s.decode(r.Value) == nil && (table == tableLeaves || !s.genesis())
		}, p.w.common...)
		switch {
		case err != nil:
			return fmt.Errorf("reading the ledger from offset %d: %w", span.From, err)
		case len(first) > 0:
			found = first[0].Offset
		case start > from:
			p.logger.WarnContext(ctx, "the topic no longer has what clickhouse may lack", "table", table, "from", from, "to", start-1)
		}
		return nil
	})
	return found, err
}

// checkRow makes sure that a table has the row of an offset that was written.
func (p *partition) checkRow(ctx context.Context, i *inserter, table string, offset int64) error {
	n, err := i.count(ctx, table, p.id, offset, offset)
	if n > 0 || err != nil {
		return err
	}
	if expires, err := i.expires(ctx, table); expires || err != nil {
		return err
	}
	lost := halt(haltRows, "%s lacks offset %d, which was written: clickhouse has lost rows, or is an older backup; %s", table, offset, writeAgain)
	if p.w.replicated {
		return errors.New(lost.Error()) // this replica may not have caught up: it is asked again
	}
	return lost
}

// checkLast makes sure, on each connection before its first insert, that leaves still has what was written last: a
// server that was emptied or replaced while this process ran has closed the connections before.
func (p *partition) checkLast(ctx context.Context, i *inserter) error {
	if p.next == 0 || p.lookedAt.After(i.connected) {
		return nil
	}
	begun := time.Now()
	if err := p.checkRow(ctx, i, tableLeaves, p.next-1); err != nil {
		return err
	}
	p.lookedAt = begun
	return nil
}

// checkBounds makes sure, where the tables have more of the partition than the group knows, that the topic still has
// everything that is not in them, and that it is not a new one under the old name. See also checkSame.
func (p *partition) checkBounds(ctx context.Context) error {
	var start, end int64
	err := p.retry(ctx, systemKafka, func(ctx context.Context) (err error) {
		start, end, err = p.w.bounds(ctx, p.id)
		return err
	})
	if err != nil {
		return err
	}
	have := p.inTable[tableLeaves]
	if end < have {
		return halt(haltLost, "clickhouse has the records below %d, and the topic ends at %d: it has lost records or was created "+
			"anew, and what it has is not what clickhouse has", have, end)
	}
	if p.committed == noOffset && start > have {
		return halt(haltLost, "the group has no offset, clickhouse has the records below %d, and the topic begins at %d: those "+
			"between are lost to clickhouse. "+goOn, have, start)
	}
	return nil
}

// checkSame makes sure that the tables have these very records where they have any since before the take-over: as many,
// and not others at their offsets from before the topic was created anew. A leaf hash covers all that was before it in
// its chain, so the last record speaks for the batch.
func (p *partition) checkSame(ctx context.Context, b *batch) error {
	if !p.has(tableLeaves, b) {
		return nil
	}
	return p.check(ctx, func(ctx context.Context, i *inserter) error {
		rows := map[string]int{tableLeaves: len(b.records)}
		for _, r := range b.records {
			if err := i.record.decode(r.Value); err != nil {
				return badRecord(r, err)
			}
			if !i.record.genesis() {
				rows[tableEvents]++
			}
		}
		same, err := i.hasLeaf(ctx, p.id, b.last)
		if err != nil {
			return err
		}
		if !same {
			return halt(haltTables, "clickhouse has the records below %d, but not the topic's at offset %d: the topic was created anew, or "+
				"rows were deleted", p.inTable[tableLeaves], b.last)
		}
		for _, table := range []string{tableLeaves, tableEvents} {
			n, err := i.count(ctx, table, p.id, b.first, b.last)
			if err != nil {
				return err
			}
			if n == rows[table] || !p.has(table, b) {
				continue
			}
			if expires, err := i.expires(ctx, table); expires || err != nil {
				return err
			}
			return halt(haltTables, "%s has %d rows of offsets %d to %d, which are %d: some were deleted. Delete from leaves and events "+
				"WHERE ledger_partition = %d AND ledger_offset >= %d as well; %s", table, n, b.first, b.last, rows[table], p.id, b.first, writeAgain)
		}
		return nil
	})
}

// bounds returns the first offset that the topic has of a partition, and the one after its last.
func (w *Writer) bounds(ctx context.Context, id int32) (start, end int64, err error) {
	admin := kadm.NewClient(w.client)
	return kafka.Bounds(ctx, admin, admin.ListEndOffsets, w.topic, id)
}
