package ledger

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	formatsnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// The example of C2SP tlog-witness.
const exampleAddCheckpoint = `old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
`

func TestAddCheckpoint(t *testing.T) {
	a, err := ParseAddCheckpoint([]byte(exampleAddCheckpoint))
	if err != nil || a.OldSize != 20852014 || len(a.Proof) != 4 || a.Proof[3][0] != 0xff {
		t.Fatalf("%+v, %v", a, err)
	}
	if c, err := ParseCheckpoint(a.Checkpoint); err != nil || c.Size != 20852163 {
		t.Errorf("%+v, %v", c, err)
	}
	b, err := a.Encode()
	if err != nil || string(b) != exampleAddCheckpoint {
		t.Errorf("%q, %v", b, err)
	}
	first := &AddCheckpoint{Checkpoint: []byte("x\n1\ny\n\nz\n")}
	b, err = first.Encode()
	if err != nil || string(b) != "old 0\n\nx\n1\ny\n\nz\n" {
		t.Errorf("%q, %v", b, err)
	}
	if again, err := ParseAddCheckpoint(b); err != nil || cmp.Diff(first, again) != "" {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := (&AddCheckpoint{Proof: make([]Hash, 64)}).Encode(); !errors.Is(err, ErrRequest) {
		t.Errorf("64 hashes: %v", err)
	}
}

func TestAddCheckpointThatIsNone(t *testing.T) {
	hash := base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n"
	if a, err := ParseAddCheckpoint([]byte("old 1\n" + strings.Repeat(hash, 63) + "\nx")); err != nil || len(a.Proof) != 63 {
		t.Fatalf("63 hashes: %v", err)
	}
	for _, tc := range []struct{ name, body, want string }{
		{"nothing", "", "an empty line"},
		{"no empty line", "old 1\nx\n", "an empty line"},
		{"no old line", "\n\nx", "first line"},
		{"another word", "new 1\n\nx", "first line"},
		{"no size", "old \n\nx", "first line"},
		{"two spaces", "old  1\n\nx", "first line"},
		{"a leading zero", "old 01\n\nx", "first line"},
		{"00", "old 00\n\nx", "first line"},
		{"a plus", "old +1\n\nx", "first line"},
		{"a negative size", "old -1\n\nx", "first line"},
		{"2^64", "old 18446744073709551616\n\nx", "first line"},
		{"a space after", "old 1 \n\nx", "first line"},
		{"CRLF", "old 1\r\n\r\n\n\nx", "first line"},
		{"a short hash", "old 1\nAAAA\n\nx", "line"},
		{"no padding", "old 1\n" + strings.Replace(hash, "=", "", 1) + "\nx", "line"},
		{"other trailing bits", "old 1\n" + strings.Replace(hash, "A=", "B=", 1) + "\nx", "line"},
		{"a carriage return in a hash", "old 1\n" + strings.Replace(hash, "AA", "A\rA", 1) + "\nx", "line"},
		{"64 hashes", "old 1\n" + strings.Repeat(hash, 64) + "\nx", "more than 63"},
		{"too long", "old 1\n\n" + strings.Repeat("x", MaxAddCheckpointBytes), "at most"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if a, err := ParseAddCheckpoint([]byte(tc.body)); !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%+v, %v; want an error with %q", a, err, tc.want)
			}
		})
	}
}

func FuzzParseAddCheckpoint(f *testing.F) {
	f.Add([]byte(exampleAddCheckpoint))
	f.Add([]byte("old 0\n\nx\n1\ny\n\nz\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := ParseAddCheckpoint(body)
		if err != nil {
			if !errors.Is(err, ErrRequest) {
				t.Fatal(err)
			}
			return
		}
		if b, err := a.Encode(); err != nil || !bytes.Equal(b, body) {
			t.Fatalf("%q is encoded as %q: %v", body, b, err)
		}
	})
}

func TestOpenLog(t *testing.T) {
	l := newTestLog(t)
	first := l.key()
	l.rotate(t, newTestKey(testOrigin, 1))
	trust := mustTrust(t, "log "+first.vkey()+"\nlog "+l.key().vkey()+"\nlog "+newTestKey("example.com/x", 2).vkey()+"\nquorum none")
	if diff := cmp.Diff([]string{testOrigin, "example.com/x"}, trust.Origins()); diff != "" {
		t.Error(diff)
	}
	for _, key := range []testKey{first, l.key()} {
		c, n, err := trust.OpenLog(l.checkpoint(t, 2, key, newTestWitness("w.example", 9)))
		if err != nil || c.Size != 2 || len(n.Sigs) != 1 || n.Sigs[0].Hash != key.KeyHash() || len(n.UnverifiedSigs) != 0 {
			t.Errorf("%+v, %+v, %v", c, n, err)
		}
	}
	other, err := SignCheckpoint(&Checkpoint{"example.com/other", 1, l.Root()}, newTestKey("example.com/other", 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		signed []byte
		want   error
	}{
		{"no checkpoint", []byte("x"), ErrCheckpoint},
		{"another log", other, ErrUnknownLog},
		{"another key", l.checkpoint(t, 2, newTestKey(testOrigin, 5)), ErrNotSigned},
		{"name and hash of the key, signed by another", l.checkpoint(t, 2, disguised{testKey: newTestKey(testOrigin, 5), as: first}), ErrNotSigned},
		{"another such beside a good one", l.checkpoint(t, 2, l.key(), disguised{testKey: newTestKey(testOrigin, 5), as: first}), ErrNotSigned},
	} {
		if c, _, err := trust.OpenLog(tc.signed); !errors.Is(err, tc.want) {
			t.Errorf("%s: %+v, %v; want %v", tc.name, c, err, tc.want)
		}
	}
}

// What a witness adds, a verifier counts, and so does another implementation.
func TestCosign(t *testing.T) {
	l := newTestLog(t)
	w, stranger := newTestWitness("w.example", 10), newTestWitness("x.example", 11)
	trust := mustTrust(t, "log "+l.key().vkey()+"\nwitness ours "+w.vkey()+" https://w.example/x\nwitness other "+newTestWitness("o.example", 12).vkey()+
		"\ngroup both all ours other\nquorum ours")
	known := trust.Witnesses()
	if len(known) != 2 || known[0].Label != "ours" || known[0].URL != "https://w.example/x" || known[1].URL != "" {
		t.Fatalf("%+v", known)
	}
	checkpoint := l.checkpoint(t, 1, l.key())
	_, n, err := trust.OpenLog(checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	signed, line, err := Cosign(n, w)
	if err != nil || string(signed) != string(checkpoint)+string(line) {
		t.Fatalf("%q, %q, %v", signed, line, err)
	}
	if names, quorum := trust.Cosigned(signed, testStart); len(names) != 1 || !quorum {
		t.Errorf("%v, %v", names, quorum)
	}
	if names, quorum := trust.Cosigned(checkpoint, testStart); len(names) != 0 || quorum {
		t.Errorf("without it: %v, %v", names, quorum)
	}
	if names, quorum := trust.Cosigned(signed, testStart.Add(-6*time.Minute)); len(names) != 0 || quorum {
		t.Errorf("from later: %v, %v", names, quorum)
	}
	timeless, ahead := w, w
	timeless.at, ahead.at = time.Unix(0, 0), testStart.Add(6*time.Minute)
	for _, other := range []note.Signer{timeless, ahead, farAhead{w}} {
		if _, f := trust.Open(slices.Concat(checkpoint, cosignature(t, n, other)), nil, testStart); f == nil || f.Verdict != QuorumNotMet {
			t.Errorf("at another time: %v", f)
		}
	}
	if o, f := trust.Open(signed, nil, testStart); f != nil || len(o.Witnesses) != 1 {
		t.Errorf("%+v, %v", o, f)
	}
	v, err := formatsnote.NewVerifierForCosignatureV1(w.vkey())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := note.Open(signed, note.VerifierList(v)); err != nil || len(n.Sigs) != 1 {
		t.Errorf("%+v, %v", n, err)
	}

	_, strange, err := Cosign(n, stranger)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := known[0].Cosignature(checkpoint, slices.Concat(strange, line), testStart); err != nil || !bytes.Equal(got, line) {
		t.Errorf("beside a stranger's: %q, %v", got, err)
	}
	elsewhere, err := SignCheckpoint(&Checkpoint{testOrigin, 1, Hash{1}}, w)
	if err != nil {
		t.Fatal(err)
	}
	_, elsewhere, _ = bytes.Cut(elsewhere, []byte("\n\n"))
	for _, tc := range []struct {
		name   string
		answer []byte
		want   string
	}{
		{"nothing", nil, "malformed"},
		{"text", []byte("no\n"), "malformed"},
		{"no end of the line", bytes.TrimSuffix(line, []byte("\n")), "malformed"},
		{"a stranger's alone", strange, "no verifiable signatures"},
		{"of another checkpoint", elsewhere, "invalid signature"},
		{"another text before it", slices.Concat([]byte("x\n\n"), line), "invalid signature"},
		{"without a time", cosignature(t, n, timeless), "no time"},
		{"from later", cosignature(t, n, ahead), "ahead"},
		{"from 2^63", cosignature(t, n, farAhead{w}), "no time"},
		{"too long", bytes.Repeat([]byte("x"), maxCheckpointBytes+1), "at most"},
	} {
		if got, err := known[0].Cosignature(checkpoint, tc.answer, testStart); !errors.Is(err, ErrCosignature) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %q, %v; want an error with %q", tc.name, got, err, tc.want)
		}
	}
}

func cosignature(t *testing.T, n *note.Note, signer note.Signer) []byte {
	t.Helper()
	_, line, err := Cosign(n, signer)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// farAhead signs at a time that no signed integer has.
type farAhead struct{ testKey }

func (k farAhead) Sign(text []byte) ([]byte, error) {
	at := uint64(1) << 63
	signed, err := newTestKey(k.name, 10).Sign(fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text))
	return append(binary.BigEndian.AppendUint64(nil, at), signed...), err
}
