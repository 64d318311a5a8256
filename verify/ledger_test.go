package verify_test

import (
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/verify"
)

// api is an API with a ledger.
type api struct {
	*ledgertest.Server

	t   testing.TB
	url string
}

func newAPI(tb testing.TB, l *ledgertest.Ledger) *api {
	tb.Helper()
	s := &ledgertest.Server{Ledger: l, Workspace: ledgertest.Workspace(1)}
	server := httptest.NewServer(s)
	tb.Cleanup(server.Close)
	return &api{s, tb, server.URL}
}

func (a *api) config() verify.Config {
	return verify.Config{
		Trust: trust(a.t, ledgertest.NewKey(ledgertest.Origin, 1).Verifier()), Now: a.Ledger.Now().Add(time.Minute), MaxAge: 10 * time.Minute,
		EvidenceDir: a.t.TempDir(), Workers: 2, Settle: time.Millisecond,
	}
}

func (a *api) verify(cfg verify.Config) *verify.Report {
	a.t.Helper()
	r, err := verify.Ledger(a.t.Context(), cfg, verify.API{
		URL: a.url, Key: ledgertest.APIKey, Attempts: 2, Backoff: time.Millisecond, LeavesPerRequest: 37,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return r
}

func TestLedger(t *testing.T) {
	a := newAPI(t, newLedger())
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	for i := range 2 {
		r := a.verify(cfg)
		if r.Exit != verify.ExitVerified || r.Level != verify.TamperDetecting || len(r.Faults) > 0 {
			t.Fatal(r.Text())
		}
		if r.Chains != 2 || r.Leaves != 5*(20+27)+2 || r.Entries != uint64(7-7*i) {
			t.Error(r.Text())
		}
	}
	// What comes next is consistent with what is remembered, and only that is read.
	a.Ledger.Events(a.Ledger.Chains[0], 300)
	a.Ledger.Epoch()
	a.Ledger.Events(a.Ledger.Chains[0], 3)
	cfg.Now = a.Ledger.Now()
	r := a.verify(cfg)
	want := []string{fmt.Sprintf("UNSEALED TAIL chain %x sequence 401..403", a.Ledger.Chains[0].ID)}
	if r.Exit != verify.ExitVerified || !slices.Equal(faults(r), want) || r.Entries != 1 {
		t.Error(r.Text())
	}
}

// A log of several tiles.
func TestLedgerTiles(t *testing.T) {
	l := ledgertest.New()
	c := l.Chain(1, 1, 0, 1)
	for range 600 {
		l.Events(c, 1)
		l.Epoch()
	}
	a := newAPI(t, l)
	if r := a.verify(a.config()); r.Exit != verify.ExitVerified || r.Entries != 601 {
		t.Error(r.Text())
	}
}
