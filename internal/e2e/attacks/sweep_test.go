package attacks

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// longLedger has a chain of n events in epochs of 50, whose root log has that many more epochs in which nothing happened.
func longLedger(n, idle int) *ledgertest.Ledger {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1)
	for range n / 50 {
		l.Events(c, 50)
		l.Epoch()
	}
	for range idle {
		l.Epoch()
	}
	return l
}

// TestEveryByte: attack 1. One byte of every other leaf is flipped, at each place of a body, a seed, an event id and a leaf hash in turn, and each field of the
// leaf in others: each such leaf is named, and no other.
func TestEveryByte(t *testing.T) {
	t.Parallel()
	flipped := func(b []byte, i int) []byte {
		b = slices.Clone(b)
		b[i] ^= 1
		return b
	}
	var flips []func(f *ledgertest.Leaf)
	for i := range ledgertest.Body(1) {
		flips = append(flips, func(f *ledgertest.Leaf) { f.Body = flipped(f.Body, i%len(f.Body)) })
	}
	for i := range 16 {
		flips = append(flips, func(f *ledgertest.Leaf) { f.Seed[i] ^= 1 }, func(f *ledgertest.Leaf) { f.ID[i] ^= 1 })
	}
	for i := range 32 {
		flips = append(flips, func(f *ledgertest.Leaf) { f.Hash[i] ^= 1 }, func(f *ledgertest.Leaf) { f.BodyRoot[i] ^= 1 })
	}
	flips = append(flips,
		func(f *ledgertest.Leaf) { f.Kind = ledger.KindNote },
		func(f *ledgertest.Leaf) { f.RecordedAt++ },
		func(f *ledgertest.Leaf) { f.RecordedAt-- },
		func(f *ledgertest.Leaf) { f.Generation++ },
		func(f *ledgertest.Leaf) { f.Partition++ },
		func(f *ledgertest.Leaf) { f.Offset += 1 << 40 },
		func(f *ledgertest.Leaf) { f.FieldCount++ },
		func(f *ledgertest.Leaf) { f.FieldCount = 0 },
	)
	l := longLedger(2*len(flips)/50*50+100, 0)
	c := l.Chains[0]
	for k, flip := range flips {
		flip(&c.Leaves[2+2*k])
	}
	r := newAuditor(t).run(serve(t, newServer(l))...)
	if r.code != verify.ExitTampered {
		t.Fatal(r.output)
	}
	named := map[uint64]ledger.Verdict{}
	for _, f := range r.Faults {
		switch {
		case f.Sequence == nil || f.Last != nil || *f.Chain != c.ID:
			t.Errorf("%s", f)
		case f.Verdict != ledger.Modified && f.Verdict != ledger.NonCanonical:
			t.Errorf("%s", f)
		default:
			named[*f.Sequence] = f.Verdict
			if f.EventID == "" {
				t.Errorf("no event: %s", f)
			}
		}
	}
	for k := range flips {
		if sequence := uint64(2 + 2*k); named[sequence] == "" {
			t.Errorf("flip %d, of sequence %d, is not found", k, sequence)
		}
	}
	if len(named) != len(flips) {
		t.Errorf("%d leaves are named, %d were changed", len(named), len(flips))
	}
}

// TestEveryByteOfTables is TestEveryByte in the operator's tables.
func TestEveryByteOfTables(t *testing.T) {
	long(t)
	t.Parallel()
	s := newTables(t, longLedger(1100, 0))
	flip := func(table, column, length string, from, to int) {
		t.Helper()
		at := fmt.Sprintf("1 + intDiv(sequence, 2) %% %s", length)
		s.exec("ALTER TABLE %[1]s UPDATE %[2]s = concat(substring(%[2]s, 1, %[3]s - 1), char(bitXor(ascii(substring(%[2]s, %[3]s, 1)), 1)), substring(%[2]s, %[3]s + 1)) "+
			"WHERE CHAIN AND sequence %% 2 = 0 AND sequence >= %[4]d AND sequence < %[5]d", table, column, at, from, to)
	}
	// Two findings of each body, of which the program lists 1000 in all.
	const body, seed, hash, end = 2, 900, 940, 1010
	flip("events", "body", "greatest(length(body), 1)", body, seed)
	flip("events", "seed", "16", seed, hash)
	flip("leaves", "leaf_hash", "32", hash, end)
	r := s.verify(newAuditor(t))
	if r.code != verify.ExitTampered {
		t.Fatal(r.output)
	}
	named := map[uint64]bool{}
	for _, f := range r.Faults {
		switch f.Verdict {
		case ledger.Modified, ledger.NonCanonical:
			named[*f.Sequence] = true
		case ledger.ColumnMismatch:
		default:
			t.Errorf("%s", f)
		}
	}
	for sequence := range uint64(1101) {
		if changed := sequence%2 == 0 && sequence >= body && sequence < end; named[sequence] != changed {
			t.Errorf("sequence %d: changed %t, named %t", sequence, changed, named[sequence])
		}
	}
}

// TestEveryByteOfAFile is attack 1 on a proof: whichever byte of the file is flipped, it proves nothing any more.
func TestEveryByteOfAFile(t *testing.T) {
	t.Parallel()
	text, err := bundle(t, newLedger(), 40).Encode()
	if err != nil {
		t.Fatal(err)
	}
	var places []int
	step := len(text) / 150
	if testing.Short() {
		step = len(text) / 30
	}
	for i := 7; i < len(text); i += step {
		places = append(places, i)
	}
	// What every proof has, once each.
	for _, part := range []string{`"workspace": "`, `"recorded_at": "`, `"seed": "`, `"body": "{`, `"path": [`, `"siblings": [`, `"epoch": "{`, `index `, `"size": `, "— example.com/ledger "} {
		places = append(places, bytes.Index(text, []byte(part))+len(part)+3)
	}
	next := make(chan int, len(places))
	for _, i := range places {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 4 {
		a := newAuditor(t)
		wg.Go(func() {
			for i := range next {
				changed := slices.Clone(text)
				changed[i] ^= 1
				r := a.run("event", a.file(changed))
				// Where the checkpoint is spoilt there is none to contradict, and a file that is none has no findings.
				if r.code == verify.ExitVerified || r.code != verify.ExitUsage && len(r.Faults) == 0 {
					t.Errorf("byte %d, in %q: exit code %d: %s", i, text[max(0, i-20):min(len(text), i+20)], r.code, r.output)
				}
			}
		})
	}
}

// TestStoredNodes: attack 2, where nodes are stored: beside every 256th leaf, and in the tiles of level 1 of the root log.
func TestStoredNodes(t *testing.T) {
	t.Parallel()
	t.Run("chain", func(t *testing.T) {
		t.Parallel()
		l := longLedger(600, 0)
		c := l.Chains[0]
		c.Leaves[255].Node[0][31] ^= 1
		c.Leaves[511].Node = append(c.Leaves[511].Node, ledger.Hash{1})
		newAuditor(t).run(serve(t, newServer(l))...).want(t, verify.ExitTampered, at(ledger.Modified, c, "255"), at(ledger.Modified, c, "511"))
	})
	t.Run("chain without", func(t *testing.T) {
		t.Parallel()
		l := longLedger(600, 0)
		c := l.Chains[0]
		c.Leaves[511].Node = nil
		newAuditor(t).run(serve(t, newServer(l))...).want(t, verify.ExitTampered, at(ledger.Modified, c, "511"))
	})
	for _, tile := range []struct {
		path string
		at   int // hash of the tile
		want string
	}{
		{"/ledger/tile/0/000", 5, "MODIFIED sequence 5 "},
		{"/ledger/tile/0/001", 5, "MODIFIED sequence 261 "},
		{"/ledger/tile/1/", 0, "MODIFIED sequence 255 "},
		{"/ledger/tile/1/", 1, "MODIFIED sequence 511 "},
	} {
		t.Run(fmt.Sprintf("tile %s hash %d", tile.path, tile.at), func(t *testing.T) {
			t.Parallel()
			s := newServer(longLedger(50, 600))
			s.Spoil = func(path string, answer []byte) []byte {
				if strings.HasPrefix(path, tile.path) {
					answer = slices.Clone(answer)
					answer[tile.at*32+7] ^= 1
				}
				return answer
			}
			newAuditor(t).run(serve(t, s)...).want(t, verify.ExitTampered, tile.want)
		})
	}
}

// TestStoredNodesOfTables is TestStoredNodes in the operator's tables.
func TestStoredNodesOfTables(t *testing.T) {
	long(t)
	t.Parallel()
	s := newTables(t, longLedger(600, 600))
	c := s.ledger.Chains[0]
	a := newAuditor(t)
	s.verify(a).want(t, verify.ExitVerified)
	flip := "concat(char(bitXor(ascii(substring(node, 1, 1)), 1)), substring(node, 2))"
	s.exec("ALTER TABLE leaves UPDATE node = %s WHERE CHAIN AND sequence = 255", flip)
	s.exec("ALTER TABLE leaves UPDATE node = substring(node, 1, 31) WHERE CHAIN AND sequence = 511")
	s.exec("ALTER TABLE root_log UPDATE node = %s WHERE entry_index = 255", flip)
	s.exec("ALTER TABLE root_log UPDATE node = '' WHERE entry_index = 511")
	r := s.verify(a)
	want := []string{"MODIFIED sequence 255 ", "MODIFIED sequence 511 ", at(ledger.Modified, c, "255"), at(ledger.Modified, c, "511")}
	for _, place := range want {
		if !slices.ContainsFunc(r.found(), func(s string) bool { return strings.HasPrefix(s+" ", place) }) {
			t.Errorf("want %q: %s", place, r.output)
		}
	}
	if r.code != verify.ExitTampered || len(r.Faults) > len(want)+1 {
		t.Error(r.output)
	}
}

// TestResult: what --json says of a fault is its verdict, chain, sequence and event, in members of their own.
func TestResult(t *testing.T) {
	t.Parallel()
	l := newLedger()
	l.Chains[0].Leaves[30].Seed[0] ^= 1
	r := newAuditor(t).run(serve(t, newServer(l))...)
	var fault struct {
		Faults []struct {
			Verdict, Chain, Detail string
			Sequence               uint64
			EventID                string `json:"event_id"`
		} `json:"faults"`
	}
	if err := json.Unmarshal([]byte(r.output), &fault); err != nil || len(fault.Faults) != 1 {
		t.Fatalf("%v: %s", err, r.output)
	}
	f := fault.Faults[0]
	leaf := l.Chains[0].Leaves[30]
	id := fmt.Sprintf("%x", leaf.ID)
	if f.Verdict != "MODIFIED" || f.Chain != fmt.Sprintf("%x", l.Chains[0].ID) || f.Sequence != 30 || strings.ReplaceAll(f.EventID, "-", "") != id || f.Detail == "" {
		t.Errorf("%+v", f)
	}
}
