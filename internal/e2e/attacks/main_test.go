// Package attacks runs the shipped `immutable verify` against ledgers that somebody with the databases, or with the keys too, has tampered with.
package attacks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"getimmutable.dev/immutable/internal/clickhouse/clickhousetest"
	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// binary is built once for all tests, by the first of them. It belongs to the test binary, hence package variables.
var (
	binaryDir string
	binary    = sync.OnceValues(func() (string, error) {
		if path := os.Getenv(binaryVariable); path != "" {
			return path, nil
		}
		path := filepath.Join(binaryDir, "immutable")
		cmd := exec.Command("go", "build", "-o", path, "./cmd/immutable")
		cmd.Dir = "../../.."
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w\n%s", err, out)
		}
		return path, nil
	})
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "chdb-server" {
		os.Exit(clickhousetest.Main(m))
	}
	var err error
	if binaryDir, err = os.MkdirTemp("", "immutable-attacks-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := clickhousetest.Main(m)
	_ = os.RemoveAll(binaryDir)
	os.Exit(code)
}

// auditor is somebody who verifies, with what he keeps.
type auditor struct {
	t      *testing.T
	dir    string
	memory bool
}

// newAuditor believes the key of seed 1, unless trust says otherwise.
func newAuditor(t *testing.T, trust ...string) *auditor {
	t.Helper()
	a := &auditor{t: t, dir: t.TempDir()}
	if trust == nil {
		trust = []string{ledgertest.NewKey(ledgertest.Origin, 1).Verifier()}
	}
	if err := os.WriteFile(filepath.Join(a.dir, "trust"), []byte(strings.Join(trust, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// result is what the program said.
type result struct {
	Exit   int             `json:"exit"`
	Level  string          `json:"level"`
	Faults []*ledger.Fault `json:"faults"`

	Evidence   []string `json:"evidence"`
	Undecided  []string `json:"undecided"`
	NotChecked []string `json:"not_checked"`
	Memory     string   `json:"memory"`

	code   int
	output string
	maxRSS int64 // bytes
}

// run runs `immutable verify`.
func (a *auditor) run(args ...string) *result {
	a.t.Helper()
	path, err := binary()
	if err != nil {
		a.t.Fatal(err)
	}
	memory := "--no-memory"
	if a.memory {
		memory = "--memory=" + filepath.Join(a.dir, "memory.json")
	}
	all := append([]string{"verify"}, args...)
	all = append(all, "--json", memory, "--trust="+filepath.Join(a.dir, "trust"))
	if args[0] != "event" {
		all = append(all, "--evidence="+a.dir)
	}
	if args[0] == "ledger" {
		all = append(all, "--settle=1ms") // nobody is writing
	}
	if !slices.ContainsFunc(args, func(s string) bool { return strings.HasPrefix(s, "--max-age") }) {
		all = append(all, "--max-age=0")
	}
	cmd := exec.CommandContext(a.t.Context(), path, all...)
	if dir := os.Getenv(reachedDirVariable); dir != "" {
		cmd.Env = append(os.Environ(), reachedVariable+"="+filepath.Join(dir, url.PathEscape(a.t.Name())))
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	r := &result{}
	err = cmd.Start()
	if err == nil {
		peak := watchMemory(cmd.Process.Pid)
		err = cmd.Wait()
		r.maxRSS = peak()
	}
	if _, isExit := errors.AsType[*exec.ExitError](err); err != nil && !isExit {
		a.t.Fatal(err)
	}
	r.output = stdout.String() + stderr.String()
	r.code = cmd.ProcessState.ExitCode()
	if r.code != verify.ExitUsage {
		if err := json.Unmarshal(stdout.Bytes(), r); err != nil || r.Exit != r.code {
			a.t.Fatalf("exit code %d, %v: %s", r.code, err, r.output)
		}
	}
	return r
}

// found are the findings without their details.
func (r *result) found() (all []string) {
	for _, f := range r.Faults {
		place, _, _ := strings.Cut(f.String(), ":")
		all = append(all, place)
	}
	return all
}

// want holds a result to an exit code and the beginnings of all findings.
func (r *result) want(t *testing.T, exit int, findings ...string) {
	t.Helper()
	found := r.found()
	same := r.code == exit && len(found) == len(findings)
	for i := range min(len(found), len(findings)) {
		same = same && strings.HasPrefix(found[i]+" ", findings[i])
	}
	if !same {
		t.Errorf("want exit code %d and %q, got %d and:\n%s", exit, findings, r.code, r.output)
	}
}

// newLedger has chains of two workspaces in five epochs, and a change of the key after the third.
func newLedger() *ledgertest.Ledger {
	l := ledgertest.New()
	for lane := range uint32(2) {
		l.Chain(1, 1, lane, 2)
	}
	l.Chain(2, 1, 0, 1)
	for epoch := range 5 {
		for i, c := range l.Chains {
			l.Events(c, 20+7*i)
		}
		l.Epoch()
		if epoch == 2 {
			l.Rotate(ledgertest.NewKey(ledgertest.Origin, 2))
		}
	}
	return l
}

// at is a place in a chain, as findings name it.
func at(verdict ledger.Verdict, c *ledgertest.Chain, sequence string) string {
	return fmt.Sprintf("%s chain %x sequence %s ", verdict, c.ID, sequence)
}

// serve serves a ledger as the API does.
func serve(t *testing.T, handler http.Handler) (flags []string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return []string{"ledger", "--url=" + server.URL, "--api-key=" + ledgertest.APIKey}
}

func newServer(l *ledgertest.Ledger) *ledgertest.Server {
	return &ledgertest.Server{Ledger: l, Workspace: ledgertest.Workspace(1)}
}

// long skips a test of more than a few seconds in a short run.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes more than a few seconds")
	}
}
