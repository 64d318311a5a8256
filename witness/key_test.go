package witness

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	formatsnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"getimmutable.dev/immutable/ledger"
)

func TestKey(t *testing.T) {
	signer, vkey := logKey(t, testOrigin, 1)
	l := newTestLog(signer, 3, 3, "")
	for _, algorithm := range []Algorithm{Ed25519, MLDSA44} {
		t.Run(string(algorithm), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "witness.key")
			created, err := CreateKey(path, "w.example/1", algorithm)
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			key, err := LoadKey(path)
			if err != nil || key.VerifierKey != created.VerifierKey {
				t.Fatalf("%+v, %v", key, err)
			}
			if _, err := CreateKey(path, "w.example/1", algorithm); !errors.Is(err, fs.ErrExist) {
				t.Errorf("over another: %v", err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// No log signs with it: one signature could be taken for the other.
			if _, err := note.NewSigner(strings.TrimSpace(string(text))); err == nil {
				t.Error("it is a log's key too")
			}

			// Another implementation makes the same of the file, and a verifier believes what it signs.
			other, err := formatsnote.NewSignerForCosignatureV1(strings.TrimSpace(string(text)))
			if err != nil || other.KeyHash() != key.KeyHash() {
				t.Fatal(err)
			}
			trust := mustTrust(t, "log "+vkey+"\nwitness w "+key.VerifierKey+"\nquorum w")
			_, n, err := trust.OpenLog(l.checkpoint(t, 3))
			if err != nil {
				t.Fatal(err)
			}
			signed, _, err := ledger.Cosign(n, key)
			if err != nil {
				t.Fatal(err)
			}
			if o, f := trust.Open(signed, nil, time.Now()); f != nil || len(o.Witnesses) != 1 {
				t.Errorf("%+v, %v", o, f)
			}

			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
				t.Errorf("readable by others: %v", err)
			}
		})
	}
}

func TestKeyThatIsNone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", "a b", "a+b", "a\xff", strings.Repeat("a", 256)} {
		if _, err := CreateKey(filepath.Join(dir, "k"), name, Ed25519); err == nil {
			t.Errorf("name %q", name)
		}
	}
	if _, err := CreateKey(filepath.Join(dir, "k"), "a", "rsa"); err == nil {
		t.Error("algorithm rsa")
	}
	if _, err := os.Stat(filepath.Join(dir, "k")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a file is left")
	}
	if _, err := LoadKey(filepath.Join(dir, "k")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	const secret = "BAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH"
	for _, text := range []string{
		"", "x", secret, "PRIVATE+KEY+w.example/1+a9595a9b", "PRIVATE+KEY+w.example/1+a9595a9b+" + secret[:40],
		"PRIVATE+KEY+w.example/2+a9595a9b+" + secret, "PRIVATE+KEY+w.example/1+00000000+" + secret, "PRIVATE+KEY+w.example/1+a9595a9b+" + secret + "\n\n",
		"PRIVATE+KEY+w.example/1+a9595a9b+AQ" + secret[2:], "PRIVATE+KEY+w.example/1+a9595a9b+BQ" + secret[2:],
		"PRIVATE+KEY+w.example/1+A9595A9B+" + secret,
	} {
		path := filepath.Join(dir, "bad")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if k, err := LoadKey(path); err == nil || strings.Contains(err.Error(), "BwcH") {
			t.Errorf("%q: %+v, %v", text, k, err)
		}
	}
}

func TestConfig(t *testing.T) {
	if err := (Config{Dir: "x"}).Validate(); err != nil {
		t.Error(err)
	}
	err := Config{MaxRequests: -1, BodyTimeout: time.Hour}.Validate()
	for _, want := range []string{"folder", "max requests", "body timeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %q", err, want)
		}
	}
}
