package notary

import (
	"bytes"
	"fmt"
	"math/bits"
	"slices"

	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// This file and rootlog.go know no client, no clock and no randomness: what an epoch states is a function of the ledger
// topic's records alone. Whoever fails in the middle drops the whole of it and begins with what the topics say.

// chains are all chains as the ledger topic makes them, up to positions.
type chains struct {
	by map[ledger.ChainID]*chain
	// tree has every chain at the last epoch.
	tree ledger.Map
	// positions are the next offsets of the ledger topic's partitions.
	positions []uint64
	// unknown are heads of chains that have no leaf before positions.
	unknown map[ledger.ChainID]stated
	// changed are the chains with leaves since the last epoch, in the order of their first; leaves is how many those are.
	changed []*chain
	leaves  int
	// compared counts heads that were compared with what the ledger topic makes.
	compared int
	record   sealed
}

// chain is one chain, and what it is a chain of.
type chain struct {
	workspace, incarnation [16]byte
	lane, lanes            uint32
	partition              int32
	changed                bool
	head                   ledger.Head
	// ahead is the newest head that the heads topic has of it and that it has not reached; size 0: none.
	ahead stated
}

// stated is what the heads topic says of a chain.
type stated struct {
	size       uint64
	root, last ledger.Hash
	partition  int32
}

func newChains(partitions int32) *chains {
	return &chains{
		by: make(map[ledger.ChainID]*chain), positions: make([]uint64, partitions), unknown: make(map[ledger.ChainID]stated),
	}
}

// take appends the leaf of a record of the ledger topic to its chain, after it has been recomputed from its content. The error
// is a haltError: what the processor writes always follows.
func (s *chains) take(partition int32, offset uint64, value []byte) error {
	if offset < s.positions[partition] {
		return fmt.Errorf("the ledger's partition %d goes back from offset %d to %d", partition, s.positions[partition], offset)
	}
	r := &s.record
	if err := r.decode(value); err != nil {
		return halt(haltLedger, "the ledger's record at offset %d of partition %d: %w", offset, partition, err)
	}
	c, ok := s.by[r.leaf.Chain]
	if !ok {
		c = &chain{
			workspace: r.workspace, incarnation: r.incarnation, lane: r.lane, lanes: r.lanes, partition: partition,
			head: ledger.Head{Chain: r.leaf.Chain},
		}
	}
	if err := c.take(r, partition, int32(len(s.positions))); err != nil {
		return halt(haltLedger, "leaf %d of chain %x, at ledger offset %d of partition %d: %w",
			r.leaf.Sequence, r.leaf.Chain, offset, partition, err)
	}
	if !ok {
		s.by[c.head.Chain] = c
		c.ahead = s.unknown[c.head.Chain]
		delete(s.unknown, c.head.Chain)
	}
	if !c.changed {
		c.changed = true
		s.changed = append(s.changed, c)
	}
	s.leaves++
	s.positions[partition] = offset + 1
	if c.head.Size == c.ahead.size {
		return s.compare(c, c.ahead)
	}
	return nil
}

// take appends a leaf whose content is r.
func (c *chain) take(r *sealed, partition, partitions int32) error {
	leaf := r.leaf
	switch {
	case leaf.Sequence != c.head.Size:
		return fmt.Errorf("the chain goes on at sequence %d", c.head.Size)
	case leaf.Previous != c.head.LastLeafHash:
		return fmt.Errorf("previous is %x, the leaf before it is %x", leaf.Previous, c.head.LastLeafHash)
	case (leaf.Kind == ledger.KindGenesis) != (leaf.Sequence == 0):
		return fmt.Errorf("kind %d", leaf.Kind)
	case r.workspace != c.workspace || r.incarnation != c.incarnation || r.lane != c.lane || r.lanes != c.lanes:
		return fmt.Errorf("it is of lane %d of %d of workspace %x, incarnation %x; the chain of lane %d of %d of %x, %x",
			r.lane, r.lanes, r.workspace, r.incarnation, c.lane, c.lanes, c.workspace, c.incarnation)
	case c.partition != partition:
		return fmt.Errorf("the chain is on partition %d", c.partition)
	}
	if leaf.Sequence == 0 {
		if of := event.Partition(r.workspace, r.lane, partitions); of != partition {
			return fmt.Errorf("lane %d of workspace %x belongs on partition %d", r.lane, r.workspace, of)
		}
		// Its own chain id follows from what it is made of, and so does everything else.
		leaf = ledger.Genesis(r.workspace, r.incarnation, r.lane, r.lanes, r.leaf.RecordedAt, r.leaf.Generation)
		if leaf != r.leaf {
			return fmt.Errorf("it is not the genesis of lane %d of %d of workspace %x, incarnation %x",
				r.lane, r.lanes, r.workspace, r.incarnation)
		}
	}
	hash, node := c.head.Append(&leaf)
	if hash != r.hash {
		return fmt.Errorf("its content has leaf hash %x, the record says %x", hash, r.hash)
	}
	if len(node)+len(r.node) > 0 && !bytes.Equal(join(node), r.node) {
		return fmt.Errorf("it completes subtrees %x, the record says %x", node, r.node)
	}
	return nil
}

// passed moves a partition's position past offsets that hold no record.
func (s *chains) passed(partition int32, next uint64) {
	s.positions[partition] = max(s.positions[partition], next)
}

// stated takes in a record of the heads topic, which tells of a chain or of a partition, and compares it with the chain of
// this size, at once or when it has come to it. Of a chain that is ahead of the ledger's position the newest counts.
func (s *chains) stated(partition int32, key, value []byte) error {
	if bytes.HasPrefix(key, []byte(partitionKey)) {
		return nil
	}
	m := new(recordpb.ChainHead)
	if err := proto.Unmarshal(value, m); err != nil {
		return halt(haltHeads, "the head under %q: %w", key, err)
	}
	c, err := restoreChain(m)
	if err != nil {
		return halt(haltHeads, "the head under %q: %w", key, err)
	}
	head := stated{size: c.head.Size, root: c.head.Root(), last: c.head.LastLeafHash, partition: partition}
	switch own, ok := s.by[c.head.Chain]; {
	case !ok:
		s.unknown[c.head.Chain] = head
	case head.size > own.head.Size:
		own.ahead = head
	case head.size == own.head.Size:
		return s.compare(own, head)
	}
	return nil
}

func (s *chains) compare(c *chain, head stated) error {
	c.ahead = stated{}
	s.compared++
	if root := c.head.Root(); root != head.root || c.head.LastLeafHash != head.last || c.partition != head.partition {
		return halt(haltHeads, "heads states root %x of chain %x at size %d, on partition %d; the ledger makes it %x, on partition %d",
			head.root, c.head.Chain, head.size, head.partition, root, c.partition)
	}
	return nil
}

// caughtUp looks for heads of a partition that are ahead of its leaves, all of which have been taken in: the leaves of a head
// are on the brokers before it is.
func (s *chains) caughtUp(partition int32) error {
	for id, head := range s.unknown {
		if head.partition == partition {
			return halt(haltHeads, "heads states chain %x at size %d, the ledger has no leaf of it up to offset %d of partition %d",
				id, head.size, s.positions[partition], partition)
		}
	}
	for id, c := range s.by {
		if c.partition == partition && c.ahead.size > c.head.Size {
			return halt(haltHeads, "heads states chain %x at size %d, the ledger comes to %d at offset %d of partition %d",
				id, c.ahead.size, c.head.Size, s.positions[partition], partition)
		}
	}
	return nil
}

// epoch states all chains at the positions, which no call of take or passed may change before settle.
func (s *chains) epoch() *ledger.Epoch {
	for _, c := range s.changed {
		s.tree.Set(c.head.Chain, c.head.Size, c.head.Root())
	}
	return &ledger.Epoch{MapRoot: s.tree.Root(), Chains: uint64(s.tree.Len()), Positions: slices.Clone(s.positions)}
}

// settle begins the next epoch: the last one is committed.
func (s *chains) settle() {
	for _, c := range s.changed {
		c.changed = false
	}
	clear(s.changed)
	s.changed, s.leaves = s.changed[:0], 0
}

// message returns the chain's record of notary_state.
func (c *chain) message(epoch uint64) *recordpb.NotaryChain {
	root := c.head.Root()
	return &recordpb.NotaryChain{Epoch: epoch, Head: &recordpb.ChainHead{
		Chain: c.head.Chain[:], Workspace: c.workspace[:], Incarnation: c.incarnation[:], Lane: c.lane, Lanes: c.lanes,
		Size: c.head.Size, Root: root[:], LastLeafHash: c.head.LastLeafHash[:], Range: join(c.head.Range),
	}}
}

// restoreChain is the reverse of message. Nothing in m may contradict itself.
func restoreChain(m *recordpb.ChainHead) (*chain, error) {
	c := &chain{lane: m.GetLane(), lanes: m.GetLanes()}
	var root ledger.Hash
	for _, f := range []struct{ to, from []byte }{
		{c.head.Chain[:], m.GetChain()},
		{c.workspace[:], m.GetWorkspace()},
		{c.incarnation[:], m.GetIncarnation()},
		{root[:], m.GetRoot()},
		{c.head.LastLeafHash[:], m.GetLastLeafHash()},
	} {
		if err := fill(f.to, f.from); err != nil {
			return nil, fmt.Errorf("the head of a chain: an id or hash: %w", err)
		}
	}
	c.head.Size = m.GetSize()
	var err error
	if c.head.Range, err = split(m.GetRange(), c.head.Size); err != nil {
		return nil, fmt.Errorf("the head of chain %x: %w", c.head.Chain, err)
	}
	switch {
	case c.head.Chain != ledger.NewChainID(c.workspace, c.incarnation, c.lane):
		return nil, fmt.Errorf("chain %x is not the one of its workspace, incarnation and lane", c.head.Chain)
	case c.head.Root() != root:
		return nil, fmt.Errorf("the root of chain %x does not follow from its subtrees", c.head.Chain)
	}
	return c, nil
}

// join and split write and read the subtree roots of a head.
func join(hashes []ledger.Hash) []byte {
	b := make([]byte, 0, len(ledger.Hash{})*len(hashes))
	for i := range hashes {
		b = append(b, hashes[i][:]...)
	}
	return b
}

func split(b []byte, size uint64) ([]ledger.Hash, error) {
	if n := bits.OnesCount64(size); len(b) != n*len(ledger.Hash{}) {
		return nil, fmt.Errorf("size %d needs %d subtree roots, there are %d bytes", size, n, len(b))
	}
	var hashes []ledger.Hash
	for h := range slices.Chunk(b, len(ledger.Hash{})) {
		hashes = append(hashes, ledger.Hash(h))
	}
	return hashes, nil
}
