package notary

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"getimmutable.dev/immutable/ledger"
)

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notary.key")
	first, err := CreateKey(path, "audit.example.com/immutable")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKey(path, "audit.example.com/immutable"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	second, err := RotateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: %v", info.Mode(), err)
	}
	k, err := loadKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(k) != 2 || k[0].verifier != first || k.newest().verifier != second || k.find(first) != k[0] || k.find("x") != nil {
		t.Errorf("keys %q and %q are not in it, in order", first, second)
	}
	// What it signs, the verifier key that was printed verifies.
	verifier, err := note.NewVerifier(second)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := ledger.SignCheckpoint(&ledger.Checkpoint{Origin: verifier.Name(), Size: 1}, k.newest())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(signed, note.VerifierList(verifier)); err != nil {
		t.Error(err)
	}
	if newest, err := VerifierKey(path); err != nil || newest != second {
		t.Errorf("the newest key is %q (%v), want %q", newest, err, second)
	}
	drawn, err := CreateKey(path+"2", "")
	if err != nil || !strings.HasPrefix(drawn, "localhost/immutable/") {
		t.Errorf("without an origin: %q, %v", drawn, err)
	}
	if err := os.Remove(path + "2"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("%d files are left: %v", len(left), err)
	}

	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := loadKeys(path); err != nil {
		t.Errorf("a group may read it: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := loadKeys(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("others can read it: %v", err)
	}
	if _, err := loadKeys(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for _, origin := range []string{"a b", "a+b"} {
		if _, err := CreateKey(filepath.Join(t.TempDir(), "k"), origin); err == nil {
			t.Errorf("origin %q was taken", origin)
		}
	}
}

func TestParseKeysRefuses(t *testing.T) {
	a, err := generateKey("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := generateKey("b")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ text, want string }{
		{"", "it has no key"},
		{"\n\n", "it has no key"},
		{a.private + "\n" + b.private, "line 2: a key of origin"},
		{a.private + "\n" + a.private, "line 2: the key is there already"},
		{"PRIVATE+KEY+a+00000000+AAAA", "line 1: it is not PRIVATE+KEY"},
		{a.verifier, "line 1: it is not PRIVATE+KEY"},
		{strings.Repeat("\n", maxKeyFileBytes+1), "it has more than"},
	} {
		if _, err := parseKeys([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.40q: got %v, want %q", tt.text, err, tt.want)
		} else if strings.Contains(err.Error(), "AAAA") {
			t.Errorf("the error quotes the key: %v", err)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	a, err := generateKey("a")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(a.private + "\r\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := parseKeys(text)
		if err != nil {
			return
		}
		for _, pair := range k {
			if _, err := note.NewVerifier(pair.verifier); err != nil || pair.Name() != k[0].Name() {
				t.Errorf("%q: %v", pair.verifier, err)
			}
		}
	})
}
