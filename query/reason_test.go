package query

import (
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

func TestRepeats(t *testing.T) {
	for _, tc := range []struct {
		value, reason string
		want          bool
	}{
		{`"4711"`, "the PIN was 4711", true},
		{`4711`, "the PIN was 4711", true},
		{`"4711"`, "the PIN was 47-11", true},
		{`"47 11"`, "the PIN was 4711", true},
		{`"4711"`, "the PIN was 4712", false},
		{`"4111111111111111"`, "a card that ends in 1111", true},
		{`"4111111111111111"`, "a card number", false},
		{`"AKIA12345678"`, "it began with akia1", true},
		{`"AKIA12345678"`, "a key of a cloud", false},
		{`{"deep":[null,true,{"x":["Ada Lovelace"]}]}`, "asked for by ada lovelace", true},
		{`{"deep":[null,true,{"x":["Ada Lovelace"]}]}`, "LOVELACE has asked", true},
		{`{"deep":[null,true,{"x":["Ada Lovelace"]}]}`, "ADA has asked", false}, // three letters
		{`{"deep":[null,true,{"x":["Ada Lovelace"]}]}`, "true, and deep", false},
		{`{"lovelace":1}`, "lovelace", false}, // a name is no value
		{`[{"id":"4711","type":"card"}]`, "number of an account, 4711", true},
		{`[{"id":"4711","type":"card"}]`, "a card", true},
		{`"a.d.a.l"`, "it was adal", true},
		{`"cvv 123"`, "the code 123", true},
		{`"cvv 123"`, "the code 1234", false},
		{`12.5`, "an amount of 12.50", true},
		{`-7`, "7 degrees", true},
		{`-7`, "seventeen degrees, or 17", false},
		{`1e30`, "a number", false},
		{`"\u00c7elik"`, "ÇELIK has asked", true},
		{`"王小明"`, "王小明 has asked", true},
		{`"x"`, "x", false},
		{`""`, "anything", false},
		{`null`, "null", false},
		{`"---"`, "---", false},
	} {
		if got := repeats(tc.reason, []jsontext.Value{jsontext.Value("1"), jsontext.Value(tc.value)}); got != tc.want {
			t.Errorf("%s in %q: %t", tc.value, tc.reason, got)
		}
	}
	if repeats("anything", nil) {
		t.Error("of nothing")
	}
}

// The longest reason against the largest values.
func TestRepeatsTakesLittleTime(t *testing.T) {
	value := jsontext.Value(`"` + strings.Repeat("abcd ", 50_000) + `"`)
	began := time.Now()
	if repeats(strings.Repeat("é", 1000), []jsontext.Value{value}) {
		t.Error("it repeats")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func FuzzRepeats(f *testing.F) {
	f.Add(`{"a":["4711",{"b":12}]}`, "4711")
	f.Fuzz(func(t *testing.T, value, reason string) {
		if !jsontext.Value(value).IsValid() {
			return
		}
		for _, s := range textsAndNumbers(jsontext.Value(value)) {
			if len(wordsOf(s)) == 1 && len(s) >= minRepeated && wordsOf(s)[0] == s && !repeats(reason+s, []jsontext.Value{jsontext.Value(value)}) {
				t.Errorf("%q is not found", s)
			}
		}
	})
}
