package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestLimitJSON(t *testing.T) {
	for _, tc := range []struct {
		text             string
		elements, values int
		limited          bool
	}{
		{`{"a":[1,2,3]}`, 3, 8, false},
		{`{"a":[1,2,3]}`, 2, 8, true},
		{`{"a":[1,2,3]}`, 3, 7, true},
		{`{"a":1,"b":2}`, 2, 99, false},
		{`{"a":1,"b":2,"a":3}`, 2, 99, true},
		{`[[],[[]],{}]`, 3, 10, false},
		{`"` + strings.Repeat("x", 1<<20) + `"`, 0, 1, false},
		{`[` + strings.Repeat(`{},`, 1000) + `{}]`, 1000, 1 << 20, true},
	} {
		if err := LimitJSON([]byte(tc.text), tc.elements, tc.values); errors.Is(err, ErrJSONLimit) != tc.limited || !tc.limited && err != nil {
			t.Errorf("%.40s, %d elements, %d values: %v", tc.text, tc.elements, tc.values, err)
		}
	}
	for _, text := range []string{`{`, `[1,`, strings.Repeat("[", 20_000)} {
		if err := LimitJSON([]byte(text), 10, 1<<20); err == nil || errors.Is(err, ErrJSONLimit) {
			t.Errorf("%.20s: %v", text, err)
		}
	}
}

// What is far more in memory than in the file is refused before it is there.
func TestBundleLimits(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{`"redactions":[` + strings.Repeat(`{},`, maxRedactions) + `{}]`, "257 redactions, at most 256"},
		{`"redactions":[` + strings.Repeat(`{},`, 1<<20) + `{}]`, "more than 1024 elements"},
		{`"disclosure":[` + strings.Repeat(`{},`, maxDisclosed) + `{}]`, "more than 1024 elements"},
		{`"z":{` + strings.Repeat(`"a":0,`, maxBundleElements) + `"a":0}`, "more than 1024 elements"},
		{`"z":[` + strings.Repeat(`[`+strings.Repeat("0,", 1000)+`0],`, 300) + `0]`, "more than 262144 values"},
	} {
		_, err := ParseBundle([]byte(`{"format":"immutable/proof/1",` + tc.text + `}`))
		if !errors.Is(err, ErrBundle) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.40s: %v, want %q", tc.text, err, tc.want)
		}
	}
	// A body has as many fields as a leaf can count; it is not read on after them.
	body := `{"a":0` + strings.Repeat(`,"a":0`, 1<<17) + `}`
	var many strings.Builder
	many.WriteString(`{"00000":0`)
	for i := 1; i <= 1<<16; i++ {
		fmt.Fprintf(&many, `,"%05d":0`, i)
	}
	many.WriteString(`}`)
	for _, body := range []string{body, many.String()} {
		fields, err := Fields(nil, []byte(body))
		if !errors.Is(err, ErrNotCanonical) || cap(fields) > 1<<17 {
			t.Errorf("%.40s: %v, room for %d fields", body, err, cap(fields))
		}
	}
}

// What waits for its redaction is bounded by what it takes, not by how many events it is.
func TestWithheldLimit(t *testing.T) {
	limited := 0
	v := NewChainVerifier(ChainIdentity{Lanes: 1}, nil, func(f *Fault) {
		if f.Verdict == Withheld && strings.Contains(f.Detail, "32 MiB") {
			limited++
		}
	})
	path := "/metadata/" + strings.Repeat("x", 60_000)
	for i := range uint64(600) {
		l := &StoredLeaf{Leaf: Leaf{Chain: v.chain, Sequence: i, Kind: KindEvent, ID: [16]byte{byte(i), byte(i >> 8)}}}
		l.Hash = Hash{1}
		l.content.withheld = []string{path}
		v.redactions(v.row(l), &option{how: unlinked})
	}
	if kept := len(v.withheld); limited != 600-kept || kept*len(path) > maxWithheld || kept < 500 {
		t.Errorf("%d events are kept, %d are not", kept, limited)
	}
}

// What is no JSON is said to be none, and not too much.
func TestLimitOfNoJSON(t *testing.T) {
	for _, text := range []string{`{"a"`, `[1,]`, `{]`, `[`} {
		if err := LimitJSON([]byte(text), 100, 100); err == nil || errors.Is(err, ErrJSONLimit) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// FuzzLimitJSON: what is JSON has as many values as the standard library counts, and is refused with fewer.
func FuzzLimitJSON(f *testing.F) {
	for _, text := range []string{`{"a":[1,2,{"b":null}],"a":{}}`, `[[],[[]],"x"]`, `1`, `{"a"`, "\"\xff\"", `[1e400]`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if !json.Valid(text) || bytes.Count(text, []byte("["))+bytes.Count(text, []byte("{")) > 5000 {
			_ = LimitJSON(text, 100, 100) // it ends; the decoder says what is wrong
			return
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		n := 0
		for {
			if _, err := d.Token(); err != nil {
				break
			}
			n++
		}
		if err := LimitJSON(text, len(text), n); err != nil {
			t.Errorf("%d values: %v", n, err)
		}
		if err := LimitJSON(text, len(text), n-1); !errors.Is(err, ErrJSONLimit) {
			t.Errorf("%d values, one fewer is allowed: %v", n, err)
		}
	})
}
