package verify

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/internal/clickhouse"
	"getimmutable.dev/immutable/ledger"
)

// Parts verifies parts of chains in the operator's tables: what an installation does all the time with its own. It believes the roots that it is
// given. It is for one goroutine.
type Parts struct {
	store  *store
	limits PartLimits
	check  *checker
	hasher ledger.ContentHasher
}

// PartLimits bound what Parts takes of ClickHouse and of memory.
type PartLimits struct {
	// SliceLeaves are read at once. 1 to 8192.
	SliceLeaves uint64
	// SliceBytes is the most of an answer, in bytes; a slice with more is read in halves. At least 4 MiB, so that one event of any size fits.
	SliceBytes uint64
	// StatementTimeout of one statement, in ClickHouse. At least 1 s.
	StatementTimeout time.Duration
	// Priority of the statements in ClickHouse, where 1 goes first. 0 is without.
	Priority int
}

// OpenParts dials nothing. Close it.
func OpenParts(cfg clickhouse.Config, limits PartLimits) *Parts {
	s := newStore(cfg, 1)
	for _, setting := range []struct {
		key   string
		value uint64
	}{
		{"max_threads", 1},
		{"priority", uint64(limits.Priority)},
		{"max_execution_time", uint64(limits.StatementTimeout / time.Second)},
	} {
		s.settings = append(s.settings, ch.Setting{Key: setting.key, Value: strconv.FormatUint(setting.value, 10), Important: true})
	}
	return &Parts{store: s.limited(limits.SliceBytes), limits: limits, check: newChecker()}
}

// Close ends the connection.
func (p *Parts) Close() { p.store.close() }

// Part is a run of leaves of one chain, and what is signed of the chain.
type Part struct {
	Chain ledger.ChainIdentity
	// From, and To without it, are sequences: From < To <= Size.
	From, To uint64
	// Size and Root of the chain at an epoch.
	Size uint64
	Root ledger.Hash
	// Covered is the epoch's time, and Position its cut: the leaves before this offset of Partition of the ledger topic are those that it
	// covers.
	Covered   time.Time
	Partition uint16
	Position  uint64
	// Sound is a size of the chain at which its root was SoundRoot when it was verified before; 0 where there is none.
	Sound     uint64
	SoundRoot ledger.Hash
}

// Here says whether both tables have the last leaf that the epoch covers. Those who write them bring leaves in order, into events last.
func (p *Parts) Here(ctx context.Context, part *Part) (bool, error) {
	last := part.Size - 1
	t := p.table(part)
	for _, table := range []string{"leaves", "events"} {
		if table == "events" && last == 0 {
			continue // a genesis has no row there
		}
		n, err := p.store.number(ctx, fmt.Sprintf("SELECT count() FROM %s WHERE %s AND sequence = %d", table, t.where(table), last))
		if n == 0 || err != nil {
			return false, err
		}
	}
	return true, nil
}

// Verify recomputes the part from its content: each row's columns against its body, bodies against leaves, each leaf against the one before it,
// and with the stored hashes of what is before and after the part, the chain's root. It returns what it finds, without Redacted; the error
// says that it could not be verified.
func (p *Parts) Verify(ctx context.Context, part *Part) ([]*ledger.Fault, error) {
	v := &partRun{Parts: p, part: part, table: p.table(part), erased: map[string][]string{}}
	if err := v.run(ctx); err != nil {
		return nil, fmt.Errorf("verifying leaves %d to %d of chain %x: %w", part.From, part.To-1, v.table.rows.chain, err)
	}
	return slices.CompactFunc(v.faults, sameFault), nil
}

func (p *Parts) table(part *Part) *chainTable {
	return &chainTable{store: p.store, rows: chainRows{chain: part.Chain.Chain(), identity: part.Chain}, size: part.To}
}

// partRun is one call of Parts.Verify.
type partRun struct {
	*Parts

	part   *Part
	table  *chainTable
	chain  *ledger.ChainVerifier
	faults []*ledger.Fault
	// erased are the paths of which only commitments are left, by event.
	erased map[string][]string
	// withheld are the faults of events that no redaction of the part covers.
	withheld []*ledger.Fault
}

func (v *partRun) fault(f *ledger.Fault) {
	switch f.Verdict {
	case ledger.Redacted:
	case ledger.Withheld:
		v.withheld = append(v.withheld, f)
	default:
		v.faults = append(v.faults, f)
	}
}

func (v *partRun) faultf(verdict ledger.Verdict, sequence *uint64, format string, args ...any) {
	chain := v.table.rows.chain
	v.fault(&ledger.Fault{Verdict: verdict, Chain: &chain, Sequence: sequence, Detail: fmt.Sprintf(format, args...)})
}

func (v *partRun) run(ctx context.Context) error {
	v.chain = ledger.NewChainVerifier(v.part.Chain, []ledger.Mark{{Size: v.part.To, Covered: v.part.Covered}}, v.fault)
	if err := v.begin(ctx); err != nil {
		return err
	}
	if err := v.leaves(ctx); err != nil {
		return err
	}
	v.chain.Close()
	if err := v.checkRoot(ctx); err != nil {
		return err
	}
	if err := v.checkIdentity(ctx); err != nil {
		return err
	}
	if v.part.To == v.part.Size {
		if err := v.checkBeyond(ctx); err != nil {
			return err
		}
	}
	return v.checkErased(ctx)
}

// begin takes up the chain at the part.
func (v *partRun) begin(ctx context.Context) error {
	from := v.part.From
	if from == 0 {
		return nil
	}
	head := ledger.Head{Size: from}
	subtrees, err := v.subtrees(ctx, 0, from)
	if err != nil {
		return err
	}
	head.Range = subtrees
	before, err := v.table.slice(ctx, from-1, from)
	if err != nil {
		return err
	}
	var last *ledger.Leaf
	if len(before.leaves) == 1 && before.leaves[0].Hash != (ledger.Hash{}) {
		last, head.LastLeafHash = &before.leaves[0].Leaf, before.leaves[0].Hash
	}
	v.chain.BeginAt(&head, last)
	return nil
}

// leaves gives the part's leaves to the verifier, a slice after the other.
func (v *partRun) leaves(ctx context.Context) error {
	width := v.limits.SliceLeaves
	for from := v.part.From; from < v.part.To; {
		b, to, next, err := v.table.narrowed(ctx, from, v.part.To, width, v.limits.SliceLeaves)
		switch {
		case ch.IsErr(err, proto.ErrTooManyRowsOrBytes):
			sequence := from
			v.faultf(ledger.Modified, &sequence, "its rows have more than %d bytes, which no event has", v.limits.SliceBytes)
			b = &batch{}
		case err != nil:
			return err
		}
		v.take(b)
		from, width = to, next
	}
	return nil
}

func (v *partRun) take(b *batch) {
	for _, f := range b.faults {
		v.fault(f)
	}
	for i := range b.leaves {
		l := &b.leaves[i]
		v.hasher.Digest(l)
		if b.check != nil {
			if f := b.check(v.check, i); f != nil {
				v.fault(f)
			}
		}
		if paths := erasedPaths(l.Disclosure); len(paths) > 0 {
			v.erased[uuid.UUID(l.ID).String()] = paths
		}
		v.chain.Add(l)
	}
}

func erasedPaths(fields []ledger.Disclosure) (paths []string) {
	for i := range fields {
		if fields[i].Commitment != nil {
			paths = append(paths, fields[i].Path)
		}
	}
	return paths
}

// checkRoot brings the tree over the part's leaves to the size that is signed, and lets the root judge.
func (v *partRun) checkRoot(ctx context.Context) error {
	head, known := v.chain.Head()
	after, err := v.subtrees(ctx, v.part.To, v.part.Size)
	if err != nil {
		return err
	}
	if known && head.Size == v.part.To && (after != nil || v.part.To == v.part.Size) {
		if err := head.AppendSubtrees(v.part.Size, after); err != nil {
			return err
		}
		if head.Root() == v.part.Root {
			v.chain.Conclude(ledger.RootHolds)
			return nil
		}
		found := len(v.faults)
		v.chain.Conclude(ledger.RootDiffers)
		if found == 0 && len(v.faults) == 0 {
			return v.rootDiffers(ctx, head.Root())
		}
		return nil
	}
	v.chain.Conclude(ledger.RootUnknown)
	return nil
}

// rootDiffers: the part's leaves hold, and the chain's root is another. That names the leaves since the chain was sound, if all of them are in the
// part, else none.
func (v *partRun) rootDiffers(ctx context.Context, root ledger.Hash) error {
	chain := v.table.rows.chain
	f := &ledger.Fault{Verdict: ledger.Modified, Chain: &chain, Detail: fmt.Sprintf(
		"the leaves give root %x at size %d, signed is %x: leaves were written anew with their hashes, or stored hashes were changed",
		root, v.part.Size, v.part.Root)}
	if v.part.To == v.part.Size && v.part.From <= v.part.Sound {
		before, err := v.subtrees(ctx, 0, v.part.Sound)
		if err != nil {
			return err
		}
		head := ledger.Head{Range: before}
		if v.part.Sound == 0 || before != nil && head.Root() == v.part.SoundRoot {
			first, last := v.part.Sound, v.part.Size-1
			f.Sequence, f.Last = &first, &last
		}
	}
	v.fault(f)
	return nil
}

// subtrees reads the stored hashes that bring the chain's tree from one size to another. It returns nil where one is missing, which it reports.
func (v *partRun) subtrees(ctx context.Context, from, to uint64) ([]ledger.Hash, error) {
	plan := ledger.SubtreesBetween(from, to)
	stored, bad, err := v.store.hashes(ctx, "leaves", "sequence", "leaf_hash", v.table.where("leaves"), plan)
	if err != nil || bad == nil {
		if err != nil {
			return nil, err
		}
		return plan.Build(stored)
	}
	if bad.rows == 0 {
		v.faultf(ledger.Missing, &bad.sequence, "no leaf is stored")
	} else {
		v.faultf(ledger.Modified, &bad.sequence, "the leaf is stored with other hashes than one, or without the node of the tree up to it")
	}
	return nil, nil
}

// badHash is a place of which not one hash is stored.
type badHash struct {
	sequence uint64
	rows     int
}

// hashes reads the stored hashes of a plan: the column hash, and of column node those of complete subtrees.
func (s *store) hashes(ctx context.Context, table, key, hash, where string, plan *ledger.ProofPlan) ([][]ledger.Hash, *badHash, error) {
	spans := plan.Spans()
	if len(spans) == 0 {
		return nil, nil, nil
	}
	var at []string
	for _, span := range spans {
		for i := span.From; i < span.To; i++ {
			at = append(at, strconv.FormatUint(lastOf(span.Level, i), 10))
		}
	}
	type row struct {
		hash ledger.Hash
		node []ledger.Hash
	}
	rows := map[uint64][]row{}
	var (
		sequence proto.ColUInt64
		leafHash = proto.ColFixedStr{Size: 32}
		node     proto.ColStr
	)
	results := proto.Results{{Name: "at", Data: &sequence}, {Name: "stored", Data: &leafHash}, {Name: "node", Data: &node}}
	text := fmt.Sprintf("SELECT DISTINCT %s AS at, %s AS stored, node FROM %s WHERE %s AND %s IN (%s)", key, hash, table, where, key, strings.Join(at, ","))
	err := s.query(ctx, text, results, func(n int) error {
		for i := range n {
			r := row{hash: ledger.Hash(leafHash.Row(i))}
			r.node, _ = hashes(node.RowBytes(i)) // one that cannot be read lacks its hashes
			rows[sequence[i]] = append(rows[sequence[i]], r)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	stored := make([][]ledger.Hash, len(spans))
	for k, span := range spans {
		for i := span.From; i < span.To; i++ {
			at := lastOf(span.Level, i)
			found := rows[at]
			switch {
			case len(found) != 1, len(found[0].node) < span.Level:
				return nil, &badHash{at, len(found)}, nil
			case span.Level == 0:
				stored[k] = append(stored[k], found[0].hash)
			default:
				stored[k] = append(stored[k], found[0].node[span.Level-1])
			}
		}
	}
	return stored, nil, nil
}

// lastOf is the last leaf of a complete subtree of 256^level leaves.
func lastOf(level int, index uint64) uint64 { return (index+1)<<(8*level) - 1 }

// checkIdentity: every row of leaves says what the chain is made of.
func (v *partRun) checkIdentity(ctx context.Context) error {
	c := &v.part.Chain
	text := fmt.Sprintf("SELECT sequence FROM leaves WHERE %s AND sequence >= %d AND sequence < %d AND NOT "+
		"(workspace = %s AND incarnation = %s AND lane = %d AND lanes = %d AND ledger_partition = %d) ORDER BY sequence LIMIT %d",
		v.table.where("leaves"), v.part.From, v.part.To, sql(c.Workspace[:]), sql(c.Incarnation[:]), c.Lane, c.Lanes, v.part.Partition, maxListed)
	return v.store.numbers(ctx, text, func(sequence uint64) {
		v.faultf(ledger.ColumnMismatch, &sequence, "leaves says another workspace, incarnation, lane, number of lanes or ledger partition")
	})
}

// maxListed bounds how many rows of one kind a part names.
const maxListed = 100

// checkBeyond: the tables have no row that the epoch would cover, had it been there.
func (v *partRun) checkBeyond(ctx context.Context) error {
	for _, table := range []string{"leaves", "events"} {
		text := fmt.Sprintf("SELECT DISTINCT sequence FROM %s WHERE %s AND sequence >= %d AND ledger_offset < %d ORDER BY sequence LIMIT %d",
			table, v.table.where(table), v.part.Size, v.part.Position, maxListed)
		err := v.store.numbers(ctx, text, func(sequence uint64) {
			v.faultf(ledger.Inserted, &sequence, "%s holds a row at a ledger offset before %d, where the chain has %d leaves", table, v.part.Position, v.part.Size)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// checkErased looks for redactions after the part that cover what is withheld in it.
func (v *partRun) checkErased(ctx context.Context) error {
	withheld := v.withheld
	v.withheld = nil
	for chunk := range slices.Chunk(withheld, maxListed) {
		covered, err := v.covered(ctx, chunk)
		if err != nil {
			return err
		}
		for _, f := range chunk {
			open := slices.DeleteFunc(slices.Clone(v.erased[f.EventID]), func(path string) bool { return slices.Contains(covered[f.EventID], path) })
			if len(open) > 0 {
				v.faults = append(v.faults, f)
			}
		}
	}
	return nil
}

// covered returns which paths of events the chain's redactions cover.
func (v *partRun) covered(ctx context.Context, withheld []*ledger.Fault) (map[string][]string, error) {
	var ids []string
	for _, f := range withheld {
		ids = append(ids, "'"+f.EventID+"'")
	}
	text := fmt.Sprintf("SELECT DISTINCT sequence FROM events WHERE %s AND kind = %d AND sequence > %d AND multiSearchAny(body, [%s]) ORDER BY sequence LIMIT %d",
		v.table.where("events"), ledger.KindRedaction, *withheld[0].Sequence, strings.Join(ids, ","), maxRedactions)
	var sequences []uint64
	if err := v.store.numbers(ctx, text, func(sequence uint64) { sequences = append(sequences, sequence) }); err != nil {
		return nil, err
	}
	covered := map[string][]string{}
	for _, sequence := range sequences {
		r, err := v.redaction(ctx, sequence)
		if err != nil {
			return nil, err
		}
		if r != nil {
			covered[r.EventID] = append(covered[r.EventID], r.Paths...)
		}
	}
	return covered, nil
}

// maxRedactions bounds how many redactions are read for maxListed events.
const maxRedactions = 10_000

// redaction returns what a redaction leaf says; nil where its content does not give its hash after that of the leaf before it. Whether those are in
// the tree says the part that they are in.
func (v *partRun) redaction(ctx context.Context, sequence uint64) (*ledger.Redaction, error) {
	b, err := v.table.slice(ctx, sequence-1, sequence+1)
	if err != nil {
		return nil, err
	}
	if len(b.leaves) != 2 || len(b.faults) > 0 {
		return nil, nil //nolint:nilnil // it covers nothing
	}
	holds := true
	before, l := &b.leaves[0], &b.leaves[1]
	c := ledger.NewChainVerifier(v.part.Chain, nil, func(*ledger.Fault) { holds = false })
	c.BeginAt(&ledger.Head{Size: sequence, LastLeafHash: before.Hash}, &before.Leaf)
	v.hasher.Digest(l)
	c.Add(l)
	c.Close()
	c.Conclude(ledger.RootUnknown)
	if !holds || l.Kind != ledger.KindRedaction || l.Disclosure != nil {
		return nil, nil //nolint:nilnil // it covers nothing
	}
	r, err := ledger.ParseRedaction(l.Body)
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // one that cannot be read covers nothing
	}
	return r, nil
}

// number runs a statement that answers one number.
func (s *store) number(ctx context.Context, text string) (n uint64, err error) {
	err = s.numbers(ctx, text, func(v uint64) { n = v })
	return n, err
}

// numbers runs a statement that answers numbers in one column.
func (s *store) numbers(ctx context.Context, text string, each func(uint64)) error {
	var column proto.ColUInt64
	return s.query(ctx, text, proto.Results{{Name: "", Data: &column}}, func(rows int) error {
		for _, n := range column[:rows] {
			each(n)
		}
		return nil
	})
}
