package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type inclusionVector struct {
	Index uint64 `json:"index"`
	Size  uint64 `json:"size"`
	Leaf  Hash   `json:"leaf"`
	Root  Hash   `json:"root"`
	Path  []Hash `json:"path"`
}

type consistencyVector struct {
	Size1 uint64 `json:"size1"`
	Size2 uint64 `json:"size2"`
	Root1 Hash   `json:"root1"`
	Root2 Hash   `json:"root2"`
	Path  []Hash `json:"path"`
}

// Proofs in the tree over the leaf hashes SHA-256(0x00 || decimal index).
func TestProofVectors(t *testing.T) {
	var file struct {
		Leaves      string              `json:"leaves"`
		Inclusion   []inclusionVector   `json:"inclusion"`
		Consistency []consistencyVector `json:"consistency"`
	}
	vectors(t, "proofs.json", &file)
	tree, _ := newTrees(t, 1000)
	want := file
	want.Leaves = "leaf hash i is SHA-256(0x00 || decimal i)"
	want.Inclusion, want.Consistency = nil, nil
	for _, at := range [][2]uint64{{0, 1}, {0, 2}, {1, 2}, {2, 3}, {5, 7}, {255, 256}, {255, 257}, {256, 257}, {0, 1000}, {512, 1000}, {999, 1000}} {
		want.Inclusion = append(want.Inclusion, inclusionVector{
			at[0], at[1], tree.levels[0][at[0]], tree.rootAt(t, at[1]), tree.inclusion(t, at[0], at[1]),
		})
	}
	for _, at := range [][2]uint64{{1, 1}, {1, 2}, {2, 3}, {3, 7}, {4, 7}, {256, 257}, {255, 1000}, {512, 1000}, {999, 1000}} {
		want.Consistency = append(want.Consistency, consistencyVector{
			at[0], at[1], tree.rootAt(t, at[0]), tree.rootAt(t, at[1]), tree.consistency(t, at[0], at[1]),
		})
	}
	compareVectors(t, &file, &want)
}

// compareVectors takes what is computed for what the file says, under -update.
func compareVectors[T any](t *testing.T, file, want *T) {
	t.Helper()
	if *update {
		*file = *want
	}
	normal := cmp.Transformer("empty", func(s []Hash) []Hash { return append([]Hash{}, s...) })
	if diff := cmp.Diff(want, file, cmp.FilterValues(func(a, b []Hash) bool { return len(a)+len(b) == 0 }, cmp.Ignore()), normal); diff != "" {
		t.Errorf("(-computed +file):\n%s", diff)
	}
}

type mapVector struct {
	Chain ChainID  `json:"chain"`
	Size  uint64   `json:"size"`
	Root  Hash     `json:"root"`
	Proof MapProof `json:"proof"`
}

func TestMapVectors(t *testing.T) {
	var file struct {
		Root    Hash        `json:"root"`
		Present []mapVector `json:"present"`
		Absent  []mapVector `json:"absent"`
	}
	vectors(t, "map.json", &file)
	want := file
	want.Present, want.Absent = nil, nil
	var m Map
	for i := range uint64(12) {
		m.Set(testChain(i), 100+i, Hash{byte(i)})
	}
	want.Root = m.Root()
	for i := range uint64(12) {
		want.Present = append(want.Present, mapVector{testChain(i), 100 + i, Hash{byte(i)}, m.Prove(testChain(i))})
	}
	empty, other := false, false
	for i := uint64(12); !empty || !other; i++ {
		p := m.Prove(testChain(i))
		empty, other = empty || p.Other == nil, other || p.Other != nil
		want.Absent = append(want.Absent, mapVector{Chain: testChain(i), Proof: p})
	}
	compareVectors(t, &file, &want)
}

type bundleVector struct {
	Name  string `json:"name"`
	Trust string `json:"trust"`
	// Bundle is a bundle's file.
	Bundle string    `json:"bundle"`
	Want   []Verdict `json:"want"`
}

// A root log, and what is proven by it: the bundles that hold, those that do not, and a fork.
func TestLogVectors(t *testing.T) {
	var file struct {
		Now     time.Time      `json:"now"`
		Entries []string       `json:"entries"`
		Hashes  []Hash         `json:"entry_hashes"`
		Root    Hash           `json:"root"`
		Fork    []string       `json:"fork"`
		Bundles []bundleVector `json:"bundles"`
	}
	vectors(t, "log.json", &file)

	l := newTestLog(t)
	c, other := l.chain(t), l.chain(t)
	target := c.event(t, KindEvent, testBody).ID
	other.event(t, KindEvent, `{"action":"a","metadata":{"a/b~":["\u0001",-1.5e-7,1e+21],"é":{}},"version":0}`)
	l.epoch(t)
	l.rotate(t, newTestKey(testOrigin, 1))
	c.event(t, KindRedaction, fmt.Sprintf(`{"action":"event.redacted","actor_id":"key:1","metadata":{"event_id":%q,"paths":["/metadata/old_value"]}}`, target))
	l.epoch(t)
	witness, absent := newTestWitness("witness.example/1", 10), newTestWitness("witness.example/2", 11)
	bare := l.keys[0].vkey() + "\n"
	policy := "log " + l.keys[1].vkey() + "\nwitness one " + witness.vkey() + "\nwitness two " + absent.vkey() + "\n"

	want := file
	want.Now, want.Root, want.Entries, want.Hashes, want.Bundles = testStart.Add(time.Hour), l.Root(), nil, nil, nil
	for _, e := range l.entries {
		want.Entries, want.Hashes = append(want.Entries, string(e)), append(want.Hashes, EntryHash(e))
	}
	forked, err := SignCheckpoint(&Checkpoint{testOrigin, l.Size, Hash{1}}, l.key())
	if err != nil {
		t.Fatal(err)
	}
	want.Fork = []string{string(l.checkpoint(t, l.Size, l.key())), string(forked)}
	add := func(name, trust string, b *Bundle, verdicts ...Verdict) {
		text, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		want.Bundles = append(want.Bundles, bundleVector{name, trust, string(text), append([]Verdict{}, verdicts...)})
	}
	spoilt := func(spoil func(*Bundle)) *Bundle {
		b := l.bundle(t, c, 1)
		spoil(b)
		return b
	}
	add("sound", bare, l.bundle(t, c, 1))
	add("sound, with numbers and escapes", bare, l.bundle(t, other, 1))
	add("witnessed", policy+"group g any one two\nquorum g\n", l.bundle(t, c, 1, l.key(), witness))
	add("one witness of two", policy+"group g all one two\nquorum g\n", l.bundle(t, c, 1, l.key(), witness), QuorumNotMet)
	add("another key", bare, l.bundle(t, c, 1, newTestKey(testOrigin, 7)), WrongKey)
	add("the key before", bare, l.bundle(t, c, 1, l.keys[0]), KeyOutOfRange)
	add("a changed value", bare, spoilt(func(b *Bundle) { b.Body = strings.Replace(b.Body, "4711", "4712", 1) }), Modified)
	add("white space in the body", bare, spoilt(func(b *Bundle) { b.Body = strings.Replace(b.Body, ",", ", ", 1) }), NonCanonical)
	add("another leaf", bare, spoilt(func(b *Bundle) { b.Offset++ }), Modified)
	add("another workspace", bare, spoilt(func(b *Bundle) { b.Workspace[0]++ }), CrossChain)
	add("another size", bare, spoilt(func(b *Bundle) { b.Size = 1 << 40 }), InvalidProof, Modified)
	add("another epoch", bare, spoilt(func(b *Bundle) { b.Epoch = string(l.entries[1]) }), InvalidProof, InvalidProof)
	add("withheld", bare, spoilt(func(b *Bundle) { redact(t, &b.BundleLeaf, "/metadata/old_value") }), Withheld)
	redacted := spoilt(func(b *Bundle) {
		redact(t, &b.BundleLeaf, "/metadata/old_value")
		b.Redactions = []BundleLeaf{c.withPath(t, 2, c.Size)}
	})
	add("redacted", bare, redacted, Redacted)
	compareVectors(t, &file, &want)

	for _, v := range file.Bundles {
		b, err := ParseBundle([]byte(v.Bundle))
		if err != nil {
			t.Fatal(err)
		}
		var found []Verdict
		for _, f := range b.Verify(mustTrust(t, v.Trust), file.Now).Faults {
			found = append(found, f.Verdict)
		}
		if !slices.Equal(found, v.Want) {
			t.Errorf("%s: %v, want %v", v.Name, found, v.Want)
		}
	}
}
