package processor

import (
	"encoding/hex"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// Sealing is a pure function of a partition's state and its next input record: this file knows no client, no clock and
// no randomness, so the same input, however it is cut into transactions and however often one is aborted, makes the
// same ledger records byte for byte.

const (
	// generation of the events topic: how often it has been closed and opened anew.
	generation = 0
	// maxRecordBytes bounds key and value of what is sealed: brokers take batches of 1,048,588 bytes, clients make them
	// of 1,000,012, and a batch has overhead.
	maxRecordBytes = 1_000_000 - 4096
	// sealBytes is more than a sealed record adds to its event and node.
	sealBytes = 192
)

// lineage is what a chain is a chain of.
type lineage struct {
	workspace, incarnation [16]byte
	lane                   uint32
}

// chain is the state of one chain.
type chain struct {
	lineage
	lanes uint32
	head  ledger.Head
}

// partition is the published state of one input partition: what the last committed transaction that touched it left.
// It is changed by step.publish only.
type partition struct {
	chains map[lineage]*chain
	window *window
	// next input offset to be sealed.
	next uint64
	// leaves of the partition since its generation began, the last of them at ledger offset lastOffset.
	leaves       uint64
	lastOffset   uint64
	lastChain    ledger.ChainID
	lastLeafHash ledger.Hash
	// recordedAt of the last leaf that this process sealed or restored, microseconds since 1970.
	recordedAt int64
	number     int32
	count      int32 // partitions of the topic
}

func newPartition(number, count int32, dedupLeaves int) *partition {
	return &partition{number: number, count: count, chains: make(map[lineage]*chain), window: newWindow(dedupLeaves)}
}

// input is one record of the events topic.
type input struct {
	key, value []byte
	offset     uint64
	// marker says that it is the end of a producer's transaction, not a record.
	marker bool
}

// sealed is a value of the ledger topic; its key is that of the input.
type sealed struct {
	value      []byte
	recordedAt int64 // microseconds since 1970
}

// state is a record of the heads or the dedup topic.
type state struct {
	topic      string // without the prefix
	key, value []byte
	recordedAt int64 // microseconds since 1970; 0: now
}

// counts says what became of the input offsets of a transaction: next - first = leaves - genesis + duplicates + dead +
// skipped.
type counts struct {
	first, next                                uint64
	leaves, genesis, duplicates, dead, skipped uint64
}

// step is what one transaction does to one partition. It works on copies: dropping it undoes everything.
type step struct {
	p *partition
	// touched holds copies of the chains that were appended to; order has them in the order of their first leaf.
	touched map[lineage]*chain
	order   []*chain
	window  windowStep
	counts  counts
	// closers are the leaves, counted from 0 in this transaction, that end a block each; parallel to window.closed().
	closers []uint64

	lastOffset   uint64
	lastChain    ledger.ChainID
	lastLeafHash ledger.Hash
	recordedAt   int64

	out    []sealed
	values *arena
}

// arena is the memory of a transaction's values, which the next one uses again.
type arena struct {
	chunk      []byte // the one that values are cut from
	full, free [][]byte
}

const (
	// chunkBytes is the size of an arena's chunks, but for a value that needs more.
	chunkBytes = 256 << 10
	// freeChunks bounds what an arena keeps: 16 MiB.
	freeChunks = 64
)

// room returns the chunk with room for n bytes more; what is appended to it becomes part of it by assigning it back.
func (a *arena) room(n int) []byte {
	if cap(a.chunk)-len(a.chunk) >= n {
		return a.chunk
	}
	a.full = append(a.full, a.chunk)
	if last := len(a.free) - 1; last >= 0 && n <= chunkBytes {
		a.chunk, a.free = a.free[last], a.free[:last]
		return a.chunk
	}
	a.chunk = make([]byte, 0, max(n, chunkBytes))
	return a.chunk
}

// reset makes all of it free.
func (a *arena) reset() {
	for _, c := range a.full {
		if cap(c) == chunkBytes && len(a.free) < freeChunks {
			a.free = append(a.free, c[:0])
		}
	}
	clear(a.full)
	a.full = a.full[:0]
	a.chunk = a.chunk[:0]
}

// begin starts a transaction on p, with the memory of the step before it. Values are cut from values, whose owner says
// when they are no longer in use.
func (s *step) begin(p *partition, values *arena) {
	s.p, s.values = p, values
	if s.touched == nil {
		s.touched = make(map[lineage]*chain)
	}
	clear(s.touched)
	clear(s.order)
	s.order = s.order[:0]
	s.closers = s.closers[:0]
	s.window.begin(p.window)
	s.counts = counts{first: p.next, next: p.next}
	s.lastOffset, s.lastChain, s.lastLeafHash, s.recordedAt = p.lastOffset, p.lastChain, p.lastLeafHash, p.recordedAt
}

// seal takes in the next input record, whose offset must not be below the next one, and returns what it becomes on the
// ledger: nothing for a duplicate or a marker, the leaf, or a genesis and the leaf. The slice is good until the next
// call, the values until the arena is reset. dead says why the record cannot be sealed and belongs on the dlq; that is not an
// error of the step, which has accounted for it.
func (s *step) seal(in input) (out []sealed, dead error) {
	s.counts.skipped += in.offset - s.counts.next
	s.counts.next = in.offset + 1
	if in.marker {
		s.counts.skipped++
		return nil, nil
	}
	f, err := walk(in.value)
	if err == nil {
		out, err = s.sealEvent(in, &f)
	}
	if err != nil {
		s.counts.dead++
		return nil, err
	}
	return out, nil
}

func (s *step) sealEvent(in input, f *facts) ([]sealed, error) {
	if n := len(in.key) + len(in.value) + sealBytes; n > maxRecordBytes {
		return nil, fmt.Errorf("sealed it would have %d bytes, more than %d", n, maxRecordBytes)
	}
	of := lineage{workspace: f.workspace, incarnation: f.incarnation, lane: f.lane}
	c, copied := s.touched[of]
	if !copied {
		c = s.p.chains[of]
	}
	switch {
	case c == nil:
		if p := event.Partition(f.workspace, f.lane, s.p.count); p != s.p.number {
			return nil, fmt.Errorf("lane %d of its workspace belongs on partition %d", f.lane, p)
		}
	case c.lanes != f.lanes:
		return nil, fmt.Errorf("its workspace has %d lanes, its chain was begun with %d", f.lanes, c.lanes)
	}
	if s.window.holds(&f.id) {
		s.counts.duplicates++
		return nil, nil
	}

	s.out = s.out[:0]
	switch {
	case c == nil:
		c = &chain{lineage: of, lanes: f.lanes, head: ledger.Head{Chain: ledger.NewChainID(f.workspace, f.incarnation, f.lane)}}
		s.touch(c)
		leaf := ledger.Genesis(f.workspace, f.incarnation, f.lane, f.lanes, f.recordedAt, generation)
		s.append(c, &leaf, genesisEvent(f, leaf.BodyRoot))
		s.counts.genesis++
	case !copied:
		c = &chain{lineage: of, lanes: c.lanes, head: c.head.Clone()}
		s.touch(c)
	}
	leaf := ledger.Leaf{
		Kind:       ledger.Kind(f.kind),
		ID:         f.id,
		RecordedAt: f.recordedAt,
		Generation: generation,
		Partition:  uint16(s.p.number),
		Offset:     in.offset,
		FieldCount: f.fieldCount,
		BodyRoot:   f.bodyRoot,
	}
	s.append(c, &leaf, in.value)
	return s.out, nil
}

func (s *step) touch(c *chain) {
	s.touched[c.lineage] = c
	s.order = append(s.order, c)
}

// append puts leaf, whose event's record is value, on c.
func (s *step) append(c *chain, leaf *ledger.Leaf, value []byte) {
	hash, node := c.head.Append(leaf)
	b := s.values.room(len(value) + 32*len(node) + sealBytes)
	start := len(b)
	b = appendSealed(b, value, leaf, hash, node)
	s.values.chunk = b
	s.out = append(s.out, sealed{value: b[start:len(b):len(b)], recordedAt: leaf.RecordedAt})

	if leaf.Kind != ledger.KindGenesis {
		s.window.add(&leaf.ID)
	}
	s.lastChain, s.lastLeafHash, s.recordedAt = c.head.Chain, hash, leaf.RecordedAt
	s.counts.leaves++
	if (s.p.leaves+s.counts.leaves)%blockLeaves == 0 {
		s.window.closeBlock(leaf.RecordedAt)
		s.closers = append(s.closers, s.counts.leaves-1)
	}
}

// finish returns the records that say what the step came to: each touched chain's head, each completed block of ids, and
// the partition's. offsetOf gives the ledger offset of a leaf, counted from 0 in this transaction.
func (s *step) finish(offsetOf func(leaf uint64) uint64) ([]state, error) {
	records := make([]state, 0, len(s.order)+len(s.closers)+1)
	add := func(topic, key string, m proto.Message, recordedAt int64) error {
		value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			return fmt.Errorf("encoding %s of partition %d: %w", key, s.p.number, err)
		}
		records = append(records, state{topic: topic, key: []byte(key), value: value, recordedAt: recordedAt})
		return nil
	}
	for i, b := range s.window.closed() {
		key := strconv.FormatUint(uint64(b.number)%s.p.window.blocks, 10)
		m := &recordpb.DedupBlock{Block: uint64(b.number), LastLedgerOffset: offsetOf(s.closers[i]), Ids: b.ids}
		if err := add(schemas.TopicDedup, key, m, b.recordedAt); err != nil {
			return nil, err
		}
	}
	for _, c := range s.order {
		if err := add(schemas.TopicHeads, hex.EncodeToString(c.head.Chain[:]), c.message(), 0); err != nil {
			return nil, err
		}
	}
	if s.counts.leaves > 0 {
		s.lastOffset = offsetOf(s.counts.leaves - 1)
	}
	n := &s.counts
	m := &recordpb.PartitionHead{
		Generation: generation, First: n.first, Next: n.next, Leaves: n.leaves, Genesis: n.genesis,
		Duplicates: n.duplicates, Dead: n.dead, Skipped: n.skipped, TotalLeaves: s.p.leaves + n.leaves,
	}
	if m.TotalLeaves > 0 {
		m.LastLedgerOffset, m.LastChain, m.LastLeafHash = s.lastOffset, s.lastChain[:], s.lastLeafHash[:]
	}
	err := add(schemas.TopicHeads, partitionKey(s.p.number), m, 0)
	return records, err
}

// publish makes the partition what the step made of it, once the transaction has been committed.
func (s *step) publish() {
	p := s.p
	for _, c := range s.order {
		p.chains[c.lineage] = c
	}
	s.window.publish()
	p.next = s.counts.next
	p.leaves += s.counts.leaves
	p.lastOffset, p.lastChain, p.lastLeafHash, p.recordedAt = s.lastOffset, s.lastChain, s.lastLeafHash, s.recordedAt
}

// message returns the chain's record of the heads topic.
func (c *chain) message() *recordpb.ChainHead {
	root := c.head.Root()
	roots := make([]byte, 0, 32*len(c.head.Range))
	for _, h := range c.head.Range {
		roots = append(roots, h[:]...)
	}
	return &recordpb.ChainHead{
		Chain: c.head.Chain[:], Workspace: c.workspace[:], Incarnation: c.incarnation[:], Lane: c.lane, Lanes: c.lanes,
		Size: c.head.Size, Root: root[:], LastLeafHash: c.head.LastLeafHash[:], Range: roots,
	}
}

// partitionKey is the key of a partition's record of the heads topic.
func partitionKey(number int32) string { return "partition/" + strconv.Itoa(int(number)) }

// appendSealed appends a recordpb.Sealed with value as its event, verbatim.
func appendSealed(b, value []byte, leaf *ledger.Leaf, hash ledger.Hash, node []ledger.Hash) []byte {
	b = appendBytes(b, 1, value)
	b = appendBytes(b, 2, leaf.Chain[:])
	b = appendVarint(b, 3, leaf.Sequence)
	b = appendBytes(b, 4, leaf.Previous[:])
	b = appendBytes(b, 5, hash[:])
	if len(node) > 0 {
		b = protowire.AppendTag(b, 6, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(32*len(node)))
		for i := range node {
			b = append(b, node[i][:]...)
		}
	}
	b = appendVarint(b, 7, uint64(leaf.Generation))
	b = appendVarint(b, 8, uint64(leaf.Partition))
	return appendVarint(b, 9, leaf.Offset)
}

// genesisEvent returns the recordpb.Event of a chain's first leaf.
func genesisEvent(f *facts, bodyRoot [32]byte) []byte {
	b := make([]byte, 0, 128)
	b = appendVarint(b, fieldKind, uint64(ledger.KindGenesis))
	b = appendBytes(b, fieldWorkspace, f.workspace[:])
	b = appendBytes(b, fieldIncarnation, f.incarnation[:])
	b = appendVarint(b, fieldLane, uint64(f.lane))
	b = appendVarint(b, fieldLanes, uint64(f.lanes))
	b = appendVarint(b, fieldRecordedAt, uint64(f.recordedAt))
	return appendBytes(b, fieldBodyRoot, bodyRoot[:])
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

// appendVarint leaves out a zero, as proto3 does.
func appendVarint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}
