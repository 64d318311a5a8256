package verify

import (
	"bytes"
	"fmt"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
)

// checker compares rows of events with their bodies. It is for one goroutine.
type checker struct {
	builder *event.Builder
	want    event.Columns
	scratch [][]byte
}

func newChecker() *checker { return &checker{builder: event.NewBuilder()} }

// check compares a row of events with its leaf and every column that a search goes by with what the body says.
func (c *checker) check(e eventRow, l *ledger.StoredLeaf) *ledger.Fault {
	if name := leafMismatch(e, l); name != "" {
		return leafFault(ledger.ColumnMismatch, &l.Leaf, "events.%s is not that of the leaf", name)
	}
	if err := c.builder.Columns(e.body.RowBytes(e.i), &c.want); err != nil {
		return leafFault(ledger.ColumnMismatch, &l.Leaf, "%v", err)
	}
	if name := c.textMismatch(e); name != "" {
		return leafFault(ledger.ColumnMismatch, &l.Leaf, "events.%s is not what the body says", name)
	}
	if name := c.listMismatch(e); name != "" {
		return leafFault(ledger.ColumnMismatch, &l.Leaf, "events.%s is not what the body says", name)
	}
	return nil
}

// leafMismatch names the column in which events and leaves differ.
func leafMismatch(e eventRow, l *ledger.StoredLeaf) string {
	row := e.leaf(e.i)
	switch {
	case row.ID != l.ID:
		return "id"
	case row.Kind != l.Kind:
		return "kind"
	case row.RecordedAt != l.RecordedAt:
		return "recorded_at"
	case row.Generation != l.Generation:
		return "input_generation"
	case row.Partition != l.Partition:
		return "input_partition"
	case row.Offset != l.Offset:
		return "input_offset"
	case e.ledgerOffset[e.i] != l.LedgerOffset:
		return "ledger_offset"
	default:
		return ""
	}
}

// textMismatch names the column of one value that is not what the body says.
func (c *checker) textMismatch(e eventRow) string {
	if e.occurredAt[e.i] != c.want.OccurredAt {
		return event.FieldOccurredAt
	}
	for k, name := range event.TextFields() {
		if !bytes.Equal(e.text[k].RowBytes(e.i), c.want.Text[k]) {
			return name
		}
	}
	return ""
}

// listMismatch names the column of several values that is not what the body says.
func (c *checker) listMismatch(e eventRow) string {
	for _, column := range []struct {
		name string
		got  *list
		want [][]byte
	}{
		{"target_types", e.targetTypes, c.want.TargetTypes},
		{"target_ids", e.targetIDs, c.want.TargetIDs},
		{"flags", e.flags, c.want.Flags},
		{"metadata (names)", e.keys, c.want.MetadataKeys},
		{"metadata", e.values, c.want.MetadataValues},
	} {
		c.scratch = column.got.row(c.scratch[:0], e.i)
		if at, same := firstDifference(c.scratch, column.want); !same {
			return fmt.Sprintf("%s[%d]", column.name, at)
		}
	}
	return ""
}

func firstDifference(a, b [][]byte) (at int, same bool) {
	for i := range min(len(a), len(b)) {
		if !bytes.Equal(a[i], b[i]) {
			return i, false
		}
	}
	return min(len(a), len(b)), len(a) == len(b)
}
