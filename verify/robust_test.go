package verify_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// A server that is busy now and then, or whose answers are cut off, is asked again.
func TestLedgerRetries(t *testing.T) {
	l := newLedger()
	s := &ledgertest.Server{Ledger: l, Workspace: ledgertest.Workspace(1)}
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 4 {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 3:
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write([]byte("{"))
		default:
			s.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	a := &api{s, t, server.URL}
	r, err := verify.Ledger(t.Context(), a.config(), verify.API{
		URL: a.url, Key: ledgertest.APIKey, Attempts: 6, Backoff: time.Millisecond, LeavesPerRequest: 37,
	})
	if err != nil || r.Exit != verify.ExitVerified || r.Leaves != 237 {
		t.Errorf("%v, %s", err, r.Text())
	}
}

// Pages that end without their last line are cut off; what was read is no verification.
func TestLedgerCutOff(t *testing.T) {
	a := newAPI(t, newLedger())
	a.Spoil = func(path string, answer []byte) []byte {
		if path == "/ledger/leaves" {
			return answer[:strings.LastIndex(string(answer), `{"next"`)]
		}
		return answer
	}
	r := a.verify(a.config())
	if r.Exit != verify.ExitUndecided || len(r.Undecided) != 2 || !strings.Contains(r.Undecided[0], "cut off") {
		t.Error(r.Text())
	}
}

// Pages without leaves that never end are not waited for.
func TestLedgerEmptyPages(t *testing.T) {
	a := newAPI(t, newLedger())
	a.Spoil = func(path string, answer []byte) []byte {
		if path == "/ledger/leaves" && strings.HasPrefix(string(answer), `{"next"`) {
			return []byte("{\"next\":9000000000000000000,\"more\":true}\n")
		}
		return []byte(strings.Replace(string(answer), `"more":false`, `"more":true`, 1))
	}
	if r := a.verify(a.config()); r.Exit != verify.ExitUndecided || len(r.Undecided) != 2 {
		t.Error(r.Text())
	}
}

// Nor are those that go on, one after the other, beyond what is signed.
func TestLedgerEmptyPagesThatRise(t *testing.T) {
	a := newAPI(t, newLedger())
	n := 1000
	a.Spoil = func(path string, answer []byte) []byte {
		if path != "/ledger/leaves" {
			return answer
		}
		n++
		return fmt.Appendf(nil, "{\"next\":%d,\"more\":true}\n", n)
	}
	if r := a.verify(a.config()); r.Exit != verify.ExitUndecided || n > 1100 {
		t.Error(n, r.Text())
	}
}

// A run that saw no leaf is not a verification, whatever it proved of roots.
func TestLedgerRootsOnly(t *testing.T) {
	a := newAPI(t, newLedger())
	a.Workspace = ledgertest.Workspace(9)
	if r := a.verify(a.config()); r.Exit != verify.ExitUndecided || r.Checkpoint == nil {
		t.Error(r.Text())
	}
}

func TestLedgerStale(t *testing.T) {
	a := newAPI(t, newLedger())
	cfg := a.config()
	cfg.MaxAge = time.Second
	if r := a.verify(cfg); r.Exit != verify.ExitUndecided || r.Found[ledger.Stale] != 1 {
		t.Error(r.Text())
	}
}

func TestMemoryThatCannotBeRead(t *testing.T) {
	a := newAPI(t, newLedger())
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "deep", "memory.json")
	if r := a.verify(cfg); r.Exit != verify.ExitVerified {
		t.Fatal(r.Text())
	}
	good, err := os.ReadFile(cfg.MemoryFile)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(string) string{
		"not JSON":       func(string) string { return "{" },
		"another format": func(s string) string { return strings.Replace(s, "memory/1", "memory/9", 1) },
		"another root": func(s string) string {
			return strings.Replace(s, `"range": [`+"\n", `"range": [`+"\n"+`"`+strings.Repeat("ab", 32)+`",`, 1)
		},
		"another subtree": func(s string) string {
			at := strings.Index(s, `"range": [`)
			quote := at + strings.Index(s[at+len(`"range": [`):], `"`) + len(`"range": [`)
			return s[:quote+1] + "00000000" + s[quote+9:]
		},
		"null": func(s string) string { return strings.Replace(s, `"logs": {`, `"logs": {"example.com/null":null,`, 1) },
		"a key change as epoch": func(s string) string {
			var m struct {
				Logs map[string]struct{ Keys []string }
			}
			if err := json.Unmarshal([]byte(s), &m); err != nil {
				t.Fatal(err)
			}
			key, err := json.Marshal(m.Logs[ledgertest.Origin].Keys[0])
			if err != nil {
				t.Fatal(err)
			}
			at := strings.Index(s, `"epoch": `) + len(`"epoch": `)
			return s[:at] + string(key) + s[at+strings.Index(s[at:], ",\n"):]
		},
		"another origin": func(s string) string {
			return strings.Replace(s, `"example.com/ledger": {`, `"example.com/other": {`, 1)
		},
		"unknown member": func(s string) string { return strings.Replace(s, `"format"`, `"key":1,"format"`, 1) },
		"no epoch":       func(s string) string { return strings.Replace(s, `"epoch": "{`, `"epoch": "x{`, 1) },
		"no keys":        func(s string) string { return strings.Replace(s, `\"type\":\"key\"`, `\"type\":\"kex\"`, 1) },
	} {
		changed := spoil(string(good))
		if changed == string(good) {
			t.Fatalf("%s: nothing was changed in %s", name, good)
		}
		if err := os.WriteFile(cfg.MemoryFile, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := verify.Ledger(t.Context(), cfg, verify.API{URL: a.url, Key: ledgertest.APIKey})
		if !errors.Is(err, verify.ErrUsage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	trusted := trust(t, ledgertest.NewKey(ledgertest.Origin, 1).Verifier())
	now := time.Now()
	for _, cfg := range []verify.Config{
		{},
		{Trust: trusted},
		{Now: now},
		{Trust: trusted, Now: now, MaxAge: -1},
		{Trust: trusted, Now: now, Epochs: 5000},
		{Trust: trusted, Now: now, Epochs: -1},
		{Trust: trusted, Now: now, Workers: -1},
	} {
		if err := cfg.Validate(); err == nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
	for _, a := range []verify.API{
		{},
		{URL: "http://x"},
		{Key: "k"},
		{URL: "ftp://x", Key: "k"},
		{URL: "http://", Key: "k"},
		{URL: "http://u:p@x", Key: "k"},
		{URL: "http://x?q", Key: "k"},
		{URL: "http://x", Key: "k", LeavesPerRequest: 10_001},
		{URL: "http://x", Key: "k", Attempts: -1},
		{URL: "http://x\x00", Key: "k"},
	} {
		if err := a.Validate(); err == nil {
			t.Errorf("%+v: no error", a)
		}
	}
}

// FuzzLedger: whatever one answer says, a verification ends, and does not verify what is not so.
func FuzzLedger(f *testing.F) {
	l := newLedger()
	a := newAPI(f, l)
	cfg := a.config()
	paths := []string{"/ledger/checkpoint", "/ledger/chains", "/ledger/leaves", "/ledger/tile/entries/000.p/7", "/ledger/tile/0/000.p/7"}
	f.Add(uint8(0), uint16(20), byte(1))
	f.Add(uint8(1), uint16(400), byte(7))
	f.Add(uint8(2), uint16(900), byte(1))
	f.Add(uint8(3), uint16(100), byte(1))
	f.Add(uint8(4), uint16(33), byte(1))
	f.Fuzz(func(t *testing.T, which uint8, place uint16, flip byte) {
		path := paths[int(which)%len(paths)]
		changed := false
		a.Lock()
		a.Spoil = func(asked string, answer []byte) []byte {
			if asked != path || len(answer) == 0 || flip == 0 {
				return answer
			}
			changed = true
			answer = append([]byte(nil), answer...)
			answer[int(place)%len(answer)] ^= flip
			return answer
		}
		a.Unlock()
		r, err := verify.Ledger(t.Context(), cfg, verify.API{URL: a.url, Key: ledgertest.APIKey, Attempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		if changed && path != "/ledger/leaves" && path != "/ledger/chains" && path != "/ledger/checkpoint" && r.Exit == verify.ExitVerified {
			t.Errorf("%s, byte %d ^ %d: verified: %s", path, place, flip, r.Text())
		}
	})
}
