package attacks

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// bundleLedger has an event with a redaction at sequence 30 of its first chain.
func bundleLedger() *ledgertest.Ledger {
	l := newLedger()
	l.Redact(l.Chains[0], 30, "/metadata/old_value")
	l.Epoch()
	return l
}

// file writes a proof as it is downloaded.
func (a *auditor) file(text []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, "proof.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func bundle(t *testing.T, l *ledgertest.Ledger, sequence uint64) *ledger.Bundle {
	t.Helper()
	b, err := l.Bundle(l.Chains[0], sequence)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEvent: what a proof file can say that is not so.
func TestEvent(t *testing.T) {
	t.Parallel()
	l := bundleLedger()
	c := l.Chains[0]
	body := func(do func(string) string) func(*ledger.Bundle) {
		return func(b *ledger.Bundle) { b.Body = do(b.Body) }
	}
	replace := func(old, changed string) func(*ledger.Bundle) {
		return body(func(s string) string { return strings.Replace(s, old, changed, 1) })
	}
	withheld := func(b *ledger.Bundle) {
		leaf := l.Chains[0].Leaves[40]
		leaf.Erase("/actor_id")
		b.Body, b.Seed, b.Disclosure = "", nil, leaf.Disclosure
	}
	for _, tc := range []struct {
		name     string
		sequence uint64
		do       func(b *ledger.Bundle)
		exit     int
		want     []string
	}{
		{"nothing", 40, func(*ledger.Bundle) {}, verify.ExitVerified, nil},
		{"redacted", 30, func(*ledger.Bundle) {}, verify.ExitVerified, []string{at(ledger.Redacted, c, "30")}},
		{"1 a byte of the body", 40, replace("curl", "curm"), verify.ExitTampered, []string{at(ledger.Modified, c, "40")}},
		{"1 a byte of the seed", 40, func(b *ledger.Bundle) { b.Seed[3] ^= 1 }, verify.ExitTampered, []string{at(ledger.Modified, c, "40")}},
		{"4 two values swapped", 40, body(func(s string) string {
			return strings.NewReplacer(`"Ada Lovelace"`, `"user"`, `"user"`, `"Ada Lovelace"`).Replace(s)
		}), verify.ExitTampered, []string{at(ledger.Modified, c, "40")}},
		{"4 two salts swapped", 30, func(b *ledger.Bundle) {
			d := b.Disclosure
			d[0].Salt, d[1].Salt = d[1].Salt, d[0].Salt
		}, verify.ExitTampered, []string{at(ledger.Modified, c, "30"), at(ledger.Redacted, c, "30")}},
		{"4 a path renamed", 40, replace("session_id", "session_ie"), verify.ExitTampered, []string{at(ledger.Modified, c, "40")}},
		{"16 a chain of another workspace", 40, func(b *ledger.Bundle) { b.Workspace[3]++ }, verify.ExitTampered, []string{at(ledger.CrossChain, c, "40")}},
		{"16 the proof of another chain", 40, func(b *ledger.Bundle) {
			o, err := l.Bundle(l.Chains[1], 40)
			if err != nil {
				t.Fatal(err)
			}
			b.Map = o.Map
		}, verify.ExitTampered, []string{at(ledger.InvalidProof, c, "40")}},
		{"16 the checkpoint of another log", 40, func(b *ledger.Bundle) {
			b.LogProof = strings.Replace(b.LogProof, "example.com/ledger\n", "example.com/other\n", 1)
		}, verify.ExitUndecided, []string{at(ledger.InvalidProof, c, "40")}},
		{"17 another index", 40, func(b *ledger.Bundle) { b.Sequence++ }, verify.ExitTampered, []string{at(ledger.Modified, c, "41")}},
		{"17 an index beyond the size", 40, func(b *ledger.Bundle) { b.Sequence = 1 << 63 }, verify.ExitTampered, []string{at(ledger.Modified, c, "9223372036854775808")}},
		{"17 another size", 40, func(b *ledger.Bundle) { b.Size += 200 }, verify.ExitTampered, []string{at(ledger.InvalidProof, c, "40"), at(ledger.Modified, c, "40")}},
		{"17 size 0", 40, func(b *ledger.Bundle) { b.Size = 0 }, verify.ExitTampered, []string{at(ledger.InvalidProof, c, "40"), at(ledger.Modified, c, "40")}},
		{"17 a path too short", 40, func(b *ledger.Bundle) { b.Path = b.Path[1:] }, verify.ExitTampered, []string{at(ledger.Modified, c, "40")}},
		{"17 a path too long", 40, func(b *ledger.Bundle) { b.Path = append(b.Path, ledger.Hash{}) }, verify.ExitTampered, []string{at(ledger.Modified, c, "40")}},
		{"17 an epoch at another index", 40, func(b *ledger.Bundle) {
			b.LogProof = strings.Replace(b.LogProof, "index 7\n", "index 6\n", 1)
		}, verify.ExitTampered, []string{at(ledger.InvalidProof, c, "40")}},
		{"12 one chain with two values in one epoch", 40, func(b *ledger.Bundle) {
			o := rewritten()
			other := bundle(t, o, 40)
			b.BundleLeaf, b.Size, b.Root = other.BundleLeaf, other.Size, other.Root
		}, verify.ExitTampered, []string{at(ledger.InvalidProof, c, "40")}},
		{
			"17 an index and a size that overflow", 40, func(b *ledger.Bundle) { b.Sequence, b.Size = math.MaxUint64, math.MaxUint64 }, verify.ExitTampered,
			[]string{at(ledger.InvalidProof, c, "18446744073709551615"), at(ledger.Modified, c, "18446744073709551615")},
		},
		{"17 an index one beyond the last", 40, func(b *ledger.Bundle) { b.Sequence = b.Size }, verify.ExitTampered, []string{at(ledger.Modified, c, "102")}},
		{"17 an inner node as a leaf", 40, func(b *ledger.Bundle) {
			b.Path, b.Sequence, b.Size = b.Path[1:], b.Sequence/2, b.Size/2
		}, verify.ExitTampered, []string{at(ledger.InvalidProof, c, "20"), at(ledger.Modified, c, "20")}},
		{"17 no path in the map", 40, func(b *ledger.Bundle) { b.Map.Siblings = nil }, verify.ExitTampered, []string{at(ledger.InvalidProof, c, "40")}},
		{
			"17 257 steps in the map", 40, func(b *ledger.Bundle) { b.Map.Siblings = make([]ledger.Hash, 257) }, verify.ExitTampered,
			[]string{at(ledger.InvalidProof, c, "40")},
		},
		{"17 another entry as the key change", 40, func(b *ledger.Bundle) { b.Keys[1].Entry = b.Epoch }, verify.ExitUndecided, []string{at(ledger.InvalidProof, c, "40")}},
		{
			"17 the path of a key change too short", 40, func(b *ledger.Bundle) { b.Keys[1].Path = b.Keys[1].Path[1:] }, verify.ExitUndecided,
			[]string{at(ledger.InvalidProof, c, "40")},
		},
		{"18 a checkpoint with an extension line", 40, func(b *ledger.Bundle) {
			b.LogProof = strings.Replace(b.LogProof, "\n\n—", "\nmore\n\n—", 1)
		}, verify.ExitUndecided, []string{at(ledger.InvalidProof, c, "40")}},
		{"20 a value withheld", 40, withheld, verify.ExitUndecided, []string{at(ledger.Withheld, c, "40"), at(ledger.Withheld, c, "101")}},
		{"20 no redaction", 30, func(b *ledger.Bundle) { b.Redactions = nil }, verify.ExitUndecided, []string{at(ledger.Withheld, c, "30")}},
		{"22 a name twice", 40, replace(`{"action"`, `{"action":"x","action"`), verify.ExitTampered, []string{at(ledger.NonCanonical, c, "40")}},
		{"22 a name twice, escaped", 40, replace(`{"action"`, `{"\u0061ction":"x","action"`), verify.ExitTampered, []string{at(ledger.NonCanonical, c, "40")}},
		{"22 2^53+1", 40, replace(`[1,true`, `[9007199254740993,true`), verify.ExitTampered, []string{at(ledger.NonCanonical, c, "40")}},
		{"22 1e400", 40, replace(`[1,true`, `[1e400,true`), verify.ExitTampered, []string{at(ledger.NonCanonical, c, "40")}},
		{"22 -0", 40, replace(`[1,true`, `[-0,true`), verify.ExitTampered, []string{at(ledger.NonCanonical, c, "40")}},
		{"22 a lone surrogate", 40, replace(`"curl`, `"\ud800curl`), verify.ExitTampered, []string{at(ledger.NonCanonical, c, "40")}},
		{"22 unsorted members", 40, replace(`"list":[1,true,"x"]`, `"z":1,"a":2`), verify.ExitTampered, []string{at(ledger.NonCanonical, c, "40")}},
		{"22 deep nesting", 40, replace(`[1,true,"x"]`, strings.Repeat("[", 10_000)+strings.Repeat("]", 10_000)), verify.ExitTampered, []string{at(ledger.NonCanonical, c, "40")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := bundle(t, l, tc.sequence)
			tc.do(b)
			if !strings.HasPrefix(tc.name, "20") && tc.sequence != 30 {
				b.Redactions = nil
			}
			text, err := b.Encode()
			if err != nil {
				t.Fatal(err)
			}
			a := newAuditor(t)
			a.run("event", a.file(text)).want(t, tc.exit, tc.want...)
		})
	}
}

// TestOwnKeys: attack 27, a proof that brings what it wants to be believed by.
func TestOwnKeys(t *testing.T) {
	t.Parallel()
	text, err := bundle(t, bundleLedger(), 40).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, member := range []string{"key", "policy", "trust", "verifier_key"} {
		t.Run(member, func(t *testing.T) {
			t.Parallel()
			var all map[string]json.RawMessage
			if err := json.Unmarshal(text, &all); err != nil {
				t.Fatal(err)
			}
			all[member], _ = json.Marshal(ledgertest.NewKey(ledgertest.Origin, 9).Verifier())
			changed, err := json.Marshal(all)
			if err != nil {
				t.Fatal(err)
			}
			a := newAuditor(t)
			a.run("event", a.file(changed)).want(t, verify.ExitNotTrusted, "WRONG KEY ")
		})
	}
}

// TestOldProof: attack 10 on a proof. Only the age of its epoch says that there is a newer one.
func TestOldProof(t *testing.T) {
	t.Parallel()
	text, err := bundle(t, newLedger(), 40).Encode()
	if err != nil {
		t.Fatal(err)
	}
	a := newAuditor(t)
	a.run("event", a.file(text), "--max-age=1s").want(t, verify.ExitUndecided, "STALE ")
}

// TestRememberedFork: a proof by another history of the size that was accepted before.
func TestRememberedFork(t *testing.T) {
	t.Parallel()
	a := newAuditor(t)
	a.memory = true
	a.run(serve(t, newServer(newLedger()))...).want(t, verify.ExitVerified)
	text, err := bundle(t, rewritten(), 40).Encode()
	if err != nil {
		t.Fatal(err)
	}
	a.run("event", a.file(text), "--evidence="+a.dir).want(t, verify.ExitTampered, "FORKED ")
}
