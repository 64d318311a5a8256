package ledger

import (
	"errors"
	"fmt"
	"slices"

	"github.com/transparency-dev/merkle/compact"
)

// Leaves that do not fit together are kept by sequence until one follows that does. Of each, several hashes are possible: the
// stored one, or what its content gives after the possible hashes of the leaf before it. The leaf that fits says which it was, and the
// cheapest way back from it says what was done to the others.

// layer is all leaves of one sequence.
type layer struct {
	sequence uint64
	rows     []*row
	options  []*option
}

// option is a hash that a leaf may have had.
type option struct {
	row  *row
	hash Hash
	how  how
	// from is what the leaf before it had then; nil where that is not known.
	from *option
	cost int
	// misplaced: what is stored of the leaf belongs elsewhere.
	misplaced bool
}

type how uint8

const (
	// holds: the stored hash follows from the content and the hash before.
	holds how = iota
	// contentBad: the stored hash does not follow from the content.
	contentBad
	// hashBad: what follows goes by the content, and the stored hash is another.
	hashBad
	// stated: the leaf after it states this hash, and neither content nor stored hash give it.
	stated
	// unlinked: the hash before is not known; the stored one is taken.
	unlinked
	// hashUnknown: what is stored belongs elsewhere.
	hashUnknown
)

// suspect is a leaf whose content does not give its stored hash: one of them was changed, or the leaf before it was, with its hash.
// The next root that is known tells.
type suspect struct {
	sequence uint64
	id       [16]byte
	before   *suspect // nil where that did not hold either
}

// start is the option that stands for base.
func (v *ChainVerifier) start() *option {
	if !v.base.known {
		return nil
	}
	return &option{hash: v.base.hash}
}

// take is Add where a leaf does not follow from one that holds.
func (v *ChainVerifier) take(r *row) {
	if v.held != nil {
		if r.Sequence == v.held.Sequence && r.same(v.held) {
			v.duplicate(r)
			return
		}
		v.layers = append(v.layers, v.newLayer(v.held, v.start()))
		v.held = nil
	}
	n := len(v.layers)
	switch {
	case n > 0 && r.Sequence < v.layers[n-1].sequence, n == 0 && r.Sequence < v.base.next:
		v.fault(Reordered, r.Sequence, r.Sequence, r.ID, "the leaf comes after those that follow it")
	case n > 0 && r.Sequence == v.layers[n-1].sequence:
		v.twin(&v.layers[n-1], r)
	default:
		v.next(r)
	}
}

func (v *ChainVerifier) duplicate(r *row) {
	v.fault(Duplicate, r.Sequence, r.Sequence, r.ID, "the leaf is stored twice")
}

// twin takes a second leaf of one sequence.
func (v *ChainVerifier) twin(l *layer, r *row) {
	if slices.ContainsFunc(l.rows, r.same) {
		v.duplicate(r)
		return
	}
	if len(l.rows) > maxOptions {
		v.fault(Inserted, r.Sequence, r.Sequence, r.ID, "there are many other leaves of this sequence")
		return
	}
	l.rows = append(l.rows, r)
	var before *layer
	if n := len(v.layers); n > 1 {
		before = &v.layers[n-2]
	}
	v.addOptions(l, r, before)
	v.keep(r)
}

// next takes a leaf of a later sequence.
func (v *ChainVerifier) next(r *row) {
	var last *layer
	if n := len(v.layers); n > 0 {
		last = &v.layers[n-1]
	}
	if from, ok := v.holding(r, last); ok {
		v.decide(from, r)
		v.held = r
		return
	}
	// What the leaf states of the one before it does as well, where it agrees with its own hash.
	if r.Previous != (Hash{}) && r.linked(r.Previous, r.Sequence) {
		v.decide(v.statedBy(r, last), r)
		v.held = r
		return
	}
	if v.replaying && v.renumbered(r) {
		return
	}
	l := layer{sequence: r.Sequence, rows: []*row{r}}
	v.addOptions(&l, r, last)
	v.layers = append(v.layers, l)
	v.keep(r)
}

// keep bounds what is pending: each leaf counts as one, and another one for each KiB that it takes.
func (v *ChainVerifier) keep(r *row) {
	if v.pending += 1 + r.bytes()>>10; v.pending >= maxPending && !v.replaying {
		v.replay()
		v.decide(nil, nil)
	}
}

// replay goes again through what is pending once nothing more can be waited for: leaves that only changed places would have been followed by
// one that fits, so the others may have been renumbered.
func (v *ChainVerifier) replay() {
	layers, shift := v.layers, v.shift
	v.layers, v.pending, v.replaying = nil, 0, true
	for _, l := range layers {
		for _, r := range l.rows {
			r.Sequence += uint64(v.shift - shift)
			v.take(r)
		}
	}
	v.replaying = false
}

func (v *ChainVerifier) newLayer(r *row, from *option) layer {
	return layer{r.Sequence, []*row{r}, []*option{{row: r, hash: r.stored, how: holds, from: from}}}
}

// before returns what the leaf before a sequence may have had.
func (v *ChainVerifier) before(sequence uint64, last *layer) []*option {
	switch {
	case last == nil && v.base.next == sequence && v.base.known:
		return []*option{v.start()}
	case last != nil && last.sequence+1 == sequence:
		return last.options
	default:
		return nil
	}
}

// holding finds the option after which a leaf holds.
func (v *ChainVerifier) holding(r *row, last *layer) (*option, bool) {
	for _, o := range v.before(r.Sequence, last) {
		if r.linked(o.hash, r.Sequence) {
			return o, true
		}
	}
	return nil, false
}

// statedBy makes what a leaf states of the one before it an option of that.
func (v *ChainVerifier) statedBy(r *row, last *layer) *option {
	if last == nil || last.sequence+1 != r.Sequence {
		return nil
	}
	best := cheapest(last.options)
	o := &option{row: best.row, hash: r.Previous, how: stated, from: best.from, cost: best.cost + 1}
	last.options = append(last.options, o)
	return o
}

// addOptions adds what a leaf may have had, the cheapest first.
func (v *ChainVerifier) addOptions(l *layer, r *row, last *layer) {
	before := v.before(r.Sequence, last)
	if len(before) == 0 && r.stored != (Hash{}) {
		l.options = append(l.options, &option{row: r, hash: r.stored, how: unlinked})
	}
	for _, from := range before {
		if r.content.err == nil {
			if hash := r.hash(from.hash, r.Sequence); hash == r.stored {
				l.options = append(l.options, &option{row: r, hash: hash, how: holds, from: from, cost: from.cost})
			} else {
				l.options = append(l.options, &option{row: r, hash: hash, how: hashBad, from: from, cost: from.cost + 2})
			}
		}
	}
	if len(before) > 0 && r.stored != (Hash{}) {
		from := cheapest(before)
		l.options = append(l.options, &option{row: r, hash: r.stored, how: contentBad, from: from, cost: from.cost + 1})
	}
	if len(l.options) == 0 {
		l.options = append(l.options, &option{row: r, how: hashUnknown})
	}
	slices.SortStableFunc(l.options, func(a, b *option) int { return a.cost - b.cost })
	l.options = l.options[:min(len(l.options), maxOptions)]
}

func cheapest(options []*option) *option {
	best := options[0]
	for _, o := range options[1:] {
		if o.cost < best.cost {
			best = o
		}
	}
	return best
}

// renumbered recognises leaves that were given other sequences after one was put in or taken out.
func (v *ChainVerifier) renumbered(r *row) bool {
	if r.content.err != nil {
		return false
	}
	n := len(v.layers)
	for d := int64(1); d <= maxShift; d++ {
		// One was put in: the leaf follows what is d before.
		if at := n - 1 - int(d); at >= -1 && r.Sequence >= uint64(d) {
			for _, o := range v.optionsAt(at) {
				if r.linked(o.hash, r.Sequence-uint64(d)) {
					v.putIn(r, at, o, d)
					return true
				}
			}
		}
		// One was taken out: the leaf and the one before it belong to later sequences.
		if n > 0 && r.linked(v.layers[n-1].rows[0].stored, r.Sequence+uint64(d)) {
			v.takenOut(r, d)
			return true
		}
	}
	return false
}

// optionsAt returns the options of a layer; -1 is base.
func (v *ChainVerifier) optionsAt(at int) []*option {
	if at >= 0 {
		return v.layers[at].options
	}
	if start := v.start(); start != nil {
		return []*option{start}
	}
	return nil
}

func (v *ChainVerifier) putIn(r *row, at int, from *option, d int64) {
	extra := v.layers[at+1:]
	v.layers = v.layers[:at+1]
	v.decide(from, nil)
	for _, l := range extra {
		for _, inserted := range l.rows {
			v.fault(Inserted, l.sequence, l.sequence, inserted.ID, "the leaves after it are renumbered")
		}
	}
	v.shift -= d
	r.Sequence -= uint64(d)
	v.held = r
}

func (v *ChainVerifier) takenOut(r *row, d int64) {
	first := v.layers[len(v.layers)-1].rows[0]
	v.layers = v.layers[:len(v.layers)-1]
	v.decide(nil, nil)
	v.shift += d
	first.Sequence += uint64(d)
	r.Sequence += uint64(d)
	v.settle(&option{row: first, hash: first.stored, how: unlinked})
	v.held = r
}

// decide settles all that is pending. end is what the last leaf had, nil where nothing tells, and next the leaf that says so.
func (v *ChainVerifier) decide(end *option, next *row) {
	if v.held != nil {
		v.settle(&option{row: v.held, hash: v.held.stored})
		v.held = nil
	}
	path := make([]*option, len(v.layers))
	for i := len(path) - 1; i >= 0; i-- {
		if end == nil || end.row == nil {
			end = cheapest(v.layers[i].options)
		}
		path[i], end = end, end.from
	}
	layers := v.layers
	v.layers, v.pending = nil, 0
	chosen := slices.Clone(path)
	v.reorder(path)
	for i, o := range path {
		after := next
		if i+1 < len(path) {
			after = path[i+1].row
		}
		if after == nil && v.appended(o) {
			v.fault(Inserted, o.row.Sequence, o.row.Sequence, o.row.ID, fmt.Sprintf("input offset %d is that of a leaf before it", o.row.Offset))
			continue
		}
		v.place(path, i, after)
		v.settle(o)
		for _, r := range layers[i].rows {
			if r != chosen[i].row {
				v.fault(Inserted, r.Sequence, r.Sequence, r.ID, "another leaf of this sequence is the one that others follow")
			}
		}
	}
}

// place finds out whether what is stored of a leaf belongs elsewhere: nothing follows its hash, and its place in the input is not between those of
// its neighbours. Then what follows cannot be linked to it, unless it states the hash.
func (v *ChainVerifier) place(path []*option, i int, after *row) {
	o := path[i]
	if v.base.next < 2 || o.row.content.missing || o.how != contentBad && o.how != stated || after == nil && !v.closing {
		return
	}
	if o.how == contentBad && after != nil && (i+1 == len(path) || path[i+1].how == holds) {
		return // its hash is followed
	}
	o.misplaced = v.foreign(o.row) || !o.row.position().after(v.base.position) || after != nil && !after.position().after(o.row.position())
	if !o.misplaced || o.how == stated {
		return
	}
	o.how = hashUnknown
	if i+1 < len(path) && path[i+1].how == contentBad {
		path[i+1].how = unlinked
	}
}

// reorder finds runs of leaves that hold once they are put in the order of their input, and puts them so.
func (v *ChainVerifier) reorder(path []*option) {
	for first := 0; first < len(path); {
		last := first
		for last < len(path) && path[last].how != holds && path[last].how != unlinked {
			last++
		}
		if last-first > 1 {
			v.reorderRun(path, first, last)
		}
		first = last + 1
	}
}

// reorderRun is reorder of path[first:last].
func (v *ChainVerifier) reorderRun(path []*option, first, last int) {
	before := path[first].from
	if before == nil {
		return
	}
	sorted := make([]*row, 0, last-first)
	for _, o := range path[first:last] {
		sorted = append(sorted, o.row)
	}
	slices.SortStableFunc(sorted, func(a, b *row) int {
		switch {
		case a.position().after(b.position()):
			return 1
		case b.position().after(a.position()):
			return -1
		default:
			return 0
		}
	})
	previous := before.hash
	fixed := make([]*option, len(sorted))
	from, to := -1, 0
	for i, r := range sorted {
		in := path[first+i].row
		o := &option{row: r, how: holds, from: before}
		if r.content.err != nil {
			return
		}
		o.hash = r.hash(previous, in.Sequence)
		if o.hash != r.stored && o.hash != in.stored {
			return
		}
		if r != in {
			if from < 0 {
				from = i
			}
			to = i
		}
		moved := *r
		moved.Sequence, moved.stored, moved.node, moved.offset = in.Sequence, o.hash, in.node, in.offset
		o.row = &moved
		if o.hash == r.stored {
			moved.node, moved.offset = r.node, r.offset
		}
		fixed[i], before, previous = o, o, o.hash
	}
	if from < 0 {
		return
	}
	v.fault(Reordered, fixed[from].row.Sequence, fixed[to].row.Sequence, fixed[from].row.ID, "the leaves hold in the order of their input")
	copy(path[first:last], fixed)
}

// appended says whether the last leaf is a copy of another, beyond those that the chain must have.
func (v *ChainVerifier) appended(o *option) bool {
	if n := len(v.sizes); n > 0 && o.row.Sequence < v.sizes[n-1].Size {
		return false
	}
	return v.closing && (o.how == unlinked || o.how == contentBad) && v.base.next >= 2 && !v.foreign(o.row) && !o.row.position().after(v.base.position)
}

// foreign: a chain has one partition of each generation of the input.
func (v *ChainVerifier) foreign(r *row) bool {
	return r.Generation == v.base.position.generation && r.Partition != v.base.position.partition
}

// judge reports what was done to a leaf.
func (v *ChainVerifier) judge(o *option) {
	r := o.row
	at := func(verdict Verdict, format string, args ...any) {
		v.fault(verdict, r.Sequence, r.Sequence, r.ID, fmt.Sprintf(format, args...))
	}
	switch {
	case errors.Is(r.content.err, ErrNotCanonical):
		at(NonCanonical, "body: %v", r.content.err)
	case r.content.missing:
		at(Missing, "%v", r.content.err)
	case r.content.err != nil:
		at(Modified, "%v", r.content.err)
	case r.stored == Hash{}:
		at(Missing, "its leaf is not stored, its content is")
	case o.how == hashBad:
		at(Modified, "the stored leaf hash is %x; content and following leaf give %x", r.stored, o.hash)
	case o.misplaced && v.foreign(r):
		at(CrossChain, "the leaf came from partition %d of the input, those of this chain come from %d", r.Partition, v.base.position.partition)
	case o.misplaced:
		at(Reordered, "input offset %d belongs elsewhere in the chain", r.Offset)
	case o.how == stated:
		at(Modified, "the following leaf states hash %x for it; stored is %x, and its content gives neither", o.hash, r.stored)
	case o.how == contentBad:
		if len(v.suspects) == maxSuspects {
			v.tellSuspects(RootUnknown)
		}
		s := suspect{sequence: r.Sequence, id: r.ID}
		if before := v.lastHeld; before != nil {
			s.before = &suspect{sequence: before.Sequence, id: before.ID}
		}
		v.suspects = append(v.suspects, s)
		v.faults++
	}
	v.lastHeld = nil
	if o.how == holds {
		v.lastHeld = r
	}
}

// RootState says what is known of the root over leaves that do not give their hashes.
type RootState uint8

// States of a root.
const (
	// RootUnknown: none is signed yet, or none can be computed.
	RootUnknown RootState = iota
	// RootHolds: the stored hashes give the signed root.
	RootHolds
	// RootDiffers: they do not.
	RootDiffers
)

// conclude lets a mark judge.
func (v *ChainVerifier) conclude(m *Mark) {
	switch {
	case !m.Known:
		v.Conclude(RootUnknown)
	case m.Root == *m.Want:
		v.tellAnew(RootHolds, m)
		v.tellSuspects(RootHolds)
	case m.Remembered || m.Older:
		explained := v.faults > 0
		v.tellSuspects(RootDiffers)
		if !explained {
			v.rootDiffers(m)
		}
	default:
		explained := v.faults > 0 || len(v.anew) > 0
		v.Conclude(RootDiffers)
		if !explained {
			v.rootDiffers(m)
			v.tellAnew(RootDiffers, nil)
		}
	}
	if m.Size > v.sound {
		v.soundBefore, v.sound = v.sound, m.Size
	}
	v.faults = 0
}

// rootDiffers: every leaf follows from its content and the one before, and the root is another. Where it is one that was stated or verified before, it
// depends on the next root that is known whether that history was signed too. After one older root differs, the others are bound to.
func (v *ChainVerifier) rootDiffers(m *Mark) {
	a := anew{sound: v.sound, mark: m}
	if a.sound >= m.Size { // another mark of this size holds
		a.sound = v.soundBefore
	}
	if m.Remembered { // older roots of this log say nothing of what was verified before
		a.sound = v.begin
	}
	if m.Older && slices.ContainsFunc(v.anew, func(a anew) bool { return a.mark.Older }) {
		return
	}
	v.diverge(&a)
	v.anew = append(v.anew, a)
}

// anew is a run of leaves that were written anew with their hashes, from a size on up to a mark.
type anew struct {
	sound uint64
	mark  *Mark
	// head is the tree up to the mark, and rest the subtrees after it.
	head Head
	rest *compact.Range
}

// tellAnew reports what was written anew: a fork where a later root holds. holds is its mark, nil where the caller looks at the roots.
func (v *ChainVerifier) tellAnew(state RootState, holds *Mark) {
	for i := range v.anew {
		a := &v.anew[i]
		verdict, detail := Modified, "they were written anew with their hashes"
		if earlier := a.mark.Remembered || a.mark.Older; earlier && state == RootHolds {
			verdict = Forked
		}
		if verdict == Forked && holds != nil {
			v.diverged(a, holds)
		}
		if a.mark.Older && holds != nil {
			detail = fmt.Sprintf("an older epoch states that, and a later one the root at size %d that they do give", holds.Size)
		}
		v.fault(verdict, a.sound, max(a.mark.Size, 1)-1, [16]byte{}, fmt.Sprintf("the leaves give root %x at size %d, want %x: %s",
			a.mark.Root, a.mark.Size, *a.mark.Want, detail))
	}
	v.anew = nil
}

// Conclude reports the leaves whose content does not give their stored hashes since the last mark with a root that was wanted. Where the caller
// looks at the roots itself, it is called after Close.
func (v *ChainVerifier) Conclude(state RootState) {
	v.tellAnew(state, nil)
	v.tellSuspects(state)
}

func (v *ChainVerifier) tellSuspects(state RootState) {
	suspects := v.suspects
	v.suspects = nil
	for _, s := range suspects {
		first, id := s.sequence, s.id
		detail := "its content does not give its leaf hash"
		if state == RootDiffers && s.before != nil {
			first, id = s.before.sequence, s.before.id
			detail = "a leaf was written anew with its hash, and the following one does not follow it"
		}
		v.fault(Modified, first, s.sequence, id, detail)
		v.faults-- // it was counted
	}
	v.flush()
}
