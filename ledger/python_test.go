package ledger

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// python runs testdata/verify.py, a second implementation that is written from the specification alone.
func python(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	path, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("IMMUTABLE_REQUIRE_REAL") == "1" {
			t.Fatalf("IMMUTABLE_REQUIRE_REAL=1: %v", err)
		}
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b, err := exec.CommandContext(ctx, path, append([]string{"testdata/verify.py"}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(b)), err
}

func TestPythonOnVectors(t *testing.T) {
	out, err := python(t, "vectors", "../schemas/testdata/vectors")
	if err != nil || !strings.HasSuffix(out, "vectors hold") {
		t.Errorf("%v: %s", err, out)
	}
	script, err := os.ReadFile("testdata/verify.py")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(script), "\n"); n >= 300 {
		t.Errorf("it has %d lines: the specification is to be small enough for 300", n)
	}
}

// TestPythonOnBundles has it find what is wrong with files of its own.
func TestPythonOnBundles(t *testing.T) {
	l := newTestLog(t)
	c := l.chain(t)
	c.event(t, KindEvent, testBody)
	l.epoch(t)
	trust := filepath.Join(t.TempDir(), "trust")
	if err := os.WriteFile(trust, []byte(l.key().vkey()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		spoil func(*Bundle)
		want  string
	}{
		"sound":    {func(*Bundle) {}, "VERIFIED"},
		"modified": {func(b *Bundle) { b.Body = strings.Replace(b.Body, "4711", "4712", 1) }, "MODIFIED"},
	} {
		t.Run(name, func(t *testing.T) {
			b := l.bundle(t, c, 1)
			tc.spoil(b)
			text, err := b.Encode()
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "bundle.json")
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := python(t, "bundle", path, "--trust", trust)
			if out != tc.want || (err == nil) != (tc.want == "VERIFIED") {
				t.Errorf("%v: %s, want %s", err, out, tc.want)
			}
		})
	}
}
