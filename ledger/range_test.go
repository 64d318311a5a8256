package ledger

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The leaves of any range, with what is stored of the others, make the root of the tree.
func TestRange(t *testing.T) {
	tree, _ := newTrees(t, 1<<16+700)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint64Range(0, tree.Size).Draw(t, "size")
		end := rapid.Uint64Range(0, size).Draw(t, "end")
		begin := rapid.Uint64Range(end-min(end, 600), end).Draw(t, "begin")
		plan, err := PlanRange(begin, end, size)
		if err != nil {
			t.Fatal(err)
		}
		var stored [][]Hash
		for _, s := range plan.Spans() {
			if s.Level == 0 && s.From < end && s.To > begin {
				t.Fatalf("a plan for %d to %d reads %+v", begin, end, s)
			}
			stored = append(stored, slices.Clone(tree.levels[s.Level][s.From:s.To]))
		}
		r, err := plan.Start(stored)
		if err != nil {
			t.Fatal(err)
		}
		for _, leaf := range tree.levels[0][begin:end] {
			if _, err := r.Root(); err == nil {
				t.Fatal("a root of half a range")
			}
			if err := r.Append(leaf); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Append(Hash{}); err == nil {
			t.Fatal("more leaves than there are")
		}
		root, err := r.Root()
		if err != nil {
			t.Fatal(err)
		}
		if want := tree.rootAt(t, size); root != want {
			t.Errorf("root %x of %d to %d in %d, want %x", root, begin, end, size, want)
		}
	})
	for _, bad := range [][3]uint64{{2, 1, 3}, {1, 4, 3}} {
		if _, err := PlanRange(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%v is planned", bad)
		}
	}
	plan, _ := PlanRange(1, 2, 3)
	for _, stored := range [][][]Hash{nil, {{}, {{}}}, {{{}}, {}}} {
		if _, err := plan.Start(stored); err == nil {
			t.Errorf("%v is enough", stored)
		}
	}
}
