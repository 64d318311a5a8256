package witness

import (
	"net/http"
	"path/filepath"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is submitted in whatever order, by a log that has two pasts, with restarts between: what was cosigned is always
// the beginning of what is cosigned after it, and each answer is the one that the specification gives.
func TestNeverTwoPasts(t *testing.T) {
	key, vkey := logKey(t, testOrigin, 1)
	trust := mustTrust(t, vkey)
	dirs, runs := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		const size = 12
		forkAt := rapid.IntRange(0, size).Draw(t, "fork at")
		branches := []*testLog{newTestLog(key, size, size, ""), newTestLog(key, size, forkAt, "fork")}
		runs++
		dir := filepath.Join(dirs, strconv.Itoa(runs))
		w := start(t, Config{Dir: dir}, trust)
		defer func() { w.stop() }()
		var known uint64         // size that was cosigned last
		root := branches[0].root // of what was
		for range rapid.IntRange(1, 12).Draw(t, "requests") {
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				w.stop()
				w = start(t, Config{Dir: dir}, trust)
			}
			l := branches[rapid.IntRange(0, 1).Draw(t, "branch")]
			to := rapid.Uint64Range(0, size).Draw(t, "to")
			from := known
			if rapid.IntRange(0, 3).Draw(t, "guess") == 0 {
				from = rapid.Uint64Range(0, size).Draw(t, "from")
			}
			want := http.StatusOK
			switch {
			case from > to:
				want = http.StatusBadRequest
			case from != known:
				want = http.StatusConflict
			case from > 0 && root(known) != l.root(known):
				want = http.StatusUnprocessableEntity
			}
			a := w.post(l.request(t, from, to))
			if a.code != want {
				t.Fatalf("from %d to %d, knowing %d: %+v, want %d", from, to, known, a, want)
			}
			if a.code == http.StatusOK {
				cosigned(t, a, l.checkpoint(t, to))
				if known > 0 && l.root(known) != root(known) {
					t.Fatalf("size %d does not continue size %d", to, known)
				}
				known, root = to, l.root
			}
		}
	})
}
