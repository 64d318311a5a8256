package ledger

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// TestSightings compares with a plain list: an id is found where it is among the last leaves, with its newest place, and nowhere else.
func TestSightings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := sightings{most: rapid.IntRange(1, 6).Draw(t, "most"), at: map[[16]byte]int{}}
		var all []Sighting
		for i, id := range rapid.SliceOf(rapid.ByteRange(0, 9)).Draw(t, "ids") {
			n := Sighting{ID: [16]byte{id}, Sequence: uint64(i)}
			var want Sighting
			wanted := false
			for _, old := range all[max(0, len(all)-s.most):] {
				if old.ID == n.ID {
					want, wanted = old, true
				}
			}
			if before, again := s.see(&n); again != wanted || again && before != want {
				t.Fatalf("%d at %d: %v, %v, want %v, %v", id, i, before, again, want, wanted)
			}
			all = append(all, n)
			if len(s.ring) > s.most || len(s.at) > s.most {
				t.Fatalf("%d places and %d ids are kept", len(s.ring), len(s.at))
			}
		}
	})
}

func TestSentAgain(t *testing.T) {
	const far, week = 180_000, 7 * 24 * 3600 * 1_000_000
	first := Sighting{ID: [16]byte{6: 0x80}, RecordedAt: 1, Generation: 1, Partition: 3, Offset: 1000}
	for name, tc := range map[string]struct {
		again Sighting
		want  bool
	}{
		"far behind":                   {Sighting{RecordedAt: 2, Generation: 1, Partition: 3, Offset: 1000 + far}, true},
		"in the window":                {Sighting{RecordedAt: 2, Generation: 1, Partition: 3, Offset: 1000 + far - 1}, false},
		"a week later":                 {Sighting{RecordedAt: 1 + week, Generation: 1, Partition: 3, Offset: 1001}, true},
		"almost a week later":          {Sighting{RecordedAt: week, Generation: 1, Partition: 3, Offset: 1001}, false},
		"times as far as can be":       {Sighting{RecordedAt: math.MinInt64, Generation: 1, Partition: 3, Offset: 1001}, true},
		"a copy, far behind":           {Sighting{RecordedAt: 1, Generation: 1, Partition: 3, Offset: 1000 + far}, false},
		"a copy in another generation": {Sighting{RecordedAt: 1, Generation: 2, Partition: 3, Offset: 1000}, false},
		"in another generation":        {Sighting{RecordedAt: 2, Generation: 2, Partition: 3, Offset: 1000}, true},
		"on another partition":         {Sighting{RecordedAt: 1 + week, Generation: 1, Partition: 4, Offset: 1000 + far}, false},
	} {
		tc.again.ID = first.ID
		if got, back := first.SentAgain(&tc.again), tc.again.SentAgain(&first); got != tc.want || back != tc.want {
			t.Errorf("%s: %t, %t", name, got, back)
		}
		one := first
		one.ID[6], tc.again.ID[6] = 0x70, 0x70
		if one.SentAgain(&tc.again) {
			t.Errorf("%s: without an idempotency key", name)
		}
	}
}
