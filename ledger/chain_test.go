package ledger

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"pgregory.net/rapid"
)

// testLeaf is leaf number i of the chains of the vectors; 0 is a genesis.
func testLeaf(i uint64) Leaf {
	if i == 0 {
		return Genesis([16]byte{1}, [16]byte{2}, 3, 4, 1_000_000, 0)
	}
	l := Leaf{Kind: KindEvent, RecordedAt: 1_000_000 + int64(i), Partition: 5, Offset: 10 * i, FieldCount: uint16(i)}
	binary.BigEndian.PutUint64(l.ID[8:], i)
	binary.BigEndian.PutUint64(l.BodyRoot[24:], ^i)
	return l
}

func newTestHead() Head { return Head{Chain: NewChainID([16]byte{1}, [16]byte{2}, 3)} }

// reference is another implementation of the tree.
type reference struct {
	leaves [][]byte
	tree   *compact.Range
}

func newReference() *reference {
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	return &reference{tree: factory.NewEmptyRange(0)}
}

// append returns the roots of the complete 256^k subtrees that the leaf completes, smallest first.
func (r *reference) append(tb testing.TB, leaf []byte) []Hash {
	tb.Helper()
	var node []Hash
	visit := func(id compact.NodeID, hash []byte) {
		if id.Level > 0 && id.Level%8 == 0 {
			node = append(node, Hash(hash))
		}
	}
	hash := rfc6962.DefaultHasher.HashLeaf(leaf)
	r.leaves = append(r.leaves, hash)
	if err := r.tree.Append(hash, visit); err != nil {
		tb.Fatal(err)
	}
	return node
}

func (r *reference) root(tb testing.TB) Hash {
	tb.Helper()
	root, err := r.tree.GetRootHash(nil)
	if err != nil {
		tb.Fatal(err)
	}
	if root == nil {
		root = rfc6962.DefaultHasher.EmptyRoot()
	}
	return Hash(root)
}

// tree is RFC 6962, section 2.1, to the letter.
func tree(leaves [][]byte) []byte {
	switch n := len(leaves); n {
	case 0:
		return rfc6962.DefaultHasher.EmptyRoot()
	case 1:
		return leaves[0]
	default:
		k := 1
		for k*2 < n {
			k *= 2
		}
		return rfc6962.DefaultHasher.HashChildren(tree(leaves[:k]), tree(leaves[k:]))
	}
}

// Roots, ranges and stored nodes agree with another implementation at every size up to past 256^2 leaves.
func TestAppend(t *testing.T) {
	head, ref := newTestHead(), newReference()
	if got := head.Root(); got != ref.root(t) {
		t.Fatalf("empty root %x", got)
	}
	var previous Hash
	for i := range uint64(1<<16 + 300) {
		leaf := testLeaf(i)
		hash, node := head.Append(&leaf)
		if leaf.Chain != head.Chain || leaf.Sequence != i || leaf.Previous != previous {
			t.Fatalf("leaf %d is %+v, previous hash %x", i, leaf, previous)
		}
		previous = hash
		want := ref.append(t, leaf.AppendTo(nil))
		if diff := cmp.Diff(want, node); diff != "" {
			t.Fatalf("nodes at leaf %d (-want +got):\n%s", i, diff)
		}
		if hash != Hash(ref.leaves[i]) || head.LastLeafHash != hash || head.Size != i+1 {
			t.Fatalf("leaf %d has hash %x, the head is %+v", i, hash, head)
		}
		if got := head.Root(); got != ref.root(t) {
			t.Fatalf("root at size %d is %x", i+1, got)
		}
		if err := head.Check(); err != nil {
			t.Fatal(err)
		}
	}
	var want []Hash
	for _, h := range ref.tree.Hashes() {
		want = append(want, Hash(h))
	}
	if diff := cmp.Diff(want, head.Range); diff != "" {
		t.Errorf("range (-want +got):\n%s", diff)
	}
}

// The definition, at sizes around powers of two.
func TestRootByDefinition(t *testing.T) {
	head, ref := newTestHead(), newReference()
	for i := range uint64(530) {
		leaf := testLeaf(i)
		head.Append(&leaf)
		ref.append(t, leaf.AppendTo(nil))
		if got := head.Root(); got != Hash(tree(ref.leaves)) {
			t.Fatalf("root at size %d is %x", i+1, got)
		}
	}
}

// The nodes of a chain are subtree roots: those of 256 leaves rebuild the root of 256^2, and so on.
func TestNodesAreSubtreeRoots(t *testing.T) {
	head, ref := newTestHead(), newReference()
	var small [][]byte
	for i := range uint64(1 << 16) {
		leaf := testLeaf(i)
		_, node := head.Append(&leaf)
		ref.append(t, leaf.AppendTo(nil))
		if (i+1)%256 != 0 {
			if len(node) != 0 {
				t.Fatalf("leaf %d stores %d nodes", i, len(node))
			}
			continue
		}
		if want := Hash(tree(ref.leaves[i-255:])); node[0] != want {
			t.Fatalf("node of leaf %d is %x, want %x", i, node[0], want)
		}
		small = append(small, node[0][:])
		if i == 1<<16-1 {
			if len(node) != 2 || node[1] != Hash(tree(small)) || node[1] != head.Root() {
				t.Errorf("leaf %d stores %x", i, node)
			}
		}
	}
}

// Chaining is a pure function of head and input: stopping anywhere and going on from a copy makes the same chain, and
// nothing that is done to the copy reaches the original.
func TestAppendFromAClone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(0, 700).Draw(t, "size")
		stop := rapid.Uint64Range(0, n).Draw(t, "stop")
		run := func(h *Head, to uint64) {
			for h.Size < to {
				leaf := testLeaf(h.Size)
				h.Append(&leaf)
			}
		}
		whole := newTestHead()
		run(&whole, n)

		first := newTestHead()
		run(&first, stop)
		second := first.Clone()
		rolledBack := second.Clone()
		run(&second, n)
		if diff := cmp.Diff(whole.Root(), second.Root()); diff != "" || second.LastLeafHash != whole.LastLeafHash {
			t.Fatalf("stopped at %d of %d (-whole +stopped):\n%s", stop, n, diff)
		}
		run(&rolledBack, n)
		if diff := cmp.Diff(second, rolledBack); diff != "" {
			t.Fatalf("run twice from %d (-first +second):\n%s", stop, diff)
		}
		if first.Size != stop {
			t.Fatalf("the original has size %d", first.Size)
		}
		run(&first, n)
		if diff := cmp.Diff(second, first); diff != "" {
			t.Fatalf("appending to copies changed the original (-want +got):\n%s", diff)
		}
	})
}

// Every field of a leaf is in its hash, and a leaf is no inner node.
func TestLeafHashCoversEveryField(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		leaf := testLeaf(rapid.Uint64Range(1, 1<<40).Draw(t, "leaf"))
		encoded := leaf.AppendTo(nil)
		if len(encoded) != LeafSize {
			t.Fatalf("a leaf has %d bytes", len(encoded))
		}
		changed := leaf
		switch rapid.IntRange(0, 11).Draw(t, "field") {
		case 0:
			changed.Chain[7]++
		case 1:
			changed.Sequence++
		case 2:
			changed.Previous[0]++
		case 3:
			changed.Kind++
		case 4:
			changed.ID[15]++
		case 5:
			changed.RecordedAt = -changed.RecordedAt
		case 6:
			changed.Generation++
		case 7:
			changed.Partition++
		case 8:
			changed.Offset += 1 << 40
		case 9:
			changed.FieldCount++
		case 10:
			changed.BodyRoot[31]++
		case 11:
			changed.Offset, changed.Sequence = changed.Sequence, changed.Offset
			if changed.Offset == changed.Sequence {
				t.Skip()
			}
		}
		if changed.Hash() == leaf.Hash() {
			t.Fatal("a changed leaf has the same hash")
		}
		if leaf.Hash() != Hash(rfc6962.DefaultHasher.HashLeaf(encoded)) {
			t.Fatal("the hash is not RFC 6962's")
		}
	})
}

func TestCheck(t *testing.T) {
	for _, h := range []Head{{Size: 3, Range: make([]Hash, 1)}, {Size: 0, Range: make([]Hash, 1)}, {Size: 1}} {
		if err := h.Check(); !errors.Is(err, ErrHead) {
			t.Errorf("size %d with %d roots: %v", h.Size, len(h.Range), err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	head := newTestHead()
	leaf := testLeaf(1)
	b.ReportAllocs()
	for b.Loop() {
		head.Append(&leaf)
	}
}

func BenchmarkCommitment(b *testing.B) {
	seed, path, value := [16]byte{1}, []byte("/metadata/old_value"), []byte(`"a value of thirty characters.."`)
	b.ReportAllocs()
	for b.Loop() {
		Commitment(seed, path, value)
	}
}
