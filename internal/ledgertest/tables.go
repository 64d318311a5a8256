package ledgertest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
)

// Write puts the ledger into ClickHouse's tables, which are empty or lack it.
func (l *Ledger) Write(ctx context.Context, conn driver.Conn) error {
	if err := l.writeLeaves(ctx, conn); err != nil {
		return err
	}
	if err := l.writeEvents(ctx, conn); err != nil {
		return err
	}
	return l.WriteLog(ctx, conn)
}

// WriteLog is Write of the root log and its checkpoints.
func (l *Ledger) WriteLog(ctx context.Context, conn driver.Conn) error {
	err := insert(ctx, conn, "root_log (entry_index, hash, node, type, time, entry)", func(add func(...any) error) error {
		for i, text := range l.Entries {
			e, err := ledger.ParseEntry(text)
			if err != nil {
				return err
			}
			kind := "epoch"
			if e.Key != nil {
				kind = "key"
			}
			hash := ledger.EntryHash(text)
			if err := add(uint64(i), string(hash[:]), join(l.Nodes[i]), kind, e.Time, string(text)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return insert(ctx, conn, "checkpoints (size, root, note, witnesses, quorum, published_at)", func(add func(...any) error) error {
		for size, signed := range l.Checkpoints {
			c, err := ledger.ParseCheckpoint(signed)
			if err != nil {
				return err
			}
			if err := add(size, string(c.Root[:]), string(signed), uint16(len(l.Cosigners)), len(l.Cosigners) > 0, Start); err != nil {
				return err
			}
		}
		return nil
	})
}

func insert(ctx context.Context, conn driver.Conn, into string, rows func(add func(...any) error) error) error {
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO "+into)
	if err != nil {
		return fmt.Errorf("inserting into %s: %w", into, err)
	}
	defer func() { _ = batch.Close() }()
	if err := rows(batch.Append); err != nil {
		return fmt.Errorf("inserting into %s: %w", into, err)
	}
	return batch.Send()
}

func join(hashes []ledger.Hash) string {
	var b []byte
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return string(b)
}

const part = uint32(202611)

func (l *Ledger) writeLeaves(ctx context.Context, conn driver.Conn) error {
	const into = "leaves (part, workspace, chain, sequence, leaf_hash, node, id, kind, recorded_at, input_generation, input_partition, " +
		"input_offset, ledger_partition, ledger_offset, incarnation, lane, lanes)"
	return insert(ctx, conn, into, func(add func(...any) error) error {
		for _, c := range l.Chains {
			for i := range c.Leaves {
				f := &c.Leaves[i]
				err := add(part, string(c.Workspace[:]), string(c.ID[:]), f.Sequence, string(f.Hash[:]), join(f.Node), string(f.ID[:]), uint8(f.Kind),
					time.UnixMicro(f.RecordedAt).UTC(), f.Generation, f.Partition, f.Offset, c.Partition, f.LedgerOffset, string(c.Incarnation[:]),
					c.Lane, c.Lanes)
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (l *Ledger) writeEvents(ctx context.Context, conn driver.Conn) error {
	into := "events (part, workspace, id, kind, occurred_at, recorded_at, target_types, target_ids, flags, metadata, body, chain, sequence, seed, " +
		"disclosure, input_generation, input_partition, input_offset, ledger_partition, ledger_offset"
	names := event.TextFields()
	into += ", " + strings.Join(names[:], ", ")
	builder := event.NewBuilder()
	return insert(ctx, conn, into+")", func(add func(...any) error) error {
		for _, c := range l.Chains {
			for i := range c.Leaves {
				if f := &c.Leaves[i]; f.Kind != ledger.KindGenesis {
					if err := addEvent(add, builder, c, f); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
}

func addEvent(add func(...any) error, builder *event.Builder, c *Chain, f *Leaf) error {
	var columns event.Columns
	if err := builder.Columns(f.Body, &columns); err != nil {
		return err
	}
	disclosure, err := Disclosed(f.Disclosure)
	if err != nil {
		return err
	}
	metadata := orderedMap{columns.MetadataKeys, columns.MetadataValues}
	row := []any{
		part, string(c.Workspace[:]), string(f.ID[:]), uint8(f.Kind), time.UnixMicro(columns.OccurredAt).UTC(),
		time.UnixMicro(f.RecordedAt).UTC(), texts(columns.TargetTypes), texts(columns.TargetIDs), texts(columns.Flags), &metadata, string(f.Body),
		string(c.ID[:]), f.Sequence, string(f.Seed[:]), disclosure, f.Generation, f.Partition, f.Offset, c.Partition, f.LedgerOffset,
	}
	for _, text := range columns.Text {
		row = append(row, string(text))
	}
	return add(row...)
}

// Disclosed is the column disclosure.
func Disclosed(fields []ledger.Disclosure) (string, error) {
	if fields == nil {
		return "", nil
	}
	text, err := ledger.EncodeDisclosure(fields)
	return string(text), err
}

func texts(list [][]byte) []string {
	all := make([]string, len(list))
	for i := range list {
		all[i] = string(list[i])
	}
	return all
}

// orderedMap has the entries of a Map column in their order, names more than once too: column.IterableOrderedMap.
type orderedMap struct{ keys, values [][]byte }

// Put implements column.IterableOrderedMap.
func (*orderedMap) Put(any, any) {}

// Iterator implements column.IterableOrderedMap.
func (m *orderedMap) Iterator() column.MapIterator { return &mapIterator{m, -1} }

type mapIterator struct {
	*orderedMap

	at int
}

// Next implements column.MapIterator.
func (i *mapIterator) Next() bool {
	i.at++
	return i.at < len(i.keys)
}

// Key implements column.MapIterator.
func (i *mapIterator) Key() any { return string(i.keys[i.at]) }

// Value implements column.MapIterator.
func (i *mapIterator) Value() any { return string(i.values[i.at]) }
