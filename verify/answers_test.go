package verify_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// answers of an API, by their members.
type answers struct {
	Data struct {
		Epoch    string             `json:"epoch"`
		LogProof string             `json:"log_proof"`
		Keys     []ledger.BundleKey `json:"keys"`
		Chains   []json.RawMessage  `json:"chains"`
	} `json:"data"`
}

// ask asks a server for what GET /ledger/chains answers.
func ask(t *testing.T, l *ledgertest.Ledger) (text []byte, a *answers) {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, "/api/v1/ledger/chains", http.NoBody)
	req.Header.Set("Authorization", "Bearer "+ledgertest.APIKey)
	w := httptest.NewRecorder()
	(&ledgertest.Server{Ledger: l, Workspace: ledgertest.Workspace(1)}).ServeHTTP(w, req)
	a = new(answers)
	if err := json.Unmarshal(w.Body.Bytes(), a); err != nil {
		t.Fatal(err)
	}
	return w.Body.Bytes(), a
}

// logProof proves an entry of the root log under its newest checkpoint.
func logProof(t *testing.T, l *ledgertest.Ledger, index uint64) string {
	t.Helper()
	plan, err := ledger.PlanInclusion(index, uint64(len(l.Entries)))
	if err != nil {
		t.Fatal(err)
	}
	var stored [][]ledger.Hash
	for _, s := range plan.Spans() {
		var hashes []ledger.Hash
		for _, e := range l.Entries[s.From:s.To] {
			hashes = append(hashes, ledger.EntryHash(e))
		}
		stored = append(stored, hashes)
	}
	path, err := plan.Build(stored)
	if err != nil {
		t.Fatal(err)
	}
	p := proof.TLogProof{Index: index, Checkpoint: l.Newest()}
	for _, h := range path {
		p.Hashes = append(p.Hashes, h)
	}
	return string(p.Marshal())
}

func rewritten() *ledgertest.Ledger {
	l := newLedger()
	l.Chains[0].Leaves[30].Body = ledgertest.Body(99)
	l.Chains[0].Reseal(30)
	l.Rebuild()
	return l
}

// TestLedgerAnswers: each thing that an answer of the API can say wrong has its verdict, or leaves the verification undecided.
func TestLedgerAnswers(t *testing.T) {
	text, honest := ask(t, newLedger())
	forged, other := ask(t, rewritten())
	encode := func(do func(a *answers)) func([]byte) []byte {
		return func([]byte) []byte {
			a := new(answers)
			if err := json.Unmarshal(text, a); err != nil {
				t.Fatal(err)
			}
			do(a)
			b, err := json.Marshal(a)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	replace := func(old, changed string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(changed), 1) }
	}
	becomes := func(text string) func([]byte) []byte { return func([]byte) []byte { return []byte(text) } }
	// first changes the first line of the first page of a chain: its genesis.
	first := func(old, changed string) func([]byte) []byte {
		return func(b []byte) []byte {
			line, rest, _ := bytes.Cut(b, []byte("\n"))
			if !bytes.Contains(line, []byte(`"kind":1`)) {
				return b
			}
			return slices.Concat(bytes.Replace(line, []byte(old), []byte(changed), 1), []byte("\n"), rest)
		}
	}
	stranger := newLedger()
	stranger.Signers = []ledgertest.Key{ledgertest.NewKey(ledgertest.Origin, 9)}
	stranger.Chains[0].Leaves[30].Body = ledgertest.Body(99)
	stranger.Chains[0].Reseal(30)
	stranger.Rebuild()
	older := newLedger()
	older.Epoch()
	olderProof := logProof(t, older, 6)

	for _, tc := range []struct {
		name   string
		ledger *ledgertest.Ledger // nil: newLedger
		path   string
		do     func([]byte) []byte
		want   ledger.Verdict // empty: undecided
		also   string         // part of what is said
	}{
		{"chains are no JSON", nil, "/ledger/chains", becomes("x"), "", "GET /ledger/chains: answer"},
		{"another form of the log proof", nil, "/ledger/chains", replace("tlog-proof@v1", "tlog-proof@v2"), ledger.InvalidProof, "log proof"},
		{"a checkpoint in another form", nil, "/ledger/chains", replace(`\n7\n`, `\n07\n`), ledger.InvalidProof, "log proof"},
		{"a key change that is none", nil, "/ledger/chains", replace(`\"type\":\"key\"`, `\"type\":\"kex\"`), ledger.InvalidProof, "key change"},
		{"1001 key changes", nil, "/ledger/chains", encode(func(a *answers) { a.Data.Keys = slices.Repeat(a.Data.Keys[:1], 1001) }), "", "1001 key changes, at most"},
		{"an epoch that is a key change", nil, "/ledger/chains", encode(func(a *answers) {
			a.Data.Epoch, a.Data.LogProof = a.Data.Keys[1].Entry, logProof(t, newLedger(), 4)
		}), ledger.InvalidProof, "it is not the epoch at index 4"},
		{"an epoch that is not in the root log, with all that follows from it", rewritten(), "/ledger/chains", encode(func(a *answers) {
			a.Data.Epoch, a.Data.Chains = other.Data.Epoch, other.Data.Chains
		}), ledger.InvalidProof, "epoch: "},
		{"the epoch before", older, "/ledger/chains", encode(func(a *answers) {
			_, now := ask(t, older)
			a.Data.Keys, a.Data.LogProof = now.Data.Keys, olderProof
		}), ledger.Stale, "the chains are proven by epoch 6, the checkpoint covers epoch 7"},
		{"another checkpoint of the size", nil, "/ledger/checkpoint", becomes(string(rewritten().Newest())), ledger.Forked, "GET /ledger/checkpoint of size 7"},
		{"another checkpoint of the size, of a stranger", nil, "/ledger/checkpoint", becomes(string(stranger.Newest())), ledger.WrongKey, "checkpoint of size 7"},
		{"another checkpoint, of a size before", nil, "/ledger/checkpoint", becomes(string(rewritten().Checkpoints[4])), ledger.Forked, "GET /ledger/checkpoint of size 4"},
		{"no lanes", func() *ledgertest.Ledger {
			l := ledgertest.New()
			l.Events(l.Chain(1, 1, 0, 1), 10)
			l.Epoch()
			return l
		}(), "/ledger/chains", replace(`"lanes":1`, `"lanes":0`), ledger.CrossChain, "lane 0 of 0"},
		{"other lanes", nil, "/ledger/chains", replace(`"lanes":2`, `"lanes":3`), ledger.CrossChain, "with 3 lanes"},
		{"a line of another workspace", nil, "/ledger/leaves", first(`"workspace":"aa01`, `"workspace":"aa02`), ledger.CrossChain, "it is of workspace aa02"},
		{"a line of another incarnation", nil, "/ledger/leaves", first(`"incarnation":"bb01`, `"incarnation":"bb02`), ledger.CrossChain, "incarnation bb02"},
		{"a line of another lane", nil, "/ledger/leaves", first(`"lane":0`, `"lane":7`), ledger.CrossChain, "lane 7"},
		{"a genesis of other lanes", nil, "/ledger/leaves", first(`"lanes":2`, `"lanes":3`), ledger.Modified, "it states 3 lanes"},
		{"a genesis of another root", nil, "/ledger/leaves", func(b []byte) []byte {
			at := bytes.Index(b, []byte(`"body_root":"`))
			return first(string(b[at:at+20]), `"body_root":"0000000`)(b)
		}, ledger.Modified, "the chain's genesis has"},
		{"a node that is none", nil, "/ledger/leaves", first(`"lane":0`, `"lane":0,"node":"zz"`), ledger.Modified, "node: "},
		{"a node of half a hash", nil, "/ledger/leaves", first(`"lane":0`, `"lane":0,"node":"00"`), ledger.Modified, "node: "},
		{"a body and a disclosure", nil, "/ledger/leaves", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"body":"{`), []byte(`"disclosure":[],"body":"{`), 1)
		}, ledger.Modified, "it has a body and a disclosure"},
		{"a line that is no JSON", nil, "/ledger/leaves", func(b []byte) []byte { return append([]byte("x\n"), b...) }, "", "a line of leaves"},
		{"a line after the last", nil, "/ledger/leaves", func(b []byte) []byte { return append(b, "{\"next\":1,\"more\":false}\n"...) }, "", "a line follows the last one"},
		{"more lines than were asked for", nil, "/ledger/leaves", func(b []byte) []byte {
			line, _, _ := bytes.Cut(b, []byte("\n"))
			return slices.Concat(bytes.Repeat(append(slices.Clone(line), '\n'), 40), b)
		}, "", "more than 37 leaves"},
		{"a page that goes back", nil, "/ledger/leaves", func(b []byte) []byte {
			at := bytes.LastIndex(b, []byte(`{"next"`))
			return append(b[:at:at], "{\"next\":0,\"more\":true}\n"...)
		}, "", "the next page would begin at 0"},
		{"a tile that is too short", nil, "/ledger/tile/0/", func(b []byte) []byte { return b[:len(b)-1] }, "", "tile 0/0 of width 7 has 223 bytes"},
		{"entries that end in a length", nil, "/ledger/tile/entries/", func(b []byte) []byte { return append(b, 0) }, "", "entry bundle 0 is cut off"},
		{"entries that end in an entry", nil, "/ledger/tile/entries/", func(b []byte) []byte { return b[:len(b)-1] }, "", "entry bundle 0 is cut off"},
		{"an entry too many", nil, "/ledger/tile/entries/", func(b []byte) []byte { return append(b, 0, 1, 'x') }, "", "has 8 entries"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := tc.ledger
			if l == nil {
				l = newLedger()
			}
			a := newAPI(t, l)
			changed := false
			a.Spoil = func(path string, answer []byte) []byte {
				if !strings.HasPrefix(path, tc.path) {
					return answer
				}
				now := tc.do(slices.Clone(answer))
				changed = changed || !bytes.Equal(now, answer)
				return now
			}
			r := a.verify(a.config())
			if !changed {
				t.Fatal("no answer was changed")
			}
			if tc.want == "" {
				if r.Exit != verify.ExitUndecided || !strings.Contains(strings.Join(r.Undecided, "\n"), tc.also) {
					t.Errorf("want %q: %s", tc.also, r.Text())
				}
				return
			}
			if r.Exit == verify.ExitVerified || !slices.ContainsFunc(r.Faults, func(f *ledger.Fault) bool { return f.Verdict == tc.want && strings.Contains(f.Detail, tc.also) }) {
				t.Errorf("want %s with %q: %s", tc.want, tc.also, r.Text())
			}
			if (tc.want == ledger.Forked) != (len(r.Evidence) > 0) {
				t.Errorf("evidence: %v", r.Evidence)
			}
		})
	}
	if bytes.Equal(text, forged) || honest.Data.Epoch == other.Data.Epoch {
		t.Error("the forged answer is the honest one")
	}
}

// TestRootLogRises: what the holder of the key can sign, and nobody who looks at roots alone would see.
func TestRootLogRises(t *testing.T) {
	for _, tc := range []struct {
		name  string
		alter func(e *ledger.Entry)
		want  ledger.Verdict
		also  string
	}{
		{"fewer chains", func(e *ledger.Entry) { e.Epoch.Chains-- }, ledger.RolledBack, "covers less"},
		{"a position before", func(e *ledger.Entry) { e.Epoch.Positions[1] = 0 }, ledger.RolledBack, "covers less"},
		{"fewer partitions", func(e *ledger.Entry) { e.Epoch.Positions = e.Epoch.Positions[:3] }, ledger.RolledBack, "covers less"},
		{"a time before", func(e *ledger.Entry) { e.Time = e.Time.Add(-time.Hour) }, ledger.TimeAnomaly, "before that of the entry before it"},
		{"another index", func(e *ledger.Entry) { e.Index++ }, ledger.Reordered, "the entry states index 3"},
		{"another previous hash", func(e *ledger.Entry) { e.Previous[0] ^= 1 }, ledger.Modified, "the entry states previous"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLedger()
			l.Alter = func(e *ledger.Entry) {
				if e.Index == 2 {
					tc.alter(e)
				}
			}
			l.Rebuild()
			a := newAPI(t, l)
			r := a.verify(a.config())
			exit := verify.ExitTampered
			if tc.want == ledger.TimeAnomaly { // a clock that was set back makes that too
				exit = verify.ExitUndecided
			}
			if r.Exit != exit || !slices.ContainsFunc(r.Faults, func(f *ledger.Fault) bool {
				return f.Verdict == tc.want && strings.Contains(f.Detail, tc.also) && *f.Sequence == 2
			}) {
				t.Errorf("want %s: %s", tc.want, r.Text())
			}
		})
	}
}

// The key changes that a source names count no more than those that the root log states.
func TestKeyChangeThatDoesNotHold(t *testing.T) {
	l := newLedger()
	l.Signers = []ledgertest.Key{ledgertest.NewKey(ledgertest.Origin, 1)}
	l.Alter = func(e *ledger.Entry) {
		if e.Index != 4 {
			return
		}
		signed, err := note.Sign(&note.Note{Text: ledger.KeyChangeText(ledgertest.Origin, 4, e.Key.VerifierKey)}, ledgertest.NewKey(ledgertest.Origin, 9))
		if err != nil {
			t.Fatal(err)
		}
		e.Key.Signature = string(signed)
	}
	l.Rebuild()
	a := newAPI(t, l)
	a.Spoil = func(path string, answer []byte) []byte {
		if path != "/ledger/chains" {
			return answer
		}
		_, named := ask(t, l)
		named.Data.Keys = named.Data.Keys[:1]
		b, err := json.Marshal(named)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	r := a.verify(a.config())
	if r.Exit != verify.ExitTampered || len(r.Faults) != 1 || r.Faults[0].Verdict != ledger.InvalidProof || *r.Faults[0].Sequence != 4 {
		t.Error(r.Text())
	}
}

// The root log is consistent, and not the one that was signed.
func TestRootLogUnderAnotherCheckpoint(t *testing.T) {
	a := newAPI(t, newLedger())
	other := &ledgertest.Server{Ledger: rewritten(), Workspace: ledgertest.Workspace(1)}
	a.Spoil = func(path string, answer []byte) []byte {
		if !strings.HasPrefix(path, "/ledger/tile/") {
			return answer
		}
		w := httptest.NewRecorder()
		other.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1"+path, http.NoBody))
		return w.Body.Bytes()
	}
	r := a.verify(a.config())
	if r.Exit != verify.ExitTampered || len(r.Faults) == 0 || short(r.Faults[0]) != "MODIFIED sequence 0..6" {
		t.Error(r.Text())
	}
}

// The proof of a fork that cannot be kept is said to be lost.
func TestEvidenceThatCannotBeWritten(t *testing.T) {
	a := newAPI(t, newLedger())
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	if r := a.verify(cfg); r.Exit != verify.ExitVerified {
		t.Fatal(r.Text())
	}
	a.Ledger = rewritten()
	cfg.EvidenceDir = cfg.MemoryFile // a file, and no folder
	if r := a.verify(cfg); r.Exit != verify.ExitTampered || len(r.Undecided) != 1 || !strings.Contains(r.Undecided[0], "could not be written") {
		t.Error(r.Text())
	}
}

// Nor is that of a forked chain.
func TestChainEvidenceThatCannotBeWritten(t *testing.T) {
	l := newLedger()
	c := l.Chains[0]
	c.Leaves[30].Body = ledgertest.Body(99)
	c.Reseal(30)
	l.Events(c, 5)
	l.Epoch()
	a := newAPI(t, l)
	cfg := a.config()
	r := a.verify(cfg)
	if r.Exit != verify.ExitTampered || len(r.Evidence) != 1 {
		t.Fatal(r.Text())
	}
	cfg.EvidenceDir = r.Evidence[0] // a file, and no folder
	if r := a.verify(cfg); r.Exit != verify.ExitTampered || len(r.Evidence) != 0 || !strings.Contains(strings.Join(r.Undecided, "\n"), "could not be written") {
		t.Error(r.Text())
	}
}

// An API that says nothing leaves everything open.
func TestLedgerWithoutAnswers(t *testing.T) {
	for _, path := range []string{"/ledger/checkpoint", "/ledger/chains"} {
		s := &ledgertest.Server{Ledger: newLedger(), Workspace: ledgertest.Workspace(1)}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, path) {
				http.NotFound(w, r)
				return
			}
			s.ServeHTTP(w, r)
		}))
		a := &api{s, t, server.URL}
		if r := a.verify(a.config()); r.Exit != verify.ExitUndecided || len(r.Undecided) != 1 || !strings.Contains(r.Undecided[0], path) {
			t.Error(r.Text())
		}
		server.Close()
	}
}

// What cannot be worked with is said before anything is asked for.
func TestUsage(t *testing.T) {
	a := newAPI(t, newLedger())
	good := a.config()
	bad, broken := good, good
	bad.Trust = nil
	broken.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	if err := os.WriteFile(broken.MemoryFile, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, ledger.MaxBundleBytes+1); err != nil {
		t.Fatal(err)
	}
	for name, run := range map[string]func() (*verify.Report, error){
		"event, settings": func() (*verify.Report, error) { return verify.Event(bad, large) },
		"event, memory":   func() (*verify.Report, error) { return verify.Event(broken, large) },
		"event, no file":  func() (*verify.Report, error) { return verify.Event(good, large+"x") },
		"event, large":    func() (*verify.Report, error) { return verify.Event(good, large) },
		"ledger, settings": func() (*verify.Report, error) {
			return verify.Ledger(t.Context(), bad, verify.API{URL: a.url, Key: "k"})
		},
		"ledger, API": func() (*verify.Report, error) { return verify.Ledger(t.Context(), good, verify.API{URL: a.url}) },
		"ledger, memory": func() (*verify.Report, error) {
			return verify.Ledger(t.Context(), broken, verify.API{URL: a.url, Key: "k"})
		},
		"clickhouse, settings":   func() (*verify.Report, error) { return verify.ClickHouse(t.Context(), bad, verify.Tables{}) },
		"clickhouse, memory":     func() (*verify.Report, error) { return verify.ClickHouse(t.Context(), broken, verify.Tables{}) },
		"clickhouse, no address": func() (*verify.Report, error) { return verify.ClickHouse(t.Context(), good, verify.Tables{}) },
	} {
		r, err := run()
		want := map[string]string{"settings": "trust file", "memory": "memory", "large": "it has more than", "no file": "no such file", "API": "API key"}
		_, kind, _ := strings.Cut(name, ", ")
		if failed := verify.Failed(err); failed.Exit != verify.ExitUsage || failed.Error == "" {
			t.Errorf("%s: exit code %d: %s", name, failed.Exit, failed.Error)
		}
		if r != nil || !errors.Is(err, verify.ErrUsage) || !strings.Contains(fmt.Sprint(err), want[kind]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Times alone prove no tampering: a notary with a slow clock dates its epochs before their leaves. They hide none either.
func TestSlowClock(t *testing.T) {
	slow := func() *ledgertest.Ledger {
		l := newLedger()
		l.Alter = func(e *ledger.Entry) { e.Time = e.Time.Add(-10 * time.Minute) }
		l.Rebuild()
		return l
	}
	check := func(name string, r *verify.Report, exit int, verdicts ...ledger.Verdict) {
		t.Helper()
		for _, v := range verdicts {
			if r.Found[v] == 0 {
				t.Errorf("%s: no %s", name, v)
			}
		}
		if r.Exit != exit || len(r.Found) != len(verdicts) {
			t.Errorf("%s: exit code %d, want %d: %s", name, r.Exit, exit, r.Text())
		}
	}
	l := slow()
	_, event, err := proofOf(t, l, uint64(len(l.Chains[0].Leaves))-1, nil)
	if err != nil {
		t.Fatal(err)
	}
	check("event", event, verify.ExitUndecided, ledger.TimeAnomaly)
	s := newTables(t, l)
	cfg := s.config()
	cfg.MaxAge = 0
	check("clickhouse", s.verify(cfg), verify.ExitUndecided, ledger.TimeAnomaly)
	s.exec("ALTER TABLE events UPDATE actor_id = 'mallory' WHERE sequence = 30")
	check("clickhouse, tampered", s.verify(cfg), verify.ExitTampered, ledger.TimeAnomaly, ledger.ColumnMismatch)

	a := newAPI(t, l)
	cfg = a.config()
	cfg.MaxAge, cfg.MemoryFile = 0, filepath.Join(t.TempDir(), "memory.json")
	check("ledger", a.verify(cfg), verify.ExitUndecided, ledger.TimeAnomaly)
	// It is remembered all the same; and what comes after that is looked at.
	l.Alter = func(e *ledger.Entry) { e.Time = e.Time.Add(-time.Hour) }
	l.Epoch()
	cfg.Now = l.Now()
	r := a.verify(cfg)
	check("ledger, once more", r, verify.ExitUndecided, ledger.TimeAnomaly)
	if !slices.ContainsFunc(r.Faults, func(f *ledger.Fault) bool { return strings.Contains(f.Detail, "before that of the entry before it") }) {
		t.Error(r.Text())
	}
	l.Chains[0].Leaves[30].Body = ledgertest.Body(99)
	check("ledger, tampered", a.verify(cfg), verify.ExitTampered, ledger.TimeAnomaly, ledger.Modified)
}

// A time in the root log explains no other root: that the checkpoint states another is said beside it.
func TestTimeHidesNoOtherRoot(t *testing.T) {
	l := newLedger()
	l.Alter = func(e *ledger.Entry) {
		if e.Index == 2 {
			e.Time = e.Time.Add(-15 * time.Second)
		}
	}
	l.Rebuild()
	l.Checkpoints[7] = newLedger().Checkpoints[7]
	s := newTables(t, l)
	r := s.verify(s.config())
	if r.Exit != verify.ExitTampered || r.Found[ledger.TimeAnomaly] != 1 || !strings.Contains(r.Text(), "its entries give root") {
		t.Error(r.Text())
	}
}
