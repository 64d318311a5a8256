package control

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestMasterKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "master.key")
	created, err := CreateMasterKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if created == (MasterKey{}) {
		t.Fatal("the key is zero")
	}
	loaded, err := LoadMasterKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if loaded != created {
		t.Error("another key was loaded than created")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateMasterKey(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second creation: %v", err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("the file was overwritten")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files left behind: %v, %v", entries, err)
	}

	for _, format := range []string{"%v", "%s", "%x", "%#v", "%+v"} {
		if got := fmt.Sprintf(format, created); strings.Contains(string(before), got) || len(got) > 16 {
			t.Errorf("%s shows the key", format)
		}
	}
}

func TestLoadMasterKeyRefuses(t *testing.T) {
	good := strings.Repeat("0a", 32)
	tests := []struct {
		name, content string
		mode          os.FileMode
		want          string
	}{
		{"readable by others", good, 0o604, "chmod 600"},
		{"writable by the group", good, 0o620, "chmod 600"},
		{"empty", "", 0o600, "64 hexadecimal"},
		{"short", good[:62], 0o600, "64 hexadecimal"},
		{"long", good + "00", 0o600, "64 hexadecimal"},
		{"not hexadecimal", strings.Repeat("g", 64), 0o600, "64 hexadecimal"},
		{"huge", strings.Repeat("0a", 1<<16), 0o600, "64 hexadecimal"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "master.key")
			if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			_, err := LoadMasterKey(path)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
	t.Run("readable by the group is fine", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "master.key")
		if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o440); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadMasterKey(path); err != nil {
			t.Error(err)
		}
	})
	t.Run("missing", func(t *testing.T) {
		if _, err := LoadMasterKey(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
}

func testSealer(tb testing.TB, master MasterKey) *sealer {
	tb.Helper()
	s, err := newSealer(master)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func TestSeal(t *testing.T) {
	s := testSealer(t, MasterKey{1})
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "secret")
		identity := rapid.String().Draw(t, "identity")
		sealed := s.seal(secret, identity)
		got, err := s.open(sealed, identity)
		if err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("%x, %v", got, err)
		}
		at, bit := rapid.IntRange(0, len(sealed)-1).Draw(t, "at"), rapid.IntRange(0, 7).Draw(t, "bit")
		sealed[at] ^= 1 << bit
		if _, err := s.open(sealed, identity); err == nil {
			t.Fatal("changed, and still opens")
		}
	})
}

func TestSealRefuses(t *testing.T) {
	s := testSealer(t, MasterKey{1})
	sealed := s.seal([]byte("secret"), "a")
	if bytes.Equal(sealed, s.seal([]byte("secret"), "a")) {
		t.Error("sealed twice alike: the nonce is not random")
	}
	if _, err := testSealer(t, MasterKey{2}).open(sealed, "a"); !errors.Is(err, ErrMasterKey) ||
		!strings.Contains(err.Error(), "start every service with the master key file") {
		t.Errorf("another master key: %v", err)
	}
	if _, err := s.open(sealed, "b"); !errors.Is(err, ErrMasterKey) {
		t.Errorf("another identity: %v", err)
	}
	for n := range sealed {
		if _, err := s.open(sealed[:n], "a"); err == nil {
			t.Errorf("opens when cut to %d bytes", n)
		}
	}
	if _, err := newSealer(MasterKey{}); err == nil {
		t.Error("a zero master key is taken")
	}
}
