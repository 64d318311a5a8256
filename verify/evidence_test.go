package verify_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// logFork reads evidence of a forked log, and wants it to convict.
func logFork(t *testing.T, cfg verify.Config, r *verify.Report) *ledger.LogFork {
	t.Helper()
	if len(r.Evidence) == 0 {
		t.Fatalf("evidence %v: %s", r.Evidence, r.Text())
	}
	text, err := os.ReadFile(r.Evidence[0])
	if err != nil {
		t.Fatal(err)
	}
	f, err := ledger.ParseLogFork(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Verify(cfg.Trust, cfg.Now); err != nil {
		t.Fatal(err)
	}
	return f
}

// forkedSince is a log that was accepted at size 7, and then of another history with a size of 8.
func forkedSince(t *testing.T) (*api, verify.Config) {
	t.Helper()
	a := newAPI(t, newLedger())
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	if r := a.verify(cfg); r.Exit != verify.ExitVerified {
		t.Fatal(r.Text())
	}
	a.Ledger = rewritten()
	a.Ledger.Epoch()
	cfg.Now = a.Ledger.Now()
	return a, cfg
}

// Two checkpoints of different sizes show nothing of a fork by themselves: the evidence has what does.
func TestForkEvidenceOfTwoSizes(t *testing.T) {
	a, cfg := forkedSince(t)
	r := a.verify(cfg)
	if r.Exit != verify.ExitTampered || r.Found[ledger.Forked] == 0 {
		t.Error(r.Text())
	}
	f := logFork(t, cfg, r)
	if f.Checkpoints[0] != string(newLedger().Newest()) || f.Checkpoints[1] != string(a.Ledger.Newest()) || len(f.Range) == 0 || len(f.Rest) == 0 {
		t.Errorf("%+v", f)
	}
}

// An older checkpoint that is answered beside the newer one is the smaller side of the evidence.
func TestForkEvidenceOfOlderCheckpoint(t *testing.T) {
	a := newAPI(t, newLedger())
	older := rewritten().Checkpoints[4]
	a.Spoil = func(path string, answer []byte) []byte {
		if path == "/ledger/checkpoint" {
			return older
		}
		return answer
	}
	cfg := a.config()
	if f := logFork(t, cfg, a.verify(cfg)); f.Checkpoints[0] != string(older) || f.Checkpoints[1] != string(a.Ledger.Newest()) {
		t.Errorf("%+v", f)
	}
}

// Where the root log cannot be read again there is no evidence, which is said: two notes alone would accuse without proof.
func TestForkEvidenceThatCannotBeMade(t *testing.T) {
	a, cfg := forkedSince(t)
	bundles := 0
	a.Refuse = func(uri string) bool {
		if strings.HasPrefix(uri, "/ledger/tile/entries/") {
			bundles++
		}
		return bundles > 2 // from what is remembered on, and from the beginning
	}
	r := a.verify(cfg)
	said := strings.Join(r.Undecided, "\n")
	if r.Exit != verify.ExitTampered || r.Found[ledger.Forked] == 0 || len(r.Evidence) > 0 ||
		!strings.Contains(said, "reading the root log again") || !strings.Contains(said, "no evidence can be made of the fork") {
		t.Error(r.Text())
	}
}

// A proof of an event has the key changes too.
func TestForkEvidenceOfEvent(t *testing.T) {
	a := newAPI(t, newLedger())
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	if r := a.verify(cfg); r.Exit != verify.ExitVerified {
		t.Fatal(r.Text())
	}
	other := rewritten()
	b, err := other.Bundle(other.Chains[0], 3)
	if err != nil {
		t.Fatal(err)
	}
	text, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "proof.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := verify.Event(cfg, path)
	if err != nil {
		t.Fatal(err)
	}
	logFork(t, cfg, r)
}

// A chain that was written anew under one root log: its two checkpoints are of one history, and accuse nobody.
func TestNoForkEvidenceOfTables(t *testing.T) {
	l := newLedger()
	s := newTables(t, l)
	cfg := s.config()
	cfg.Epochs = 1
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	if r := s.verify(cfg); r.Exit != verify.ExitVerified {
		t.Fatal(r.Text())
	}
	for _, table := range []string{"events", "leaves", "root_log", "checkpoints"} {
		s.exec("TRUNCATE TABLE %s", table)
	}
	c := l.Chains[0]
	c.Leaves[30].Body = ledgertest.Body(99)
	c.Reseal(30)
	l.Events(c, 5)
	l.Epoch()
	if err := l.Write(t.Context(), s.conn); err != nil {
		t.Fatal(err)
	}
	cfg.Now = l.Now()
	r := s.verify(cfg)
	if r.Exit != verify.ExitTampered || r.Found[ledger.Forked] != 1 || len(r.Evidence) > 0 || !strings.Contains(r.Text(), fmt.Sprintf("no evidence can be made of what chain %x was", c.ID)) {
		t.Error(r.Text())
	}
}

// Each stored checkpoint that is of another history has a file of its own, also one of the newest one's size, whichever of the two the root log is of.
func TestForkEvidenceOfTables(t *testing.T) {
	for name, checkpoints := range map[string]int{"smaller": 3, "of one size": 1} {
		t.Run(name, func(t *testing.T) { forkEvidenceOfTables(t, name == "of one size", checkpoints) })
	}
}

func forkEvidenceOfTables(t *testing.T, newest bool, checkpoints int) {
	t.Helper()
	s := newTables(t, newLedger())
	other := rewritten()
	other.Entries, other.Nodes = nil, nil
	maps.DeleteFunc(other.Checkpoints, func(size uint64, _ []byte) bool { return (size == 7) != newest })
	if err := other.WriteLog(t.Context(), s.conn); err != nil {
		t.Fatal(err)
	}
	cfg := s.config()
	r := s.verify(cfg)
	files := slices.Compact(slices.Sorted(slices.Values(r.Evidence)))
	if len(files) != checkpoints || r.Found[ledger.Forked] != uint64(checkpoints) {
		t.Errorf("%v: %s", files, r.Text())
	}
	for _, file := range files {
		logFork(t, cfg, &verify.Report{Evidence: []string{file}})
	}
}

// A chain that the newest epoch has with fewer leaves than when it was verified before, or does not have: both sides are at hand, also where no older epoch is
// compared with.
func TestRolledBackChainEvidence(t *testing.T) {
	for name, left := range map[string]int{"fewer leaves": 60, "gone": 0} {
		t.Run(name, func(t *testing.T) {
			l := newLedger()
			a := newAPI(t, l)
			cfg := a.config()
			cfg.Epochs = 1
			cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
			if r := a.verify(cfg); r.Exit != verify.ExitVerified {
				t.Fatal(r.Text())
			}
			c := l.Chains[0]
			c.Leaves = c.Leaves[:left]
			l.Epoch()
			cfg.Now = l.Now()
			r := a.verify(cfg)
			if r.Exit != verify.ExitTampered || !slices.Contains(faults(r), fmt.Sprintf("ROLLED BACK chain %x", c.ID)) || len(r.Evidence) != 1 {
				t.Fatal(r.Text())
			}
			f, text := readChainFork(t, r.Evidence[0])
			if err := f.Verify(cfg.Trust, cfg.Now); err != nil || f.Chain != c.ID || f.Newer.Size != uint64(left) || f.Older.Size != 101 {
				t.Errorf("%v: %s", err, text)
			}
		})
	}
}

// readChainFork reads evidence of a forked chain.
func readChainFork(t *testing.T, path string) (f *ledger.ChainFork, text []byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if f, err = ledger.ParseChainFork(text); err != nil {
		t.Fatal(err)
	}
	return f, text
}

// Of many chains that were written anew each is named, and the proofs of some are written.
func TestEvidenceIsBounded(t *testing.T) {
	l := ledgertest.New()
	for lane := range uint32(20) {
		l.Events(l.Chain(1, 1, lane, 20), 40)
	}
	l.Epoch()
	for _, c := range l.Chains {
		c.Leaves[30].Body = bytes.Replace(c.Leaves[30].Body, []byte("curl"), []byte("curm"), 1)
		c.Reseal(30)
	}
	l.Epoch()
	a := newAPI(t, l)
	r := a.verify(a.config())
	if r.Exit != verify.ExitTampered || r.Found[ledger.Forked] != 20 || len(r.Evidence) != 16 {
		t.Error(r.Text())
	}
	if n := strings.Count(r.Text(), "only the first 16 proofs are written to files"); n != 1 {
		t.Errorf("it is said %d times: %s", n, r.Text())
	}
}
