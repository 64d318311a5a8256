package ledger

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	formatslog "github.com/transparency-dev/formats/log"
	formatsnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// What we sign is read by other implementations, and the other way round.
func TestCheckpoint(t *testing.T) {
	l := newTestLog(t)
	l.epoch(t)
	witness := newTestWitness("w.example", 10)
	signed := l.checkpoint(t, 2, l.key(), witness)
	c, err := ParseCheckpoint(signed)
	if err != nil || c.Origin != testOrigin || c.Size != 2 || c.Root != l.Root() {
		t.Fatalf("%+v, %v", c, err)
	}

	log, err := note.NewVerifier(l.key().vkey())
	if err != nil {
		t.Fatal(err)
	}
	cosigner, err := formatsnote.NewVerifierForCosignatureV1(witness.vkey())
	if err != nil {
		t.Fatal(err)
	}
	other, _, n, err := formatslog.ParseCheckpoint(signed, testOrigin, log, cosigner)
	if err != nil || other.Size != 2 || Hash(other.Hash) != l.Root() || len(n.Sigs) != 2 {
		t.Fatalf("%+v with %+v: %v", other, n, err)
	}
	text := c.Text()
	if want := string(formatslog.Checkpoint{Origin: testOrigin, Size: 2, Hash: c.Root[:]}.Marshal()); text != want {
		t.Errorf("text %q, want %q", text, want)
	}
	if tree := tlog.FormatTree(tlog.Tree{N: 2, Hash: tlog.Hash(c.Root)}); text != strings.Replace(string(tree), "go.sum database tree", testOrigin, 1) {
		t.Errorf("text %q, tlog's is %q", text, tree)
	}
}

func TestCheckpointThatIsNone(t *testing.T) {
	key := newTestKey(testOrigin, 0)
	root := base64.StdEncoding.EncodeToString(make([]byte, 32))
	sign := func(text string, n int) string {
		signers := []note.Signer{key}
		for i := range n - 1 {
			signers = append(signers, newTestKey(fmt.Sprint("w", i), byte(i)))
		}
		signed, err := note.Sign(&note.Note{Text: text}, signers...)
		if err != nil {
			t.Fatal(err)
		}
		return string(signed)
	}
	good := testOrigin + "\n7\n" + root + "\n"
	if _, err := ParseCheckpoint([]byte(sign(good, maxSignatures))); err != nil {
		t.Fatalf("%d signatures: %v", maxSignatures, err)
	}
	for _, tc := range []struct{ name, signed, want string }{
		{"an extension line", sign(good+"more\n", 1), "want three lines"},
		{"two lines", sign(testOrigin+"\n7\n", 1), "want three lines"},
		{"CRLF", sign(strings.ReplaceAll(good, "\n", "\r\n"), 1), ""},
		{"a leading zero", sign(strings.Replace(good, "7", "07", 1), 1), "only form"},
		{"a plus", sign(strings.Replace(good, "7", "+7", 1), 1), "size"},
		{"a negative size", sign(strings.Replace(good, "7", "-7", 1), 1), "size"},
		{"a size of 2^64", sign(strings.Replace(good, "7", "18446744073709551616", 1), 1), "size"},
		{"no size", sign(strings.Replace(good, "7", "", 1), 1), "size"},
		{"no origin", sign(strings.TrimPrefix(good, testOrigin), 1), "only form"},
		{"a short root", sign(testOrigin+"\n7\nAAAA\n", 1), "want 32 bytes"},
		{"a root with other trailing bits", sign(strings.Replace(good, "AA=", "AB=", 1), 1), "only form"},
		{"a root without padding", sign(strings.Replace(good, "=", "", 1), 1), "want 32 bytes"},
		{"17 signatures", sign(good, maxSignatures+1), "17 signatures"},
		{"no signature", good, "malformed"},
		{"trailing bytes", sign(good, 1) + "x", "malformed"},
		{"not UTF-8", strings.Replace(sign(good, 1), "example", "exampl\xff", 1), "malformed"},
		{"a control character", strings.Replace(sign(good, 1), "example", "exampl\x01", 1), "malformed"},
		{"nothing", "", "malformed"},
		{"too large", strings.Repeat("a", maxCheckpointBytes+1), "at most"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if c, err := ParseCheckpoint([]byte(tc.signed)); !errors.Is(err, ErrCheckpoint) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%+v, %v; want an error with %q", c, err, tc.want)
			}
		})
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	key := newTestKey(testOrigin, 0)
	signed, err := SignCheckpoint(&Checkpoint{Origin: testOrigin, Size: 7}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Fuzz(func(t *testing.T, signed []byte) {
		c, err := ParseCheckpoint(signed)
		if err != nil {
			if !errors.Is(err, ErrCheckpoint) {
				t.Fatal(err)
			}
			return
		}
		if !strings.HasPrefix(string(signed), c.Text()+"\n") {
			t.Fatalf("%q is read as %q", signed, c.Text())
		}
	})
}
