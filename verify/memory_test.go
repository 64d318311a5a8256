package verify_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// Runs at the same time do not lose what another one has remembered: of other logs, nor of other workspaces of the same log.
func TestMemoryIsShared(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "memory.json")
	var running sync.WaitGroup
	run := func(l *ledgertest.Ledger, origin string, workspace byte) {
		a := newAPI(t, l)
		a.Workspace, a.Key = ledgertest.Workspace(workspace), fmt.Sprintf("imk_%d", workspace) // a key is of one workspace
		cfg := a.config()
		cfg.MemoryFile = path
		cfg.Trust = trust(t, ledgertest.NewKey(origin, 1).Verifier())
		running.Go(func() {
			r, err := verify.Ledger(t.Context(), cfg, verify.API{URL: a.url, Key: a.Key})
			if err != nil || r.Exit != verify.ExitVerified {
				t.Errorf("%s: %v, %s", origin, err, r.Text())
			}
		})
	}
	var origins []string
	for i := range 12 {
		origin := fmt.Sprintf("example.com/%d", i)
		origins = append(origins, origin)
		l := ledgertest.NewOf(ledgertest.NewKey(origin, 1))
		l.Events(l.Chain(1, 1, 0, 1), 3)
		l.Epoch()
		run(l, origin, 1)
	}
	shared := newLedger()
	run(shared, ledgertest.Origin, 1)
	run(newLedger(), ledgertest.Origin, 2)
	running.Wait()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, origin := range append(origins, ledgertest.Origin) {
		if !strings.Contains(string(text), fmt.Sprintf("%q: {", origin)) {
			t.Errorf("%s is not remembered", origin)
		}
	}
	for _, c := range shared.Chains {
		if !strings.Contains(string(text), fmt.Sprintf("%x", c.ID)) {
			t.Errorf("chain %x is not remembered", c.ID)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.tmp")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// Two runs at once that are shown two histories: the second one that remembers its own finds the first one's.
func TestMemoryForkedMeanwhile(t *testing.T) {
	a := newAPI(t, newLedger())
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	other := newLedger()
	other.Chains[0].Leaves[30].RecordedAt++
	other.Chains[0].Reseal(30)
	other.Rebuild()
	b := newAPI(t, other)
	b.Spoil = func(path string, answer []byte) []byte {
		if path == "/ledger/leaves" { // once, after the memory was read
			b.Spoil = nil
			if r := a.verify(cfg); r.Exit != verify.ExitVerified {
				t.Error(r.Text())
			}
		}
		return answer
	}
	r := b.verify(cfg)
	if r.Exit != verify.ExitTampered || !strings.Contains(r.Text(), "FORKED: another run has accepted") || len(r.Evidence) != 1 {
		t.Error(r.Text())
	}
	if r := a.verify(cfg); r.Exit != verify.ExitVerified {
		t.Error(r.Text())
	}
}

// Two runs at once that are shown two histories of different sizes: one of them is remembered, and the other one says that it is not.
func TestMemoryOfAnotherSizeMeanwhile(t *testing.T) {
	longer := rewritten()
	longer.Events(longer.Chains[0], 3)
	longer.Epoch()
	a, b := newAPI(t, newLedger()), newAPI(t, longer)
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	var once sync.Once
	a.Spoil = func(path string, answer []byte) []byte {
		if path == "/ledger/leaves" { // after the memory was read
			once.Do(func() {
				if r := b.verify(cfg); r.Exit != verify.ExitVerified {
					t.Error(r.Text())
				}
			})
		}
		return answer
	}
	want := []string{"another run has accepted a checkpoint of size 8 meanwhile: run again"}
	if r := a.verify(cfg); r.Exit != verify.ExitUndecided || !slices.Equal(r.Undecided, want) {
		t.Error(r.Text())
	}
	if r := a.verify(cfg); r.Exit != verify.ExitTampered || r.Found[ledger.RolledBack] == 0 {
		t.Error(r.Text())
	}
	if r := b.verify(cfg); r.Exit != verify.ExitVerified {
		t.Error(r.Text())
	}
}

// Two runs at once that accept one checkpoint, and have seen two histories of a chain.
func TestMemoryOfForkedChainMeanwhile(t *testing.T) {
	a := newAPI(t, newLedger())
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	if r := a.verify(cfg); r.Exit != verify.ExitVerified {
		t.Fatal(r.Text())
	}
	text, err := os.ReadFile(cfg.MemoryFile)
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Logs map[string]struct {
			Chains map[string]struct {
				Root string `json:"root"`
			} `json:"chains"`
		} `json:"logs"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	root := m.Logs[ledgertest.Origin].Chains[fmt.Sprintf("%x", a.Ledger.Chains[0].ID)].Root
	other := bytes.ReplaceAll(text, []byte(root), []byte(strings.Repeat("ab", 32)))
	if err := os.Remove(cfg.MemoryFile); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	a.Spoil = func(path string, answer []byte) []byte {
		if path == "/ledger/leaves" {
			once.Do(func() {
				if err := os.WriteFile(cfg.MemoryFile, other, 0o600); err != nil {
					t.Error(err)
				}
			})
		}
		return answer
	}
	r := a.verify(cfg)
	if want := []string{fmt.Sprintf("FORKED chain %x", a.Ledger.Chains[0].ID)}; r.Exit != verify.ExitTampered || !slices.Equal(faults(r), want) || len(r.Evidence) > 0 {
		t.Error(r.Text())
	}
	if now, err := os.ReadFile(cfg.MemoryFile); err != nil || !bytes.Contains(now, bytes.Repeat([]byte("ab"), 32)) {
		t.Errorf("it was written over: %v", err)
	}
}

// A lock that somebody does not give back is waited for, and then named.
func TestMemoryIsLocked(t *testing.T) {
	a := newAPI(t, newLedger())
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	cfg.MemoryWait = 100 * time.Millisecond
	f, err := os.Create(cfg.MemoryFile + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	_, err = verify.Ledger(t.Context(), cfg, verify.API{URL: a.url, Key: ledgertest.APIKey})
	if !errors.Is(err, verify.ErrUsage) || !strings.Contains(err.Error(), "another run has locked the memory") {
		t.Errorf("%v", err)
	}
	cfg.MemoryWait = time.Minute
	time.AfterFunc(200*time.Millisecond, func() { _ = f.Close() })
	if r := a.verify(cfg); r.Exit != verify.ExitVerified {
		t.Error(r.Text())
	}
}

// A memory that cannot be locked, or that somebody has spoilt meanwhile, is not written over.
func TestMemoryThatCannotBeKept(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"a folder in the lock's place": func(path string) error { return errors.Join(os.Remove(path+".lock"), os.Mkdir(path+".lock", 0o700)) },
		"spoilt":                       func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, newLedger())
			cfg := a.config()
			cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
			var once sync.Once
			a.Spoil = func(path string, answer []byte) []byte {
				if path == "/ledger/leaves" {
					once.Do(func() {
						if err := spoil(cfg.MemoryFile); err != nil {
							t.Error(err)
						}
					})
				}
				return answer
			}
			_, err := verify.Ledger(t.Context(), cfg, verify.API{URL: a.url, Key: ledgertest.APIKey})
			if !errors.Is(err, verify.ErrUsage) {
				t.Error(err)
			}
			if text, err := os.ReadFile(cfg.MemoryFile); err == nil && string(text) != "{" {
				t.Errorf("it was written over: %s", text)
			}
		})
	}
}

// A workspace that was verified before with another API key is the same one, and was started afresh.
func TestStartedAfreshUnderAnotherKey(t *testing.T) {
	l := newLedger()
	a := newAPI(t, l)
	a.Key = "imk_a"
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	run := func() *verify.Report {
		r, err := verify.Ledger(t.Context(), cfg, verify.API{URL: a.url, Key: a.Key})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := run(); r.Exit != verify.ExitVerified {
		t.Fatal(r.Text())
	}
	l.Chains[0].Leaves, l.Chains[1].Leaves = nil, nil
	l.Events(l.Chain(1, 2, 0, 1), 30)
	l.Epoch()
	a.Key = "imk_b"
	if r := run(); r.Exit != verify.ExitTampered || !strings.Contains(r.Text(), "it was started afresh") {
		t.Error(r.Text())
	}
}
