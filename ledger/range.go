package ledger

import (
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// A RangePlan says which stored hashes, with the leaves Begin to End-1, make the root of a tree of Size leaves: the roots of the
// perfect subtrees on both sides, at most two for each factor of 2 in the size.
type RangePlan struct {
	begin, end, size uint64
	before, after    *ProofPlan
}

// PlanRange plans for begin <= end <= size.
func PlanRange(begin, end, size uint64) (*RangePlan, error) {
	if begin > end || end > size {
		return nil, fmt.Errorf("leaves %d to %d of a tree of %d: there is no such range", begin, end, size)
	}
	return &RangePlan{
		begin: begin, end: end, size: size, before: PerfectSubtrees(begin),
		after: &ProofPlan{proof.Nodes{IDs: compact.RangeNodes(end, size, nil)}},
	}, nil
}

// Spans returns what Start needs, in its order.
func (p *RangePlan) Spans() []Span { return append(p.before.Spans(), p.after.Spans()...) }

// A RangeRoot takes the leaves of a range, in order.
type RangeRoot struct {
	tree, after *compact.Range
	end         uint64
}

// Start begins with the stored hashes of each span. It changes them.
func (p *RangePlan) Start(stored [][]Hash) (*RangeRoot, error) {
	n := len(p.before.nodes.IDs)
	if len(stored) != n+len(p.after.nodes.IDs) {
		return nil, fmt.Errorf("a root from a range: hashes of %d spans, want %d", len(stored), n+len(p.after.nodes.IDs))
	}
	before, err := p.before.fold(stored[:n])
	if err != nil {
		return nil, err
	}
	after, err := p.after.fold(stored[n:])
	if err != nil {
		return nil, err
	}
	f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	r := &RangeRoot{end: p.end}
	if r.tree, err = f.NewRange(0, p.begin, before); err == nil {
		r.after, err = f.NewRange(p.end, p.size, after)
	}
	if err != nil {
		return nil, fmt.Errorf("a root from a range: %w", err)
	}
	return r, nil
}

// Append takes the next leaf's hash.
func (r *RangeRoot) Append(leaf Hash) error {
	if r.tree.End() >= r.end {
		return errors.New("a root from a range: more leaves than it has")
	}
	if err := r.tree.Append(leaf[:], nil); err != nil {
		return fmt.Errorf("a root from a range: %w", err)
	}
	return nil
}

// Root returns the root, once, when the range has all its leaves.
func (r *RangeRoot) Root() (Hash, error) {
	if r.tree.End() != r.end {
		return Hash{}, fmt.Errorf("a root from a range: it has the leaves before %d, want those before %d", r.tree.End(), r.end)
	}
	if err := r.tree.AppendRange(r.after, nil); err != nil {
		return Hash{}, fmt.Errorf("a root from a range: %w", err)
	}
	root, err := r.tree.GetRootHash(nil)
	if err != nil {
		return Hash{}, fmt.Errorf("a root from a range: %w", err)
	}
	if root == nil {
		return Hash(rfc6962.DefaultHasher.EmptyRoot()), nil
	}
	return Hash(root), nil
}
