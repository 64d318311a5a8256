package processor

import (
	"encoding/binary"
	"math/bits"
)

const (
	// blockLeaves is the number of leaves of a partition whose ids make up one record of the dedup topic.
	blockLeaves = 1000
	// idBytes is the size of an id.
	idBytes = 16
)

// window holds the ids of the last leaves of a partition, by blocks of 1,000 leaves: the open block, which the next leaf
// belongs to, and up to `blocks` complete ones before it. Leaf n belongs to block n / 1,000, so what the window holds is a
// function of the input alone, and a window restored from the dedup topic equals the one that was lost. A genesis has no id.
type window struct {
	blocks uint64
	// ring has the blocks, number n at n mod (blocks+1), the open one among them.
	ring []block
	open uint32 // number of the open block
	// index finds an id's place: 1,000 times that of its block in ring, and how many ids are before it in the block.
	index index
}

// block is the ids of a block.
type block struct {
	ids []byte // 16 bytes each
	// recordedAt of its last leaf, microseconds since 1970; 0 in the open block and where there was none yet.
	recordedAt int64
	number     uint32
}

func newWindow(leaves int) *window {
	blocks := leaves / blockLeaves
	return &window{blocks: uint64(blocks), ring: make([]block, blocks+1)}
}

// spans says whether block number n is in the window when the open block is number open.
func (w *window) spans(n, open uint32) bool { return uint64(n)+w.blocks >= uint64(open) }

// holds says whether id is in the window, when the open block is number open: it is compared whole.
func (w *window) holds(id *[idBytes]byte, open uint32) bool {
	return w.index.find(hashOf(id), func(place uint32) bool {
		b := &w.ring[place/blockLeaves]
		return b.at(place%blockLeaves) == *id && w.spans(b.number, open)
	})
}

// put puts in b, the open block or one that has been it; for a new one goes what was in its place, which has left the window.
// Blocks are put in the order of their numbers.
func (w *window) put(b block) {
	slot := uint64(b.number) % uint64(len(w.ring))
	first, old := uint32(slot)*blockLeaves, &w.ring[slot]
	if old.number != b.number {
		for i := range old.size() {
			id := old.at(i)
			w.index.remove(hashOf(&id), first+i)
		}
		old.ids = nil
	}
	for i := old.size(); i < b.size(); i++ {
		id := b.at(i)
		w.index.add(hashOf(&id), first+i)
	}
	*old, w.open = b, b.number
}

// current returns the open block.
func (w *window) current() block { return w.ring[uint64(w.open)%uint64(len(w.ring))] }

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

// size is the number of ids.
func (b *block) size() uint32 { return uint32(len(b.ids) / idBytes) }

// at returns id number i.
func (b *block) at(i uint32) [idBytes]byte { return [idBytes]byte(b.ids[idBytes*i:]) }

// windowStep is what a transaction adds to a window: nothing that the window shows changes until publish.
type windowStep struct {
	w *window
	// blocks are the one that was open when the step began, and those after it; the last is open.
	blocks []block
	// index finds what was added: 1,000 times the block's place in blocks, and how many ids are before it in the block.
	index index
}

// begin starts a step. There is one at a time of a window: it appends behind the ids of the open block.
func (s *windowStep) begin(w *window) {
	s.w = w
	clear(s.blocks)
	s.blocks = append(s.blocks[:0], w.current())
	s.index.clear()
}

func (s *windowStep) current() *block { return &s.blocks[len(s.blocks)-1] }

// closed returns the blocks that the step has completed.
func (s *windowStep) closed() []block { return s.blocks[:len(s.blocks)-1] }

// holds is window.holds with what the step added.
func (s *windowStep) holds(id *[idBytes]byte) bool {
	open := s.current().number
	return s.w.holds(id, open) || s.index.find(hashOf(id), func(place uint32) bool {
		b := &s.blocks[place/blockLeaves]
		return b.at(place%blockLeaves) == *id && s.w.spans(b.number, open)
	})
}

func (s *windowStep) add(id *[idBytes]byte) {
	b := s.current()
	s.index.add(hashOf(id), uint32(len(s.blocks)-1)*blockLeaves+b.size())
	b.ids = append(b.ids, id[:]...)
}

// closeBlock ends the open block, whose last leaf was recorded at recordedAt.
func (s *windowStep) closeBlock(recordedAt int64) {
	b := s.current()
	b.recordedAt = recordedAt
	s.blocks = append(s.blocks, block{number: b.number + 1, ids: make([]byte, 0, blockLeaves*idBytes)})
}

// publish makes the window what the step made of it.
func (s *windowStep) publish() {
	for _, b := range s.blocks {
		s.w.put(b)
	}
}

// index finds places by hashes: a table with open addressing, at most half full. It takes 16 to 32 bytes for each, or
// nothing. The ids themselves are elsewhere, and whoever asks compares them. The zero value is empty.
type index struct {
	// slots are a power of two of hash << 32 | place + 1, or 0; each is where its hash says, or after it with no free one
	// between.
	slots []uint64
	used  int
}

// hashOf spreads an id over 32 bits. Ids are random for the most part.
func hashOf(id *[idBytes]byte) uint32 {
	high, low := bits.Mul64(binary.LittleEndian.Uint64(id[:])^0x9E3779B97F4A7C15, binary.LittleEndian.Uint64(id[8:])^0xD1B54A32D192ED03)
	return uint32((high ^ low) >> 16)
}

func entry(hash, place uint32) uint64 { return uint64(hash)<<32 | uint64(place) + 1 }

// find asks is about the places with this hash until it says yes.
func (x *index) find(hash uint32, is func(place uint32) bool) bool {
	if x.used == 0 {
		return false
	}
	mask := uint32(len(x.slots) - 1)
	for i := hash & mask; x.slots[i] != 0; i = (i + 1) & mask {
		if uint32(x.slots[i]>>32) == hash && is(uint32(x.slots[i])-1) {
			return true
		}
	}
	return false
}

func (x *index) add(hash, place uint32) {
	if 2*(x.used+1) > len(x.slots) {
		old := x.slots
		x.slots = make([]uint64, max(64, 2*len(old)))
		for _, e := range old {
			if e != 0 {
				x.place(e)
			}
		}
	}
	x.place(entry(hash, place))
	x.used++
}

// place puts e into the first free slot from where it belongs.
func (x *index) place(e uint64) {
	mask := uint32(len(x.slots) - 1)
	i := uint32(e>>32) & mask
	for x.slots[i] != 0 {
		i = (i + 1) & mask
	}
	x.slots[i] = e
}

// remove takes out a place that is there.
func (x *index) remove(hash, place uint32) {
	mask := uint32(len(x.slots) - 1)
	free := hash & mask
	for x.slots[free] != entry(hash, place) {
		free = (free + 1) & mask
	}
	// What follows moves up where the gap would be between it and where it belongs.
	for i := (free + 1) & mask; x.slots[i] != 0; i = (i + 1) & mask {
		if home := uint32(x.slots[i]>>32) & mask; (i-home)&mask >= (i-free)&mask {
			x.slots[free], free = x.slots[i], i
		}
	}
	x.slots[free] = 0
	x.used--
}

// clear empties the table and keeps its memory.
func (x *index) clear() {
	if x.used > 0 {
		clear(x.slots)
		x.used = 0
	}
}
