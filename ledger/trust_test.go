package ledger

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
)

func TestParseTrust(t *testing.T) {
	log, next := newTestKey(testOrigin, 0).vkey(), newTestKey(testOrigin, 1).vkey()
	a, b := newTestWitness("a.example", 10), newTestWitness("b.example", 11)
	sameKey := newTestWitness("c.example", 10)
	wrongHash := strings.Replace(a.vkey(), fmt.Sprintf("%08x", a.KeyHash()), "00000000", 1)
	notAWitness := newTestKey("a.example", 10)
	for _, tc := range []struct {
		name, text string
		want       string // part of the error, "" for none
	}{
		{"a key", log, ""},
		{"a key and white space", "\n  " + log + "\t\n\n", ""},
		{"a policy", "# ours\nlog " + log + " https://example.com/x\nlog " + next + "\nwitness a " + a.vkey() + " https://a.example\n" +
			"witness b " + b.vkey() + "\ngroup both all a b\nquorum both\n", ""},
		{"any", "log " + log + "\nwitness a " + a.vkey() + "\nwitness b " + b.vkey() + "\ngroup g any a b\nquorum g", ""},
		{"a number", "log " + log + "\nwitness a " + a.vkey() + "\nwitness b " + b.vkey() + "\ngroup g 1 a b\nquorum g", ""},
		{"one witness", "log " + log + "\nwitness a " + a.vkey() + "\nquorum a", ""},
		{"no witness", "log " + log + "\nquorum none", ""},

		{"nothing", "", "names no log"},
		{"no quorum", "log " + log, "want a line 'quorum NAME'"},
		{"two quorums", "log " + log + "\nquorum none\nquorum none", "line 3: there is a quorum already"},
		{"two keys alone", log + "\n" + next, "line 2: a vkey alone must be the only line"},
		{"a log twice", "log " + log + "\nlog " + log + "\nquorum none", "is there already"},
		{"a key twice under two names", "log " + log + "\nwitness a " + a.vkey() + "\nwitness c " + sameKey.vkey() + "\nquorum a", "line 3: the key of"},
		{"a name twice", "log " + log + "\nwitness a " + a.vkey() + "\nwitness a " + b.vkey() + "\nquorum a", `name "a" is taken`},
		{"a witness called none", "log " + log + "\nwitness none " + a.vkey() + "\nquorum none", `name "none" is taken`},
		{"a member twice", "log " + log + "\nwitness a " + a.vkey() + "\ngroup g 2 a a\nquorum g", "would count twice"},
		{"a member of two groups", "log " + log + "\nwitness a " + a.vkey() + "\ngroup g any a\ngroup h any a\nquorum g", "would count twice"},
		{"a group before its member", "log " + log + "\ngroup g any a\nwitness a " + a.vkey() + "\nquorum g", "in a line before it"},
		{"an unknown quorum", "log " + log + "\nquorum x", "in a line before it"},
		{"threshold 0", "log " + log + "\nwitness a " + a.vkey() + "\ngroup g 0 a\nquorum g", "want any, all, or 1 to 1"},
		{"threshold 2 of 1", "log " + log + "\nwitness a " + a.vkey() + "\ngroup g 2 a\nquorum g", "want any, all, or 1 to 1"},
		{"threshold 01", "log " + log + "\nwitness a " + a.vkey() + "\ngroup g 01 a\nquorum g", "want any, all, or 1 to 1"},
		{"a witness's key for a log's", "log " + a.vkey() + "\nquorum none", "of an Ed25519 key"},
		{"a log's key for a witness's", "log " + log + "\nwitness a " + notAWitness.vkey() + "\nquorum a", "not that of a cosignature key"},
		{"another hash", "log " + log + "\nwitness a " + wrongHash + "\nquorum a", "not that of a cosignature key"},
		{"a key that is none", "log x+y+z\nquorum none", "want NAME+HASH+KEY"},
		{"a witness's key that is none", "log " + log + "\nwitness a x+y+z\nquorum a", "want NAME+HASH+KEY of a cosignature"},
		{"threshold x", "log " + log + "\nwitness a " + a.vkey() + "\ngroup g x a\nquorum g", "want any, all, or 1 to 1"},
		{"another keyword", "log " + log + "\nmonitor x\nquorum none", "line 2: \"monitor x\": want"},
		{"a private key", "PRIVATE+KEY+" + log, "want NAME+HASH+KEY"},
		{"too many lines", "log " + log + "\nquorum none" + strings.Repeat("\n", maxTrustLines) + "witness a " + a.vkey(), "more than 1000 lines"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			trust, err := ParseTrust([]byte(tc.text))
			if tc.want == "" {
				if err != nil || trust.Witnessed() != strings.Contains(tc.text, "witness") {
					t.Errorf("%+v, %v", trust, err)
				}
				return
			}
			if !errors.Is(err, ErrTrust) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want it to say %q", err, tc.want)
			}
		})
	}
}

// A quorum is met by the right members, and by no number of the others.
func TestQuorum(t *testing.T) {
	l := newTestLog(t)
	witnesses := map[string]testKey{}
	text := "log " + l.key().vkey() + "\n"
	for i, name := range []string{"x1", "x2", "x3", "y1", "y2", "y3"} {
		witnesses[name] = newTestWitness(name+".example", byte(20+i))
		text += "witness " + name + " " + witnesses[name].vkey() + "\n"
	}
	trust := mustTrust(t, text+"group X 2 x1 x2 x3\ngroup Y any y1 y2 y3\ngroup both all X Y\nquorum both")
	for signed, want := range map[string]bool{
		"x1 x2 y1": true, "x2 x3 y1 y2 y3": true, "x1 y1 y2 y3": false, "x1 x2 x3": false, "y1 y2": false, "": false,
	} {
		checkpoint := l.checkpoint(t, 1, l.key())
		for name := range strings.FieldsSeq(signed) {
			sig, err := witnesses[name].Sign([]byte((&Checkpoint{testOrigin, 1, l.Root()}).Text()))
			if err != nil {
				t.Fatal(err)
			}
			w := witnesses[name]
			hash := w.KeyHash()
			line := append([]byte{byte(hash >> 24), byte(hash >> 16), byte(hash >> 8), byte(hash)}, sig...)
			checkpoint = fmt.Appendf(checkpoint, "— %s %s\n", w.name, base64.StdEncoding.EncodeToString(line))
		}
		opened, f := trust.Open(checkpoint, nil, testStart.Add(time.Minute))
		if (f == nil) != want || f != nil && f.Verdict != QuorumNotMet {
			t.Errorf("%q: %v", signed, f)
		}
		if want && len(opened.Witnesses) != len(strings.Fields(signed)) {
			t.Errorf("%q: %+v", signed, opened)
		}
	}
}

// Two keys of one name are two witnesses, and one has signed.
func TestQuorumOfOneName(t *testing.T) {
	l := newTestLog(t)
	one, two := newTestWitness("w.example", 20), newTestWitness("w.example", 21)
	trust := mustTrust(t, "log "+l.key().vkey(), "witness one "+one.vkey(), "witness two "+two.vkey(), "group both all one two", "quorum both")
	if _, f := trust.Open(l.checkpoint(t, 1, l.key(), one), nil, testStart.Add(time.Minute)); f == nil || f.Verdict != QuorumNotMet {
		t.Errorf("fault %v, want %s", f, QuorumNotMet)
	}
	if _, f := trust.Open(l.checkpoint(t, 1, l.key(), one, two), nil, testStart.Add(time.Minute)); f != nil {
		t.Error(f)
	}
}

func TestOpenBelievesNobodyElse(t *testing.T) {
	l := newTestLog(t)
	trusted := l.key()
	trust := mustTrust(t, trusted.vkey())
	other := newTestKey("example.com/other", 0)
	for _, tc := range []struct {
		name   string
		signed []byte
		want   Verdict
	}{
		{"another key", l.checkpoint(t, 1, newTestKey(testOrigin, 5)), WrongKey},
		{"another log", func() []byte {
			signed, err := SignCheckpoint(&Checkpoint{"example.com/other", 1, l.Root()}, other)
			if err != nil {
				t.Fatal(err)
			}
			return signed
		}(), WrongKey},
		{"the key, under another origin", func() []byte {
			signed, err := SignCheckpoint(&Checkpoint{"example.com/other", 1, l.Root()}, trusted)
			if err != nil {
				t.Fatal(err)
			}
			return signed
		}(), WrongKey},
		{"another root under the signature", []byte(strings.Replace(string(l.checkpoint(t, 1, trusted)), "\n1\n", "\n2\n", 1)), WrongKey},
		{"name and hash of the key, signed by another", l.checkpoint(t, 1, disguised{testKey: newTestKey(testOrigin, 5), as: trusted}), WrongKey},
		{"no checkpoint", []byte("x"), InvalidProof},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, f := trust.Open(tc.signed, nil, testStart); f == nil || f.Verdict != tc.want {
				t.Errorf("fault %v, want %s", f, tc.want)
			}
		})
	}
	// Another log of the same origin, which states its own key from the beginning.
	stranger := newTestKey(testOrigin, 5)
	own, err := note.Sign(&note.Note{Text: KeyChangeText(testOrigin, 0, stranger.vkey())}, stranger)
	if err != nil {
		t.Fatal(err)
	}
	var forged KeyHistory
	if err := forged.Append(testOrigin, &Entry{Key: &KeyChange{VerifierKey: stranger.vkey(), Signature: string(own)}}); err != nil {
		t.Fatal(err)
	}
	if _, f := trust.Open(l.checkpoint(t, 1, stranger), forged, testStart); f == nil || f.Verdict != WrongKey {
		t.Errorf("a log that states its own key: %v", f)
	}
	if o, f := trust.Open(l.checkpoint(t, 1, trusted, newTestKey("unknown.example", 6)), nil, testStart); f != nil || o.Key != keyID(trusted.verifier(t)) {
		t.Errorf("beside an unknown signature: %+v, %v", o, f)
	}
}

// disguised signs with one key under the name and hash of another, which four bytes of hash let anyone find.
type disguised struct {
	testKey

	as testKey
}

func (d disguised) KeyHash() uint32 { return d.as.KeyHash() }

func (k testKey) verifier(t *testing.T) *logKey {
	t.Helper()
	v, err := newLogKey(k.vkey())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
