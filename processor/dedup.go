package processor

import (
	"maps"
	"slices"
)

// blockLeaves is the number of leaves of a partition whose keyed ids make up one record of the dedup topic.
const blockLeaves = 1000

// window holds the keyed ids among the last leaves of a partition, by blocks of 1,000 leaves: the open block, which the
// next leaf belongs to, and up to `blocks` complete ones before it. Leaf n belongs to block n / 1,000, so what the window
// holds is a function of the input alone, and a window restored from the dedup topic equals the one that was lost.
type window struct {
	// ids says which block an id is in. Ids of blocks that have left the window may still be here; holds ignores them.
	ids    map[[16]byte]uint32
	blocks uint64
	// ring has the complete blocks, number n at n mod blocks.
	ring []block
	open []byte // ids of the open block, 16 bytes each
}

// block is a complete block.
type block struct {
	ids []byte // 16 bytes each
	// recordedAt of its last leaf, microseconds since 1970; 0 in a slot that was never filled.
	recordedAt int64
	number     uint32
}

func newWindow(leaves int) *window {
	blocks := leaves / blockLeaves
	return &window{ids: make(map[[16]byte]uint32), blocks: uint64(blocks), ring: make([]block, blocks)}
}

// holds says whether id is in the window, when the open block is number open.
func (w *window) holds(id [16]byte, open uint32) bool {
	n, ok := w.ids[id]
	return ok && uint64(n)+w.blocks >= uint64(open)
}

// complete puts a complete block in the place of the one that leaves the window for it. The ids of b itself are the
// caller's to add, before.
func (w *window) complete(b block) {
	slot := &w.ring[uint64(b.number)%w.blocks]
	for id := range idsOf(slot.ids) {
		if w.ids[id] == slot.number {
			delete(w.ids, id)
		}
	}
	*slot = b
}

// oldest returns recorded_at of the last leaf of the oldest complete block, 0 if there is none.
func (w *window) oldest() int64 {
	var t int64
	for i := range w.ring {
		if at := w.ring[i].recordedAt; at != 0 && (t == 0 || at < t) {
			t = at
		}
	}
	return t
}

// idsOf yields the 16-byte ids in b.
func idsOf(b []byte) func(yield func([16]byte) bool) {
	return func(yield func([16]byte) bool) {
		for ; len(b) >= 16; b = b[16:] {
			if !yield([16]byte(b)) {
				return
			}
		}
	}
}

// windowStep is what a transaction adds to a window: nothing of the window changes until publish.
type windowStep struct {
	w      *window
	added  map[[16]byte]uint32
	open   []byte // ids of the open block, those of the window's first
	closed []block
}

func (s *windowStep) begin(w *window) {
	s.w, s.closed = w, s.closed[:0]
	if s.added == nil {
		s.added = make(map[[16]byte]uint32)
	}
	clear(s.added)
	// Clipped: what the step appends must not be written behind the window's own ids.
	s.open = slices.Clip(w.open)
}

// holds is window.holds with what the step added.
func (s *windowStep) holds(id [16]byte, open uint32) bool {
	if n, ok := s.added[id]; ok {
		return uint64(n)+s.w.blocks >= uint64(open)
	}
	return s.w.holds(id, open)
}

func (s *windowStep) add(id [16]byte, open uint32) {
	s.added[id] = open
	s.open = append(s.open, id[:]...)
}

// closeBlock ends the open block, number n, whose last leaf was recorded at recordedAt.
func (s *windowStep) closeBlock(n uint32, recordedAt int64) {
	s.closed = append(s.closed, block{number: n, ids: s.open, recordedAt: recordedAt})
	s.open = nil
}

// publish makes the window what the step made of it.
func (s *windowStep) publish() {
	// First the ids, then the blocks: an id that came back after its block had left the window stays.
	maps.Copy(s.w.ids, s.added)
	for _, b := range s.closed {
		s.w.complete(b)
	}
	s.w.open = s.open
}
