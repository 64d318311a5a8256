package event

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// bodyRoot is that of content, from what is disclosed where something was erased.
func bodyRoot(t *testing.T, c *Content) ledger.Hash {
	t.Helper()
	if c.Disclosure == nil {
		root, _, err := ledger.RecomputeBodyRoot(c.Seed, c.Body)
		if err != nil {
			t.Fatal(err)
		}
		return root
	}
	joined, err := ledger.JoinDisclosure(c.Disclosure, c.Body)
	if err != nil {
		t.Fatal(err)
	}
	commitments := make([][32]byte, 0, len(joined))
	for _, d := range joined {
		if d.Commitment != nil {
			commitments = append(commitments, *d.Commitment)
		} else {
			commitments = append(commitments, ledger.SaltedCommitment(*d.Salt, []byte(d.Path), []byte(*d.Value)))
		}
	}
	return ledger.BodyRoot(commitments)
}

func redact(t *testing.T, c *Content, paths ...string) *Content {
	t.Helper()
	left, err := c.Redact(paths)
	if err != nil {
		t.Fatalf("redact %q: %v", paths, err)
	}
	return left
}

func contentOf(e *recordpb.Event) *Content {
	return &Content{Body: e.GetBody(), Seed: [16]byte(e.GetSeed())}
}

// Each field, alone, one after the other, and all at once: what is left is the event without it, and the leaf the same.
func TestRedact(t *testing.T) {
	_, e := build(t, testWorkspace(), Input{JSON: []byte(fullEvent)})
	whole := contentOf(e)
	root := bodyRoot(t, whole)
	paths, erased, err := whole.Fields()
	if err != nil || len(erased) > 0 || len(paths) != int(e.GetFieldCount()) {
		t.Fatalf("fields %q, %d of them erased: %v", paths, len(erased), err)
	}
	stepwise := whole
	for _, path := range paths {
		left := redact(t, whole, path)
		if Protected(path) {
			if left != whole {
				t.Errorf("%s was erased", path)
			}
			continue
		}
		if got := bodyRoot(t, left); got != root || left.Seed != [16]byte{} {
			t.Errorf("%s: body root %x, want %x; seed %x", path, got, root, left.Seed)
		}
		all, erased, err := left.Fields()
		if err != nil || !slices.Equal(all, paths) || !slices.Equal(erased, []string{path}) {
			t.Errorf("%s: erased %q of %q: %v", path, erased, all, err)
		}
		fields, err := ledger.Fields(nil, left.Body)
		if err != nil || len(fields) != len(paths)-1 || slices.ContainsFunc(fields, func(f ledger.Field) bool { return string(f.Path) == path }) {
			t.Errorf("%s is left in %s: %v", path, left.Body, err)
		}
		if again := redact(t, left, path, "/nothing", "/metadata/"); again != left {
			t.Errorf("%s was erased twice", path)
		}
		stepwise = redact(t, stepwise, path)
	}
	backwards := slices.Clone(paths)
	slices.Reverse(backwards)
	at := redact(t, whole, backwards...)
	if diff := cmp.Diff(at, stepwise); diff != "" {
		t.Errorf("all at once and one after the other (-at once +stepwise):\n%s", diff)
	}
	const want = `{"action":"config.changed","occurred_at":"2026-09-30T02:00:00.500000Z","version":2}`
	if string(at.Body) != want || bodyRoot(t, at) != root {
		t.Errorf("left is %s", at.Body)
	}
}

func TestRedactNames(t *testing.T) {
	_, e := build(t, testWorkspace(), Input{JSON: []byte(`{"actor_id":"a","action":"b","metadata":{"a/b":1,"a~b":2,"a":{"b":3},"a.b":4,"\"\n":5,"😀":6}}`)})
	for path, want := range map[string]string{
		"/metadata/a~1b": `{"\"\n":5,"a":{"b":3},"a.b":4,"a~b":2,"😀":6}`,
		"/metadata/a~0b": `{"\"\n":5,"a":{"b":3},"a.b":4,"a/b":1,"😀":6}`,
		"/metadata/a":    `{"\"\n":5,"a.b":4,"a/b":1,"a~b":2,"😀":6}`,
		"/metadata/a.b":  `{"\"\n":5,"a":{"b":3},"a/b":1,"a~b":2,"😀":6}`,
		"/metadata/\"\n": `{"a":{"b":3},"a.b":4,"a/b":1,"a~b":2,"😀":6}`,
		"/metadata/😀":    `{"\"\n":5,"a":{"b":3},"a.b":4,"a/b":1,"a~b":2}`,
	} {
		left := redact(t, contentOf(e), path)
		if got := string(left.Body); !strings.Contains(got, `"metadata":`+want+`,`) {
			t.Errorf("without %q: %s", path, got)
		}
		if bodyRoot(t, left) != ledger.Hash(e.GetBodyRoot()) {
			t.Errorf("without %q the body root is another", path)
		}
	}
	for _, path := range []string{"/metadata", "/metadata/a/b", "metadata/a", "/", "", "/targets/0"} {
		if c := contentOf(e); redact(t, c, path) != c {
			t.Errorf("%q is a field", path)
		}
	}
}

func TestRedactRefuses(t *testing.T) {
	_, e := build(t, testWorkspace(), Input{JSON: []byte(fullEvent)})
	whole := contentOf(e)
	left := redact(t, whole, "/actor_id")
	for name, c := range map[string]*Content{
		"no JSON":          {Body: []byte("{")},
		"not canonical":    {Body: []byte(`{"action": "a"}`)},
		"a value is back":  {Body: whole.Body, Disclosure: left.Disclosure},
		"a value has gone": {Body: redact(t, whole, "/user_agent").Body, Disclosure: left.Disclosure},
	} {
		if _, err := c.Redact([]string{"/tenant_id", "/action"}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A value of four digits cannot be found by trying all of them against what is left.
func TestRedactedValueCannotBeGuessed(t *testing.T) {
	_, e := build(t, testWorkspace(), Input{JSON: []byte(`{"actor_id":"a","action":"b","metadata":{"pin":"4711","other":"x"}}`)})
	whole := contentOf(e)
	left := redact(t, whole, "/metadata/pin")
	stored, err := ledger.EncodeDisclosure(left.Disclosure)
	if err != nil {
		t.Fatal(err)
	}
	// Everything that is public and could have gone into a salt: the seed that is left, salts and commitments of others.
	salts := [][16]byte{left.Seed, [16]byte(e.GetId())}
	var target ledger.Hash
	for _, d := range left.Disclosure {
		if d.Commitment != nil {
			target = *d.Commitment
		} else {
			salts = append(salts, *d.Salt, ledger.Salt(*d.Salt, []byte("/metadata/pin")))
		}
	}
	salts = append(salts, ledger.Salt(left.Seed, []byte("/metadata/pin")))
	if hit := guess(salts, target); hit != "" {
		t.Errorf("%s is found", hit)
	}
	if strings.Contains(string(stored)+string(left.Body), "4711") {
		t.Errorf("it is in what is left: %s %s", left.Body, stored)
	}
	// The seed, which is dropped, would give it away: the search can succeed.
	if hit := guess([][16]byte{ledger.Salt(whole.Seed, []byte("/metadata/pin"))}, target); hit != "4711" {
		t.Errorf("with the seed %q is found", hit)
	}
}

func guess(salts [][16]byte, target ledger.Hash) string {
	for n := range 10_000 {
		for _, salt := range salts {
			value := fmt.Appendf(nil, `"%04d"`, n)
			if ledger.SaltedCommitment(salt, []byte("/metadata/pin"), value) == target {
				return fmt.Sprintf("%04d", n)
			}
		}
	}
	return ""
}

// Columns come out of a body as the builder has put them into the record.
func TestColumnsOf(t *testing.T) {
	for _, json := range []string{
		fullEvent, `{"actor_id":"a","action":"b"}`, string(readFixture(t, "events/3-secret.rotated.json")),
		`{"actor_id":4711,"action":"b","targets":[{"type":"t","metadata":{"id":"no"}}],"metadata":{"n":1e3,"a":[{"b":"c"},{"b":"d"}],"type":"x"}}`,
	} {
		_, e := build(t, testWorkspace(), Input{JSON: []byte(json)})
		checkColumns(t, e)
	}
}

func checkColumns(t *testing.T, e *recordpb.Event) {
	t.Helper()
	got, err := ColumnsOf(e.GetBody())
	if err != nil {
		t.Fatalf("%s: %v", e.GetBody(), err)
	}
	want := &Columns{OccurredAt: e.GetOccurredAt()}
	for i, text := range []string{
		e.GetActorId(), e.GetActorName(), e.GetActorType(), e.GetAction(), e.GetActionCategory(), e.GetResource(), e.GetResourceId(),
		e.GetResourceName(), e.GetSessionId(), e.GetTenantId(), e.GetIpAddress(), e.GetUserAgent(),
	} {
		want.Text[i] = []byte(text)
	}
	for _, list := range []struct {
		to   *[][]byte
		from []string
	}{
		{&want.TargetTypes, e.GetTargetTypes()},
		{&want.TargetIDs, e.GetTargetIds()},
		{&want.Flags, e.GetFlags()},
		{&want.MetadataKeys, e.GetMetadataKeys()},
		{&want.MetadataValues, e.GetMetadataValues()},
	} {
		for _, text := range list.from {
			*list.to = append(*list.to, []byte(text))
		}
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("columns of %s (-record +body):\n%s", e.GetBody(), diff)
	}
}

// A redaction is in the lane of its target.
func TestLaneThatIsGiven(t *testing.T) {
	lane := uint32(3)
	ws := testWorkspace()
	for _, in := range []Input{{}, {Lane: &lane, Kind: recordpb.Kind_KIND_REDACTION}} {
		in.JSON = []byte(`{"actor_id":"key:1","action":"event.redacted","resource":"event","resource_id":"0"}`)
		r, e := build(t, ws, in)
		want := Lane("event", "0", "key:1", ws.Lanes)
		if in.Lane != nil {
			want = lane
		}
		if r.Lane != want || e.GetLane() != want || string(r.Key) != string(RecordKey(ws.ID, want)) {
			t.Errorf("lane %d in the record, key %s; want %d", e.GetLane(), r.Key, want)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte(fullEvent), uint64(1))
	f.Add([]byte(`{"actor_id":"a","action":"b","metadata":{"a/b":1,"a~b":2}}`), uint64(0xff))
	f.Fuzz(func(t *testing.T, json []byte, which uint64) {
		b := NewBuilder()
		if _, err := b.Build(testWorkspace(), Input{JSON: json, RecordedAt: testTime}); err != nil {
			return
		}
		whole := &Content{Body: b.body, Seed: b.seed}
		paths, _, err := whole.Fields()
		if err != nil {
			t.Fatal(err)
		}
		var some []string
		for i, path := range paths {
			if which>>(i%64)&1 == 1 && !Protected(path) {
				some = append(some, path)
			}
		}
		left := redact(t, whole, some...)
		if bodyRoot(t, left) != b.bodyRoot {
			t.Errorf("without %q the body root is another", some)
		}
		if len(some) > 0 {
			text, err := ledger.EncodeDisclosure(left.Disclosure)
			if err != nil {
				t.Fatal(err)
			}
			stored, err := ledger.ParseDisclosure(text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(left.Disclosure, stored); diff != "" {
				t.Errorf("stored disclosure (-want +got):\n%s", diff)
			}
		}
		if _, err := ColumnsOf(left.Body); err != nil {
			t.Error(err)
		}
		if masked, err := Mask(whole.Body, some); err != nil || string(masked) != string(left.Body) {
			t.Errorf("masked %s (%v), redacted %s", masked, err, left.Body)
		}
	})
}

// TestRedactionVectors holds what is left of a body to the vectors of package ledger.
func TestRedactionVectors(t *testing.T) {
	const path = "../schemas/testdata/vectors/redactions.json"
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	type vector struct {
		Name           string   `json:"name"`
		Seed           string   `json:"seed"`
		Body           string   `json:"body"`
		Paths          []string `json:"paths"`
		WantLeft       string   `json:"want_left"`
		WantDisclosure string   `json:"want_disclosure"`
		WantBodyRoot   string   `json:"want_body_root"`
	}
	var file struct {
		Redactions []*vector `json:"redactions"`
	}
	if err := stdjson.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Redactions) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range file.Redactions {
		c := &Content{Body: []byte(v.Body), Seed: [16]byte(unhex(t, v.Seed))}
		left := redact(t, c, v.Paths...)
		stored, err := ledger.EncodeDisclosure(left.Disclosure)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			v.WantLeft, v.WantDisclosure = string(left.Body), string(stored)
		}
		if string(left.Body) != v.WantLeft || string(stored) != v.WantDisclosure {
			t.Errorf("%s: left is %s with %s, want %s with %s", v.Name, left.Body, stored, v.WantLeft, v.WantDisclosure)
		}
	}
	if *update {
		var out bytes.Buffer
		encoder := stdjson.NewEncoder(&out)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(file); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
