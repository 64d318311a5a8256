package verify_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// put puts another ledger in place of the one that is there.
func (s *tables) put(l *ledgertest.Ledger) {
	s.t.Helper()
	for _, table := range []string{"events", "leaves", "root_log", "checkpoints"} {
		s.exec("TRUNCATE TABLE %s", table)
	}
	s.ledger = l
	if err := l.Write(s.t.Context(), s.conn); err != nil {
		s.t.Fatal(err)
	}
}

// TestTamperedTables: what the operator's tables can say that is not so, beside what internal/e2e/attacks does to single rows.
func TestTamperedTables(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a few seconds")
	}
	s := newTables(t, newLedger())
	exec := func(text string) func() {
		return func() {
			s.exec("%s", strings.ReplaceAll(text, "CHAIN", fmt.Sprintf("chain = unhex('%x')", s.ledger.Chains[0].ID)))
		}
	}
	// only puts the checkpoint of one size of another ledger beside those that are there.
	only := func(l *ledgertest.Ledger, size uint64) {
		l.Entries, l.Nodes, l.Checkpoints = nil, nil, map[uint64][]byte{size: l.Checkpoints[size]}
		if err := l.WriteLog(t.Context(), s.conn); err != nil {
			t.Fatal(err)
		}
	}
	redacted := func() *ledgertest.Ledger {
		l := newLedger()
		l.Redact(l.Chains[0], 30, "/actor_id")
		l.Epoch()
		return l
	}
	for _, tc := range []struct {
		name   string
		ledger func() *ledgertest.Ledger // nil: newLedger
		memory bool                      // it was verified before
		do     func()
		want   ledger.Verdict // empty: undecided
		also   string         // part of the finding, or of what is undecided
	}{
		{"nothing is signed", nil, false, exec("TRUNCATE TABLE checkpoints"), "", "the table checkpoints is empty"},
		{"no epoch is signed", func() *ledgertest.Ledger {
			l := ledgertest.New()
			l.Checkpoints[1] = l.Sign()
			return l
		}, false, func() {}, "", "covers no epoch"},
		{"no event was ever sealed", func() *ledgertest.Ledger {
			l := ledgertest.New()
			l.Epoch()
			return l
		}, false, func() {}, "", ""},
		{"the newest checkpoint is none", nil, false, exec("ALTER TABLE checkpoints UPDATE note = 'x' WHERE size = 7"), ledger.InvalidProof, "the newest checkpoint"},
		{
			"a checkpoint of another log", nil, false, exec("ALTER TABLE checkpoints UPDATE note = replace(note, 'example.com/ledger\\n', 'example.com/other\\n') WHERE size = 3"),
			ledger.Modified, "it is of log",
		},
		{
			"a checkpoint under another size", nil, false, exec("INSERT INTO checkpoints SELECT * REPLACE (toUInt64(3) AS size) FROM (SELECT * FROM checkpoints WHERE size = 6)"),
			ledger.ColumnMismatch, "its columns are not what its note states",
		},
		{"a checkpoint that is not signed", nil, false, func() {
			l := newLedger()
			l.Signers = []ledgertest.Key{ledgertest.NewKey(ledgertest.Origin, 9)}
			l.Chains[0].Leaves[10].Body = ledgertest.Body(99)
			l.Chains[0].Reseal(10)
			l.Rebuild()
			only(l, 3)
		}, ledger.Modified, "it is not signed"},
		{
			"another entry of an index", nil, false, exec("INSERT INTO root_log SELECT * REPLACE (toUInt64(3) AS entry_index) FROM (SELECT * FROM root_log WHERE entry_index = 2)"),
			ledger.Inserted, "another entry has this index",
		},
		{"an entry gone", nil, false, exec("ALTER TABLE root_log DELETE WHERE entry_index = 3"), ledger.Missing, "no entry is stored"},
		{
			"events of another workspace", nil, false, exec("INSERT INTO events SELECT * REPLACE (unhex('00112233445566778899aabbccddeeff') AS workspace) FROM (SELECT * FROM events WHERE CHAIN AND sequence = 30)"),
			ledger.CrossChain, "1 rows of events are of workspace 00112233445566778899aabbccddeeff",
		},
		{"other lanes", nil, false, exec("ALTER TABLE leaves UPDATE lanes = 3 WHERE CHAIN AND sequence = 30"), ledger.ColumnMismatch, "1 rows of leaves say 3 lanes"},
		{"a kind in events", nil, false, exec("ALTER TABLE events UPDATE kind = 4 WHERE CHAIN AND sequence = 30"), ledger.ColumnMismatch, "events.kind is not that of the leaf"},
		{"a generation in events", nil, false, exec("ALTER TABLE events UPDATE input_generation = 4 WHERE CHAIN AND sequence = 30"), ledger.ColumnMismatch, "events.input_generation is not"},
		{"a partition in events", nil, false, exec("ALTER TABLE events UPDATE input_partition = 4 WHERE CHAIN AND sequence = 30"), ledger.ColumnMismatch, "events.input_partition is not"},
		{"an offset in events", nil, false, exec("ALTER TABLE events UPDATE input_offset = 4 WHERE CHAIN AND sequence = 30"), ledger.ColumnMismatch, "events.input_offset is not"},
		{"a body that is no event", nil, false, exec(`ALTER TABLE events UPDATE body = '{"action":1}' WHERE CHAIN AND sequence = 30`), ledger.ColumnMismatch, "not the body of an event"},
		{
			"a seed beside a disclosure", redacted, false, exec("ALTER TABLE events UPDATE seed = unhex('00112233445566778899aabbccddeeff') WHERE CHAIN AND sequence = 30"),
			ledger.Modified, "a redacted event has no seed",
		},
		{"a disclosure that is none", redacted, false, exec("ALTER TABLE events UPDATE disclosure = 'x' WHERE CHAIN AND sequence = 30"), ledger.Modified, "invalid disclosure"},
		{"leaves gone, so that no epoch can be recomputed", nil, false, func() {
			exec("ALTER TABLE leaves DELETE WHERE CHAIN AND sequence = 30")()
			exec("ALTER TABLE events DELETE WHERE CHAIN AND sequence = 30")()
		}, "", "the maps of 4 epochs"},
		{"all leaves of a chain gone, remembered", nil, true, exec("ALTER TABLE leaves DELETE WHERE CHAIN"), ledger.Missing, "100 rows of events have no leaf any more"},
		{"all leaves of a chain gone", nil, false, exec("ALTER TABLE leaves DELETE WHERE CHAIN"), ledger.Inserted, "100 rows of events are of a chain that has no leaf"},
		{"the only chain written anew", func() *ledgertest.Ledger {
			l := ledgertest.New()
			c := l.Chain(1, 1, 0, 1)
			for range 3 {
				l.Events(c, 20)
				l.Epoch()
			}
			c.Leaves[30].Body = bytes.Replace(c.Leaves[30].Body, []byte("curl"), []byte("curm"), 1)
			c.Reseal(30)
			return l
		}, false, func() {}, ledger.Modified, "since epoch 1, leaves were written anew with their hashes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.t = t
			s.put(newLedger())
			if tc.ledger != nil {
				s.put(tc.ledger())
			}
			cfg := s.config()
			if tc.memory {
				cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
				if r := s.verify(cfg); r.Exit != verify.ExitVerified {
					t.Fatal(r.Text())
				}
			}
			tc.do()
			r := s.verify(cfg)
			if tc.want == "" {
				if r.Exit == verify.ExitVerified || !strings.Contains(strings.Join(r.Undecided, "\n"), tc.also) {
					t.Errorf("want %q: %s", tc.also, r.Text())
				}
				return
			}
			exit := verify.ExitTampered
			if tc.want == ledger.InvalidProof { // of what nobody has signed
				exit = verify.ExitUndecided
			}
			if r.Exit != exit || !slices.ContainsFunc(r.Faults, func(f *ledger.Fault) bool { return f.Verdict == tc.want && strings.Contains(f.Detail, tc.also) }) {
				t.Errorf("want %s with %q: %s", tc.want, tc.also, r.Text())
			}
			if tc.name == "the only chain written anew" && short(r.Faults[0]) != fmt.Sprintf("MODIFIED chain %x sequence 21..40", s.ledger.Chains[0].ID) {
				t.Error(r.Text())
			}
		})
	}
}
