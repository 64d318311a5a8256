package ingest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

// FuzzSplitJSON holds the splitter to encoding/json: it takes what that takes as {"events":[...]} with as many events,
// the same ones, and nothing else.
func FuzzSplitJSON(f *testing.F) {
	for _, seed := range []string{
		`{"events":[` + valid + `,{},[],1,"x",null]}`, `{"events":[]}`, `{"events":[1],"a":2}`, `{"events":[1]}{}`,
		`{"events":[1],"events":[2]}`, ` { "\u0065vents" : [ 1 , 2 ] } `, `[]`, `{`, ``, `{"events":[1,]}`, `{"events":{}}`,
		`{"events":[{"a":"}\\\\"},{"b":"\\"]"}]}`, `{"events":[{]}]}`, `{"events":[{"a":1}{}]}`,
		`{"events":["\ud800"]}`, "{\"events\":[\"\xff\"]}", `{"events":[{"a":1,"a":2}]}`, "\ufeff{}", `{"events":[01]}`,
	} {
		f.Add([]byte(seed))
	}
	const limit = 8
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := splitJSON(body, limit)
		// jsontext is the referee for syntax: encoding/json differs in what depth it takes.
		whole := jsontext.Value(bytes.Clone(body))
		ok := whole.IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
		var want []json.RawMessage
		if ok {
			var members []string
			dec := json.NewDecoder(bytes.NewReader(body))
			if token, err := dec.Token(); err != nil || token != json.Delim('{') {
				ok = false
			}
			for ok && dec.More() {
				name, err := dec.Token()
				if err != nil {
					t.Skip("encoding/json takes less")
				}
				members = append(members, name.(string))
				if dec.Decode(&want) != nil {
					ok = false
				}
			}
			ok = ok && len(members) == 1 && members[0] == "events" && len(want) > 0 && len(want) <= limit
		}
		if ok != (err == nil) {
			t.Fatalf("%q: error %v, want ok %t", body, err, ok)
		}
		if cut, taken := cutJSON(body, limit); taken && ok {
			if diff := cmp.Diff(got, cut); diff != "" {
				t.Errorf("%q: (-split +cut)\n%s", body, diff)
			}
		} else if taken && !slices.ContainsFunc(cut, func(text []byte) bool {
			return !jsontext.Value(text).IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
		}) {
			t.Errorf("%q is not a batch, but cut into %q", body, cut)
		}
		if !ok {
			return
		}
		var texts []json.RawMessage
		for _, text := range got {
			texts = append(texts, text)
		}
		if diff := cmp.Diff(want, texts); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", body, diff)
		}
	})
}

// FuzzSplitLines holds the splitter to strings.Split.
func FuzzSplitLines(f *testing.F) {
	for _, seed := range []string{"a\nb", "a\r\nb\r\n", "\n\na\n \n", "", " ", "a\rb", "\n\n\n"} {
		f.Add([]byte(seed))
	}
	const limit = 3
	f.Fuzz(func(t *testing.T, body []byte) {
		var want []string
		for line := range strings.SplitSeq(string(body), "\n") {
			if line = strings.Trim(line, " \t\r"); line != "" {
				want = append(want, line)
			}
		}
		got, err := splitLines(body, limit)
		if ok := len(want) > 0 && len(want) <= limit; ok != (err == nil) {
			t.Fatalf("%q: error %v, want ok %t", body, err, ok)
		} else if !ok {
			return
		}
		var texts []string
		for _, text := range got {
			texts = append(texts, string(text))
		}
		if diff := cmp.Diff(want, texts); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", body, diff)
		}
	})
}
