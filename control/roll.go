package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"getimmutable.dev/immutable/event"
)

// MaxOverlap is the longest that a text may work after its key was rolled.
const MaxOverlap = 7 * 24 * time.Hour

// maxFormer bounds the former texts of a key that still work: each is one more that may leak.
const maxFormer = 4

// RollKey gives a key a new text, which it returns and which is not kept anywhere, and reports it as api_key.rolled. The
// text that the key had works for overlap longer, 0 to MaxOverlap in microseconds; former ones end then too, unless they
// end sooner. So an overlap of 0 ends all of them with the change itself, whatever the clocks of the services say.
// Where version is not 0 it is the one that the caller has seen. ErrConflict says that the key has changed since, or that
// too many of its former texts still work.
func (w *Writer) RollKey(
	ctx context.Context, by string, workspace, id [16]byte, version uint64, overlap time.Duration,
) (*Key, string, error) {
	if overlap < 0 || overlap > MaxOverlap {
		return nil, "", invalid("overlap_seconds", "an overlap is 0 to %d seconds (7 days)", int(MaxOverlap.Seconds()))
	}
	secret := drawSecret()
	var rolled *Key
	err := w.write(ctx, by, func(s *state) (*change, error) {
		ws, old, err := s.keyAt(workspace, id, version)
		if err != nil {
			return nil, err
		}
		if rolled, err = old.roll(secret, overlap, time.Now()); err != nil {
			return nil, err
		}
		former := []map[string]any{}
		for _, f := range rolled.Former {
			former = append(former, map[string]any{"hint": f.Hint, "until": event.FormatTime(f.Until)})
		}
		return keyChange(ws, rolled, "api_key.rolled", map[string]any{
			"old_hint": old.Hint, "hint": rolled.Hint, "overlap_seconds": overlap.Seconds(), "former": former,
		}), nil
	})
	if err != nil {
		return nil, "", err
	}
	return rolled, secret, nil
}

// roll returns the key as it is with another text from now on.
func (k *Key) roll(secret string, overlap time.Duration, now time.Time) (*Key, error) {
	end := now.Add(overlap).UTC().Truncate(time.Microsecond)
	rolled := *k
	rolled.Hash, rolled.Hint = HashSecret(secret), hintOf(secret)
	if k.First == ([32]byte{}) {
		rolled.First = k.Hash
	}
	rolled.Version++
	rolled.Former = append(slices.Clone(k.Former), FormerSecret{k.Hash, k.Hint, end})
	for i := range rolled.Former {
		if f := &rolled.Former[i]; f.Until.After(end) {
			f.Until = end
		}
	}
	rolled.Former = rolled.formerAt(now)
	if len(rolled.Former) > maxFormer {
		return nil, fmt.Errorf("%w: %d former texts of the API key still work, the first until %s: "+
			"wait, or roll it with an overlap of 0, which ends them all", ErrConflict, maxFormer, event.FormatTime(earliest(k.formerAt(now))))
	}
	return &rolled, nil
}

// formerAt returns the former texts that work at now.
func (k *Key) formerAt(now time.Time) []FormerSecret {
	var left []FormerSecret
	for _, f := range k.Former {
		if now.Before(f.Until) {
			left = append(left, f)
		}
	}
	return left
}

// earliest returns the first end of several former texts.
func earliest(former []FormerSecret) time.Time {
	return slices.MinFunc(former, func(a, b FormerSecret) int { return a.Until.Compare(b.Until) }).Until
}

// taken reports whether any key has a text, was created with it, or has it still as a former one.
func (s *state) taken(hash [32]byte) bool {
	for _, o := range s.objects {
		if o.key != nil && (o.key.Hash == hash || o.key.First == hash ||
			slices.ContainsFunc(o.key.Former, func(f FormerSecret) bool { return f.Hash == hash })) {
			return true
		}
	}
	return false
}
