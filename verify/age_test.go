package verify_test

import (
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// Whoever holds the log's key dates its epochs as he likes. Where witnesses are asked for, what they have not seen lately is stale.
func TestStaleByWitnesses(t *testing.T) {
	l := newLedger()
	one, two, three := ledgertest.NewWitness("one.example", 11), ledgertest.NewWitness("two.example", 12), ledgertest.NewWitness("three.example", 13)
	log := "log " + ledgertest.NewKey(ledgertest.Origin, 1).Verifier()
	policy := []string{
		log, "witness one " + one.Verifier(), "witness two " + two.Verifier(), "witness three " + three.Verifier(), "group most 2 one two three", "quorum most",
	}
	now := l.Now()
	old := now.Add(-time.Hour)
	for _, tc := range []struct {
		name  string
		at    [3]time.Time // of the cosignatures; zero is none
		trust []string
		exit  int
	}{
		{"all have seen it lately", [3]time.Time{now, now, now}, policy, verify.ExitVerified},
		{"enough have", [3]time.Time{now, old, now}, policy, verify.ExitVerified},
		{"one has, as colluding ones can say", [3]time.Time{now, old, old}, policy, verify.ExitUndecided},
		{"none has", [3]time.Time{old, old}, policy, verify.ExitUndecided},
		{"nobody is asked", [3]time.Time{old, old, old}, append(policy[:5:5], "quorum none"), verify.ExitVerified},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l.Cosigners = nil
			for i, w := range []ledgertest.Key{one, two, three} {
				if w.At = tc.at[i]; !w.At.IsZero() {
					l.Cosigners = append(l.Cosigners, w)
				}
			}
			l.Rebuild()
			a := newAPI(t, l)
			cfg := a.config()
			cfg.Trust = trust(t, tc.trust...)
			r := a.verify(cfg)
			if r.Exit != tc.exit || (r.Found[ledger.Stale] == 1) != (tc.exit == verify.ExitUndecided) {
				t.Error(r.Text())
			}
			if tc.exit == verify.ExitUndecided && !strings.Contains(r.Text(), "cosignatures are of an age of 1h1m0s") {
				t.Error(r.Text())
			}
		})
	}
}

// A root log has an epoch each minute, whatever happens: where it had none, it is said, and no fault.
func TestSilence(t *testing.T) {
	l := newLedger()
	l.Wait(7 * time.Minute)
	l.Epoch()
	l.Wait(4 * time.Minute)
	l.Epoch()
	l.Wait(time.Hour)
	l.Rotate(ledgertest.NewKey(ledgertest.Origin, 3))
	l.Epoch()
	a := newAPI(t, l)
	const want = "silent for more than 5m0s 2 times, for 1h0m20s before epoch 10 of "
	if r := a.verify(a.config()); r.Exit != verify.ExitVerified || !strings.Contains(r.Text(), want) {
		t.Errorf("want %q: %s", want, r.Text())
	}
	if r := newAPI(t, newLedger()).verify(a.config()); strings.Contains(r.Text(), "silent") {
		t.Error(r.Text())
	}
}
