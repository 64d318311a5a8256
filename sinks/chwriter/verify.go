package chwriter

import (
	"fmt"

	"getimmutable.dev/immutable/ledger"
)

// verify recomputes what the ledger says of a record from its content: the body root from body and seed, and the leaf
// hash (docs/design/ledger-spec.md, Body and Leaf). A difference means that the record was changed after it was
// accepted, or that this program and the one that sealed it do not agree; neither may enter the tables.
func verify(s *sealed) error {
	leaf := ledger.Leaf{
		Chain:      ledger.ChainID(s.chain),
		Sequence:   s.sequence,
		Previous:   ledger.Hash(s.previous),
		Kind:       ledger.Kind(s.kind),
		ID:         [16]byte(s.id),
		RecordedAt: s.recordedAt,
		Generation: uint16(s.generation),
		Partition:  uint16(s.partition),
		Offset:     s.offset,
		FieldCount: uint16(s.fieldCount),
		BodyRoot:   ledger.Hash(s.bodyRoot),
	}
	if hash := leaf.Hash(); hash != ledger.Hash(s.leafHash) {
		return fmt.Errorf("leaf hash is %x, the leaf's content gives %x", s.leafHash, hash)
	}
	if s.genesis() {
		return nil
	}
	root, n, err := ledger.RecomputeBodyRoot([16]byte(s.seed), s.body)
	if err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	if root != leaf.BodyRoot || n != int(leaf.FieldCount) {
		return fmt.Errorf("body root is %x over %d fields, the body gives %x over %d", s.bodyRoot, s.fieldCount, root, n)
	}
	return nil
}
