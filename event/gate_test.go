package event

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/big"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/gowebpki/jcs"
)

// canonical returns the RFC 8785 form of any JSON value that the gate accepts.
func canonical(json []byte) ([]byte, error) {
	var t tape
	if err := t.parse(json); err != nil {
		return nil, err
	}
	if len(t.faults) > 0 {
		f := t.faults[0]
		return nil, validationError([]Detail{{t.path(f.node), f.message}}, 0)
	}
	return t.appendCanonical(nil, 0), nil
}

func TestGateAccepts(t *testing.T) {
	tests := []struct{ name, json, want string }{
		{"literals", ` [ null , true,false ] `, `[null,true,false]`},
		{"empty containers", `{"a":[],"b":{}}`, `{"a":[],"b":{}}`},
		{"order", `{"b":1,"a":{"d":1,"c":2}}`, `{"a":{"c":2,"d":1},"b":1}`},
		{"order by UTF-16", `{"\ufb33":1,"😀":2,"é":3,"\r":4,"1":5}`, `{"\r":4,"1":5,"é":3,"😀":2,"` + "\ufb33" + `":1}`},
		{"prefix first", `{"ab":1,"a":2,"":3}`, `{"":3,"a":2,"ab":1}`},
		{"escapes", `"\u0041\/\"\\\b\f\n\r\t\u0001\u20ac\ud83d\ude00"`, `"A/\"\\\b\f\n\r\t\u0001€😀"`},
		{"DEL and line separators stand", "\"\x7f\u2028\"", "\"\x7f\u2028\""},
		{"escaped replacement character", `"\ufffd"`, `"` + "\ufffd" + `"`},
		{"as deep as may be", strings.Repeat("[", maxNesting) + strings.Repeat("]", maxNesting), strings.Repeat("[", maxNesting) + strings.Repeat("]", maxNesting)},
		{"a tenth", `0.1`, `0.1`},
		{"trailing zero", `1.50`, `1.5`},
		{"exponent", `1e3`, `1000`},
		{"one", `1.0`, `1`},
		{"minus zero", `-0`, `0`},
		{"minus zero, long", `-0.000e5`, `0`},
		{"2^53", `9007199254740992`, `9007199254740992`},
		{"2^53+2", `9007199254740994`, `9007199254740994`},
		{"1e20", `1e20`, `100000000000000000000`},
		{"1e21", `1e21`, `1e+21`},
		{"1e-6", `1e-6`, `0.000001`},
		{"1e-7", `-1.5E-7`, `-1.5e-7`},
		{"largest", `1.7976931348623157e308`, `1.7976931348623157e+308`},
		{"smallest", `5e-324`, `5e-324`},
		{"zero with any exponent", `0e999999999999999999999`, `0`},
		{"long way to one", `0.` + strings.Repeat("0", 400) + `1e401`, `1`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := canonical([]byte(tt.json))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestGateRefuses(t *testing.T) {
	tests := []struct{ name, json, code, message string }{
		{"nothing", ` `, CodeInvalidJSON, "there is no JSON"},
		{"truncated", `{"a":1`, CodeInvalidJSON, "at byte 6: it ends too early"},
		{"truncated string", `"a`, CodeInvalidJSON, "it ends too early"},
		{"two values", `{} {}`, CodeInvalidJSON, "at byte 2: there is more text after the end"},
		{"junk after", `{}x`, CodeInvalidJSON, "at byte 2"},
		{"trailing comma", `{"a":1,}`, CodeInvalidJSON, "at byte 7: invalid character '}'"},
		{"mismatched", `[1}`, CodeInvalidJSON, "at byte 2"},
		{"name without quotes", `{a:1}`, CodeInvalidJSON, "at byte 1"},
		{"number as name", `{1:1}`, CodeInvalidJSON, "at byte 1"},
		{"no colon", `{"a" 1}`, CodeInvalidJSON, "at byte 5"},
		{"NaN", `NaN`, CodeInvalidJSON, "at byte 0"},
		{"leading zero", `01`, CodeInvalidJSON, "at byte 1"},
		{"control character", "\"a\nb\"", CodeInvalidJSON, "at byte 2"},
		{"bad escape", `"\x41"`, CodeInvalidJSON, "at byte 1"},
		{"byte order mark", "\ufeff{}", CodeInvalidJSON, "at byte 0"},
		{"invalid UTF-8", "{\"a\":\"\xff\"}", CodeInvalidJSON, "at byte 6: a byte that is not UTF-8"},
		{"UTF-8 of a surrogate", "\"\xed\xa0\x80\"", CodeInvalidJSON, "not UTF-8"},
		{"overlong UTF-8", "\"\xc0\xaf\"", CodeInvalidJSON, "not UTF-8"},
		{"duplicate", `{"a":1,"b":{"c":1,"c":1}}`, CodeValidation, "b.c is there twice"},
		{"duplicate after unescaping", `{"\u0061":1,"a":2}`, CodeValidation, "a is there twice"},
		{"high surrogate", `["\ud800"]`, CodeValidation, "[0] has half of a surrogate pair"},
		{"low surrogate", `"\udc00"`, CodeValidation, "half of a surrogate pair"},
		{"surrogate in a name", `{"\ud800x":1}`, CodeValidation, "half of a surrogate pair"},
		{"two that differ in a lone surrogate", `{"\ud800":1,"\udbff":1}`, CodeValidation, "surrogate"},
		{"2^53+1", `{"a":9007199254740993}`, CodeValidation, "a is a number that a double cannot hold exactly; send it as a string"},
		{"1e400", `[1e400]`, CodeValidation, "double"},
		{"1e-400", `1e-400`, CodeValidation, "double"},
		{"too many digits", `0.10000000000000000555`, CodeValidation, "double"},
		{"endless exponent", `1e99999999999999999999`, CodeValidation, "double"},
		{"endless negative exponent", `1e-99999999999999999999`, CodeValidation, "double"},
		{"too deep", strings.Repeat("[", maxNesting+1), CodeValidation, "nested deeper"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := canonical([]byte(tt.json))
			e, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("got %v, want an *Error", err)
			}
			if e.Code != tt.code || !strings.Contains(e.Message, tt.message) {
				t.Errorf("got %q %q, want %q %q", e.Code, e.Message, tt.code, tt.message)
			}
		})
	}
}

// survives is the number rule said slowly: the decimal value of raw equals that of the double's shortest form.
func survives(raw string) bool {
	f, err := strconv.ParseFloat(raw, 64)
	if err != nil || math.IsInf(f, 0) {
		return false
	}
	sent, ok := new(big.Rat).SetString(raw)
	if !ok {
		return false
	}
	kept, ok := new(big.Rat).SetString(strconv.FormatFloat(f, 'e', -1, 64))
	return ok && sent.Cmp(kept) == 0
}

// hugeExponent keeps numbers away from big.Rat, which would write all their zeros.
func hugeExponent(raw string) bool {
	i := strings.IndexAny(raw, "eE")
	return i >= 0 && len(raw)-i > 5 || len(raw) > 500
}

func FuzzNumber(f *testing.F) {
	for _, s := range []string{
		"0", "-0", "0.1", "1.50", "1e3", "1.0", "9007199254740993", "1e400", "0.10000000000000000555", "1e21", "1e-7",
		"5e-324", "2.2250738585072014e-308", "1.7976931348623157e308", "1.7976931348623159e308", "123456789012345678",
		"-1234.5678e-9", "100000000000000000000000", "4.35", "0.000001", "333333333.33333329",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		v := jsontext.Value(raw)
		if !v.IsValid() || v.Kind() != '0' || hugeExponent(raw) {
			t.Skip()
		}
		raw = string(bytes.TrimSpace(v))
		got, err := canonical([]byte(raw))
		if want := survives(raw); (err == nil) != want {
			t.Fatalf("%s: got %v, want accepted = %t", raw, err, want)
		}
		if err != nil {
			return
		}
		double, _ := strconv.ParseFloat(raw, 64)
		want, err := jcs.NumberToJSON(double)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s: got %s, want %s", raw, got, want)
		}
	})
}

// FuzzGate holds the gate to jsontext's strict verdict and the canonical form to two other implementations.
func FuzzGate(f *testing.F) {
	for _, s := range []string{
		`{"a":[1,{"b":null}],"\ufb33":"\ud83d\ude00\n"}`, `{"a":1,"a":2}`, `"\ud800"`, "\"\xff\"", `[1e400]`, `[1,]`,
		`{"😀":1,"\ufb33":2,"\r":3}`, ` [ -0 , 1.50 , 1E+2 ] `, `{"\u0061":1,"a":2}`, strings.Repeat("[", 40), `{} {}`, "\x00",
		"\"\x7f\u2028\ufffd\"", `"\ufffd"`, `{"":{"":""}}`, `"\u001f\u0000"`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, json []byte) {
		got, err := canonical(json)
		if e, ok := errors.AsType[*Error](err); ok && strings.Contains(e.Message, "nested deeper") {
			return
		}
		valid := jsontext.Value(json).IsValid()
		numbers := true
		for decoder := jsontext.NewDecoder(bytes.NewReader(json)); valid; {
			token, err := decoder.ReadToken()
			if errors.Is(err, io.EOF) {
				break
			}
			if raw := token.String(); token.Kind() == '0' {
				if hugeExponent(raw) {
					t.Skip()
				}
				numbers = numbers && survives(raw)
			}
		}
		if accepted := err == nil; accepted != (valid && numbers) {
			t.Fatalf("%q: got %v; jsontext says %t, its numbers survive %t", json, err, valid, numbers)
		}
		if err != nil {
			return
		}
		oracle, err := jcs.Transform(json)
		if err != nil {
			t.Fatalf("%q: jcs: %v", json, err)
		}
		if !bytes.Equal(got, oracle) {
			t.Errorf("%q: got %s, jcs %s", json, got, oracle)
		}
		second := jsontext.Value(bytes.Clone(json))
		if err := second.Canonicalize(); err != nil || !bytes.Equal(got, second) {
			t.Errorf("%q: got %s, jsontext %s, %v", json, got, second, err)
		}
		again, err := canonical(got)
		if err != nil || !bytes.Equal(got, again) {
			t.Errorf("%q: canonical form %s becomes %s, %v", json, got, again, err)
		}
	})
}
