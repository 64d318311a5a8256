package verifier

import (
	"testing"
)

func TestSound(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{HistoryLeaves: 500}).opened()
	a, b := r.chain(1, 0, 2), r.chain(1, 1, 2)
	r.ledger.Events(a, 700)
	r.ledger.Events(b, 20)
	r.epoch()
	r.write()
	for range 4 {
		r.once()
	}
	r.silent()
	if n := r.value("immutable_verifier_history_passes_total", ""); n < 1 {
		t.Errorf("%v passes over the history are complete", n)
	}
	if n := r.value("immutable_verifier_leaves_total", "history"); n < 722 {
		t.Errorf("%v leaves of the history", n)
	}
	if n := r.value("immutable_verifier_leaves_total", "newest"); n != 722 {
		t.Errorf("%v newest leaves, want 722", n)
	}
}
