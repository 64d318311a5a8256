// Package ledger is the arithmetic of the ledger: commitments, leaves, chains and their Merkle trees. It is pure: no
// I/O, no clock, no randomness. docs/design/ledger-spec.md is the byte-exact specification that it implements.
package ledger

import (
	"crypto/sha256"
	"encoding/binary"
)

// Kind says what a leaf stands for.
type Kind uint8

// Kinds of leaves; the number is a byte of the leaf.
const (
	KindGenesis   Kind = 1
	KindEvent     Kind = 2
	KindRedaction Kind = 3
	KindNote      Kind = 4
)

// ChainID names a chain: one lane of one incarnation of one workspace. In text it is lower-case hexadecimal.
type ChainID [16]byte

// Hash is a SHA-256 digest. In text it is lower-case hexadecimal.
type Hash [32]byte

const (
	leafDomain    = "immutable/leaf/1\x00"
	chainDomain   = "immutable/chain/1\x00"
	genesisDomain = "immutable/genesis/1\x00"

	// LeafSize is the number of bytes of every leaf.
	LeafSize = len(leafDomain) + 16 + 8 + 32 + 1 + 16 + 8 + 2 + 2 + 8 + 2 + 32
)

// Leaf is one entry of a chain. Nothing in it depends on who sealed it, or when: chaining is a pure function of the
// head and the input, so a replayed input makes the same bytes.
type Leaf struct {
	Chain    ChainID
	Sequence uint64
	// Previous is the leaf hash of Sequence-1, zero at Sequence 0.
	Previous Hash
	Kind     Kind
	ID       [16]byte
	// RecordedAt is in microseconds since the Unix epoch.
	RecordedAt int64
	// Generation, Partition and Offset say where the event stood on the events topic.
	Generation uint16
	Partition  uint16
	Offset     uint64
	FieldCount uint16
	BodyRoot   Hash
}

// AppendTo appends the leaf's fixed binary layout, LeafSize bytes, to b.
func (l *Leaf) AppendTo(b []byte) []byte {
	b = append(b, leafDomain...)
	b = append(b, l.Chain[:]...)
	b = binary.BigEndian.AppendUint64(b, l.Sequence)
	b = append(b, l.Previous[:]...)
	b = append(b, byte(l.Kind))
	b = append(b, l.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(l.RecordedAt))
	b = binary.BigEndian.AppendUint16(b, l.Generation)
	b = binary.BigEndian.AppendUint16(b, l.Partition)
	b = binary.BigEndian.AppendUint64(b, l.Offset)
	b = binary.BigEndian.AppendUint16(b, l.FieldCount)
	return append(b, l.BodyRoot[:]...)
}

// Hash returns the leaf hash, SHA-256(0x00 || leaf): RFC 6962, section 2.1.
func (l *Leaf) Hash() Hash {
	var buf [1 + LeafSize]byte
	return sha256.Sum256(l.AppendTo(buf[:1]))
}

// NewChainID returns SHA-256("immutable/chain/1" 0x00 || workspace || incarnation || u32be lane)[:16].
func NewChainID(workspace, incarnation [16]byte, lane uint32) ChainID {
	var buf [len(chainDomain) + 16 + 16 + 4]byte
	b := append(buf[:0], chainDomain...)
	b = append(b, workspace[:]...)
	b = append(b, incarnation[:]...)
	b = binary.BigEndian.AppendUint32(b, lane)
	sum := sha256.Sum256(b)
	return ChainID(sum[:16])
}

// Genesis returns the first leaf of a chain, which binds the chain to its workspace, incarnation and number of lanes.
// recordedAt is that of the chain's first record, which itself becomes sequence 1.
func Genesis(workspace, incarnation [16]byte, lane, lanes uint32, recordedAt int64, generation uint16) Leaf {
	var buf [len(genesisDomain) + 16 + 16 + 4 + 4]byte
	b := append(buf[:0], genesisDomain...)
	b = append(b, workspace[:]...)
	b = append(b, incarnation[:]...)
	b = binary.BigEndian.AppendUint32(b, lane)
	b = binary.BigEndian.AppendUint32(b, lanes)
	return Leaf{
		Chain:      NewChainID(workspace, incarnation, lane),
		Kind:       KindGenesis,
		RecordedAt: recordedAt,
		Generation: generation,
		BodyRoot:   sha256.Sum256(b),
	}
}
