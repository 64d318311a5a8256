package ledger

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// Head is the state of a chain: its size, its last leaf hash and the roots of the perfect subtrees of its RFC 6962
// tree (a compact range from 0), which is all that appending needs. The zero Head with Chain set is the empty chain.
type Head struct {
	Chain        ChainID
	Size         uint64
	LastLeafHash Hash
	// Range holds popcount(Size) roots, largest subtree first.
	Range []Hash
}

// ErrHead is wrapped by what Check returns.
var ErrHead = errors.New("inconsistent chain head")

// Check reports whether the head can be appended to.
func (h *Head) Check() error {
	if n := bits.OnesCount64(h.Size); len(h.Range) != n {
		return fmt.Errorf("%w: size %d needs %d subtree roots, there are %d", ErrHead, h.Size, n, len(h.Range))
	}
	return nil
}

// Clone returns a head that shares nothing with h.
func (h *Head) Clone() Head {
	c := *h
	c.Range = slices.Clone(h.Range)
	return c
}

// Append puts the next leaf on the chain. It sets leaf's Chain, Sequence and Previous, and returns its hash and the
// node to store beside it: the roots of the complete 256^k (k >= 1) subtrees that the leaf completes, smallest first.
func (h *Head) Append(leaf *Leaf) (Hash, []Hash) {
	leaf.Chain, leaf.Sequence, leaf.Previous = h.Chain, h.Size, h.LastLeafHash
	hash := leaf.Hash()
	return hash, h.AppendHash(hash)
}

// AppendHash puts a leaf on the tree of which only the hash is known, and returns the node to store beside it. With
// EntryHash it appends to a root log, whose Head has no Chain.
func (h *Head) AppendHash(hash Hash) []Hash {
	root := hash
	var node []Hash
	// The subtrees that the leaf completes are the trailing ones of the old size: merge them from the smallest up.
	for level := 1; h.Size>>(level-1)&1 == 1; level++ {
		last := len(h.Range) - 1
		root = hashChildren(h.Range[last], root)
		h.Range = h.Range[:last]
		if level%8 == 0 {
			node = append(node, root)
		}
	}
	h.Range = append(h.Range, root)
	h.Size++
	h.LastLeafHash = hash
	return node
}

// Root returns the RFC 6962 tree hash of the chain: SHA-256 of nothing for an empty one.
func (h *Head) Root() Hash {
	if len(h.Range) == 0 {
		return sha256.Sum256(nil)
	}
	root := h.Range[len(h.Range)-1]
	for i := len(h.Range) - 2; i >= 0; i-- {
		root = hashChildren(h.Range[i], root)
	}
	return root
}

// hashChildren is the inner node of RFC 6962, section 2.1: SHA-256(0x01 || left || right).
func hashChildren(left, right Hash) Hash {
	var buf [65]byte
	buf[0] = 0x01
	copy(buf[1:], left[:])
	copy(buf[33:], right[:])
	return sha256.Sum256(buf[:])
}
