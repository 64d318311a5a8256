package verify

import (
	"context"
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
)

// sequencesPerSlice is how many leaves are read of a chain at once, fewer where they have more than Tables.SliceBytes.
const sequencesPerSlice = 8192

// place is what both tables say of a leaf.
type place struct {
	workspace, chain, id        proto.ColFixedStr
	kind                        proto.ColUInt8
	recordedAt                  proto.ColInt64
	sequence, inputOffset       proto.ColUInt64
	ledgerOffset                proto.ColUInt64
	generation, input, ledgerIn proto.ColUInt16
}

func newPlace() place {
	return place{workspace: proto.ColFixedStr{Size: 16}, chain: proto.ColFixedStr{Size: 16}, id: proto.ColFixedStr{Size: 16}}
}

const placeColumns = "workspace, chain, id, kind, toUnixTimestamp64Micro(recorded_at) AS at, sequence, input_generation, input_partition, input_offset, " +
	"ledger_partition, ledger_offset"

func (p *place) results() proto.Results {
	return proto.Results{
		{Name: "workspace", Data: &p.workspace},
		{Name: "chain", Data: &p.chain},
		{Name: "id", Data: &p.id},
		{Name: "kind", Data: &p.kind},
		{Name: "at", Data: &p.recordedAt},
		{Name: "sequence", Data: &p.sequence},
		{Name: "input_generation", Data: &p.generation},
		{Name: "input_partition", Data: &p.input},
		{Name: "input_offset", Data: &p.inputOffset},
		{Name: "ledger_partition", Data: &p.ledgerIn},
		{Name: "ledger_offset", Data: &p.ledgerOffset},
	}
}

func (p *place) leaf(i int) ledger.Leaf {
	return ledger.Leaf{
		Chain: ledger.ChainID(p.chain.Row(i)), Sequence: p.sequence[i], Kind: ledger.Kind(p.kind[i]), ID: [16]byte(p.id.Row(i)),
		RecordedAt: p.recordedAt[i], Generation: p.generation[i], Partition: p.input[i], Offset: p.inputOffset[i],
	}
}

// leafRows are the rows of leaves of a slice.
type leafRows struct {
	place

	hash   proto.ColFixedStr
	node   proto.ColStr
	stored []ledger.StoredLeaf
}

// list is a column of arrays of strings.
type list struct {
	values proto.ColStr
	array  *proto.ColArr[string]
}

func newList() *list {
	l := new(list)
	l.array = proto.NewArray(&l.values)
	return l
}

// row appends what row i has to dst.
func (l *list) row(dst [][]byte, i int) [][]byte {
	from := 0
	if i > 0 {
		from = int(l.array.Offsets[i-1])
	}
	for ; from < int(l.array.Offsets[i]); from++ {
		dst = append(dst, l.values.RowBytes(from))
	}
	return dst
}

// eventRows are the rows of events of one block.
type eventRows struct {
	place

	occurredAt                    proto.ColInt64
	text                          [12]proto.ColStr
	targetTypes, targetIDs, flags *list
	keys, values                  *list
	body, disclosure              proto.ColStr
	seed                          proto.ColFixedStr
}

func newEventRows() *eventRows {
	return &eventRows{
		place: newPlace(), targetTypes: newList(), targetIDs: newList(), flags: newList(), keys: newList(), values: newList(),
		seed: proto.ColFixedStr{Size: 16},
	}
}

func (e *eventRows) results() proto.Results {
	all := append(e.place.results(),
		proto.ResultColumn{Name: "occurred", Data: &e.occurredAt}, proto.ResultColumn{Name: "target_types", Data: e.targetTypes.array},
		proto.ResultColumn{Name: "target_ids", Data: e.targetIDs.array}, proto.ResultColumn{Name: "flags", Data: e.flags.array},
		proto.ResultColumn{Name: "keys", Data: e.keys.array}, proto.ResultColumn{Name: "values", Data: e.values.array},
		proto.ResultColumn{Name: "body", Data: &e.body}, proto.ResultColumn{Name: "disclosure", Data: &e.disclosure},
		proto.ResultColumn{Name: "seed", Data: &e.seed},
	)
	for i, name := range event.TextFields() {
		all = append(all, proto.ResultColumn{Name: name, Data: &e.text[i]})
	}
	return all
}

// eventColumns is what is read of events, each column in the type that eventRows has.
func eventColumns() string {
	var b strings.Builder
	b.WriteString(placeColumns)
	b.WriteString(", toUnixTimestamp64Micro(occurred_at) AS occurred, CAST(e.target_types, 'Array(String)') AS target_types, " +
		"e.target_ids AS target_ids, CAST(e.flags, 'Array(String)') AS flags, CAST(mapKeys(metadata), 'Array(String)') AS keys, " +
		"mapValues(metadata) AS values, body, disclosure, seed")
	for _, name := range event.TextFields() {
		fmt.Fprintf(&b, ", CAST(e.%s, 'String') AS %s", name, name)
	}
	return b.String()
}

// eventRow is a row of events, in a block.
type eventRow struct {
	*eventRows

	i int
}

// chainTable reads one chain from the tables, a slice of sequences after the other.
type chainTable struct {
	*store

	rows chainRows
	// size is one past the last sequence to read.
	size uint64
}

// leaves implements chainJob.leaves.
func (t *chainTable) leaves(ctx context.Context, each func(*batch) error) error {
	width := uint64(sequencesPerSlice)
	for from := uint64(0); from < t.size; {
		if from > 0 && t.size-from > sequencesPerSlice {
			// A sequence that somebody has put far beyond the others must not make this long.
			next, err := t.next(ctx, from)
			if err != nil {
				return err
			}
			from = next
		}
		b, to, next, err := t.narrowed(ctx, from, t.size, width, sequencesPerSlice)
		switch {
		case ch.IsErr(err, proto.ErrTooManyRowsOrBytes):
			at := from
			b = &batch{faults: []*ledger.Fault{{
				Verdict: ledger.Modified, Chain: &t.rows.chain, Sequence: &at, Detail: "its rows have more bytes than any event has",
			}}}
		case err != nil:
			return err
		}
		if err := each(b); err != nil {
			return err
		}
		from, width = to, next
	}
	return nil
}

// narrowed reads the slice from a sequence on, before another, that is width wide, or half as wide, and so on down to one leaf, where its rows have more
// bytes than an answer may. It returns where the next begins, and how wide it may be: most at the most, about.
func (t *chainTable) narrowed(ctx context.Context, from, end, width, most uint64) (b *batch, to, next uint64, err error) {
	for {
		to = min(end, from+width)
		b, err = t.slice(ctx, from, to)
		if width == 1 || !ch.IsErr(err, proto.ErrTooManyRowsOrBytes) {
			break
		}
		width /= 2
	}
	if width < most {
		width *= 2
	}
	return b, to, width, err
}

// next returns the smallest sequence from one on that a table holds.
func (t *chainTable) next(ctx context.Context, from uint64) (uint64, error) {
	next := t.size
	for _, table := range []string{"leaves", "events"} {
		var least, count proto.ColUInt64
		text := fmt.Sprintf("SELECT min(sequence) AS least, count() AS n FROM %s WHERE %s AND sequence >= %d", table, t.where(table), from)
		err := t.query(ctx, text, proto.Results{{Name: "least", Data: &least}, {Name: "n", Data: &count}}, func(int) error {
			if count[0] > 0 {
				next = min(next, least[0])
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return next, nil
}

func (t *chainTable) where(table string) string {
	where := "chain = " + sql(t.rows.chain[:])
	if table == "events" {
		where += " AND workspace = " + sql(t.rows.identity.Workspace[:])
	}
	return where
}

// slice reads the rows of both tables with these sequences and puts them together.
func (t *chainTable) slice(ctx context.Context, from, to uint64) (*batch, error) {
	within := fmt.Sprintf(" AND sequence >= %d AND sequence < %d ORDER BY sequence, ledger_offset, id", from, to)
	leaves := &leafRows{place: newPlace(), hash: proto.ColFixedStr{Size: 32}}
	results := append(leaves.results(), proto.ResultColumn{Name: "leaf_hash", Data: &leaves.hash}, proto.ResultColumn{Name: "node", Data: &leaves.node})
	b := &batch{}
	err := t.query(ctx, "SELECT "+placeColumns+", leaf_hash, node FROM leaves WHERE "+t.where("leaves")+within, results, func(rows int) error {
		for i := range rows {
			l := ledger.StoredLeaf{Leaf: leaves.leaf(i), Hash: ledger.Hash(leaves.hash.Row(i)), LedgerOffset: leaves.ledgerOffset[i]}
			var err error
			if l.Node, err = hashes(leaves.node.RowBytes(i)); err != nil {
				b.faults = append(b.faults, leafFault(ledger.Modified, &l.Leaf, "node: %v", err))
			}
			leaves.stored = append(leaves.stored, l)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	events, err := t.events(ctx, within)
	if err != nil {
		return nil, err
	}
	t.join(b, leaves.stored, events)
	return b, nil
}

// events reads the rows of events of a slice. Each block keeps its own memory.
func (t *chainTable) events(ctx context.Context, within string) ([]eventRow, error) {
	var all []eventRow
	block := newEventRows()
	results := block.results()
	err := t.query(ctx, "SELECT "+eventColumns()+" FROM events AS e WHERE "+t.where("events")+within, results, func(rows int) error {
		kept := *block // with the columns' memory
		for i := range rows {
			all = append(all, eventRow{&kept, i})
		}
		*block = *newEventRows()
		copy(results, block.results())
		return nil
	})
	return all, err
}

// join puts the rows of both tables together, in the order of sequences: by id where a sequence has several.
func (t *chainTable) join(b *batch, leaves []ledger.StoredLeaf, events []eventRow) {
	var with []eventRow // of each leaf of the batch; the zero one where there is none
	add := func(l ledger.StoredLeaf, e eventRow) {
		if e.eventRows != nil {
			b.faults = appendFault(b.faults, e.content(&l))
		}
		b.leaves, with = append(b.leaves, l), append(with, e)
	}
	for len(leaves) > 0 || len(events) > 0 {
		var own []eventRow
		switch {
		case len(leaves) == 0, len(events) > 0 && events[0].sequence[events[0].i] < leaves[0].Sequence:
			e := events[0]
			events = events[1:]
			add(ledger.StoredLeaf{Leaf: e.leaf(e.i), LedgerOffset: e.ledgerOffset[e.i]}, e) // its leaf is missing
			continue
		default:
			for len(events) > 0 && events[0].sequence[events[0].i] == leaves[0].Sequence {
				own, events = append(own, events[0]), events[1:]
			}
		}
		sequence := leaves[0].Sequence
		first := true
		for ; len(leaves) > 0 && leaves[0].Sequence == sequence; leaves = leaves[1:] {
			l := leaves[0]
			at := pick(own, l.ID, first && (len(leaves) == 1 || leaves[1].Sequence != sequence))
			first = false
			if at < 0 {
				add(l, eventRow{})
				continue
			}
			add(l, own[at])
			own = append(own[:at:at], own[at+1:]...)
		}
		for _, e := range own {
			l := e.leaf(e.i)
			if paired(b.leaves, &l) {
				b.faults = append(b.faults, leafFault(ledger.Duplicate, &l, "events holds the event twice"))
				continue
			}
			b.faults = append(b.faults, leafFault(ledger.Inserted, &l, "events holds another event of this sequence"))
		}
	}
	b.check = func(c *checker, i int) *ledger.Fault {
		if with[i].eventRows == nil {
			return nil
		}
		return c.check(with[i], &b.leaves[i])
	}
}

// pick returns which row of events goes with a leaf: that with its id, or the only one where it is the only leaf; -1 for none.
func pick(rows []eventRow, id [16]byte, alone bool) int {
	for k, e := range rows {
		if [16]byte(e.id.Row(e.i)) == id {
			return k
		}
	}
	if alone && len(rows) == 1 {
		return 0
	}
	return -1
}

// paired says whether the last leaves have this sequence and id.
func paired(leaves []ledger.StoredLeaf, l *ledger.Leaf) bool {
	for i := len(leaves) - 1; i >= 0 && leaves[i].Sequence == l.Sequence; i-- {
		if leaves[i].ID == l.ID {
			return true
		}
	}
	return false
}

// content gives a leaf the content that a row of events has for it.
func (e eventRow) content(l *ledger.StoredLeaf) *ledger.Fault {
	body, seed := e.body.RowBytes(e.i), [16]byte(e.seed.Row(e.i))
	disclosure := e.disclosure.RowBytes(e.i)
	if len(disclosure) == 0 {
		l.Body, l.Seed = body, seed
		return nil
	}
	if seed != [16]byte{} {
		return leafFault(ledger.Modified, &l.Leaf, "a redacted event has no seed, this one has")
	}
	stored, err := ledger.ParseDisclosure(disclosure)
	if err == nil {
		l.Disclosure, err = ledger.JoinDisclosure(stored, body)
	}
	if err != nil {
		return leafFault(ledger.Modified, &l.Leaf, "%v", err)
	}
	return nil
}

func appendFault(faults []*ledger.Fault, f *ledger.Fault) []*ledger.Fault {
	if f != nil {
		faults = append(faults, f)
	}
	return faults
}

// leafFault is a finding at a leaf.
func leafFault(v ledger.Verdict, l *ledger.Leaf, format string, args ...any) *ledger.Fault {
	chain, sequence := l.Chain, l.Sequence
	return &ledger.Fault{
		Verdict: v, Chain: &chain, Sequence: &sequence, EventID: uuid.UUID(l.ID).String(), Detail: fmt.Sprintf(format, args...),
	}
}
