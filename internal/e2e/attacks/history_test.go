package attacks

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// witnessPolicy demands a cosignature of the witness of seed 11.
func witnessPolicy() []string {
	return []string{
		"log " + ledgertest.NewKey(ledgertest.Origin, 1).Verifier(), "witness one " + ledgertest.NewWitness("one.example", 11).Verifier(), "quorum one",
	}
}

// newWitnessed is newLedger with a witness that has seen all of it.
func newWitnessed() *ledgertest.Ledger {
	l := newLedger()
	l.Cosigners = []ledgertest.Key{ledgertest.NewWitness("one.example", 11)}
	l.Rebuild()
	return l
}

// anewLater is a ledger whose first chain was written anew from sequence 30 on, and stated so from the sixth epoch on, in the one root log that a witness
// has seen: no entry of that was changed.
func anewLater(more int) *ledgertest.Ledger {
	l := newWitnessed()
	c := l.Chains[0]
	c.Leaves[30].Body = bytes.Replace(c.Leaves[30].Body, []byte("curl"), []byte("curm"), 1)
	c.Reseal(30)
	l.Events(c, more)
	l.Epoch()
	return l
}

// TestWrittenAnewLater is attack 11 in one consistent root log: somebody who has never been there finds it.
func TestWrittenAnewLater(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		more int
	}{{"with events after it", 10}, {"in place", 0}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := anewLater(tc.more)
			s := newServer(l)
			flags := serve(t, s)
			r := newAuditor(t, witnessPolicy()...).run(flags...)
			r.want(t, verify.ExitTampered, at(ledger.Forked, l.Chains[0], "21..40"))
			if len(r.Evidence) != 1 || !strings.Contains(r.output, `"verdict": "FORKED"`) {
				t.Fatal(r.output)
			}
			convicts(t, r.Evidence[0], l.Chains[0])
			// Two epochs that are of one history do not show it.
			r = newAuditor(t, witnessPolicy()...).run(append(flags, "--epochs=1")...)
			r.want(t, verify.ExitVerified)
			if !strings.Contains(strings.Join(r.NotChecked, "\n"), "5 of 6 epochs") {
				t.Error(r.output)
			}
			// An API that does not say what it said before verifies nothing.
			s.Refuse = func(uri string) bool { return strings.Contains(uri, "epoch=2&") || strings.Contains(uri, "epoch=3&") }
			s.Lock()
			s.Ledger = newWitnessed()
			s.Unlock()
			newAuditor(t, witnessPolicy()...).run(flags...).want(t, verify.ExitUndecided)
		})
	}
}

// convicts holds a file to what it must be: evidence that needs nothing but the log's key, whose holder it convicts.
func convicts(t *testing.T, path string, c *ledgertest.Chain) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ledger.ParseChainFork(text)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := ledger.ParseTrust([]byte(ledgertest.NewKey(ledgertest.Origin, 1).Verifier()))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Verify(trust, time.Now()); err != nil || f.Chain != c.ID {
		t.Errorf("%v: %s", err, text)
	}
}

// TestChainGone: a chain that older epochs have, or have with more leaves.
func TestChainGone(t *testing.T) {
	t.Parallel()
	for name, left := range map[string]int{"deleted": 0, "cut": 40} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newWitnessed()
			l.Chains[0].Leaves = l.Chains[0].Leaves[:left]
			l.Epoch()
			r := newAuditor(t, witnessPolicy()...).run(serve(t, newServer(l))...)
			r.want(t, verify.ExitTampered, "ROLLED BACK sequence 7 ", "ROLLED BACK chain")
			if len(r.Evidence) != 1 {
				t.Fatal(r.output)
			}
			convicts(t, r.Evidence[0], l.Chains[0])
		})
	}
}

// TestStartedAfresh is attack 13 of an API that shows nothing of what was before: the auditor remembers it.
func TestStartedAfresh(t *testing.T) {
	t.Parallel()
	s := newServer(newWitnessed())
	flags := serve(t, s)
	a := newAuditor(t, witnessPolicy()...)
	a.memory = true
	a.run(flags...).want(t, verify.ExitVerified)
	l := s.Ledger
	s.Hidden = map[ledger.ChainID]bool{}
	for _, c := range l.Chains[:2] {
		s.Hidden[c.ID] = true
		l.Events(l.Chain(1, 2, c.Lane, c.Lanes), 30)
	}
	l.Epoch()
	r := a.run(flags...)
	r.want(t, verify.ExitTampered, "ROLLED BACK ")
	if said := strings.Join(r.Undecided, "\n"); strings.Count(said, "is neither shown nor proven to be gone") != 2 {
		t.Error(r.output)
	}
	// Another workspace, with the same key: nobody has signed which one a key is for. It stays so.
	s.Workspace, s.Hidden = ledgertest.Workspace(2), nil
	for range 2 {
		r = a.run(flags...)
		r.want(t, verify.ExitUndecided)
		if !strings.Contains(strings.Join(r.Undecided, "\n"), "or the answer is to another API key") {
			t.Error(r.output)
		}
	}
	// With another key it is another workspace, and no crime.
	s.Key = "imk_other"
	flags[2] = "--api-key=imk_other"
	r = a.run(flags...)
	r.want(t, verify.ExitVerified)
	if !strings.Contains(strings.Join(r.NotChecked, "\n"), "1 other workspaces") {
		t.Error(r.output)
	}
}

// TestWorkspaceGone is attack 13 where nothing of the workspace is left, and nothing is put in its place: the newest epoch proves that it has none of the
// chains that the auditor remembers.
func TestWorkspaceGone(t *testing.T) {
	t.Parallel()
	s := newServer(newWitnessed())
	flags := append(serve(t, s), "--epochs=1")
	a := newAuditor(t, witnessPolicy()...)
	a.memory = true
	a.run(flags...).want(t, verify.ExitVerified)
	l := s.Ledger
	for i, c := range l.Chains[:2] {
		s.Incarnation, s.Lanes = c.Incarnation, c.Lanes
		c.Leaves = nil
		l.Events(l.Chain(byte(5+4*i), 1, 0, 1), 300) // so that no count of the epoch falls
	}
	l.Epoch()
	r := a.run(flags...)
	r.want(t, verify.ExitTampered, "ROLLED BACK chain", "ROLLED BACK chain")
	if len(r.Evidence) != 2 {
		t.Fatal(r.output)
	}
	for i, c := range l.Chains[:2] {
		j := slices.IndexFunc(r.Evidence, func(path string) bool { return strings.Contains(path, fmt.Sprintf("%x", c.ID)) })
		if j < 0 {
			t.Fatalf("no evidence of chain %d: %s", i, r.output)
		}
		convicts(t, r.Evidence[j], c)
	}
}

// TestHiddenLane: one chain of the workspace is left out of every answer.
func TestHiddenLane(t *testing.T) {
	t.Parallel()
	l := newWitnessed()
	s := newServer(l)
	s.Hidden = map[ledger.ChainID]bool{l.Chains[1].ID: true}
	r := newAuditor(t, witnessPolicy()...).run(serve(t, s)...)
	r.want(t, verify.ExitUndecided)
	if !slices.ContainsFunc(r.Undecided, func(line string) bool { return strings.Contains(line, "no chain of lanes [1] of 2") }) {
		t.Error(r.output)
	}
}

// TestWitnessAway: the newest checkpoints have no cosignature, and an older one has.
func TestWitnessAway(t *testing.T) {
	t.Parallel()
	l := newWitnessed()
	s := newServer(l)
	flags := serve(t, s)
	l.Cosigners = nil
	for range 2 {
		l.Events(l.Chains[0], 5)
		l.Epoch()
	}
	a := newAuditor(t, witnessPolicy()...)
	a.memory = true
	for range 2 {
		r := a.run(flags...)
		r.want(t, verify.ExitVerified, "UNSEALED TAIL chain")
		var shown struct {
			Checkpoint verify.CheckpointReport
			Notes      []string
		}
		if err := json.Unmarshal([]byte(r.output), &shown); err != nil {
			t.Fatal(err)
		}
		b := shown.Checkpoint.Behind
		if r.Level != verify.TamperEvident || b == nil || b.Size != 9 || b.Epochs != 2 || b.Seconds < 20 || shown.Checkpoint.Size != 7 ||
			!strings.Contains(strings.Join(shown.Notes, "\n"), "2 epochs and 20s before it") {
			t.Error(r.output)
		}
	}
	// Whoever has accepted more than witnesses have seen is not led back.
	free := newAuditor(t)
	free.memory = true
	free.run(flags...).want(t, verify.ExitVerified)
	if err := os.WriteFile(free.dir+"/trust", []byte(strings.Join(witnessPolicy(), "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	free.run(flags...).want(t, verify.ExitNotTrusted, "QUORUM NOT MET ")
}
