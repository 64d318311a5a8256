package ledger

import "fmt"

const (
	// RepeatLeaves is in how many leaves of a partition the processor looks for an id before it seals it.
	RepeatLeaves = 200_000
	// repeatInputs is how far apart two records of one event are in the input, in offsets, where the processor no longer knew the first: what is not
	// an event among the leaves, a genesis, has no record.
	repeatInputs = RepeatLeaves / 10 * 9
	// repeatAge is after how long it may not have known it although it is nearer, in microseconds: the last ids of a partition, up to a thousand, are
	// restored from the ledger topic, if that still has them.
	repeatAge = 7 * 24 * 3600 * 1_000_000
)

// A Sighting is an event's place in the ledger, as far as it matters where its id comes twice: nothing but what its leaf commits to.
type Sighting struct {
	ID         [16]byte
	RecordedAt int64 // microseconds since 1970
	// Generation, Partition and Offset of its record in the input.
	Generation, Partition uint16
	Offset                uint64
	Sequence              uint64
}

// Sighting returns the leaf's.
func (l *Leaf) Sighting() Sighting {
	return Sighting{l.ID, l.RecordedAt, l.Generation, l.Partition, l.Offset, l.Sequence}
}

// SentAgain says whether two leaves with one id may be an event that its producer sent again, when the processor no longer knew it: it
// has an idempotency key, was accepted twice, and is far from where it was, or long after. All else that comes twice was replayed behind ingest's back.
func (s *Sighting) SentAgain(again *Sighting) bool {
	switch {
	case s.ID[6]>>4 != 8 || s.RecordedAt == again.RecordedAt:
		return false
	case s.Generation != again.Generation:
		return true
	case s.Partition != again.Partition:
		return false
	}
	inputs := max(s.Offset, again.Offset) - min(s.Offset, again.Offset)
	age := uint64(max(s.RecordedAt, again.RecordedAt)) - uint64(min(s.RecordedAt, again.RecordedAt))
	return inputs >= repeatInputs || age >= repeatAge
}

// sightings are the last events of a chain, by their ids: some 100 bytes each.
type sightings struct {
	// most that are kept; 0 for none.
	most int
	ring []Sighting
	next int // the oldest of a full ring
	at   map[[16]byte]int
}

// see takes the next one, and returns the last one with its id.
func (s *sightings) see(n *Sighting) (before Sighting, again bool) {
	i, again := s.at[n.ID]
	if again {
		before = s.ring[i]
	}
	if len(s.ring) < s.most {
		i, s.ring = len(s.ring), append(s.ring, *n)
	} else {
		i = s.next
		if old := s.ring[i].ID; s.at[old] == i {
			delete(s.at, old)
		}
		s.ring[i], s.next = *n, (i+1)%s.most
	}
	s.at[n.ID] = i
	return before, again
}

// FindRepeats has the verifier look for an event that is in the chain twice, within this many leaves. It is called before the first Add. A leaf
// takes some 100 bytes.
func (v *ChainVerifier) FindRepeats(leaves int) {
	v.sightings = sightings{most: leaves, at: map[[16]byte]int{}}
}

// checkRepeat: no event is sealed twice. A leaf that does not hold is named for that.
func (v *ChainVerifier) checkRepeat(r *row, o *option) {
	if v.sightings.most == 0 || o.how != holds || r.Kind == KindGenesis {
		return
	}
	seen := r.Sighting()
	before, again := v.sightings.see(&seen)
	switch {
	case !again:
	case before.SentAgain(&seen):
		v.counts.SentAgain++
	default:
		v.fault(Duplicate, r.Sequence, r.Sequence, r.ID, fmt.Sprintf("the event was sealed before, as sequence %d", before.Sequence))
	}
}
