package attacks

import (
	"bytes"
	"encoding/base64"
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

// TestLedger: what an API can show that is not the ledger.
func TestLedger(t *testing.T) {
	t.Parallel()
	first := func(l *ledgertest.Ledger) *ledgertest.Chain { return l.Chains[0] }
	spoil := func(path string, do func([]byte) []byte) func(string, []byte) []byte {
		return func(asked string, answer []byte) []byte {
			if strings.HasPrefix(asked, path) && !strings.Contains(asked, "?") { // of older epochs TestHistory has more
				return do(answer)
			}
			return answer
		}
	}
	replace := func(old, changed string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(changed), 1) }
	}
	flip := func(i int) func([]byte) []byte {
		return func(b []byte) []byte {
			b = slices.Clone(b)
			b[i] ^= 1
			return b
		}
	}
	for _, tc := range []struct {
		name string
		do   func(s *ledgertest.Server)
		exit int
		want func(c *ledgertest.Chain) []string
	}{
		{"nothing", func(*ledgertest.Server) {}, verify.ExitVerified, func(*ledgertest.Chain) []string { return nil }},
		{"1 a byte of a body, a seed, a leaf", func(s *ledgertest.Server) {
			l := first(s.Ledger).Leaves
			l[10].Body = bytes.Replace(l[10].Body, []byte("curl"), []byte("curm"), 1)
			l[12].Seed[5] ^= 1
			l[14].Hash[5] ^= 1
			l[16].RecordedAt++
			l[18].Offset += 1000
			l[20].BodyRoot[5] ^= 1
			l[22].FieldCount++
			l[24].ID[5] ^= 1
		}, verify.ExitTampered, func(c *ledgertest.Chain) (all []string) {
			for sequence := 10; sequence <= 24; sequence += 2 {
				all = append(all, at(ledger.Modified, c, fmt.Sprint(sequence)))
			}
			return all
		}},
		{"2 a tile of the root log", func(s *ledgertest.Server) { s.Spoil = spoil("/ledger/tile/0/", flip(32*3+5)) }, verify.ExitTampered, func(*ledgertest.Chain) []string {
			return []string{"MODIFIED sequence 3 "}
		}},
		{"2 an entry of the root log", func(s *ledgertest.Server) {
			s.Spoil = spoil("/ledger/tile/entries/", replace(`"chains":3,"index":2`, `"chains":4,"index":2`))
		}, verify.ExitTampered, func(*ledgertest.Chain) []string { return []string{"MODIFIED sequence 2 "} }},
		{"5 leaves left out", func(s *ledgertest.Server) { first(s.Ledger).Leaves = slices.Delete(first(s.Ledger).Leaves, 30, 33) }, verify.ExitTampered, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Missing, c, "30..32")}
		}},
		{"6 leaves swapped", func(s *ledgertest.Server) {
			l := first(s.Ledger).Leaves
			l[30], l[70] = l[70], l[30]
			l[30].Sequence, l[70].Sequence = 30, 70
		}, verify.ExitTampered, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Reordered, c, "30"), at(ledger.Reordered, c, "70")}
		}},
		{"7 a copy with the same sequence, and with a new one", func(s *ledgertest.Server) {
			c := first(s.Ledger)
			c.Leaves = append(c.Leaves, c.Leaves[50])
			c.Leaves[101].Sequence = 101
			c.Leaves = slices.Insert(c.Leaves, 31, c.Leaves[60])
			c.Leaves[31].Sequence = 30
		}, verify.ExitTampered, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Inserted, c, "30"), at(ledger.Inserted, c, "101")}
		}},
		{"8 a leaf twice", func(s *ledgertest.Server) {
			c := first(s.Ledger)
			c.Leaves = slices.Insert(c.Leaves, 30, c.Leaves[30])
		}, verify.ExitTampered, func(c *ledgertest.Chain) []string { return []string{at(ledger.Duplicate, c, "30")} }},
		{"9 the tail cut off", func(s *ledgertest.Server) { first(s.Ledger).Leaves = first(s.Ledger).Leaves[:90] }, verify.ExitTampered, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Truncated, c, "90..100")}
		}},
		{"16 a leaf of another chain", func(s *ledgertest.Server) {
			c := first(s.Ledger)
			c.Leaves[30] = s.Ledger.Chains[1].Leaves[31]
			c.Leaves[30].Sequence, c.Leaves[30].Chain = 30, c.ID
		}, verify.ExitTampered, func(c *ledgertest.Chain) []string { return []string{at(ledger.CrossChain, c, "30")} }},
		{"16 a chain of another workspace", func(s *ledgertest.Server) {
			s.Spoil = spoil("/ledger/chains", replace(`"workspace":"aa01`, `"workspace":"aa07`))
		}, verify.ExitTampered, func(*ledgertest.Chain) []string { return []string{"CROSS-CHAIN ", "CROSS-CHAIN "} }},
		{"16 a checkpoint of another log", func(s *ledgertest.Server) {
			s.Spoil = spoil("/ledger/checkpoint", replace("example.com/ledger\n", "example.com/other\n"))
		}, verify.ExitUndecided, func(*ledgertest.Chain) []string { return []string{} }},
		{"17 a chain of another size", func(s *ledgertest.Server) {
			s.Spoil = spoil("/ledger/chains", replace(`"size":101`, `"size":9223372036854775808`))
		}, verify.ExitTampered, func(*ledgertest.Chain) []string { return []string{"INVALID PROOF chain"} }},
		{"17 a chain of size 0", func(s *ledgertest.Server) {
			s.Spoil = spoil("/ledger/chains", replace(`"size":101`, `"size":0`))
		}, verify.ExitTampered, func(*ledgertest.Chain) []string { return []string{"INVALID PROOF chain"} }},
		{"17 an epoch proven at another index", func(s *ledgertest.Server) {
			s.Spoil = spoil("/ledger/chains", replace(`index 6\n`, `index 5\n`))
		}, verify.ExitTampered, func(*ledgertest.Chain) []string { return []string{"INVALID PROOF "} }},
		{"12 one chain with two values in one epoch", func(s *ledgertest.Server) {
			// The map has one place for a chain: the second value finds none.
			other := rewritten()
			s.Spoil = spoil("/ledger/chains", replace(fmt.Sprintf("%x", first(s.Ledger).Root(101)), fmt.Sprintf("%x", other.Chains[0].Root(101))))
			first(s.Ledger).Leaves = other.Chains[0].Leaves
		}, verify.ExitTampered, func(*ledgertest.Chain) []string { return []string{"INVALID PROOF chain"} }},
		{"17 a chain's size that overflows", func(s *ledgertest.Server) {
			s.Spoil = spoil("/ledger/chains", replace(`"size":101`, `"size":18446744073709551615`))
		}, verify.ExitTampered, func(*ledgertest.Chain) []string { return []string{"INVALID PROOF chain"} }},
		{"17 a number that does not fit", func(s *ledgertest.Server) {
			s.Spoil = spoil("/ledger/chains", replace(`"size":101`, `"size":18446744073709551616`))
		}, verify.ExitUndecided, func(*ledgertest.Chain) []string { return []string{} }},
		{"20 a value withheld", func(s *ledgertest.Server) { first(s.Ledger).Leaves[30].Erase("/metadata/old_value") }, verify.ExitUndecided, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Withheld, c, "30")}
		}},
		{"20 a redaction of another event, and of another path", func(s *ledgertest.Server) {
			c := first(s.Ledger)
			s.Ledger.Redact(c, 31, "/metadata/old_value")
			s.Ledger.Redact(c, 32, "/metadata/old_value")
			s.Ledger.Epoch()
			c.Leaves[30].Erase("/metadata/old_value")
			c.Leaves[32].Disclosure = nil
			c.Leaves[32].Body, c.Leaves[32].Seed = ledgertest.Body(31), [16]byte{}
			*c = *s.Ledger.Chains[0]
			again := newLedger().Chains[0].Leaves[32]
			c.Leaves[32].Body, c.Leaves[32].Seed = again.Body, again.Seed
			c.Leaves[32].Erase("/actor_id")
		}, verify.ExitUndecided, func(c *ledgertest.Chain) []string {
			return []string{at(ledger.Withheld, c, "30"), at(ledger.Redacted, c, "31"), at(ledger.Withheld, c, "32")}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(newLedger())
			tc.do(s)
			r := newAuditor(t).run(serve(t, s)...)
			if tc.want(first(s.Ledger)) == nil && r.Level != verify.TamperDetecting {
				t.Error(r.output)
			}
			r.want(t, tc.exit, tc.want(first(s.Ledger))...)
		})
	}
}

// rewritten is the same history but for one event, signed with the same keys.
func rewritten() *ledgertest.Ledger {
	l := newLedger()
	c := l.Chains[0]
	c.Leaves[30].Body = bytes.Replace(c.Leaves[30].Body, []byte("curl"), []byte("curm"), 1)
	c.Reseal(30)
	l.Rebuild()
	return l
}

// grown goes on after newLedger, as the same operator would.
func grown(l *ledgertest.Ledger) *ledgertest.Ledger {
	l.Events(l.Chains[0], 10)
	l.Epoch()
	return l
}

// TestHistories: one auditor comes twice, with his memory, or two auditors compare theirs.
func TestHistories(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		before *ledgertest.Ledger
		after  func() *ledgertest.Ledger
		exit   int
		want   []string
		proof  bool // evidence is written
	}{
		{"grown", newLedger(), func() *ledgertest.Ledger { return grown(newLedger()) }, verify.ExitVerified, nil, false},
		{"10 truncated, with an older checkpoint", grown(newLedger()), newLedger, verify.ExitTampered, []string{"ROLLED BACK ", "ROLLED BACK chain"}, false},
		{"11 rewritten and signed again", newLedger(), func() *ledgertest.Ledger { return grown(rewritten()) }, verify.ExitTampered, []string{"FORKED ", "FORKED chain"}, true},
		{"12 two histories of one size", newLedger(), rewritten, verify.ExitTampered, []string{"FORKED "}, true},
		{"13 a chain started afresh", newLedger(), func() *ledgertest.Ledger {
			l := newLedger()
			l.Chains[0].Leaves = nil
			l.Events(l.Chain(1, 2, 0, 2), 200)
			l.Epoch()
			return l
		}, verify.ExitTampered, []string{"ROLLED BACK ", "CROSS-CHAIN chain", "ROLLED BACK chain", "CROSS-CHAIN chain"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(tc.before)
			flags := serve(t, s)
			a := newAuditor(t)
			a.memory = true
			a.run(flags...).want(t, verify.ExitVerified)
			s.Lock()
			s.Ledger = tc.after()
			s.Unlock()
			r := a.run(flags...)
			r.want(t, tc.exit, tc.want...)
			if tc.proof != (len(r.Evidence) > 0) {
				t.Fatalf("evidence: %v", r.Evidence)
			}
			if tc.proof {
				checkEvidence(t, r.Evidence[0])
			}
			// What was not accepted is not remembered.
			if s.Ledger = tc.before; tc.exit == verify.ExitTampered {
				a.run(flags...).want(t, verify.ExitVerified)
			}
		})
	}
}

// TestTwoAuditors: attack 12. Each of two auditors is shown a tree of the same size, signed by the same key, and each verifies. Once they compare, by what
// either remembers, the log is convicted.
func TestTwoAuditors(t *testing.T) {
	t.Parallel()
	one, two := serve(t, newServer(newLedger())), serve(t, newServer(rewritten()))
	a, b := newAuditor(t), newAuditor(t)
	a.memory, b.memory = true, true
	a.run(one...).want(t, verify.ExitVerified)
	b.run(two...).want(t, verify.ExitVerified)
	for _, r := range []*result{a.run(two...), b.run(one...)} {
		r.want(t, verify.ExitTampered, "FORKED ")
		if len(r.Evidence) != 1 {
			t.Fatal(r.output)
		}
		checkEvidence(t, r.Evidence[0])
	}
}

// checkEvidence: the file convicts the log, by the first key alone.
func checkEvidence(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ledger.ParseLogFork(text)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := ledger.ParseTrust([]byte(ledgertest.NewKey(ledgertest.Origin, 1).Verifier()))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Verify(trust, time.Now()); err != nil {
		t.Errorf("%v: %s", err, text)
	}
}

// TestOlderCheckpoint: without a memory, only its age shows that a ledger is not the newest one.
func TestOlderCheckpoint(t *testing.T) {
	r := newAuditor(t).run(append(serve(t, newServer(newLedger())), "--max-age=1s")...)
	r.want(t, verify.ExitUndecided, "STALE ")
}

// TestKeysAndWitnesses: who has signed.
func TestKeysAndWitnesses(t *testing.T) {
	t.Parallel()
	key := ledgertest.NewKey(ledgertest.Origin, 1).Verifier()
	second := ledgertest.NewKey(ledgertest.Origin, 2)
	one, two := ledgertest.NewWitness("one.example", 11), ledgertest.NewWitness("two.example", 12)
	future := two
	future.At = time.Now().Add(time.Hour)
	// It claims the name and the four bytes that the believed key has.
	sameHash := ledgertest.NewKey(ledgertest.Origin, 3)
	believed := ledgertest.NewKey(ledgertest.Origin, 2)
	sameHash.Of = &believed
	elsewhere := two
	elsewhere.Instead = func(text []byte) []byte {
		return bytes.Replace(text, []byte(ledgertest.Origin), []byte("example.com/other"), 1)
	}
	policy := []string{"log " + key, "witness one " + one.Verifier(), "witness two " + two.Verifier(), "group both all one two", "quorum both"}
	signed := func(signers []ledgertest.Key, cosigners ...ledgertest.Key) *ledgertest.Ledger {
		l := newLedger()
		l.Signers, l.Cosigners = signers, cosigners
		l.Rebuild()
		return l
	}
	for _, tc := range []struct {
		name   string
		ledger *ledgertest.Ledger
		trust  []string
		exit   int
		level  string
		want   []string
	}{
		{"14 another key", signed([]ledgertest.Key{ledgertest.NewKey("example.com/other", 3)}), nil, verify.ExitNotTrusted, "", []string{"WRONG KEY "}},
		{"14 another key of the same name", signed([]ledgertest.Key{ledgertest.NewKey(ledgertest.Origin, 3)}), nil, verify.ExitNotTrusted, "", []string{"WRONG KEY "}},
		{"14 another key of the same name and hash", signed([]ledgertest.Key{sameHash}), nil, verify.ExitNotTrusted, "", []string{"WRONG KEY "}},
		{
			"14 another key of the same name and hash, before the believed one", signed([]ledgertest.Key{sameHash, believed}), nil, verify.ExitNotTrusted, "",
			[]string{"WRONG KEY "},
		},
		{"14 a whole log of another key of the same name", func() *ledgertest.Ledger {
			l := ledgertest.NewOf(ledgertest.NewKey(ledgertest.Origin, 3))
			l.Events(l.Chain(1, 1, 0, 1), 30)
			l.Epoch()
			return l
		}(), nil, verify.ExitNotTrusted, "", []string{"WRONG KEY "}},
		{"15 a new size with the old key", signed([]ledgertest.Key{ledgertest.NewKey(ledgertest.Origin, 1)}), nil, verify.ExitNotTrusted, "", []string{"KEY OUT OF RANGE "}},
		{"15 an old size with a new key", func() *ledgertest.Ledger {
			l := ledgertest.New()
			l.Events(l.Chain(1, 1, 0, 1), 3)
			l.Epoch()
			l.Signers = []ledgertest.Key{second}
			l.Rebuild()
			return l
		}(), []string{second.Verifier()}, verify.ExitNotTrusted, "", []string{"KEY OUT OF RANGE "}},
		{"the new key alone is believed", newLedger(), []string{second.Verifier()}, verify.ExitVerified, verify.TamperDetecting, nil},
		{"both witnesses", signed(nil, one, two), policy, verify.ExitVerified, verify.TamperEvident, nil},
		{"19 one witness", signed(nil, one), policy, verify.ExitNotTrusted, "", []string{"QUORUM NOT MET "}},
		{"19 one witness twice", signed(nil, one, one), policy, verify.ExitNotTrusted, "", []string{"QUORUM NOT MET "}},
		{"19 a cosignature of another log", signed(nil, one, elsewhere), policy, verify.ExitNotTrusted, "", []string{"WRONG KEY "}},
		{"19 a witness from the future", signed(nil, one, future), policy, verify.ExitNotTrusted, "", []string{"QUORUM NOT MET "}},
		{"19 a witness of another name", signed(nil, one, ledgertest.NewWitness("three.example", 12)), policy, verify.ExitNotTrusted, "", []string{"QUORUM NOT MET "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := newAuditor(t, tc.trust...).run(serve(t, newServer(tc.ledger))...)
			r.want(t, tc.exit, tc.want...)
			if r.Level != tc.level {
				t.Errorf("level %q, want %q", r.Level, tc.level)
			}
		})
	}
}

// TestTrustFiles: what would let one key count twice, or pass for another, is refused.
func TestTrustFiles(t *testing.T) {
	t.Parallel()
	log, another := ledgertest.NewKey(ledgertest.Origin, 1).Verifier(), ledgertest.NewKey(ledgertest.Origin, 3)
	one, alias := ledgertest.NewWitness("one.example", 11).Verifier(), ledgertest.NewWitness("alias.example", 11).Verifier()
	believed := ledgertest.NewKey(ledgertest.Origin, 1)
	another.Of = &believed
	quorum := []string{"group both all one two", "quorum both"}
	for name, lines := range map[string][]string{
		"14 a key under the hash of another":       {another.Verifier()},
		"19 a witness twice":                       append([]string{"log " + log, "witness one " + one, "witness two " + one}, quorum...),
		"19 a witness twice under two names":       append([]string{"log " + log, "witness one " + one, "witness two " + alias}, quorum...),
		"19 a witness twice in a group":            {"log " + log, "witness one " + one, "group both all one one", "quorum both"},
		"19 a quorum of a witness that is unknown": {"log " + log, "witness one " + one, "quorum two"},
		"27 no log": {"witness one " + one, "quorum one"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newAuditor(t, lines...).run(serve(t, newServer(newLedger()))...).want(t, verify.ExitUsage)
		})
	}
}

// TestCheckpointForms: attack 18.
func TestCheckpointForms(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(string) string{
		"an extension line": func(s string) string { return strings.Replace(s, "\n\n", "\nmore\n\n", 1) },
		"CRLF":              func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
		"leading zeros":     func(s string) string { return strings.Replace(s, "\n7\n", "\n07\n", 1) },
		"trailing bytes":    func(s string) string { return s + "x" },
		"bad UTF-8":         func(s string) string { return strings.Replace(s, "ledger\n", "ledger\xff\n", 1) },
		"17 signatures": func(s string) string {
			for i := range 16 {
				s += fmt.Sprintf("— w%d.example %s\n", i, base64.StdEncoding.EncodeToString(make([]byte, 4+64)))
			}
			return s
		},
		"nothing": func(string) string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(newLedger())
			s.Spoil = func(path string, answer []byte) []byte {
				if path == "/ledger/checkpoint" {
					return []byte(do(string(answer)))
				}
				return answer
			}
			newAuditor(t).run(serve(t, s)...).want(t, verify.ExitUndecided, "INVALID PROOF ")
		})
	}
}
