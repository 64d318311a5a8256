package attacks

import (
	"bytes"
	"slices"
	"testing"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// anew is a ledger whose first chain was written anew from sequence 30 on, with all its hashes and nodes, under the root log as it was signed.
func anew() *ledgertest.Ledger {
	l := newLedger()
	c := l.Chains[0]
	c.Leaves[30].Body = bytes.Replace(c.Leaves[30].Body, []byte("curl"), []byte("curm"), 1)
	c.Reseal(30)
	return l
}

// TestTableHistories: what no single row shows. The auditor of the second column has been there before.
func TestTableHistories(t *testing.T) {
	long(t)
	t.Parallel()
	chain := newLedger().Chains[0]
	for _, tc := range []struct {
		name     string
		memory   bool
		after    func(s *tables)
		exit     int
		want     []string
		evidence bool
	}{
		{"grown", true, func(s *tables) { s.write(grown(newLedger())) }, verify.ExitVerified, nil, false},
		{"1 a chain written anew with its hashes", false, func(s *tables) { s.write(anew()) }, verify.ExitTampered, []string{"MODIFIED "}, false},
		{"1 a chain written anew with its hashes, remembered", true, func(s *tables) { s.write(anew()) }, verify.ExitTampered, []string{
			at(ledger.Modified, chain, "0..100"),
		}, false},
		{"9 the tail cut off", false, func(s *tables) { s.both("ALTER TABLE DELETE WHERE CHAIN AND sequence >= 90") }, verify.ExitTampered, []string{"TRUNCATED "}, false},
		{"9 the tail cut off, remembered", true, func(s *tables) { s.both("ALTER TABLE DELETE WHERE CHAIN AND sequence >= 90") }, verify.ExitTampered, []string{
			at(ledger.Truncated, chain, "90..100"),
		}, false},
		{"9 the root log cut off", false, func(s *tables) { s.exec("ALTER TABLE root_log DELETE WHERE entry_index >= 5") }, verify.ExitTampered, []string{
			"TRUNCATED sequence 5..6 ", "UNSEALED TAIL ", "UNSEALED TAIL ", "UNSEALED TAIL ",
		}, false},
		{"10 everything as it was before", true, func(s *tables) { s.write(newLedger()) }, verify.ExitVerified, nil, false},
		{"10 truncated, with an older checkpoint", true, func(s *tables) {
			s.exec("ALTER TABLE root_log DELETE WHERE entry_index >= 5")
			s.exec("ALTER TABLE checkpoints DELETE WHERE size > 5")
		}, verify.ExitTampered, []string{"ROLLED BACK ", "UNSEALED TAIL ", "UNSEALED TAIL ", "UNSEALED TAIL "}, false},
		{"11 written anew and signed again", true, func(s *tables) { s.write(grown(rewritten())) }, verify.ExitTampered, []string{
			"FORKED ", at(ledger.Forked, chain, "0..100"),
		}, true},
		{"12 two signed checkpoints of one size", false, func(s *tables) {
			other := rewritten()
			other.Entries, other.Nodes = nil, nil
			if err := other.WriteLog(s.t.Context(), s.conn); err != nil {
				s.t.Fatal(err)
			}
		}, verify.ExitTampered, nil, true},
		{"13 a chain started afresh", true, func(s *tables) {
			l := newLedger()
			l.Chains[0].Leaves = nil
			l.Events(l.Chain(1, 2, 0, 2), 200)
			l.Epoch()
			s.write(l)
		}, verify.ExitTampered, nil, false},
		{"18 the columns of a checkpoint", false, func(s *tables) {
			s.exec("ALTER TABLE checkpoints UPDATE root = unhex(repeat('ab', 32)) WHERE size = 3")
			s.exec("ALTER TABLE checkpoints UPDATE note = replace(note, '\\n4\\n', '\\n04\\n') WHERE size = 4")
		}, verify.ExitTampered, []string{"COLUMN MISMATCH ", "MODIFIED "}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newTables(t, newLedger())
			a := newAuditor(t)
			if a.memory = tc.memory; a.memory {
				s.verify(a).want(t, verify.ExitVerified)
			}
			tc.after(s)
			r := s.verify(a)
			if tc.want != nil || tc.exit == verify.ExitVerified {
				r.want(t, tc.exit, tc.want...)
			}
			if r.code != tc.exit || tc.evidence != (len(r.Evidence) > 0) {
				t.Errorf("exit code %d, evidence %v: %s", r.code, r.Evidence, r.output)
			}
			if tc.evidence {
				checkEvidence(t, r.Evidence[0])
			}
			verdicts := map[string][]ledger.Verdict{
				"12 two signed checkpoints of one size": {ledger.Forked}, "13 a chain started afresh": {ledger.RolledBack},
			}
			for _, v := range verdicts[tc.name] {
				if !slices.ContainsFunc(r.Faults, func(f *ledger.Fault) bool { return f.Verdict == v }) {
					t.Errorf("want %s: %s", v, r.output)
				}
			}
		})
	}
}
