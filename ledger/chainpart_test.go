package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"testing"
)

// TestAppendSubtrees brings heads of every size up to another by stored hashes alone.
func TestAppendSubtrees(t *testing.T) {
	const most = 600
	var levels [2][]Hash
	heads := []Head{{}}
	var head Head
	for i := range uint64(most) {
		hash := Hash(sha256.Sum256(binary.BigEndian.AppendUint64(nil, i)))
		levels[0] = append(levels[0], hash)
		levels[1] = append(levels[1], head.AppendHash(hash)...)
		heads = append(heads, head.Clone())
	}
	for from := uint64(0); from <= most; from += 7 {
		for to := from; to <= most; to += 11 {
			plan := SubtreesBetween(from, to)
			var stored [][]Hash
			for _, s := range plan.Spans() {
				stored = append(stored, slices.Clone(levels[s.Level][s.From:s.To]))
			}
			subtrees, err := plan.Build(stored)
			if err != nil {
				t.Fatal(err)
			}
			h := heads[from].Clone()
			if err := h.AppendSubtrees(to, subtrees); err != nil {
				t.Fatalf("%d to %d: %v", from, to, err)
			}
			if h.Size != to || !slices.Equal(h.Range, heads[to].Range) {
				t.Fatalf("%d to %d: another range", from, to)
			}
			if to > from && h.AppendSubtrees(from, nil) == nil {
				t.Fatalf("%d back to %d: no error", to, from)
			}
		}
	}
	short := Head{Size: 3}
	if err := short.AppendSubtrees(4, make([]Hash, 1)); err == nil {
		t.Error("a head without its range was brought to a larger size")
	}
}
