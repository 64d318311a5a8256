package verify_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/internal/ledgertest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// TestLedgerOlderEpochs: what the API can answer of an older epoch that is no proof of it.
func TestLedgerOlderEpochs(t *testing.T) {
	const older = "/ledger/chains?epoch=2&checkpoint=7"
	// data changes members of the answer.
	data := func(do func(map[string]any)) func([]byte) []byte {
		return func(b []byte) []byte {
			var answer struct {
				Data map[string]any `json:"data"`
			}
			d := json.NewDecoder(bytes.NewReader(b))
			d.UseNumber()
			if err := d.Decode(&answer); err != nil {
				t.Fatal(err)
			}
			do(answer.Data)
			b, _ = json.Marshal(answer)
			return b
		}
	}
	chain := func(d map[string]any, i int) map[string]any { return d["chains"].([]any)[i].(map[string]any) }
	for name, tc := range map[string]struct {
		do   func([]byte) []byte
		exit int
		want string // in the report
	}{
		"nothing":        {func(b []byte) []byte { return b }, verify.ExitVerified, "VERIFIED (tamper-detecting)"},
		"not JSON":       {func([]byte) []byte { return []byte("{") }, verify.ExitUndecided, "epoch 2: what it states is not shown"},
		"no log proof":   {data(func(d map[string]any) { d["log_proof"] = "" }), verify.ExitUndecided, "epoch 2: what it states is not shown: GET " + older},
		"another index":  {func(b []byte) []byte { return bytes.Replace(b, []byte(`index 2\n`), []byte(`index 3\n`), 1) }, verify.ExitUndecided, "it is of epoch 3"},
		"another entry":  {func(b []byte) []byte { return bytes.Replace(b, []byte(`\"chains\":3`), []byte(`\"chains\":4`), 1) }, verify.ExitTampered, "epoch: "},
		"another log":    {func(b []byte) []byte { return bytes.Replace(b, []byte(`ledger\n7\n`), []byte(`ledges\n7\n`), 1) }, verify.ExitUndecided, `it is by checkpoint "example.com/ledges"`},
		"another size":   {func(b []byte) []byte { return bytes.Replace(b, []byte(`ledger\n7\n`), []byte(`ledger\n8\n`), 1) }, verify.ExitUndecided, "of size 8"},
		"another root":   {data(func(d map[string]any) { chain(d, 0)["root"] = strings.Repeat("ab", 32) }), verify.ExitTampered, "in the map of epoch 2"},
		"a smaller size": {data(func(d map[string]any) { chain(d, 0)["size"] = 40 }), verify.ExitTampered, "in the map of epoch 2"},
		"a chain hidden": {
			data(func(d map[string]any) { d["chains"] = d["chains"].([]any)[1:] }), verify.ExitUndecided, "epoch 2: the API shows no chain of lanes [0] of 2",
		},
		"a chain called absent": {data(func(d map[string]any) {
			c := chain(d, 0)
			d["chains"] = d["chains"].([]any)[1:]
			d["absent"] = []any{map[string]any{"lane": 0, "chain": c["chain"], "map": c["map"]}}
		}), verify.ExitTampered, "does not have it is not proven"},
		"fewer lanes":  {data(func(d map[string]any) { d["lanes"] = 1 }), verify.ExitTampered, "CROSS-CHAIN"},
		"no lanes":     {data(func(d map[string]any) { delete(d, "lanes") }), verify.ExitUndecided, "epoch 2: 0 lanes"},
		"endless ones": {data(func(d map[string]any) { d["lanes"] = 4_000_000_000; d["chains"] = []any{} }), verify.ExitUndecided, "epoch 2: 4000000000 lanes"},
		"no signature": {func(b []byte) []byte {
			return bytes.Replace(b, []byte(`— example.com/ledger `), []byte(`— example.com/ledger AAAA`), 1)
		}, verify.ExitVerified, "VERIFIED"},
		"another incarnation": {
			data(func(d map[string]any) { d["incarnation"] = strings.Repeat("cd", 16) }), verify.ExitTampered, "CROSS-CHAIN",
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, newLedger())
			a.Spoil = func(asked string, answer []byte) []byte {
				if asked == older {
					return tc.do(answer)
				}
				return answer
			}
			r := a.verify(a.config())
			if r.Exit != tc.exit || !strings.Contains(r.Text(), tc.want) {
				t.Errorf("want %d and %q: %s", tc.exit, tc.want, r.Text())
			}
		})
	}
}

// What is refused is said, and not asked for without end.
func TestLedgerOlderEpochsRefused(t *testing.T) {
	l := newLedger()
	for range 10 {
		l.Epoch()
	}
	a := newAPI(t, l)
	a.Refuse = func(uri string) bool { return strings.Contains(uri, "?epoch=") }
	r := a.verify(a.config())
	if r.Exit != verify.ExitUndecided || len(r.Undecided) != 4 || !strings.Contains(strings.Join(r.Undecided, " "), "11 older epochs") {
		t.Error(r.Text())
	}
	if want := "14 of 15 epochs"; !strings.Contains(strings.Join(r.NotChecked, " "), want) {
		t.Errorf("want %q: %s", want, r.Text())
	}
}

// A long log is not asked for whole, and every run asks for others.
func TestLedgerEpochsDrawn(t *testing.T) {
	l := newLedger()
	for range 400 {
		l.Events(l.Chains[0], 1)
		l.Epoch()
	}
	a := newAPI(t, l)
	cfg := a.config()
	cfg.Epochs = 9
	runs := map[string]bool{}
	for range 2 {
		var asked []string
		a.Refuse = func(uri string) bool {
			if strings.Contains(uri, "?epoch=") {
				asked = append(asked, uri)
			}
			return false
		}
		r := a.verify(cfg)
		if r.Exit != verify.ExitVerified || r.Epochs != 9 || len(asked) != 8 || !strings.Contains(asked[0], "epoch=1&") {
			t.Errorf("%v: %s", asked, r.Text())
		}
		if want := "396 of 405 epochs"; !strings.Contains(strings.Join(r.NotChecked, " "), want) {
			t.Errorf("want %q: %s", want, r.Text())
		}
		runs[strings.Join(asked, " ")] = true
	}
	if len(runs) != 2 {
		t.Errorf("twice the same epochs: %v", runs)
	}
}

// A workspace without events has no chain, which is proven, and is no verification.
func TestLedgerWithoutChains(t *testing.T) {
	a := newAPI(t, newLedger())
	a.Workspace, a.Incarnation, a.Lanes = ledgertest.Workspace(9), [16]byte{9}, 3
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	r := a.verify(cfg)
	if r.Exit != verify.ExitUndecided || len(r.Undecided) != 1 || !strings.Contains(r.Undecided[0], "none of its 3 lanes has a chain") || len(r.Faults) > 0 {
		t.Error(r.Text())
	}
	// Nobody has signed which workspace it is: that is not remembered.
	a.Incarnation = [16]byte{10}
	if r := a.verify(cfg); r.Exit != verify.ExitUndecided || len(r.Faults) > 0 {
		t.Error(r.Text())
	}
}

// One answer about a workspace that somebody has made up does not stand against the next ones.
func TestLedgerInventedWorkspace(t *testing.T) {
	a := newAPI(t, newLedger())
	cfg := a.config()
	cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
	workspace := a.Workspace
	a.Workspace, a.Incarnation, a.Lanes = [16]byte{1, 2, 3, 4}, [16]byte{9}, 1
	if r := a.verify(cfg); r.Exit != verify.ExitUndecided || len(r.Faults) > 0 {
		t.Error(r.Text())
	}
	a.Workspace, a.Incarnation, a.Lanes = workspace, [16]byte{}, 0
	if r := a.verify(cfg); r.Exit != verify.ExitVerified {
		t.Error(r.Text())
	}
	// A workspace whose chains were verified is remembered. Neither a name of another one nor an incarnation that no signed map has convicts.
	a.Incarnation, a.Lanes, a.Hidden = [16]byte{9}, 1, map[ledger.ChainID]bool{a.Ledger.Chains[0].ID: true, a.Ledger.Chains[1].ID: true}
	for _, key := range []string{ledgertest.APIKey, "imk_another"} {
		a.Key = key
		r, err := verify.Ledger(t.Context(), cfg, verify.API{URL: a.url, Key: key})
		if err != nil {
			t.Fatal(err)
		}
		if r.Exit != verify.ExitUndecided || len(r.Faults) > 0 || !strings.Contains(r.Text(), "or the answer is to another API key") {
			t.Error(r.Text())
		}
	}
	a.Key = ledgertest.APIKey
	a.Workspace, a.Incarnation, a.Lanes, a.Hidden = ledgertest.Workspace(2), [16]byte{}, 0, nil
	for range 2 {
		if r := a.verify(cfg); r.Exit != verify.ExitUndecided || len(r.Faults) > 0 || !strings.Contains(r.Text(), "or the answer is to another API key") {
			t.Error(r.Text())
		}
	}
	a.Workspace = workspace
	if r := a.verify(cfg); r.Exit != verify.ExitVerified {
		t.Error(r.Text())
	}
}

// A replica that is behind the one that answered before is no rollback, unless it stays behind.
func TestLedgerLaggingReplica(t *testing.T) {
	for name, tc := range map[string]struct {
		catchesUp bool
		settle    time.Duration
		exit      int
	}{
		"catches up":  {true, time.Minute, verify.ExitVerified},
		"stays there": {false, time.Millisecond, verify.ExitTampered},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, newLedger())
			cfg := a.config()
			cfg.MemoryFile = filepath.Join(t.TempDir(), "memory.json")
			if r := a.verify(cfg); r.Exit != verify.ExitVerified {
				t.Fatal(r.Text())
			}
			newest := a.Ledger.Checkpoints[7]
			delete(a.Ledger.Checkpoints, 7)
			a.Spoil = func(path string, answer []byte) []byte {
				if path == "/ledger/chains" && tc.catchesUp { // after this answer
					a.Ledger.Checkpoints[7] = newest
				}
				return answer
			}
			cfg.Settle = tc.settle
			r := a.verify(cfg)
			said := strings.Contains(r.Text(), "ROLLED BACK: the newest checkpoint has size 6, one of size 7 was accepted before")
			// That an older epoch has fewer leaves convicts nobody: there is no evidence against the chains.
			if r.Exit != tc.exit || said != (tc.exit == verify.ExitTampered) || len(r.Evidence) > 0 {
				t.Error(r.Text())
			}
		})
	}
}

// forkOf returns the evidence of a chain that was written anew.
func forkOf(t *testing.T) (*ledger.ChainFork, *ledger.Trust) {
	t.Helper()
	l := newLedger()
	l.Chains[0].Leaves[30].Body = bytes.Replace(l.Chains[0].Leaves[30].Body, []byte("curl"), []byte("curm"), 1)
	l.Chains[0].Reseal(30)
	l.Events(l.Chains[0], 7)
	l.Epoch()
	a := newAPI(t, l)
	cfg := a.config()
	r := a.verify(cfg)
	if want := []string{fmt.Sprintf("FORKED chain %x sequence 21..40", l.Chains[0].ID)}; !slices.Equal(faults(r), want) || len(r.Evidence) != 1 {
		t.Fatal(r.Text())
	}
	f, _ := readChainFork(t, r.Evidence[0])
	return f, cfg.Trust
}

// Evidence convicts nobody who did nothing.
func TestChainForkConvicts(t *testing.T) {
	f, trusted := forkOf(t)
	now := time.Now()
	if err := f.Verify(trusted, now); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(*ledger.ChainFork){
		"another chain":       func(f *ledger.ChainFork) { f.Lane = 1 },
		"one side twice":      func(f *ledger.ChainFork) { f.Older = f.Newer },
		"the other way round": func(f *ledger.ChainFork) { f.Older, f.Newer = f.Newer, f.Older },
		"another range":       func(f *ledger.ChainFork) { f.Range[0][0] ^= 1 },
		"a hash less":         func(f *ledger.ChainFork) { f.Range = f.Range[1:] },
		"another rest":        func(f *ledger.ChainFork) { f.Rest[0][0] ^= 1 },
		"no rest":             func(f *ledger.ChainFork) { f.Rest = nil },
		"another size":        func(f *ledger.ChainFork) { f.Older.Size++ },
		"another root":        func(f *ledger.ChainFork) { f.Older.Root[0] ^= 1 },
		"no map":              func(f *ledger.ChainFork) { f.Newer.Map = ledger.MapProof{} },
		"no chain":            func(f *ledger.ChainFork) { f.Older.Size = 0 },
		"another epoch":       func(f *ledger.ChainFork) { f.Older.Epoch = f.Newer.Epoch },
		"a key change":        func(f *ledger.ChainFork) { f.Older.Epoch = f.Older.Keys[0].Entry },
		"no log proof":        func(f *ledger.ChainFork) { f.Older.LogProof = "" },
		"no checkpoint": func(f *ledger.ChainFork) {
			f.Older.LogProof = f.Older.LogProof[:strings.Index(f.Older.LogProof, "—")]
		},
		"another key's":        func(f *ledger.ChainFork) { f.Older.Keys = f.Older.Keys[:1] },
		"keys of another log":  func(f *ledger.ChainFork) { f.Older.Keys[0].Path = nil },
		"the older beginning":  func(f *ledger.ChainFork) { f.Range = nil },
		"a chain that is gone": func(f *ledger.ChainFork) { f.Newer.Size = 0 },
	} {
		text, err := f.Encode()
		if err != nil {
			t.Fatal(err)
		}
		changed, err := ledger.ParseChainFork(text)
		if err != nil {
			t.Fatal(err)
		}
		do(changed)
		if err := changed.Verify(trusted, now); err == nil {
			t.Errorf("%s: it convicts", name)
		}
	}
	text, _ := f.Encode()
	for _, bad := range []string{"", "{", `{"format":"immutable/chain-fork/2"}`, strings.Replace(string(text), `"detail"`, `"key"`, 1), strings.Repeat(" ", ledger.MaxChainForkBytes+1)} {
		if _, err := ledger.ParseChainFork([]byte(bad)); err == nil {
			t.Errorf("%.40q is read", bad)
		}
	}
}

// An honest chain gives no evidence, whatever is made of it.
func TestChainForkOfHonestChain(t *testing.T) {
	f, trusted := forkOf(t)
	l := newLedger()
	l.Events(l.Chains[0], 7)
	l.Epoch()
	head := ledger.Head{}
	for i := range l.Chains[0].Leaves[:41] {
		head.AppendHash(l.Chains[0].Leaves[i].Hash)
	}
	f.Older.Root, f.Range = head.Root(), head.Range
	if err := f.Verify(trusted, time.Now()); err == nil {
		t.Error("it convicts")
	}
}

// What is kept of older epochs has a limit, of all of them together: what they were read from has not.
func TestLedgerOlderEpochsAreBounded(t *testing.T) {
	a := newAPI(t, newLedger())
	cfg := a.config()
	a.Spoil = func(asked string, answer []byte) []byte {
		if strings.Contains(asked, "?epoch=") {
			return append(answer, bytes.Repeat([]byte(" "), 40_000)...)
		}
		return answer
	}
	api := verify.API{URL: a.url, Key: ledgertest.APIKey, MaxAnswerBytes: 50_000, MaxOlderBytes: 40_000}
	if r, err := verify.Ledger(t.Context(), cfg, api); err != nil || r.Exit != verify.ExitVerified || r.Epochs != 5 {
		t.Errorf("%v, %s", err, r.Text())
	}
	api.MaxOlderBytes = 8_000
	r, err := verify.Ledger(t.Context(), cfg, api)
	if err != nil || r.Exit != verify.ExitUndecided || len(r.Undecided) != 1 || r.Epochs >= 5 ||
		!strings.Contains(r.Undecided[0], fmt.Sprintf("%d older epochs that were to be compared with are not", 5-r.Epochs)) {
		t.Errorf("%v, %s", err, r.Text())
	}
}

// As many epochs as there may be, of 24 lanes.
func TestLedgerManyEpochs(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	l := ledgertest.New()
	for lane := range uint32(24) {
		l.Events(l.Chain(1, 1, lane, 24), 1)
	}
	for i := range byte(60) {
		l.Events(l.Chain(i+2, 1, 0, 1), 1)
	}
	for range 4096 {
		l.Epoch()
	}
	a := newAPI(t, l)
	cfg := a.config()
	cfg.Epochs = 4096
	if r := a.verify(cfg); r.Exit != verify.ExitVerified || r.Epochs < 4000 {
		t.Error(r.Text())
	}
}

// A chain that is the same in several epochs is kept once, with the proof of the epoch that had it first: that one convicts, of a fall and of a fork.
func TestEvidenceOfAChainThatRested(t *testing.T) {
	for name, do := range map[string]func(l *ledgertest.Ledger, c *ledgertest.Chain){
		"a fall": func(_ *ledgertest.Ledger, c *ledgertest.Chain) { c.Leaves = c.Leaves[:60] },
		"a fork": func(l *ledgertest.Ledger, c *ledgertest.Chain) {
			c.Leaves[30].Body = ledgertest.Body(99)
			c.Reseal(30)
			l.Events(c, 7)
		},
	} {
		l := newLedger()
		for range 5 {
			l.Events(l.Chains[2], 1) // of another workspace
			l.Epoch()
		}
		do(l, l.Chains[0])
		for range 3 {
			l.Epoch()
		}
		a := newAPI(t, l)
		cfg := a.config()
		r := a.verify(cfg)
		if r.Exit != verify.ExitTampered || len(r.Evidence) != 1 {
			t.Errorf("%s: %s", name, r.Text())
			continue
		}
		f, _ := readChainFork(t, r.Evidence[0])
		if err := f.Verify(cfg.Trust, cfg.Now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParseChainFork: what is read is written the same, and checking it ends.
func FuzzParseChainFork(f *testing.F) {
	f.Add([]byte(`{"format":"immutable/chain-fork/1","detail":"","found_at":"2026-11-24T10:00:00Z","chain":"00000000000000000000000000000000"}`))
	f.Add([]byte(`{"format":"immutable/chain-fork/1","older":{"size":18446744073709551615,"map":{"siblings":null}},"range":["00"]}`))
	trusted := trust(f, ledgertest.NewKey(ledgertest.Origin, 1).Verifier())
	f.Fuzz(func(t *testing.T, text []byte) {
		fork, err := ledger.ParseChainFork(text)
		if err != nil {
			return
		}
		if err := fork.Verify(trusted, ledgertest.Start); err == nil {
			t.Errorf("%s convicts", text)
		}
		encoded, err := fork.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ledger.ParseChainFork(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if twice, _ := again.Encode(); !bytes.Equal(encoded, twice) {
			t.Errorf("%s, then %s", encoded, twice)
		}
	})
}
