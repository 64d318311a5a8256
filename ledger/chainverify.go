package ledger

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
)

// A ChainIdentity is what a chain's id and its genesis are made of.
type ChainIdentity struct {
	Workspace, Incarnation [16]byte
	Lane, Lanes            uint32
}

// Chain returns the chain's id.
func (i *ChainIdentity) Chain() ChainID { return NewChainID(i.Workspace, i.Incarnation, i.Lane) }

// A Mark is a place in a chain at which its size and root are wanted: a size, or what is before an offset of the ledger topic.
type Mark struct {
	// Size of the chain. Where ByOffset is set, it is filled in.
	Size uint64
	// ByOffset: the mark is before the first leaf whose ledger offset is Offset or more.
	ByOffset bool
	Offset   uint64
	// Want is the root that is signed, or was verified before; nil where the caller looks at Root.
	Want *Hash
	// Remembered: Want is what an earlier run verified. Another root is a fork, where what came of it was signed too.
	Remembered bool
	// Older: Want is what an epoch of the same log states that is not the newest. Another root is a fork, where a later root that is wanted
	// holds.
	Older bool
	// Covered is the time of the epoch that the mark is of, zero where it is of none. No leaf before the mark is more than five
	// minutes younger.
	Covered time.Time
	// Root is filled in where Known: not where a leaf before the mark is missing, nor where the chain ends before it.
	Root  Hash
	Known bool
}

// A ChainVerifier checks a stream of leaves: that each follows from its content and the leaf before it, that none is missing or too
// many, and that their tree has the roots that are wanted. It goes on after a fault, names what was done and where, and keeps
// little: no more than maxPending leaves, and what is withheld until a redaction covers it. A leaf with a fault is linked by its stored hash,
// and the roots then say whether that was right. It is for one goroutine.
type ChainVerifier struct {
	identity ChainIdentity
	chain    ChainID
	marks    []Mark
	cuts     []*Mark // by offset, and
	sizes    []*Mark // by size: those that are not reached yet
	report   func(*Fault)

	// head is over the leaves up to base. broken: the hash of one of them is not known, so that no root is.
	head   Head
	broken bool
	// base is the last leaf that has been settled.
	base base
	// held is the leaf after base where it holds: there may be another of its sequence yet. Else layers are what does not fit together
	// after base.
	held    *row
	layers  []layer
	pending int
	closing bool
	// replaying: what is pending is gone through again.
	replaying bool
	// lastHeld is the leaf before base's next where it held.
	lastHeld *row
	// shift is what is added to stored sequences after leaves were renumbered.
	shift int64
	// suspects are the faults of single leaves since the last known root.
	suspects []suspect
	// anew are runs of leaves that were verified before and are others now.
	anew []anew
	// sound is the size up to which roots were judged, soundBefore the one before it, and faults the number of them reported since.
	sound, soundBefore uint64
	faults             int
	// begin is the size that the verifier began at.
	begin uint64
	// divergences are kept as evidence.
	divergences []Divergence

	withheld map[[16]byte][]withheld // by event id: one that is there twice must not hide what the other lacks
	waiting  int                     // bytes that withheld takes, about
	counts   ChainCounts
	missing  *Fault // being extended

	sightings sightings
}

// ChainCounts says how much a ChainVerifier has seen.
type ChainCounts struct {
	// Leaves that were given to it, and Size up to which the chain goes.
	Leaves, Size uint64
	// Redacted and Withheld events.
	Redacted, Withheld uint64
	// SentAgain are events that are there a second time because they were sent again too late; see FindRepeats.
	SentAgain uint64
}

// Limits of what is kept.
const (
	// maxPending leaves are kept that do not fit together, fewer where they are large; more are judged without what follows.
	maxPending = 1024
	// maxOptions are hashes that a leaf may have had, as far as can be told.
	maxOptions = 8
	// maxSuspects faults wait for the next root.
	maxSuspects = 1024
	// maxWithheld is how many bytes are kept of events that wait for the redaction that covers them: some 100,000 with three fields each.
	maxWithheld = 32 << 20
	// maxShift is by how many places renumbered leaves are recognised.
	maxShift = 8
)

// base is the leaf that others are linked to. The zero base is before the genesis.
type base struct {
	hash     Hash
	known    bool // hash is
	next     uint64
	position inputPosition // of the last leaf that held
}

type withheld struct {
	sequence uint64
	paths    []string
}

// bytes that it takes, about: its entry in a map, and its paths.
func (w *withheld) bytes() int { return 128 + bytesOf(w.paths) }

func bytesOf(paths []string) (n int) {
	for _, path := range paths {
		n += 32 + len(path)
	}
	return n
}

type inputPosition struct {
	generation, partition uint16
	offset                uint64
}

func (p inputPosition) after(q inputPosition) bool {
	return p.generation > q.generation || p.generation == q.generation && p.offset > q.offset
}

// NewChainVerifier verifies a chain. Marks by size are in rising order, and so are those by offset; report is called with each fault, and
// with Redacted.
func NewChainVerifier(identity ChainIdentity, marks []Mark, report func(*Fault)) *ChainVerifier {
	v := &ChainVerifier{identity: identity, chain: identity.Chain(), marks: marks, report: report, withheld: map[[16]byte][]withheld{}}
	for i := range marks {
		if m := &marks[i]; m.ByOffset {
			v.cuts = append(v.cuts, m)
		} else {
			v.sizes = append(v.sizes, m)
		}
	}
	v.head.Chain = v.chain
	v.base.known = true
	return v
}

// Marks returns the marks, as far as they are filled in.
func (v *ChainVerifier) Marks() []Mark { return v.marks }

// Counts of what was seen so far.
func (v *ChainVerifier) Counts() ChainCounts { return v.counts }

// Add takes the next leaf, which has been through a ContentHasher, in the order of stored sequences. It keeps the leaf's Node and nothing else of
// it. The second result of one sequence is a fault.
func (v *ChainVerifier) Add(l *StoredLeaf) {
	v.counts.Leaves++
	if l.Chain != v.chain {
		v.fault(CrossChain, l.Sequence, l.Sequence, l.ID, fmt.Sprintf("the leaf is of chain %x", l.Chain))
		return
	}
	r := v.row(l)
	// The usual case: the leaf before it holds and this one follows it.
	if h := v.held; h != nil && r.Sequence == h.Sequence+1 && r.linked(h.stored, r.Sequence) {
		v.settle(&option{row: h, hash: h.stored})
		v.held = r
		return
	}
	v.take(r)
}

// row is what is kept of a leaf.
type row struct {
	Leaf

	stored  Hash
	node    []Hash
	offset  uint64
	content content
}

func (v *ChainVerifier) row(l *StoredLeaf) *row {
	r := &row{Leaf: l.Leaf, stored: l.Hash, node: l.Node, offset: l.LedgerOffset, content: l.content}
	r.Sequence = uint64(int64(l.Sequence) + v.shift)
	if r.Kind == KindGenesis {
		genesis := Genesis(v.identity.Workspace, v.identity.Incarnation, v.identity.Lane, v.identity.Lanes, l.RecordedAt, l.Generation)
		r.content.root = genesis.BodyRoot
	}
	r.BodyRoot, r.FieldCount = r.content.root, r.content.fields
	return r
}

// bytes of what a row has of its content, about.
func (r *row) bytes() int {
	n := 32*len(r.node) + bytesOf(r.content.withheld)
	if r.content.redaction != nil {
		n += bytesOf(r.content.redaction.Paths)
	}
	return n
}

func (r *row) position() inputPosition { return inputPosition{r.Generation, r.Partition, r.Offset} }

// hash is that of the leaf after another, at a sequence.
func (r *row) hash(previous Hash, sequence uint64) Hash {
	l := r.Leaf
	l.Previous, l.Sequence = previous, sequence
	return l.Hash()
}

// linked says whether the stored hash is that of the content after a leaf with this hash.
func (r *row) linked(previous Hash, sequence uint64) bool {
	return r.content.err == nil && r.stored != Hash{} && r.hash(previous, sequence) == r.stored
}

// same says whether two rows say the same.
func (r *row) same(o *row) bool {
	a, b := r.Leaf, o.Leaf
	if r.content.missing || o.content.missing {
		a.BodyRoot, a.FieldCount = b.BodyRoot, b.FieldCount
	}
	if a.Previous == (Hash{}) || b.Previous == (Hash{}) { // it is said of one of them only
		a.Previous, b.Previous = Hash{}, Hash{}
	}
	return r.stored == o.stored && a == b
}

// settle puts a leaf on the tree, and judges it.
func (v *ChainVerifier) settle(o *option) {
	r := o.row
	if r.Sequence > v.base.next {
		v.gap(v.base.next, r.Sequence-1)
	}
	v.passCuts(r.offset)
	v.judge(o)
	node := v.append(o.hash, o.how != hashUnknown)
	if o.hash == r.stored {
		v.checkNode(r, node)
	}
	v.checkOrder(r, o)
	v.checkRepeat(r, o)
	v.checkTime(r)
	v.checkPrevious(r, o)
	v.redactions(r, o)
	v.base.hash, v.base.known, v.base.next = o.hash, o.how != hashUnknown, r.Sequence+1
	if o.how == holds || o.how == unlinked {
		v.base.position = r.position()
	}
	v.counts.Size = r.Sequence + 1
	v.passSizes()
}

// append puts a hash on the tree.
func (v *ChainVerifier) append(hash Hash, known bool) []Hash {
	v.broken = v.broken || !known
	if v.broken {
		v.head.Size++
		return nil
	}
	v.extend(hash)
	return v.head.AppendHash(hash)
}

// gap notes leaves that are not there.
func (v *ChainVerifier) gap(first, last uint64) {
	v.broken = true
	v.head.Size = last + 1
	v.fault(Missing, first, last, [16]byte{}, "no leaf is stored")
}

// checkNode compares what is stored of the tree.
func (v *ChainVerifier) checkNode(r *row, node []Hash) {
	if !v.broken && !slices.Equal(r.node, node) {
		v.fault(Modified, r.Sequence, r.Sequence, r.ID, fmt.Sprintf("the stored node is not that of the tree up to here: %d hashes, want %d", len(r.node), len(node)))
	}
}

// checkOrder: a chain takes its leaves off one partition of the input in order, so that no place in it comes twice.
func (v *ChainVerifier) checkOrder(r *row, o *option) {
	if o.how != holds || r.Kind == KindGenesis || v.base.next < 2 {
		return
	}
	if !r.position().after(v.base.position) {
		v.fault(Duplicate, r.Sequence, r.Sequence, r.ID, fmt.Sprintf("input offset %d comes after %d", r.Offset, v.base.position.offset))
	}
}

// checkTime: nothing is recorded after the epoch that covers it.
func (v *ChainVerifier) checkTime(r *row) {
	for _, marks := range [][]*Mark{v.cuts, v.sizes} {
		if len(marks) == 0 || marks[0].Covered.IsZero() {
			continue
		}
		if at := time.UnixMicro(r.RecordedAt); at.After(marks[0].Covered.Add(MaxClockSkew)) {
			v.fault(TimeAnomaly, r.Sequence, r.Sequence, r.ID, fmt.Sprintf("recorded at %s, and covered by an epoch of %s",
				at.UTC().Format(timeLayout), marks[0].Covered.UTC().Format(timeLayout)))
			return
		}
	}
}

// checkPrevious compares what a store that keeps it says of the leaf before.
func (v *ChainVerifier) checkPrevious(r *row, o *option) {
	if o.how == holds && r.Previous != (Hash{}) && v.base.known && v.base.next == r.Sequence && r.Previous != v.base.hash {
		v.fault(Modified, r.Sequence, r.Sequence, r.ID, fmt.Sprintf("previous is stated as %x, the leaf before it has hash %x", r.Previous, v.base.hash))
	}
}

// redactions keeps what is withheld, and lets a redaction cover it.
func (v *ChainVerifier) redactions(r *row, o *option) {
	if len(r.content.withheld) > 0 {
		w := withheld{r.Sequence, r.content.withheld}
		if v.waiting+w.bytes() > maxWithheld {
			v.counts.Withheld++
			v.fault(Withheld, r.Sequence, r.Sequence, r.ID, fmt.Sprintf("more events wait for their redaction than %d MiB hold", maxWithheld>>20))
			return
		}
		v.withheld[r.ID] = append(v.withheld[r.ID], w)
		v.waiting += w.bytes()
	}
	covers := r.content.redaction
	if covers == nil || o.how != holds {
		return
	}
	id, err := parseUUID(covers.EventID)
	if err != nil {
		return
	}
	var left []withheld
	for _, w := range v.withheld[id] {
		v.waiting -= w.bytes()
		w.paths = slices.DeleteFunc(slices.Clone(w.paths), func(path string) bool {
			return slices.Contains(covers.Paths, path) && !Protected(path)
		})
		if len(w.paths) > 0 {
			left = append(left, w)
			v.waiting += w.bytes()
			continue
		}
		v.counts.Redacted++
		v.tell(&Fault{
			Verdict: Redacted, Chain: v.named(), Sequence: &w.sequence, EventID: uuid.UUID(id).String(),
			Detail: fmt.Sprintf("by sequence %d", r.Sequence),
		})
	}
	if v.withheld[id] = left; left == nil {
		delete(v.withheld, id)
	}
}

// passCuts fills in the marks that are before a ledger offset.
func (v *ChainVerifier) passCuts(offset uint64) {
	for ; len(v.cuts) > 0 && v.cuts[0].Offset <= offset; v.cuts = v.cuts[1:] {
		v.cuts[0].Size = v.counts.Size
		v.reach(v.cuts[0])
	}
}

// passSizes fills in the marks of the size that is reached.
func (v *ChainVerifier) passSizes() {
	for ; len(v.sizes) > 0 && v.sizes[0].Size <= v.counts.Size; v.sizes = v.sizes[1:] {
		v.reach(v.sizes[0])
	}
}

// reach fills in a mark, and lets its root, where one is wanted, judge the faults before it.
func (v *ChainVerifier) reach(m *Mark) {
	m.Known = !v.broken && v.head.Size == m.Size
	if m.Known {
		m.Root = v.head.Root()
	}
	if m.Want != nil {
		v.conclude(m)
	}
}

// Close ends the chain, and tells what is left to tell.
func (v *ChainVerifier) Close() {
	v.closing = true
	v.replay()
	v.decide(nil, nil)
	v.passCuts(math.MaxUint64)
	if n := len(v.sizes); n > 0 {
		last := v.sizes[n-1].Size
		verdict := Truncated
		if v.counts.Leaves == 0 {
			verdict = Missing
		}
		v.fault(verdict, v.counts.Size, max(last, 1)-1, [16]byte{}, fmt.Sprintf("the chain has %d leaves, it had %d", v.counts.Size, last))
	}
	v.tellWithheld()
	v.flush()
}

// tellWithheld tells what no redaction covers, and forgets it.
func (v *ChainVerifier) tellWithheld() {
	type missing struct {
		withheld

		id [16]byte
	}
	var all []missing
	for id, of := range v.withheld {
		for _, w := range of {
			all = append(all, missing{w, id})
		}
	}
	v.withheld, v.waiting = nil, 0
	slices.SortFunc(all, func(a, b missing) int {
		return cmp.Or(cmp.Compare(a.sequence, b.sequence), bytes.Compare(a.id[:], b.id[:]))
	})
	for i := range all {
		w, sequence := &all[i], all[i].sequence
		v.counts.Withheld++
		v.tell(&Fault{
			Verdict: Withheld, Chain: v.named(), Sequence: &sequence, EventID: uuid.UUID(w.id).String(),
			Detail: fmt.Sprintf("%.500q: missing, and no redaction covers it", w.paths),
		})
	}
}

// named is the chain's name for a fault, which does not keep all that the verifier has.
func (v *ChainVerifier) named() *ChainID {
	id := v.chain
	return &id
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	default:
		return 0
	}
}

// fault reports a finding at a run of leaves. Runs of missing leaves become one.
func (v *ChainVerifier) fault(verdict Verdict, first, last uint64, id [16]byte, detail string) {
	v.faults++
	f := &Fault{Verdict: verdict, Chain: v.named(), Sequence: &first, Detail: detail}
	if last != first {
		f.Last = &last
	}
	if id != [16]byte{} {
		f.EventID = uuid.UUID(id).String()
	}
	if m := v.missing; m != nil {
		if verdict == Missing && m.Detail == detail && lastOf(m)+1 == first {
			m.Last, m.EventID = &last, ""
			return
		}
		v.flush()
	}
	if verdict == Missing {
		v.missing = f
		return
	}
	v.report(f)
}

// tell reports what is not a fault of a leaf's content.
func (v *ChainVerifier) tell(f *Fault) {
	v.flush()
	v.report(f)
}

func (v *ChainVerifier) flush() {
	if m := v.missing; m != nil {
		v.missing = nil
		v.report(m)
	}
}

func lastOf(f *Fault) uint64 {
	if f.Last != nil {
		return *f.Last
	}
	return *f.Sequence
}
