package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/verify"
)

// manyEpochs has `up` make epochs so often that nobody has to wait for one.
const manyEpochs = "IMMUTABLE_EPOCH_INTERVAL=100ms"

// auditor runs `immutable verify` on a stack that nobody tampers with. It believes the log's key and what it has verified before, and
// whatever has happened to the installation, it must not accuse it, nor leave anything open.
type auditor struct {
	*stack
	dir string // has the trust file, the memory and any evidence
}

// audited returns an auditor once the ledger has a key.
func (s *stack) audited(t *testing.T) *auditor {
	t.Helper()
	a := &auditor{s, t.TempDir()}
	if err := os.WriteFile(a.trust(), s.read(t, "/api/v1/ledger/key"), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *auditor) trust() string { return filepath.Join(a.dir, "trust") }

// tables verifies the tables with the topics, once a signed epoch covers all that is in them, and returns the events that were redacted. There may be
// more leaves than a check has seen: requests that a load has given up may still be carried out.
func (a *auditor) tables(t *testing.T, leaves int) map[string]int {
	t.Helper()
	a.covered(t)
	e := a.where(t)
	r := a.run(t, "clickhouse", "--dsn="+e.dsn, "--kafka="+strings.Join(e.brokers, ","), "--topic-prefix="+e.prefix, "--epochs=4096")
	if r.Leaves < uint64(leaves) {
		t.Errorf("verify clickhouse: %d leaves, want %d or more", r.Leaves, leaves)
	}
	return redactedIn(t, r)
}

// api verifies what the API serves, once it knows a signed epoch that covers all of it, and returns the events that were redacted.
func (a *auditor) api(t *testing.T, leaves int) map[string]int {
	t.Helper()
	eventually(t, startLimit, func() error {
		var v struct {
			Data struct {
				Valid     bool
				Uncovered int `json:"leaves_uncovered"`
			}
		}
		if err := a.tryGet(t.Context(), "/verify", nil, &v); err != nil {
			return err
		}
		if !v.Data.Valid || v.Data.Uncovered > 0 {
			return fmt.Errorf("GET /verify: %+v", v.Data)
		}
		return nil
	})
	addr, err := a.address(queryHost)
	if err != nil {
		t.Fatal(err)
	}
	r := a.run(t, "ledger", "--url=http://"+addr, "--api-key="+a.key, "--epochs=4096")
	if r.Leaves < uint64(leaves) {
		t.Errorf("verify ledger: %d leaves, want %d or more", r.Leaves, leaves)
	}
	return redactedIn(t, r)
}

// proof verifies the proof of one event, and returns its text and what was found.
func (a *auditor) proof(t *testing.T, id string) (text []byte, r *verify.Report) {
	t.Helper()
	file := filepath.Join(a.dir, id+".proof.json")
	text = a.read(t, "/api/v1/events/"+id+"/proof")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r = a.run(t, "event", file)
	if r.Event == nil || r.Event.ID != id {
		t.Fatalf("verify event %s: proves %+v", id, r.Event)
	}
	return text, r
}

// run runs a subcommand, which must verify all that it ever does, and find nothing but REDACTED.
func (a *auditor) run(t *testing.T, what string, args ...string) *verify.Report {
	t.Helper()
	began := time.Now()
	text := a.cli(t, "verify", what, args, "--json", "--trust="+a.trust(), "--memory="+filepath.Join(a.dir, "memory.json"), "--evidence="+a.dir)
	r := new(verify.Report)
	if err := json.Unmarshal([]byte(text), r); err != nil {
		t.Fatalf("verify %s: %v\n%s", what, err, text)
	}
	t.Logf("verify %s: %d leaves, %d epochs, in %s", what, r.Leaves, r.Epochs, time.Since(began).Round(time.Millisecond))
	for verdict, n := range r.Found {
		if verdict != ledger.Redacted && n > 0 {
			t.Errorf("verify %s: %s, %d times", what, verdict, n)
		}
	}
	if !r.Verified || r.Level != verify.TamperDetecting || len(r.Undecided) > 0 || slices.ContainsFunc(r.NotChecked, mightBeChecked) {
		t.Errorf("verify %s: %s", what, text)
	}
	return r
}

// mightBeChecked says whether a line of what was not checked is about something else than what the same command never checks.
func mightBeChecked(line string) bool {
	for _, never := range []string{
		"the column part of events and leaves", "other workspaces, and whether the store's own columns", "whether an event is in two chains",
		"other events of the chain", "whether the checkpoint of size",
	} {
		if strings.HasPrefix(line, never) {
			return false
		}
	}
	return true
}

// redactedIn counts the findings of each event that was redacted.
func redactedIn(t *testing.T, r *verify.Report) map[string]int {
	t.Helper()
	ids := map[string]int{}
	for _, f := range r.Faults {
		if f.Chain == nil || f.Sequence == nil {
			t.Errorf("found without a place: %s", f)
		}
		ids[f.EventID]++
	}
	return ids
}

// covered waits until a signed epoch covers every leaf that the tables have.
func (s *stack) covered(t *testing.T) {
	t.Helper()
	conn := s.clickhouse(t)
	defer conn.Close()
	eventually(t, startLimit, func() error {
		var text string
		err := conn.QueryRow(t.Context(), `SELECT entry FROM root_log WHERE type = 'epoch' AND entry_index < (SELECT max(size) FROM checkpoints)
			ORDER BY entry_index DESC LIMIT 1`).Scan(&text)
		if err != nil {
			return fmt.Errorf("reading the newest epoch: %w", err)
		}
		e, err := ledger.ParseEntry([]byte(text))
		if err != nil {
			return err
		}
		var beyond uint64
		err = conn.QueryRow(t.Context(), "SELECT count() FROM leaves WHERE ledger_offset >= (?)[ledger_partition + 1]", e.Epoch.Positions).Scan(&beyond)
		if err == nil && beyond > 0 {
			err = fmt.Errorf("epoch %d does not cover %d leaves", e.Index, beyond)
		}
		return err
	})
}
