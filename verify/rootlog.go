package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"getimmutable.dev/immutable/ledger"
)

// logRow is an entry of the root log as a source has it.
type logRow struct {
	index uint64
	entry []byte
	// hash and node are what is stored beside it, or in the tiles.
	hash ledger.Hash
	node []ledger.Hash
	// unread says why node cannot be read.
	unread error
	// columns are what the operator's table says of it besides; nil from elsewhere.
	columns *logColumns
}

type logColumns struct {
	entryType string
	time      int64 // microseconds since the Unix epoch
}

// rootLog is a source of the root log. rows calls each with the entries from one index on, in order and without duplicates that say the same,
// up to below another. What a row holds may be overwritten after the call.
type rootLog interface {
	rows(ctx context.Context, from, to uint64, each func(*logRow) error) error
}

// replay goes once over the root log and recomputes its tree.
type replay struct {
	report *Report
	origin string
	head   ledger.Head
	keys   ledger.KeyHistory
	// keyEntries are the texts of keys.
	keyEntries []string
	// manyKeys: not all key changes were read.
	manyKeys bool
	// held is the last row: the one after it says which of content and stored hash is right, should they differ.
	held *heldRow
	// damaged: an entry is missing, so that no root is known.
	damaged bool
	faults  uint64
	last    *ledger.Epoch // positions and chains only rise
	time    time.Time
	silence silence
	// sample picks the epochs that are kept, each time an epoch passes.
	epochs *epochSample
	// at are sizes whose roots are wanted, in rising order.
	at    []uint64
	roots map[uint64]ledger.Hash
	// state at the size of each, for the memory.
	states map[uint64]ledger.Head
}

// silence is where neighbouring epochs are more than maxSilence apart.
type silence struct {
	count   int
	longest time.Duration
	before  *ledger.Entry // the epoch that ended the longest
}

// maxSilence between two epochs is far more than the minute after which a notary makes one when nothing has changed.
const maxSilence = 5 * time.Minute

// ended takes two neighbouring epochs.
func (s *silence) ended(before, e *ledger.Entry) {
	gap := e.Time.Sub(before.Time)
	if gap <= maxSilence {
		return
	}
	s.count++
	if gap > s.longest {
		s.longest, s.before = gap, e
	}
}

type heldRow struct {
	logRow

	computed ledger.Hash
	entry    *ledger.Entry // nil where it cannot be read
}

func newReplay(r *Report, origin string, sizes ...uint64) *replay {
	slices.Sort(sizes)
	return &replay{
		report: r, origin: origin, at: slices.Compact(sizes), roots: map[uint64]ledger.Hash{}, states: map[uint64]ledger.Head{}, epochs: &epochSample{},
	}
}

// from begins at what is remembered instead of at the first entry.
func (p *replay) from(l *rememberedLog, size uint64) error {
	keys, err := keyHistory(p.origin, l.Keys)
	if err != nil {
		return err
	}
	p.keys, p.keyEntries = keys, slices.Clone(l.Keys)
	newest, err := ledger.ParseEntry([]byte(l.Epoch))
	if err != nil {
		return err
	}
	p.epochs.newest, p.last, p.time = newest, newest.Epoch, newest.Time
	p.head = ledger.Head{Size: size, LastLeafHash: l.LastHash, Range: slices.Clone(l.Range)}
	p.reached()
	return nil
}

// run reads the log up to a size.
func (p *replay) run(ctx context.Context, log rootLog, size uint64) error {
	begin := p.head.Size
	err := log.rows(ctx, begin, size, func(row *logRow) error {
		p.add(row)
		return ctx.Err()
	})
	p.settle(ledger.Hash{})
	p.report.Entries += p.head.Size - begin
	if err != nil {
		return fmt.Errorf("reading the root log: %w", err)
	}
	if p.head.Size < size {
		p.fault(ledger.Truncated, p.head.Size, size-1, "the checkpoint covers entries of the root log that are not there")
	}
	return nil
}

func (p *replay) fault(v ledger.Verdict, first, last uint64, format string, args ...any) {
	if exitOf(v) == ExitTampered { // other findings explain no other root
		p.faults++
	}
	f := &ledger.Fault{Verdict: v, Sequence: &first, Detail: "root log: " + fmt.Sprintf(format, args...)}
	if last != first {
		f.Last = &last
	}
	p.report.fault(f)
}

// add takes the next row.
func (p *replay) add(row *logRow) {
	next := p.head.Size
	if p.held != nil {
		next++
	}
	switch {
	case row.index < next:
		p.fault(ledger.Inserted, row.index, row.index, "another entry has this index")
		return
	case row.index > next:
		p.settle(ledger.Hash{})
		p.fault(ledger.Missing, next, row.index-1, "no entry is stored")
		p.head.Size, p.damaged = row.index, true
	}
	h := &heldRow{logRow: *row, computed: ledger.EntryHash(row.entry)}
	h.logRow.entry, h.node = slices.Clone(row.entry), slices.Clone(row.node)
	e, err := ledger.ParseEntry(row.entry)
	previous := ledger.Hash{}
	if err == nil {
		h.entry, previous = e, e.Previous
	} else {
		p.fault(ledger.NonCanonical, row.index, row.index, "%v", err)
	}
	p.checkColumns(h)
	first := p.held == nil
	p.settle(previous)
	p.checkLink(h, first)
	p.held = h
}

// checkColumns compares the table's columns with the entry.
func (p *replay) checkColumns(h *heldRow) {
	if h.columns == nil || h.entry == nil {
		return
	}
	want := logColumns{"epoch", h.entry.Time.UnixMicro()}
	if h.entry.Key != nil {
		want.entryType = "key"
	}
	if *h.columns != want {
		p.fault(ledger.ColumnMismatch, h.index, h.index, "type and time are %+v, the entry says %+v", *h.columns, want)
	}
}

// checkLink: an entry states its index and the hash of the one before it.
func (p *replay) checkLink(h *heldRow, first bool) {
	switch e := h.entry; {
	case e == nil:
	case e.Index != h.index:
		p.fault(ledger.Reordered, h.index, h.index, "the entry states index %d", e.Index)
	case p.damaged && first:
	case e.Previous != p.head.LastLeafHash:
		p.fault(ledger.Modified, h.index, h.index, "the entry states previous %x, the entry before it has hash %x", e.Previous, p.head.LastLeafHash)
	}
}

// settle puts the held row on the tree. stated is the hash that the entry after it has for it, zero where there is none.
func (p *replay) settle(stated ledger.Hash) {
	h := p.held
	if h == nil {
		return
	}
	p.held = nil
	hash := h.computed
	if h.hash != h.computed {
		if stated == h.hash {
			hash = h.hash
			p.fault(ledger.Modified, h.index, h.index, "the entry gives hash %x, stored and stated by the one after it is %x", h.computed, h.hash)
		} else {
			p.fault(ledger.Modified, h.index, h.index, "the entry gives hash %x, stored is %x", h.computed, h.hash)
		}
	}
	if p.damaged {
		p.head.Size++
		p.head.LastLeafHash = hash
	} else if node := p.head.AppendHash(hash); h.unread != nil || !slices.Equal(node, h.node) {
		p.checkNode(h, node)
	}
	if hash == h.computed {
		p.takeEntry(h) // what it says is in the tree
	}
	p.reached()
}

// checkNode compares the roots of the subtrees that an entry completes with those that are stored.
func (p *replay) checkNode(h *heldRow, node []ledger.Hash) {
	if h.unread != nil {
		p.fault(ledger.Modified, h.index, h.index, "the stored node: %v", h.unread)
		return
	}
	p.fault(ledger.Modified, h.index, h.index, "the tree gives node %x, stored is %x", node, h.node)
}

// takeEntry takes what an entry says.
func (p *replay) takeEntry(h *heldRow) {
	e := h.entry
	if e == nil {
		return
	}
	if e.Time.Before(p.time) {
		p.fault(ledger.TimeAnomaly, h.index, h.index, "its time is before that of the entry before it")
	}
	p.time = e.Time
	if e.Key != nil && len(p.keyEntries) == maxKeyChanges {
		if !p.manyKeys {
			p.report.undecided("root log: there are more than %d key changes, of which the one at entry %d is not read", maxKeyChanges, h.index)
		}
		p.manyKeys = true
		return
	}
	if e.Key != nil {
		if err := p.keys.Append(p.origin, e); err != nil {
			p.fault(ledger.InvalidProof, h.index, h.index, "%v", err)
			return
		}
		p.keyEntries = append(p.keyEntries, string(h.logRow.entry))
		return
	}
	p.checkRises(e)
	if newest := p.epochs.newest; newest != nil {
		p.silence.ended(newest, e)
	}
	p.last = e.Epoch
	p.epochs.add(e)
}

// checkRises: an epoch covers what the one before it covers.
func (p *replay) checkRises(e *ledger.Entry) {
	if p.last == nil {
		return
	}
	rises := e.Epoch.Chains >= p.last.Chains && len(e.Epoch.Positions) >= len(p.last.Positions)
	for i := range p.last.Positions {
		rises = rises && e.Epoch.Positions[i] >= p.last.Positions[i]
	}
	if !rises {
		p.fault(ledger.RolledBack, e.Index, e.Index, "the epoch covers less than the one before it")
	}
}

// reached keeps the root where it is wanted.
func (p *replay) reached() {
	for len(p.at) > 0 && p.at[0] <= p.head.Size {
		if p.at[0] == p.head.Size && !p.damaged {
			p.roots[p.head.Size] = p.head.Root()
			p.states[p.head.Size] = p.head.Clone()
		}
		p.at = p.at[1:]
	}
}

// epochSample keeps the newest epoch, and others that were picked.
type epochSample struct {
	// picked are entries of the root log, in rising order: of each, the first epoch from it on is kept.
	picked []uint64
	keep   bool // newest was picked
	kept   []*ledger.Entry
	newest *ledger.Entry
	seen   uint64
}

func (s *epochSample) add(e *ledger.Entry) {
	s.seen++
	if s.keep {
		s.kept, s.keep = append(s.kept, s.newest), false
	}
	for len(s.picked) > 0 && s.picked[0] <= e.Index {
		s.picked, s.keep = s.picked[1:], true
	}
	s.newest = e
}

// all returns what is kept, the newest last.
func (s *epochSample) all() []*ledger.Entry {
	if s.newest == nil {
		return nil
	}
	return append(slices.Clone(s.kept), s.newest)
}

var errNoEpoch = errors.New("the checkpoint covers no epoch")
