package ledger

import (
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Proofs in the trees of chains and of the root log: RFC 6962, sections 2.1.1 and 2.1.2. What is stored of a tree are its
// leaf hashes and, beside every 256^k-th leaf, the root of the complete subtree of 256^k leaves that it ends.

// ErrProof is wrapped by the errors of proofs that do not prove what they should.
var ErrProof = errors.New("invalid proof")

// A Span is a run of stored hashes: at Level 0 the leaf hashes From to To-1; at Level k the roots of the subtrees
// From to To-1 of 256^k leaves each, subtree i ending with leaf (i+1)*256^k - 1. It has at most 128 hashes.
type Span struct {
	Level    int
	From, To uint64
}

// A ProofPlan says which stored hashes a proof is built of: at most 512 for each factor of 256 in the size of the tree.
type ProofPlan struct{ nodes proof.Nodes }

// PlanInclusion plans the proof that the leaf at index is in the tree of the given size, index < size.
func PlanInclusion(index, size uint64) (*ProofPlan, error) {
	nodes, err := proof.Inclusion(index, size)
	if err != nil {
		return nil, fmt.Errorf("inclusion proof: %w", err)
	}
	return &ProofPlan{nodes}, nil
}

// PlanConsistency plans the proof that the tree of size1 is the beginning of the one of size2, size1 <= size2.
func PlanConsistency(size1, size2 uint64) (*ProofPlan, error) {
	nodes, err := proof.Consistency(size1, size2)
	if err != nil {
		return nil, fmt.Errorf("consistency proof: %w", err)
	}
	return &ProofPlan{nodes}, nil
}

// Spans returns what Build needs, in its order.
func (p *ProofPlan) Spans() []Span {
	spans := make([]Span, len(p.nodes.IDs))
	for i, id := range p.nodes.IDs {
		width := uint64(1) << (id.Level % 8)
		spans[i] = Span{Level: int(id.Level / 8), From: id.Index * width, To: (id.Index + 1) * width}
	}
	return spans
}

// Build returns the proof, given the hashes of each span. It changes them.
func (p *ProofPlan) Build(stored [][]Hash) ([]Hash, error) {
	hashes, err := p.fold(stored)
	if err != nil {
		return nil, err
	}
	if hashes, err = p.nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren); err != nil {
		return nil, fmt.Errorf("building a proof: %w", err)
	}
	path := make([]Hash, len(hashes))
	for i, h := range hashes {
		path[i] = Hash(h)
	}
	return path, nil
}

// fold returns the root over the hashes of each span. It changes them.
func (p *ProofPlan) fold(stored [][]Hash) ([][]byte, error) {
	spans := p.Spans()
	if len(stored) != len(spans) {
		return nil, fmt.Errorf("building a proof: hashes of %d spans, want %d", len(stored), len(spans))
	}
	hashes := make([][]byte, len(stored))
	for i, hs := range stored {
		if s := spans[i]; uint64(len(hs)) != s.To-s.From {
			return nil, fmt.Errorf("building a proof: %d hashes of level %d, want %d to %d", len(hs), s.Level, s.From, s.To-1)
		}
		for ; len(hs) > 1; hs = hs[:len(hs)/2] {
			for j := range len(hs) / 2 {
				hs[j] = hashChildren(hs[2*j], hs[2*j+1])
			}
		}
		hashes[i] = hs[0][:]
	}
	return hashes, nil
}

// VerifyInclusion checks that leaf is at index in the tree of this size and root. Its errors wrap ErrProof.
func VerifyInclusion(leaf Hash, index, size uint64, path []Hash, root Hash) error {
	err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, size, leaf[:], slicesOf(path), root[:])
	if err != nil {
		return fmt.Errorf("%w of inclusion at %d of %d: %s", ErrProof, index, size, oneLine(err))
	}
	return nil
}

// VerifyConsistency checks that the tree of size1 and root1 is the beginning of the one of size2 and root2. Its errors
// wrap ErrProof.
func VerifyConsistency(size1, size2 uint64, path []Hash, root1, root2 Hash) error {
	if size1 == 0 && root1 != Hash(rfc6962.DefaultHasher.EmptyRoot()) {
		return fmt.Errorf("%w of consistency: the root of an empty tree is not %x", ErrProof, root1)
	}
	err := proof.VerifyConsistency(rfc6962.DefaultHasher, size1, size2, slicesOf(path), root1[:], root2[:])
	if err != nil {
		return fmt.Errorf("%w of consistency of %d with %d: %s", ErrProof, size2, size1, oneLine(err))
	}
	return nil
}

// oneLine is the error without the library's line breaks and hashes in decimal.
func oneLine(err error) string {
	if mismatch, ok := errors.AsType[proof.RootMismatchError](err); ok {
		return fmt.Sprintf("it leads to root %x, want %x", mismatch.CalculatedRoot, mismatch.ExpectedRoot)
	}
	return err.Error()
}

func slicesOf(hashes []Hash) [][]byte {
	s := make([][]byte, len(hashes))
	for i := range hashes {
		s[i] = hashes[i][:]
	}
	return s
}

// PerfectSubtrees returns the spans of one hash each whose roots are a Head's Range at this size, in its order.
func PerfectSubtrees(size uint64) *ProofPlan {
	return &ProofPlan{proof.Nodes{IDs: compact.RangeNodes(0, size, nil)}}
}
