package verify_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// proofOf verifies the proof of an event of a ledger's first chain, changed.
func proofOf(t *testing.T, l *ledgertest.Ledger, sequence uint64, change func(map[string]any)) (*ledger.Bundle, *verify.Report, error) {
	t.Helper()
	b, err := l.Bundle(l.Chains[0], sequence)
	if err != nil {
		t.Fatal(err)
	}
	text, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		var all map[string]any
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.UseNumber()
		if err := d.Decode(&all); err != nil {
			t.Fatal(err)
		}
		change(all)
		if text, err = json.Marshal(all); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "proof.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := verify.Event(verify.Config{Trust: trust(t, ledgertest.NewKey(ledgertest.Origin, 1).Verifier()), Now: l.Now()}, path)
	return b, r, err
}

// A report says what was proven, and nothing of what was not.
func TestEventReport(t *testing.T) {
	l := newLedger()
	erased := []string{"/actor_id", "/metadata/old_value"}
	l.Redact(l.Chains[0], 30, erased...)
	l.Epoch()
	b, r, err := proofOf(t, l, 40, func(all map[string]any) { delete(all, "redactions") })
	if err != nil {
		t.Fatal(err)
	}
	want := &verify.EventReport{ID: b.ID, Chain: b.Chain, Sequence: 40, RecordedAt: b.RecordedAt, EpochTime: l.Now(), Body: b.Body}
	if diff := cmp.Diff(want, r.Event); diff != "" || !r.Verified || !r.NoMemory {
		t.Errorf("%s%s", diff, r.Text())
	}
	if !strings.Contains(r.Text(), "\n  body "+b.Body+"\n") {
		t.Error(r.Text())
	}
	b, r, err = proofOf(t, l, 30, nil)
	if err != nil || r.Event == nil || r.Event.Body != "" || len(r.Event.Fields) != len(b.Disclosure) {
		t.Fatalf("%v, %s", err, r.Text())
	}
	for i, f := range r.Event.Fields {
		if f.Path != b.Disclosure[i].Path || (f.Value == nil) != slices.Contains(erased, f.Path) {
			t.Errorf("%+v", f)
		}
	}
	for verdict, change := range map[ledger.Verdict]func(map[string]any){
		ledger.Redacted: nil, ledger.Withheld: func(all map[string]any) { delete(all, "redactions") },
	} {
		_, r, err := proofOf(t, l, 30, change)
		if err != nil || len(r.Faults) != len(erased) || r.Found[verdict] != uint64(len(erased)) {
			t.Fatalf("%s: %v, %s", verdict, err, r.Text())
		}
		for i, f := range r.Faults {
			if f.Verdict != verdict || !strings.HasPrefix(f.Detail, erased[i]) {
				t.Errorf("%s of %s: %s", verdict, erased[i], f)
			}
		}
	}
	_, r, err = proofOf(t, l, 40, func(all map[string]any) { all["body"] = strings.Replace(all["body"].(string), "curl", "curm", 1) })
	if err != nil || r.Exit != verify.ExitTampered || r.Event != nil {
		t.Errorf("%v, %s", err, r.Text())
	}
}

// A member that nobody knows is a file of another version; one that would say whom to believe is an attempt.
func TestEventUnknownMember(t *testing.T) {
	for name, isTrust := range map[string]bool{
		"version": false, "comment": false, "log_key": true, "Verifier": true, "policies": false, "policy": true, "witnesses": true,
	} {
		_, r, err := proofOf(t, newLedger(), 40, func(all map[string]any) { all[name] = "x" })
		switch {
		case isTrust && (err != nil || r.Exit != verify.ExitNotTrusted || r.Found[ledger.WrongKey] != 1):
			t.Errorf("%s: %v, %s", name, err, r.Text())
		case !isTrust && (!errors.Is(err, verify.ErrUsage) || !strings.Contains(err.Error(), name)):
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Two runs over the same say the same, in the same order, whichever chain was ready first, and where there are more findings than are listed.
func TestReportIsStable(t *testing.T) {
	l := newLedger()
	for _, c := range l.Chains {
		for i := 5; i < 60; i += 2 {
			c.Leaves[i].Hash[3] ^= 1
			c.Leaves[i].Erase("/actor_id")
		}
	}
	l.Events(l.Chains[0], 50)
	l.Events(l.Chains[1], 50)
	a := newAPI(t, l)
	cfg := a.config()
	cfg.MaxFaults, cfg.Workers = 9, 4
	var first string
	for i := range 8 {
		r, err := verify.Ledger(t.Context(), cfg, verify.API{URL: a.url, Key: ledgertest.APIKey, LeavesPerRequest: 7, MaxTail: 20})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = r.Text()
		}
		if diff := cmp.Diff(first, r.Text()); diff != "" {
			t.Fatalf("run %d: %s", i, diff)
		}
		if len(r.Faults) > 9 || !strings.Contains(first, "findings more") || len(r.NotChecked) < 3 {
			t.Error(first)
		}
	}
}
