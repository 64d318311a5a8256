package ledger

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// FuzzChainVerifier changes a stored chain in random ways: whatever is done to it, the verifier ends, and finds something unless nothing was done.
func FuzzChainVerifier(f *testing.F) {
	c := newTestChain(f, 40)
	original := c.stored(f)
	f.Add([]byte{0, 5, 9, 1, 7, 2, 2, 9, 4})
	f.Add([]byte{3, 5, 9, 4, 7, 2, 5, 9, 30, 6, 3, 1})
	f.Add(bytes.Repeat([]byte{2, 3, 20}, 9))
	f.Fuzz(func(t *testing.T, ops []byte) {
		leaves := c.stored(t)
		for ; len(ops) >= 3 && len(leaves) > 1 && len(leaves) < 100; ops = ops[3:] {
			i, x := int(ops[1])%len(leaves), ops[2]
			l := &leaves[i]
			switch ops[0] % 10 {
			case 0:
				if len(l.Body) > 0 {
					l.Body[int(x)%len(l.Body)] ^= 1 + x%7
				}
			case 1:
				l.Seed[x%16] ^= x
			case 2:
				j := int(x) % len(leaves)
				leaves[i], leaves[j] = leaves[j], leaves[i]
				leaves[i].Sequence, leaves[j].Sequence = leaves[j].Sequence, leaves[i].Sequence
			case 3:
				leaves = slices.Delete(leaves, i, min(len(leaves), i+1+int(x%4)))
			case 4:
				again := *l
				again.Sequence += uint64(x % 3)
				again.Body = slices.Clone(l.Body)
				leaves = slices.Insert(leaves, i+1, again)
			case 5:
				l.Hash[x%32] ^= x
			case 6:
				resignAll(leaves, i, min(len(leaves), i+int(x)))
			case 7:
				for j := i; j < len(leaves); j++ {
					leaves[j].Sequence += uint64(x % 3)
				}
			case 8:
				l.Offset += uint64(x)
			default:
				l.Node = append(l.Node, Hash{x})
			}
		}
		slices.SortStableFunc(leaves, func(a, b StoredLeaf) int { return compare(a.Sequence, b.Sequence) })
		same := len(leaves) == len(original)
		for i := range leaves {
			leaves[i].content = content{}
			same = same && fmt.Sprintf("%+v", leaves[i]) == fmt.Sprintf("%+v", original[i])
		}
		faults, _ := verifyStored(c, leaves)
		if same != (len(faults) == 0) {
			t.Errorf("the same: %t, faults:\n%s", same, strings.Join(faults, "\n"))
		}
	})
}

func resignAll(leaves []StoredLeaf, from, to int) {
	var h ContentHasher
	for i := max(from, 1); i < to; i++ {
		h.Digest(&leaves[i])
		l := leaves[i].Leaf
		l.Previous = leaves[i-1].Hash
		l.BodyRoot, l.FieldCount, _ = leaves[i].ContentRoot()
		if l.Kind == KindGenesis {
			continue
		}
		leaves[i].Hash = l.Hash()
	}
}

// Leaves that were renumbered after one was taken out or put in are one finding, however many they are.
func TestChainRenumberedFar(t *testing.T) {
	c := newTestChain(t, 3000)
	for name, tc := range map[string]struct {
		spoil func(l []StoredLeaf) []StoredLeaf
		want  string
	}{
		"put in":    {func(l []StoredLeaf) []StoredLeaf { return slices.Insert(l, 50, l[60]) }, "INSERTED"},
		"taken out": {func(l []StoredLeaf) []StoredLeaf { return slices.Delete(l, 50, 51) }, "MISSING"},
	} {
		l := tc.spoil(c.stored(t))
		for i := range l {
			l[i].Sequence = uint64(i)
		}
		if faults, _ := verifyStored(c, l); len(faults) != 1 || !strings.HasPrefix(faults[0], tc.want) || !strings.Contains(faults[0], "sequence 50") {
			t.Errorf("%s: %d faults: %.2000q", name, len(faults), faults)
		}
	}
}
