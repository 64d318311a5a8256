package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/gowebpki/jcs"
	"pgregory.net/rapid"
)

func TestFields(t *testing.T) {
	for _, tc := range []struct {
		body string
		want string // path=value, in order
	}{
		{`{}`, ``},
		{`{"a":1,"b":{"c":[1,"x"]},"c":[{}]}`, `/a=1 /b={"c":[1,"x"]} /c=[{}]`},
		{`{"action":"a.b","metadata":{"a/b":1,"m~n":{"o":2}},"version":3}`, `/action="a.b" /metadata/a~1b=1 /metadata/m~0n={"o":2} /version=3`},
		{`{"metadata":{"a":{}},"metadata ":{}}`, `/metadata ={} /metadata/a={}`},
		// Only the body's own metadata is split.
		{`{"targets":[{"metadata":{"a":1}}]}`, `/targets=[{"metadata":{"a":1}}]`},
		{`{"metadata":{"metadata":{"a":1}}}`, `/metadata/metadata={"a":1}`},
		// The order of members is that of UTF-16, the order of fields that of bytes.
		{"{\"\U00010000\":1,\"\uffff\":2}", "/\uffff=2 /\U00010000=1"},
		{`{"metadata":{"z":1},"metadata.":2}`, `/metadata.=2 /metadata/z=1`},
		{`{"a\"\\\n\u001f":"\b\f\r\t\u0000\u000b"}`, "/a\"\\\n\x1f=\"\\b\\f\\r\\t\\u0000\\u000b\""},
	} {
		fields, err := Fields(nil, []byte(tc.body))
		if err != nil {
			t.Errorf("%s: %v", tc.body, err)
			continue
		}
		var got []string
		for _, f := range fields {
			got = append(got, fmt.Sprintf("%s=%s", f.Path, f.Value))
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: fields %q, want %q", tc.body, got, tc.want)
		}
	}
}

// manyFields is a body of n fields.
func manyFields(n int) string {
	b := []byte("{")
	for i := range n {
		b = fmt.Appendf(b, `"%05d":1,`, i)
	}
	b[len(b)-1] = '}'
	return string(b)
}

func TestFieldsOfWhatIsNotCanonical(t *testing.T) {
	for _, tc := range []struct{ body, want string }{
		{``, `byte 0: want '{'`},
		{`[]`, `byte 0: want '{'`},
		{`{"a":1} `, `byte 7: 1 bytes follow the object`},
		{`{"a":1}{}`, `2 bytes follow`},
		{`{ "a":1}`, `byte 1: want '"'`},
		{`{"a":1,"metadata":{}}`, `byte 19: metadata without members has to be left out`},
		{`{"a": 1}`, `byte 5: want a value`},
		{`{"a"1}`, `byte 4: want ':'`},
		{`{"a":1`, `byte 6: want ','`},
		{manyFields(1 << 16), `more than 65535 fields`},
		{`{"a":1,}`, `byte 7: want '"'`},
		{`{"a":[1,]}`, `byte 8: want a value`},
		{`{"a":[1 ,2]}`, `byte 7: want ','`},
		{`{"a":tru}`, `want a value`},
		{`{"a":`, `want a value`},
		{`{"a":1,"a":2}`, `name "a" is not greater than "a" before it`},
		{`{"b":1,"a":2}`, `name "a" is not greater than "b" before it`},
		{"{\"\uffff\":1,\"\U00010000\":2}", `is not greater`},
		{`{"a":-0}`, `number "-0" is not`},
		{`{"a":1.0}`, `number "1.0" is not`},
		{`{"a":1E3}`, `byte 6: want ','`},
		{`{"a":1e3}`, `number "1e3" is not`},
		{`{"a":01}`, `number "01" is not`},
		{`{"a":+1}`, `want a value`},
		{`{"a":9007199254740993}`, `number "9007199254740993" is not`},
		{`{"a":1e400}`, `number "1e400" is not`},
		{`{"a":1-2}`, `number "1-2" is not`},
		{`{"a":0.1000}`, `number "0.1000" is not`},
		{`{"a":"\/"}`, `an escape that is not the shortest`},
		{`{"a":"\u0061"}`, `an escape that is not the shortest`},
		{`{"a":"\u000a"}`, `an escape that is not the shortest`},
		{`{"a":"\u001F"}`, `an escape that is not the shortest`},
		{`{"a":"\ud800"}`, `an escape that is not the shortest`},
		{`{"a":"\u00`, `an escape that is not the shortest`},
		{`{"a":"\`, `an escape that is not the shortest`},
		{"{\"a\":\"\xed\xa0\x80\"}", `not UTF-8`},
		{"{\"a\":\"\xff\"}", `not UTF-8`},
		{"{\"a\":\"\n\"}", `want a character of a string`},
		{`{"a":"b`, `want a character of a string`},
		{`{"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, `nested deeper than 64`},
		{`{"a":` + strings.Repeat(`{"a":`, 100) + `1` + strings.Repeat("}", 100) + `}`, `nested deeper than 64`},
	} {
		fields, err := Fields(nil, []byte(tc.body))
		if !errors.Is(err, ErrNotCanonical) || !strings.Contains(err.Error(), tc.want) || fields != nil {
			t.Errorf("%.100s: %v, %v; want an error with %q", tc.body, fields, err, tc.want)
		}
	}
}

// drawJSON draws a value; names and strings are such that every rule of escaping and order is met.
func drawJSON(t *rapid.T, depth int) any {
	text := rapid.StringOfN(rapid.RuneFrom([]rune("ab~/\"\\\b\t\n\x00\x1fé\u2028\ud7ff\ue000\uffff\U00010000\U0010ffff")), 0, 4, -1)
	switch kind := rapid.IntRange(0, 5).Draw(t, "kind"); {
	case kind == 0 && depth > 0, depth == 4:
		return rapid.MapOfN(text, rapid.Custom(func(t *rapid.T) any { return drawJSON(t, depth-1) }), 0, 4).Draw(t, "object")
	case kind == 1 && depth > 0:
		return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) any { return drawJSON(t, depth-1) }), 0, 3).Draw(t, "array")
	case kind == 2:
		return rapid.Float64().Draw(t, "number")
	case kind == 3:
		return rapid.SampledFrom([]any{true, false, nil, 0, -1, 1e21, 1e-7, 123456789012345.6}).Draw(t, "literal")
	default:
		return text.Draw(t, "text")
	}
}

// What another implementation makes canonical is read, and any other text of the same value is not.
func TestFieldsAgainstJCS(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := drawJSON(t, 4).(map[string]any)
		plain, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		body, err := jcs.Transform(plain)
		if err != nil {
			t.Skip(err) // its strings know no U+0000
		}
		fields, err := Fields(nil, body)
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if want := len(value); len(fields) != want && value["metadata"] == nil {
			t.Fatalf("%s: %d fields, want %d", body, len(fields), want)
		}
		if !bytes.Equal(plain, body) {
			if _, err := Fields(nil, plain); err == nil {
				t.Fatalf("%s is taken for canonical, which is %s", plain, body)
			}
		}
	})
}

func TestCompareUTF16(t *testing.T) {
	text := rapid.StringOfN(rapid.RuneFrom([]rune("a\u007f\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff")), 0, 3, -1)
	rapid.Check(t, func(t *rapid.T) {
		a, b := text.Draw(t, "a"), text.Draw(t, "b")
		want := slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
		if got := compareUTF16([]byte(a), []byte(b)); got != want && got*want <= 0 {
			t.Fatalf("%q and %q compare as %d, want %d", a, b, got, want)
		}
	})
}

// FuzzFields: a body that is read is what another implementation makes of it, and the fields are its members.
func FuzzFields(f *testing.F) {
	for _, body := range []string{
		`{"action":"a.b","metadata":{"a":[1,2.5,-3e-7,1e+21]},"targets":[{"type":"x"}],"version":0}`,
		`{"a":"\u0001\b\"\\é"}`, "{\"\U00010000\":null,\"\uffff\":true}", `{"a":1e400}`, `{"a":-0}`, `{"a":"\ud800"}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		fields, err := Fields(nil, body)
		if err != nil {
			if !errors.Is(err, ErrNotCanonical) {
				t.Fatal(err)
			}
			return
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(body, &members); err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		var metadata map[string]json.RawMessage
		if raw, ok := members["metadata"]; ok && json.Unmarshal(raw, &metadata) == nil && metadata != nil {
			delete(members, "metadata")
		}
		if len(fields) != len(members)+len(metadata) {
			t.Fatalf("%q: %d fields of %d members and %d of metadata", body, len(fields), len(members), len(metadata))
		}
		escape := strings.NewReplacer("~", "~0", "/", "~1")
		want := map[string]string{}
		for name, value := range members {
			want["/"+escape.Replace(name)] = string(value)
		}
		for name, value := range metadata {
			want["/metadata/"+escape.Replace(name)] = string(value)
		}
		got := map[string]string{}
		for _, field := range fields {
			got[string(field.Path)] = string(field.Value)
		}
		if !maps.Equal(got, want) {
			t.Fatalf("%q: fields %q, want %q", body, got, want)
		}
		if canonical, err := jcs.Transform(body); err == nil && !bytes.Equal(canonical, body) {
			t.Fatalf("%q is taken for canonical, which is %q", body, canonical)
		}
	})
}

func BenchmarkFields(b *testing.B) {
	body := []byte(`{"action":"config.updated","actor_id":"usr_8f3a2b","actor_name":"Deploy Bot","actor_type":"service",` +
		`"ip_address":"10.2.3.4","metadata":{"environment":"production","new_value":"250","old_value":"100","reason":"load",` +
		`"ticket":"OPS-1234"},"occurred_at":"2026-11-24T10:00:00.123456Z","resource":"service","resource_id":"api-gateway",` +
		`"resource_name":"API Gateway","session_id":"sess_1","user_agent":"curl/8.5","version":1}`)
	seed := [16]byte{1}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	var fields []Field
	var commitments [][32]byte
	for b.Loop() {
		var err error
		if fields, err = Fields(fields[:0], body); err != nil {
			b.Fatal(err)
		}
		commitments = commitments[:0]
		for _, f := range fields {
			commitments = append(commitments, Commitment(seed, f.Path, f.Value))
		}
		BodyRoot(commitments)
	}
}
