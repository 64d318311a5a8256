package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestIndependentImplementations: what a running installation serves holds by a script that was written from the specification alone, and
// its root log by a tool that others wrote for theirs.
func TestIndependentImplementations(t *testing.T) {
	long(t)
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("IMMUTABLE_REQUIRE_REAL") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s := newUp(t, immutable(t), t.TempDir())
	s.start("IMMUTABLE_EPOCH_INTERVAL=1s")
	s.ready(t)
	id := s.post(t, []byte(`{"actor_id":"ci","action":"deployment.succeeded","resource":"service","resource_id":"api-gateway","metadata":{"pin":"4711"}}`))
	get := func(path string) (text []byte) {
		t.Helper()
		eventually(t, startLimit, func() error {
			status, _, body, err := s.do(t.Context(), http.MethodGet, readURL+path, nil, nil)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("%s: %d %s", path, status, body)
			}
			text = body
			return err
		})
		return text
	}
	key := get("/ledger/key")
	dir := t.TempDir()
	bundle, trust, checker := filepath.Join(dir, "bundle.json"), filepath.Join(dir, "trust"), filepath.Join(dir, "independent")
	for name, text := range map[string][]byte{bundle: get("/events/" + id + "/proof"), trust: key} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), python, filepath.Join(root, "ledger/testdata/verify.py"), "bundle", bundle, "--trust", trust).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "VERIFIED" {
		t.Errorf("%v: %s", err, out)
	}

	build := exec.CommandContext(t.Context(), "go", "build", "-o", checker, ".")
	build.Dir = "independent"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := s.upFile()
	if err != nil {
		t.Fatal(err)
	}
	for vkey, want := range map[string]int{strings.TrimSpace(string(key)): 0, "example.com/log+00000000+AAAA": 1} {
		check := exec.CommandContext(t.Context(), checker, "check", "--url", f.HTTP+"/api/v1/ledger/", "--vkey", vkey)
		var said strings.Builder
		check.Stdout, check.Stderr = io.Discard, &said
		if err := check.Run(); check.ProcessState == nil || check.ProcessState.ExitCode() != want {
			t.Errorf("%s: %v, want exit code %d: %s", vkey, err, want, said.String())
		}
	}
	s.stop(t)
}
