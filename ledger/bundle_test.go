package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
)

const testBody = `{"action":"config.updated","actor_id":"usr_1","metadata":{"new_value":"250","old_value":"4711"},"occurred_at":"2026-11-24T09:59:00.000000Z"}`

// newTestBundleLog has three chains of 700 events or so in four epochs, and one change of the key.
func newTestBundleLog(t *testing.T) *testLog {
	t.Helper()
	l := newTestLog(t)
	for range 3 {
		l.chain(t)
	}
	for epoch := range 4 {
		for i := range 700 {
			l.chains[i%3].event(t, KindEvent, testBody)
		}
		l.epoch(t)
		if epoch == 1 {
			l.rotate(t, newTestKey(testOrigin, 1))
		}
	}
	return l
}

func mustTrust(t *testing.T, lines ...string) *Trust {
	t.Helper()
	trust, err := ParseTrust([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

// verdicts are those of a bundle that has been written to a file and read back.
func verdicts(t *testing.T, b *Bundle, trust *Trust) (found []Verdict, all string) {
	t.Helper()
	text, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	read, err := ParseBundle(text)
	if err != nil {
		t.Fatal(err)
	}
	r := read.Verify(trust, testStart.Add(time.Hour))
	for _, f := range r.Faults {
		found = append(found, f.Verdict)
		all += f.String() + "\n"
	}
	if len(found) == 0 && (r.Checkpoint == nil || r.Epoch == nil) {
		t.Error("nothing was found, and no checkpoint is believed")
	}
	return found, all
}

func TestBundle(t *testing.T) {
	l := newTestBundleLog(t)
	first, second := l.keys[0].vkey(), l.keys[1].vkey()
	for _, trust := range []*Trust{
		mustTrust(t, first), // the log itself leads to the second
		mustTrust(t, second),
		mustTrust(t, "log "+first, "log "+second, "quorum none"),
	} {
		for _, c := range l.chains {
			for sequence := uint64(1); sequence < c.Size; sequence += 97 {
				if found, all := verdicts(t, l.bundle(t, c, sequence), trust); found != nil {
					t.Fatal(all)
				}
			}
		}
	}
	text, err := l.bundle(t, l.chains[1], 500).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 10_000 {
		t.Errorf("a bundle has %d bytes:\n%s", len(text), text)
	}
}

// Each way to change a bundle has its verdict.
func TestBundleThatDoesNotHold(t *testing.T) {
	l := newTestBundleLog(t)
	trusted := []string{l.keys[0].vkey()}
	stranger := newTestKey(testOrigin, 9)
	c := l.chains[1]
	const sequence = 500
	for _, tc := range []struct {
		name  string
		spoil func(b *Bundle)
		want  Verdict
		also  string // a part of the fault's text
	}{
		{"a value", func(b *Bundle) { b.Body = strings.Replace(b.Body, "4711", "4712", 1) }, Modified, "the body gives root"},
		{"two values swapped", func(b *Bundle) {
			b.Body = strings.NewReplacer(`"250"`, `"4711"`, `"4711"`, `"250"`).Replace(b.Body)
		}, Modified, "the body gives root"},
		{"a renamed field", func(b *Bundle) { b.Body = strings.Replace(b.Body, "old_value", "old_valuf", 1) }, Modified, ""},
		{"the seed", func(b *Bundle) { b.Seed[3] ^= 1 }, Modified, ""},
		{"two salts swapped", func(b *Bundle) {
			redact(t, &b.BundleLeaf)
			d := b.Disclosure
			d[0].Salt, d[1].Salt = d[1].Salt, d[0].Salt
		}, Modified, ""},
		{"previous", func(b *Bundle) { b.Previous[0] ^= 1 }, Modified, "not in the chain's tree"},
		{"recorded_at", func(b *Bundle) { b.RecordedAt = strings.Replace(b.RecordedAt, "2026", "2025", 1) }, Modified, "not in the chain's tree"},
		{"kind", func(b *Bundle) { b.Kind = KindNote }, Modified, ""},
		{"event id", func(b *Bundle) { b.ID = c.leaves[1].ID }, Modified, ""},
		{"field count", func(b *Bundle) { b.FieldCount++ }, Modified, "the body gives root"},
		{"input offset", func(b *Bundle) { b.Offset++ }, Modified, ""},
		{"body root", func(b *Bundle) { b.BodyRoot[0] ^= 1 }, Modified, ""},
		{"another index", func(b *Bundle) { b.Sequence++ }, Modified, ""},
		{"index beyond the chain", func(b *Bundle) { b.Sequence = 1 << 63 }, Modified, "index is beyond size"},
		{"path too short", func(b *Bundle) { b.Path = b.Path[1:] }, Modified, "wrong proof size"},
		{"path too long", func(b *Bundle) { b.Path = append(b.Path, Hash{}) }, Modified, "wrong proof size"},
		{"size", func(b *Bundle) { b.Size++ }, InvalidProof, "not in the epoch's map"},
		{"size 0", func(b *Bundle) { b.Size = 0 }, InvalidProof, "not in the epoch's map"},
		{"root", func(b *Bundle) { b.Root[0] ^= 1 }, InvalidProof, "not in the epoch's map"},
		{"a sibling in the map", func(b *Bundle) { b.Map.Siblings[0][0] ^= 1 }, InvalidProof, "the path in the map"},
		{"absent from the map", func(b *Bundle) { b.Map.Other = &MapLeaf{} }, InvalidProof, "another chain in the place"},
		{"another chain's leaf", func(b *Bundle) {
			b.BundleLeaf = l.chains[2].withPath(t, sequence, b.Size)
		}, InvalidProof, "not in the epoch's map"},
		{"another workspace", func(b *Bundle) { b.Workspace[5]++ }, CrossChain, "is not that of workspace"},
		{"another lane", func(b *Bundle) { b.Lane++ }, CrossChain, ""},
		{"the epoch's time", func(b *Bundle) { b.Epoch = strings.Replace(b.Epoch, `"time":"2026`, `"time":"2027`, 1) }, InvalidProof, "not in the root log"},
		{"the epoch with white space", func(b *Bundle) { b.Epoch = strings.Replace(b.Epoch, ",", ", ", 1) }, InvalidProof, "canonical form"},
		{"an older epoch", func(b *Bundle) { b.Epoch = string(l.entries[1]) }, InvalidProof, "not in the root log"},
		{"a key change as the epoch", func(b *Bundle) { b.Epoch = string(l.entries[0]) }, InvalidProof, "it is no epoch"},
		{"the log proof's index", func(b *Bundle) { b.LogProof = strings.Replace(b.LogProof, "index 5", "index 4", 1) }, InvalidProof, ""},
		{"the log proof's form", func(b *Bundle) { b.LogProof = strings.Replace(b.LogProof, "index 5", "index 05", 1) }, InvalidProof, "only form"},
		{"the log proof with data", func(b *Bundle) { b.LogProof = strings.Replace(b.LogProof, "index", "extra YQ==\nindex", 1) }, InvalidProof, "only form"},
		{"no log proof", func(b *Bundle) { b.LogProof = "" }, InvalidProof, "header"},
		{"no key changes", func(b *Bundle) { b.Keys = nil }, InvalidProof, "entry 0 states the first key"},
		{"the second key change alone", func(b *Bundle) { b.Keys = b.Keys[1:] }, InvalidProof, "the first key change is entry 3"},
		{"an epoch as a key change", func(b *Bundle) { b.Keys[1].Entry = string(l.entries[1]) }, InvalidProof, "key change"},
		{"key changes out of order", func(b *Bundle) { b.Keys[1] = b.Keys[0] }, InvalidProof, "comes after key change"},
		{"a path of a key change", func(b *Bundle) { b.Keys[0].Path[0][0] ^= 1 }, InvalidProof, "key change"},
		{"without the last key change", func(b *Bundle) { b.Keys = b.Keys[:1] }, WrongKey, ""},
		{"not canonical", func(b *Bundle) { b.Body = strings.Replace(b.Body, ":", ": ", 1) }, NonCanonical, "byte 10"},
		{"-0", func(b *Bundle) { b.Body = strings.Replace(b.Body, `"usr_1"`, "-0", 1) }, NonCanonical, `"-0"`},
		{"no body", func(b *Bundle) { b.Body = "" }, InvalidProof, "want body and seed, or disclosure"},
		{"body and disclosure", func(b *Bundle) { b.Disclosure = []Disclosure{{}} }, InvalidProof, "want body and seed, or disclosure"},
		{"an id that is none", func(b *Bundle) { b.ID = strings.ToUpper(b.ID) }, InvalidProof, "want a UUID in lower case"},
		{"a time in another form", func(b *Bundle) { b.RecordedAt = strings.Replace(b.RecordedAt, ".", ",", 1) }, InvalidProof, "recorded_at"},
		{"too many key changes", func(b *Bundle) { b.Keys = slices.Repeat(b.Keys[:1], maxKeyChanges+1) }, InvalidProof, "1001 key changes, want 1 to 1000"},
		{"a time that is none", func(b *Bundle) { b.RecordedAt = "yesterday" }, InvalidProof, "recorded_at"},
		{"signed by a stranger of the same name", func(b *Bundle) { *b = *l.bundle(t, c, sequence, stranger) }, WrongKey, "checkpoint of size 6"},
		{"signed by the key before", func(b *Bundle) { *b = *l.bundle(t, c, sequence, l.keys[0]) }, KeyOutOfRange, "signs up to size 3"},
		{"a field withheld", func(b *Bundle) { redact(t, &b.BundleLeaf, "/metadata/old_value") }, Withheld, "no redaction covers it"},
		{"a field left out", func(b *Bundle) {
			redact(t, &b.BundleLeaf, "/metadata/old_value")
			b.Disclosure = slices.DeleteFunc(b.Disclosure, func(d Disclosure) bool { return d.Commitment != nil })
		}, Modified, ""},
		{"a field twice", func(b *Bundle) {
			redact(t, &b.BundleLeaf)
			b.Disclosure = append(b.Disclosure, b.Disclosure[len(b.Disclosure)-1])
		}, NonCanonical, "is not after the path before it"},
		{"a disclosed value that is not canonical", func(b *Bundle) {
			redact(t, &b.BundleLeaf)
			v := " 1"
			b.Disclosure[0].Value = &v
		}, NonCanonical, ""},
		{"a disclosed value that is two", func(b *Bundle) {
			redact(t, &b.BundleLeaf)
			v := `1,"w":2`
			b.Disclosure[0].Value = &v
		}, NonCanonical, ""},
		{"a disclosure that is neither", func(b *Bundle) {
			redact(t, &b.BundleLeaf)
			b.Disclosure[0].Salt = nil
		}, InvalidProof, "want salt and value, or commitment"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := l.bundle(t, c, sequence)
			tc.spoil(b)
			found, all := verdicts(t, b, mustTrust(t, trusted...))
			if !slices.Contains(found, tc.want) || !strings.Contains(all, tc.also) {
				t.Errorf("want %s with %q, found:\n%s", tc.want, tc.also, all)
			}
		})
	}
}

func TestBundleFromTheFuture(t *testing.T) {
	l := newTestLog(t)
	c := l.chain(t)
	leaf := Leaf{Kind: KindEvent, ID: [16]byte{1}, RecordedAt: testStart.Add(time.Hour).UnixMicro()}
	seed := Hex16{}
	content := BundleLeaf{Body: testBody, Seed: &seed}
	root, n, err := content.bodyRoot()
	if err != nil {
		t.Fatal(err)
	}
	leaf.BodyRoot, leaf.FieldCount = root, uint16(n)
	c.seal(&leaf, testBody, &seed)
	l.epoch(t)
	if found, all := verdicts(t, l.bundle(t, c, 1), mustTrust(t, l.key().vkey())); !slices.Equal(found, []Verdict{TimeAnomaly}) {
		t.Errorf("found %s", all)
	}
}

func TestRedactedBundle(t *testing.T) {
	l := newTestLog(t)
	c, other := l.chain(t), l.chain(t)
	target, beside := c.event(t, KindEvent, testBody).ID, c.event(t, KindEvent, testBody).ID
	// The test log's ids are known beforehand.
	const late = 4
	lateID := uuid.NewSHA1(uuid.UUID(c.Chain), fmt.Append(nil, late)).String()
	elsewhere := other.event(t, KindEvent, testBody).ID
	redaction := func(c *testChainLog, id string, paths ...string) uint64 {
		c.event(t, KindRedaction, fmt.Sprintf(`{"action":"event.redacted","actor_id":"key:1","metadata":{"event_id":%q,"paths":["%s"]}}`,
			id, strings.Join(paths, `","`)))
		return c.Size - 1
	}
	tooEarly := redaction(c, lateID, "/metadata/old_value")
	if id := c.event(t, KindEvent, testBody).ID; id != lateID {
		t.Fatalf("event %s, want %s", id, lateID)
	}
	right := redaction(c, target, "/metadata/old_value")
	// What anybody can send: an event that says what a redaction says.
	c.event(t, KindEvent, fmt.Sprintf(`{"action":"event.redacted","actor_id":"key:1","metadata":{"event_id":%q,"paths":["/metadata/old_value"]}}`, target))
	pretended := c.Size - 1
	ofBeside := redaction(c, beside, "/metadata/old_value")
	ofPath := redaction(c, target, "/metadata/new_value")
	ofAction := redaction(c, target, "/action", "/occurred_at")
	inOther := redaction(other, elsewhere, "/metadata/old_value")
	l.epoch(t)
	trust := mustTrust(t, l.key().vkey())

	withRedactions := func(sequence uint64, of *testChainLog, redactions ...uint64) *Bundle {
		b := l.bundle(t, c, sequence)
		redact(t, &b.BundleLeaf, "/metadata/old_value")
		for _, r := range redactions {
			b.Redactions = append(b.Redactions, of.withPath(t, r, of.Size))
		}
		return b
	}
	withoutAction := l.bundle(t, c, 1)
	redact(t, &withoutAction.BundleLeaf, "/action")
	withoutAction.Redactions = []BundleLeaf{c.withPath(t, ofAction, c.Size)}
	for _, tc := range []struct {
		name string
		b    *Bundle
		want []Verdict
	}{
		{"of what stays", withoutAction, []Verdict{Withheld}},
		{"covered", withRedactions(1, c, right), []Verdict{Redacted}},
		{"covered by one of two", withRedactions(1, c, ofPath, right), []Verdict{Redacted}},
		{"no redaction", withRedactions(1, c), []Verdict{Withheld}},
		{"of another event", withRedactions(1, c, ofBeside), []Verdict{Withheld, Withheld}},
		{"of another path", withRedactions(1, c, ofPath), []Verdict{Withheld}},
		{"an event that is no redaction", withRedactions(1, c, 2), []Verdict{Withheld, Withheld}},
		{"an event that says what a redaction says", withRedactions(1, c, pretended), []Verdict{Withheld, Withheld}},
		{"before the event", withRedactions(late, c, tooEarly), []Verdict{Withheld, Withheld}},
		{"in another chain", withRedactions(1, other, inOther), []Verdict{CrossChain, Modified, Withheld}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if found, all := verdicts(t, tc.b, trust); !slices.Equal(found, tc.want) {
				t.Errorf("want %v, found:\n%s", tc.want, all)
			}
		})
	}
	forged := withRedactions(1, c, ofBeside)
	forged.Redactions[0].Body = strings.Replace(forged.Redactions[0].Body, beside, target, 1)
	if found, all := verdicts(t, forged, trust); !slices.Equal(found, []Verdict{Modified, Withheld}) {
		t.Errorf("a forged redaction: found:\n%s", all)
	}
}

// A disclosure of more fields than an event can have is not gone through.
func TestLargeDisclosure(t *testing.T) {
	leaf := BundleLeaf{Disclosure: make([]Disclosure, maxDisclosed+1)}
	for i := range leaf.Disclosure {
		leaf.Disclosure[i] = Disclosure{Path: fmt.Sprintf("/%04d", i), Commitment: &Hash{}}
	}
	if _, _, err := leaf.bodyRoot(); err == nil || !strings.Contains(err.Error(), "disclosure of 1025 fields") {
		t.Error(err)
	}
}

func TestParseRedaction(t *testing.T) {
	const id = "00000000-0000-4000-8000-000000000000"
	for _, body := range []string{
		`{"metadata":{"event_id":"` + id + `","paths":["/a"` + strings.Repeat(`,"/a"`, maxDisclosed) + `]}}`,
		"", "[]", `{"metadata":[]}`, `{"metadata":{"event_id":"` + id + `","paths":["/a"]}`, `{"metadata":{"event_id":1,"paths":["/a"]}}`, `{"metadata":{"event_id":"` + id + `"}}`,
		`{"metadata":{"event_id":"` + id + `","paths":[]}}`, `{"metadata":{"paths":["/a"]}}`, `{}`,
	} {
		if r, err := ParseRedaction([]byte(body)); err == nil {
			t.Errorf("%s: %+v", body, r)
		}
	}
	r, err := ParseRedaction([]byte(`{"action":"x","metadata":{"event_id":"` + id + `","paths":["/a"]}}`))
	if err != nil || r.EventID != id || !slices.Equal(r.Paths, []string{"/a"}) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestBundleWithWitnesses(t *testing.T) {
	l := newTestLog(t)
	c := l.chain(t)
	c.event(t, KindEvent, testBody)
	l.epoch(t)
	w1, w2, w3 := newTestWitness("w1.example", 10), newTestWitness("w2.example", 11), newTestWitness("w3.example", 12)
	renamed := w1
	renamed.name = "w9.example"
	early := w2
	early.at = testStart.Add(2 * time.Hour)
	trust := mustTrust(t, "log "+l.key().vkey(), "witness a "+w1.vkey(), "witness b "+w2.vkey(), "witness c "+w3.vkey(),
		"group g 2 a b c", "quorum g")
	ofAnotherSize, err := SignCheckpoint(&Checkpoint{Origin: "example.com/other", Size: l.Size, Root: l.Root()}, w2)
	if err != nil {
		t.Fatal(err)
	}
	_, stolen, _ := strings.Cut(string(ofAnotherSize), "\n\n")

	for _, tc := range []struct {
		name    string
		signers []note.Signer
		more    string // signature lines
		want    []Verdict
	}{
		{"all", []note.Signer{l.key(), w1, w2, w3}, "", nil},
		{"two of three", []note.Signer{l.key(), w3, w1}, "", nil},
		{"one of three", []note.Signer{l.key(), w1}, "", []Verdict{QuorumNotMet}},
		{"none", []note.Signer{l.key()}, "", []Verdict{QuorumNotMet}},
		{"one under two names", []note.Signer{l.key(), w1, renamed}, "", []Verdict{QuorumNotMet}},
		{"one from the future", []note.Signer{l.key(), w1, early}, "", []Verdict{QuorumNotMet}},
		{"witnesses, and not the log", []note.Signer{w1, w2, w3}, "", []Verdict{WrongKey}},
		{"a cosignature of another origin", []note.Signer{l.key(), w1}, stolen, []Verdict{WrongKey}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := l.bundle(t, c, 1, tc.signers...)
			b.LogProof += tc.more
			if found, all := verdicts(t, b, trust); !slices.Equal(found, tc.want) {
				t.Errorf("want %v, found:\n%s", tc.want, all)
			}
		})
	}
}

func TestParseBundle(t *testing.T) {
	l := newTestLog(t)
	c := l.chain(t)
	c.event(t, KindEvent, testBody)
	l.epoch(t)
	text, err := l.bundle(t, c, 1).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, text, want string }{
		{"a key of its own", strings.Replace(string(text), "{", `{"trust":"`+newTestKey(testOrigin, 9).vkey()+`",`, 1), "trust"},
		{"a member twice", strings.Replace(string(text), "{", `{"lane":0,`, 1), "duplicate"},
		{"a member in capitals", strings.Replace(string(text), `"lane"`, `"Lane"`, 1), "Lane"},
		{"something after it", string(text) + "{}", "after top-level value"},
		{"another format", strings.Replace(string(text), bundleFormat, "immutable/proof/9", 1), `want "immutable/proof/1"`},
		{"a sequence of 2^64", strings.Replace(string(text), `"sequence": 1`, `"sequence": 18446744073709551616`, 1), "sequence"},
		{"a hash in capitals", strings.Replace(string(text), c.Chain.text(), strings.ToUpper(c.Chain.text()), 1), "lower-case"},
		{"a hash that is none", strings.Replace(string(text), c.Chain.text(), "g"+c.Chain.text()[1:], 1), "invalid byte"},
		{"a short hash", strings.Replace(string(text), c.Chain.text(), c.Chain.text()[2:], 1), "want 16 bytes"},
		{"too large", strings.Repeat(" ", MaxBundleBytes+1), "at most"},
		{"nothing", "", "EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := ParseBundle([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want it to say %q", err, tc.want)
			}
		})
	}
}

func (c ChainID) text() string { return fmt.Sprintf("%x", c) }
