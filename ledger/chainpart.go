package ledger

import (
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// A part of a chain can be verified by itself: what is before it and after it enters as stored hashes, and the root over all of them says
// whether they were the right ones.

// BeginAt lets the verifier begin with the leaf at head.Size instead of with the genesis. last is the leaf before it, whose hash is
// head.LastLeafHash; nil where that leaf is not known, and then the first leaf is linked to nothing. Without head.Range, no root is known.
// It is called before Add.
func (v *ChainVerifier) BeginAt(head *Head, last *Leaf) {
	v.head = head.Clone()
	v.head.Chain = v.chain
	v.broken = head.Check() != nil
	v.base = base{next: head.Size}
	if last != nil {
		v.base.hash, v.base.known = head.LastLeafHash, true
		v.base.position = inputPosition{last.Generation, last.Partition, last.Offset}
	}
	v.counts.Size, v.sound, v.begin = head.Size, head.Size, head.Size
}

// Head returns the tree over the leaves so far; known says whether it has all of their hashes. It is called after Close.
func (v *ChainVerifier) Head() (head Head, known bool) {
	return v.head.Clone(), !v.broken && v.head.Check() == nil
}

// SubtreesBetween returns the spans of one hash each that AppendSubtrees takes to bring a Head from one size to another.
func SubtreesBetween(from, to uint64) *ProofPlan {
	return &ProofPlan{proof.Nodes{IDs: compact.RangeNodes(from, to, nil)}}
}

// AppendSubtrees brings the head to a larger size, given what SubtreesBetween plans. Of the last leaf only the root knows then:
// LastLeafHash becomes zero.
func (h *Head) AppendSubtrees(size uint64, subtrees []Hash) error {
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	left, err := factory.NewRange(0, h.Size, slicesOf(h.Range))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHead, err)
	}
	right, err := factory.NewRange(h.Size, size, slicesOf(subtrees))
	if err == nil {
		err = left.AppendRange(right, nil)
	}
	if err != nil {
		return fmt.Errorf("appending subtrees: %w", err)
	}
	h.Size, h.LastLeafHash, h.Range = size, Hash{}, nil
	for _, hash := range left.Hashes() {
		h.Range = append(h.Range, Hash(hash))
	}
	return nil
}
