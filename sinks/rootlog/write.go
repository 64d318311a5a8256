package rootlog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// errDropped says that the server has no row after an insert: it had the insert's token from rows that were deleted since, or
// was killed after it wrote down the one and before the other.
var errDropped = errors.New("rows are missing after their insert")

// batch is what is written of a run of records.
type batch struct {
	entries     []*entry      // consecutive, and new
	known       *entry        // the last that root_log has already
	checkpoints []*checkpoint // some of them may be there
	skipped     int
	last        *kgo.Record
}

// write brings records into the tables, up to the first that is wrong: that is the error, and what stands before it is as good
// as ever.
func (w *Writer) write(ctx context.Context, a *assignment, records []*kgo.Record) error {
	b := new(batch)
	var wrong error
	for _, r := range records {
		if wrong = w.read(ctx, a, b, r); wrong != nil {
			break
		}
		b.last = r
	}
	if errors.Is(wrong, errStopped) {
		return wrong
	}
	if b.last == nil {
		return wrong
	}
	if err := w.insertBatch(ctx, a, b); err != nil {
		return err
	}
	// Durable: both tables have the batch. Not yet durable: that they do; another owner would read the records again, and find
	// them in the tables.
	if err := w.commit(ctx, a, b.last); err != nil {
		return err
	}
	w.metrics.entries.Add(float64(len(b.entries)))
	w.metrics.checkpoints.Add(float64(len(b.checkpoints)))
	w.metrics.skipped.Add(float64(b.skipped))
	w.metrics.readableSeconds.Observe(time.Since(records[0].Timestamp).Seconds())
	return wrong
}

// read takes one record into the batch.
func (w *Writer) read(ctx context.Context, a *assignment, b *batch, r *kgo.Record) error {
	bad := func(err error) error { return halt(haltRecord, "offset %d: %w", r.Offset, err) }
	switch kind, _, _ := strings.Cut(string(r.Key), "/"); kind {
	case "entry":
		e, err := readEntry(r.Value)
		if err != nil {
			return bad(err)
		}
		switch size := a.log.head.Size; {
		case e.Index < size:
			b.skipped++
			b.known = e
			return nil
		case e.Index > size:
			return a.gap(e.Index)
		}
		if err := a.log.append(e); err != nil {
			return bad(err)
		}
		b.entries = append(b.entries, e)
		return nil
	case "checkpoint":
		c, err := readCheckpoint(r.Value)
		if err != nil {
			return bad(err)
		}
		if c.GetSize() > a.log.head.Size {
			return a.gap(c.GetSize() - 1)
		}
		root, err := w.rootOf(ctx, a, c.GetSize())
		if err != nil {
			return err
		}
		if root != c.root {
			return bad(fmt.Errorf("the checkpoint of size %d states root %x, and the root log has %x", c.GetSize(), c.root, root))
		}
		b.checkpoints = append(b.checkpoints, c)
		return nil
	default:
		return bad(fmt.Errorf("key %.40q: want entry/ or checkpoint/", r.Key))
	}
}

// gap says that entries are missing before the one with this index.
func (a *assignment) gap(index uint64) error {
	return halt(haltRows, "root_log lacks entry %d, and the topic goes on with entry %d: clickhouse has lost rows or is an older backup, "+
		"or the topic has lost records; %s", a.log.head.Size, index, writeAgain)
}

// rootOf is rootAt, as often as it takes.
func (w *Writer) rootOf(ctx context.Context, a *assignment, size uint64) (root [32]byte, err error) {
	err = w.retry(ctx, a.ctx, systemClickHouse, func(ctx context.Context) error {
		h, err := w.rootAt(ctx, a.log, size)
		root = h
		return err
	})
	return root, err
}

// insertBatch brings a batch into the tables, entries first, as often as it takes.
func (w *Writer) insertBatch(ctx context.Context, a *assignment, b *batch) error {
	if b.known != nil {
		if err := w.checkKnown(ctx, a, b.known); err != nil {
			return err
		}
	}
	if n := len(b.entries); n > 0 {
		token := fmt.Sprintf("%s/entry/%d-%d", w.topic, b.entries[0].Index, b.entries[n-1].Index)
		err := w.insertOnce(ctx, a, token, func(ctx context.Context, token string) error { return w.insertEntries(ctx, token, b.entries) })
		if err != nil {
			return err
		}
	}
	if len(b.checkpoints) == 0 {
		return nil
	}
	all := b.checkpoints
	err := w.retry(ctx, a.ctx, systemClickHouse, func(ctx context.Context) (err error) {
		b.checkpoints, err = w.missing(ctx, all)
		return err
	})
	b.skipped += len(all) - len(b.checkpoints)
	if err != nil || len(b.checkpoints) == 0 {
		return err
	}
	first, last := b.checkpoints[0], b.checkpoints[len(b.checkpoints)-1]
	token := fmt.Sprintf("%s/checkpoint/%d.%d-%d.%d", w.topic, first.GetSize(), first.GetWitnesses(), last.GetSize(), last.GetWitnesses())
	return w.insertOnce(ctx, a, token, func(ctx context.Context, token string) error {
		return w.insertCheckpoints(ctx, token, b.checkpoints)
	})
}

// insertOnce calls insert until the rows are there, with another token where the server has the first one without its rows.
func (w *Writer) insertOnce(ctx context.Context, a *assignment, token string, insert func(context.Context, string) error) error {
	return w.retry(ctx, a.ctx, systemClickHouse, func(ctx context.Context) error {
		err := insert(ctx, token)
		if errors.Is(err, errDropped) {
			token += "/again"
			err = insert(ctx, token)
		}
		return err
	})
}

// checkKnown makes sure that root_log has this very entry: a hash covers all that is before it, so it speaks for them.
func (w *Writer) checkKnown(ctx context.Context, a *assignment, e *entry) error {
	return w.retry(ctx, a.ctx, systemClickHouse, func(ctx context.Context) error {
		hash, err := w.hashAt(ctx, e.Index)
		if err != nil {
			return err
		}
		if hash != [32]byte(e.record.GetHash()) {
			return halt(haltTables, "root_log has entry %d with hash %x, and the topic with %x: the topic was created anew, or rows were changed",
				e.Index, hash, e.record.GetHash())
		}
		return nil
	})
}
