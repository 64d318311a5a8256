package ledger

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// storedTree is what is stored of a tree: leaf hashes, and the roots of the complete subtrees of 256^k leaves.
type storedTree struct {
	Head
	levels [][]Hash
}

func (s *storedTree) add(hash Hash) {
	s.store(hash, s.AppendHash(hash))
}

func (s *storedTree) store(hash Hash, node []Hash) {
	for level, h := range append([]Hash{hash}, node...) {
		if len(s.levels) == level {
			s.levels = append(s.levels, nil)
		}
		s.levels[level] = append(s.levels[level], h)
	}
}

// build reads what a plan needs and returns the proof.
func (s *storedTree) build(tb rapid.TB, p *ProofPlan) []Hash {
	tb.Helper()
	var stored [][]Hash
	for _, span := range p.Spans() {
		stored = append(stored, slices.Clone(s.levels[span.Level][span.From:span.To]))
	}
	path, err := p.Build(stored)
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

func (s *storedTree) inclusion(tb rapid.TB, index, size uint64) []Hash {
	tb.Helper()
	p, err := PlanInclusion(index, size)
	if err != nil {
		tb.Fatal(err)
	}
	return s.build(tb, p)
}

func (s *storedTree) consistency(tb rapid.TB, size1, size2 uint64) []Hash {
	tb.Helper()
	p, err := PlanConsistency(size1, size2)
	if err != nil {
		tb.Fatal(err)
	}
	return s.build(tb, p)
}

// rootAt is the root at a size, from what is stored.
func (s *storedTree) rootAt(tb rapid.TB, size uint64) Hash {
	tb.Helper()
	h := Head{Size: size, Range: s.build(tb, PerfectSubtrees(size))}
	return h.Root()
}

// oracle keeps the same tree as golang.org/x/mod/sumdb/tlog does.
type oracle struct {
	hashes []tlog.Hash
	size   int64
}

func (o *oracle) ReadHashes(indexes []int64) (hashes []tlog.Hash, err error) {
	for _, i := range indexes {
		hashes = append(hashes, o.hashes[i])
	}
	return hashes, nil
}

func (o *oracle) add(tb rapid.TB, hash Hash) {
	tb.Helper()
	hashes, err := tlog.StoredHashesForRecordHash(o.size, tlog.Hash(hash), o)
	if err != nil {
		tb.Fatal(err)
	}
	o.hashes = append(o.hashes, hashes...)
	o.size++
}

// newTrees makes one tree twice.
func newTrees(tb rapid.TB, n int) (*storedTree, *oracle) {
	tb.Helper()
	s, o := new(storedTree), new(oracle)
	for i := range n {
		hash := Hash(rfc6962.DefaultHasher.HashLeaf(fmt.Append(nil, i)))
		s.add(hash)
		o.add(tb, hash)
	}
	return s, o
}

func fromOracle(path []tlog.Hash) (hashes []Hash) {
	for _, h := range path {
		hashes = append(hashes, Hash(h))
	}
	return hashes
}

// Proofs built of what is stored are those of another implementation, which accepts ours, and ours accepts its.
func TestProofs(t *testing.T) {
	const leaves = 1<<16 + 700
	tree, other := newTrees(t, leaves)
	check := func(tb rapid.TB, index, size uint64) {
		tb.Helper()
		root := tree.rootAt(tb, size)
		if want, err := tlog.TreeHash(int64(size), other); err != nil || root != Hash(want) {
			tb.Fatalf("root at %d is %x, want %x: %v", size, root, want, err)
		}
		path := tree.inclusion(tb, index, size)
		if err := VerifyInclusion(tree.levels[0][index], index, size, path, root); err != nil {
			tb.Fatal(err)
		}
		want, err := tlog.ProveRecord(int64(size), int64(index), other)
		if err != nil || !slices.Equal(path, fromOracle(want)) {
			tb.Fatalf("inclusion of %d in %d: %x, want %x: %v", index, size, path, want, err)
		}
		if index == 0 {
			return
		}
		path = tree.consistency(tb, index, size)
		if err := VerifyConsistency(index, size, path, tree.rootAt(tb, index), root); err != nil {
			tb.Fatal(err)
		}
		oldTree, err := tlog.ProveTree(int64(size), int64(index), other)
		if err != nil || !slices.Equal(path, fromOracle(oldTree)) {
			tb.Fatalf("consistency of %d with %d: %x, want %x: %v", size, index, path, oldTree, err)
		}
	}
	for size := range uint64(70) {
		for index := range size {
			check(t, index, size)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint64Range(1, leaves).Draw(t, "size")
		check(t, rapid.Uint64Range(0, size-1).Draw(t, "index"), size)
	})
}

// However large the tree, a proof reads at most 512 hashes for each factor of 256.
func TestProofReadsFewHashes(t *testing.T) {
	most := func(size uint64) (limit int) {
		for limit = 512; size > 256; size /= 256 {
			limit += 512
		}
		return limit
	}
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint64Range(1, 1<<rapid.IntRange(1, 50).Draw(t, "bits")).Draw(t, "size")
		index := rapid.Uint64Range(0, size-1).Draw(t, "index")
		inclusion, err := PlanInclusion(index, size)
		if err != nil {
			t.Fatal(err)
		}
		consistency, err := PlanConsistency(index, size)
		if err != nil {
			t.Fatal(err)
		}
		for what, p := range map[string]*ProofPlan{"inclusion": inclusion, "consistency": consistency, "range": PerfectSubtrees(size)} {
			n := 0
			for _, s := range p.Spans() {
				n += int(s.To - s.From)
				if width := uint64(1) << (8 * s.Level); s.To-s.From > 128 || s.To*width > size {
					t.Fatalf("%s at %d of %d reads %+v", what, index, size, s)
				}
			}
			if n > most(size) {
				t.Fatalf("%s at %d of %d reads %d hashes, at most %d are allowed", what, index, size, n, most(size))
			}
		}
	})
}

func TestProofsThatDoNotHold(t *testing.T) {
	tree, _ := newTrees(t, 700)
	const index, size = 300, 600
	leaf, root := tree.levels[0][index], tree.rootAt(t, size)
	path := tree.inclusion(t, index, size)
	changed := slices.Clone(path)
	changed[3][7] ^= 1
	for _, tc := range []struct {
		name        string
		leaf        Hash
		index, size uint64
		path        []Hash
		root        Hash
	}{
		{"another leaf", tree.levels[0][index+1], index, size, path, root},
		{"another index", leaf, index + 1, size, path, root},
		// A proof alone does not tell 600 from 601: checkpoint and map bind size and root together.
		{"another size", leaf, index, 1025, path, root},
		{"another root", leaf, index, size, path, tree.rootAt(t, size+1)},
		{"a changed hash", leaf, index, size, changed, root},
		{"too short", leaf, index, size, path[:len(path)-1], root},
		{"too long", leaf, index, size, append(slices.Clone(path), Hash{}), root},
		{"none", leaf, index, size, nil, root},
		{"index = size", leaf, size, size, path, root},
		{"index > size", leaf, size + 1, size, path, root},
		{"size 0", leaf, 0, 0, nil, root},
		{"the largest numbers", leaf, 1<<64 - 2, 1<<64 - 1, path, root},
		{"an inner node as a leaf", tree.build(t, PerfectSubtrees(256))[0], 0, 1, nil, tree.rootAt(t, 256)},
	} {
		t.Run("inclusion/"+tc.name, func(t *testing.T) {
			err := VerifyInclusion(tc.leaf, tc.index, tc.size, tc.path, tc.root)
			if tc.name == "an inner node as a leaf" {
				// A tree of size 1 with that root: what tells them apart is the size, which is signed.
				if err != nil {
					t.Fatal(err)
				}
				err = VerifyInclusion(tc.leaf, tc.index, 256, tc.path, tc.root)
			}
			if !errors.Is(err, ErrProof) {
				t.Errorf("error %v", err)
			}
		})
	}

	old := tree.rootAt(t, index)
	path = tree.consistency(t, index, size)
	for _, tc := range []struct {
		name         string
		size1, size2 uint64
		path         []Hash
		root1, root2 Hash
	}{
		{"another old root", index, size, path, tree.rootAt(t, index+1), root},
		{"another new root", index, size, path, old, tree.rootAt(t, size+1)},
		{"another old size", index + 1, size, path, old, root},
		{"another new size", index, 1025, path, old, root},
		{"too short", index, size, path[1:], old, root},
		{"too long", index, size, append(slices.Clone(path), Hash{}), old, root},
		{"none", index, size, nil, old, root},
		{"one size, two roots", size, size, nil, old, root},
		{"backwards", size, index, path, root, old},
		{"an empty tree with a root", 0, size, nil, old, root},
		{"a proof from nothing", 0, size, path, Hash(rfc6962.DefaultHasher.EmptyRoot()), root},
	} {
		t.Run("consistency/"+tc.name, func(t *testing.T) {
			if err := VerifyConsistency(tc.size1, tc.size2, tc.path, tc.root1, tc.root2); !errors.Is(err, ErrProof) {
				t.Errorf("error %v", err)
			}
		})
	}
	if err := VerifyConsistency(0, size, nil, Hash(rfc6962.DefaultHasher.EmptyRoot()), root); err != nil {
		t.Errorf("from the empty tree: %v", err)
	}
}

func TestBuildingOfTheWrongHashes(t *testing.T) {
	p, err := PlanInclusion(3, 700)
	if err != nil {
		t.Fatal(err)
	}
	spans := p.Spans()
	if _, err := p.Build(make([][]Hash, len(spans)-1)); err == nil {
		t.Error("a span is missing")
	}
	if _, err := p.Build(make([][]Hash, len(spans))); err == nil {
		t.Error("the hashes of every span are missing")
	}
	if _, err := PlanInclusion(5, 5); err == nil {
		t.Error("index 5 is in a tree of size 5")
	}
	if _, err := PlanConsistency(6, 5); err == nil {
		t.Error("size 6 is the beginning of size 5")
	}
}
