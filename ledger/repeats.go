package ledger

import "fmt"

// RepeatLeaves is how far apart an event may be in the ledger, in offsets of its topic, without having been a retry that came too late: the
// processor seals no id again that is among the last 200,000 leaves of its partition, and there are no more leaves than offsets.
const RepeatLeaves = 200_000

// A Sighting is an event's place in the ledger, as far as it matters where its id comes twice.
type Sighting struct {
	ID         [16]byte
	RecordedAt int64 // microseconds since 1970
	// Partition of the ledger topic, and offset in it.
	Partition uint16
	Offset    uint64
	Sequence  uint64
}

// SentAgain says whether two leaves with one id may be an event that its producer sent again, when the processor no longer knew it: it
// has an idempotency key, was accepted twice, and is far from where it was. All else that comes twice was replayed behind ingest's back.
func (s *Sighting) SentAgain(again *Sighting) bool {
	distance := max(s.Offset, again.Offset) - min(s.Offset, again.Offset)
	return s.ID[6]>>4 == 8 && s.RecordedAt != again.RecordedAt && s.Partition == again.Partition && distance > RepeatLeaves
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
	seen := Sighting{ID: r.ID, RecordedAt: r.RecordedAt, Offset: r.offset, Sequence: r.Sequence}
	before, again := v.sightings.see(&seen)
	switch {
	case !again:
	case before.SentAgain(&seen):
		v.counts.SentAgain++
	default:
		v.fault(Duplicate, r.Sequence, r.Sequence, r.ID, fmt.Sprintf("the event was sealed before, as sequence %d", before.Sequence))
	}
}
