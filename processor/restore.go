package processor

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"

	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// disagreement is wrapped by the reasons for which a partition halts until an operator has looked: what the topics say
// of it does not fit together, and sealing on would fork a chain or swallow input.
var errDisagreement = errors.New("the topics disagree")

func disagree(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errDisagreement}, args...)...)
}

// restorer makes a partition's state of what its last owner left on the output topics. Records are given in the order
// of their offsets: heads and dedup first, then done returns from which ledger offset on, then the ledger's.
type restorer struct {
	p      *partition
	head   *recordpb.PartitionHead // nil: no transaction has touched the partition
	blocks map[uint64]restoredBlock

	openFrom uint64 // ledger offsets from here on are of the open block
	openSeen uint64 // leaves of the open block that were read
	lastSeen bool
}

type restoredBlock struct {
	block
	lastOffset uint64
}

func newRestorer(p *partition) *restorer {
	return &restorer{p: p, blocks: make(map[uint64]restoredBlock)}
}

// heads takes in a record of the heads topic.
func (r *restorer) heads(key, value []byte) error {
	if string(key) == partitionKey(r.p.number) {
		r.head = new(recordpb.PartitionHead)
		return decode(r.head, key, value)
	}
	m := new(recordpb.ChainHead)
	if err := decode(m, key, value); err != nil {
		return err
	}
	c, err := restoreChain(m)
	if err != nil {
		return err
	}
	if string(key) != hex.EncodeToString(c.head.Chain[:]) {
		return disagree("heads: the head under %q is that of chain %x", key, c.head.Chain)
	}
	if p := event.Partition(c.workspace, c.lane, r.p.count); p != r.p.number {
		return disagree("heads: chain %x belongs on partition %d of %d", c.head.Chain, p, r.p.count)
	}
	r.p.chains[c.lineage] = c
	return nil
}

func restoreChain(m *recordpb.ChainHead) (*chain, error) {
	for _, b := range [][]byte{m.GetChain(), m.GetWorkspace(), m.GetIncarnation()} {
		if len(b) != 16 {
			return nil, disagree("heads: a chain head has an id of %d bytes", len(b))
		}
	}
	c := &chain{lanes: m.GetLanes()}
	c.workspace, c.incarnation, c.lane = [16]byte(m.GetWorkspace()), [16]byte(m.GetIncarnation()), m.GetLane()
	h := &c.head
	h.Chain, h.Size = ledger.ChainID(m.GetChain()), m.GetSize()
	if n := bits.OnesCount64(h.Size); len(m.GetRange()) != 32*n || len(m.GetLastLeafHash()) != 32 || h.Size == 0 {
		return nil, disagree("heads: the head of chain %x at size %d is malformed", h.Chain, h.Size)
	}
	h.LastLeafHash = ledger.Hash(m.GetLastLeafHash())
	for b := m.GetRange(); len(b) > 0; b = b[32:] {
		h.Range = append(h.Range, ledger.Hash(b))
	}
	root := h.Root()
	switch {
	case h.Chain != ledger.NewChainID(c.workspace, c.incarnation, c.lane):
		return nil, disagree("heads: chain %x is not the one of its workspace, incarnation and lane", h.Chain)
	case !bytes.Equal(root[:], m.GetRoot()):
		return nil, disagree("heads: the root of chain %x does not follow from its subtrees", h.Chain)
	}
	return c, nil
}

// dedup takes in a record of the dedup topic; recordedAt is its time stamp in microseconds.
func (r *restorer) dedup(key, value []byte, recordedAt int64) error {
	m := new(recordpb.DedupBlock)
	if err := decode(m, key, value); err != nil {
		return err
	}
	if len(m.GetIds())%idBytes != 0 || len(m.GetIds()) > idBytes*blockLeaves || m.GetBlock() > 1<<32-1 {
		return disagree("dedup: block %d is malformed", m.GetBlock())
	}
	r.blocks[m.GetBlock()] = restoredBlock{
		block:      block{number: uint32(m.GetBlock()), ids: m.GetIds(), recordedAt: recordedAt},
		lastOffset: m.GetLastLedgerOffset(),
	}
	// A block before the window at the time of the newest one will not be asked for: what is kept is bounded.
	delete(r.blocks, m.GetBlock()-r.p.window.blocks-1)
	return nil
}

// done ends heads and dedup. committed is the group's offset, nil if it has none. It returns the ledger offset to read
// from; every record from there to the end must be given to ledger.
func (r *restorer) done(committed *uint64) (ledgerFrom uint64, err error) {
	switch {
	case r.head == nil && committed != nil:
		return 0, disagree("the group committed offset %d, heads has no record of the partition", *committed)
	case r.head == nil && len(r.p.chains) > 0:
		return 0, disagree("heads has %d chains but no record of the partition", len(r.p.chains))
	case r.head == nil:
		return 0, nil
	case committed == nil:
		return 0, disagree("heads comes to input offset %d, the group has committed none", r.head.GetNext())
	case *committed != r.head.GetNext():
		return 0, disagree("heads comes to input offset %d, the group committed %d", r.head.GetNext(), *committed)
	case r.head.GetGeneration() != generation:
		return 0, disagree("heads is of generation %d, this version knows %d only", r.head.GetGeneration(), generation)
	}
	p := r.p
	p.next, p.leaves, p.lastOffset = r.head.GetNext(), r.head.GetTotalLeaves(), r.head.GetLastLedgerOffset()
	var sum uint64
	for _, c := range p.chains {
		sum += c.head.Size
	}
	if sum != p.leaves {
		return 0, disagree("the chains in heads have %d leaves, the partition %d", sum, p.leaves)
	}
	if p.leaves == 0 {
		return 0, nil
	}
	if len(r.head.GetLastChain()) != 16 || len(r.head.GetLastLeafHash()) != 32 {
		return 0, disagree("heads: the partition's record is malformed")
	}
	p.lastChain, p.lastLeafHash = ledger.ChainID(r.head.GetLastChain()), ledger.Hash(r.head.GetLastLeafHash())
	return r.restoreWindow()
}

// restoreWindow puts the complete blocks back, the newest of which says where the open one begins.
func (r *restorer) restoreWindow() (ledgerFrom uint64, err error) {
	p := r.p
	open := p.leaves / blockLeaves
	found := false
	for n := open - min(open, p.window.blocks); n < open; n++ {
		b, ok := r.blocks[n]
		if !ok {
			// The oldest blocks may be missing after the window was made larger, none after the first that is there.
			if found || n == open-1 {
				return 0, disagree("dedup lacks block %d of %d", n, open)
			}
			continue
		}
		found = true
		p.window.put(b.block)
		r.openFrom = b.lastOffset + 1
	}
	p.window.put(block{number: uint32(open)})
	r.blocks = nil
	return min(r.openFrom, p.lastOffset), nil
}

// ledger takes in a committed record of the ledger topic.
func (r *restorer) ledger(offset uint64, value []byte) error {
	p := r.p
	if p.leaves == 0 || offset > p.lastOffset {
		return disagree("ledger has a leaf at offset %d, heads comes to %d leaves, the last at %d", offset, p.leaves, p.lastOffset)
	}
	m := new(recordpb.Sealed)
	if err := decode(m, nil, value); err != nil {
		return err
	}
	if offset == p.lastOffset {
		if !bytes.Equal(m.GetChain(), p.lastChain[:]) || !bytes.Equal(m.GetLeafHash(), p.lastLeafHash[:]) {
			return disagree("ledger's leaf at offset %d is %x of chain %x, heads says %x of %x",
				offset, m.GetLeafHash(), m.GetChain(), p.lastLeafHash, p.lastChain)
		}
		r.lastSeen = true
		p.recordedAt = m.GetEvent().GetRecordedAt()
	}
	if offset < r.openFrom {
		return nil
	}
	r.openSeen++
	if e := m.GetEvent(); ledger.Kind(e.GetKind()) != ledger.KindGenesis {
		if len(e.GetId()) != idBytes {
			return disagree("ledger's leaf at offset %d has an id of %d bytes", offset, len(e.GetId()))
		}
		open := p.window.current()
		open.ids = append(open.ids, e.GetId()...)
		p.window.put(open)
	}
	return nil
}

// finish returns the state. start is the ledger's first offset: retention may have taken the newest leaves of a
// partition that has long been idle, and the open block's ids with them.
func (r *restorer) finish(ledgerStart uint64) (*partition, error) {
	p := r.p
	if p.leaves == 0 {
		return p, nil
	}
	if !r.lastSeen && ledgerStart <= p.lastOffset {
		return nil, disagree("heads says that the last leaf is at ledger offset %d, where there is none", p.lastOffset)
	}
	if want := p.leaves % blockLeaves; r.openSeen != want && ledgerStart <= r.openFrom {
		return nil, disagree("ledger has %d leaves after the last block of dedup, there must be %d", r.openSeen, want)
	}
	return p, nil
}

func decode(m proto.Message, key, value []byte) error {
	if err := proto.Unmarshal(value, m); err != nil {
		return disagree("the record %q is no %s: %w", key, m.ProtoReflect().Descriptor().Name(), err)
	}
	return nil
}
