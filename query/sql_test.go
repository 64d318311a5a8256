package query

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"getimmutable.dev/immutable/internal/httpserver"
	"getimmutable.dev/immutable/ledger"
)

// refusal takes an answer to bad input apart.
func refusal(t *testing.T, err error) (status int, message string, details []httpserver.Detail) {
	t.Helper()
	e, ok := errors.AsType[*httpserver.Error](err)
	if !ok {
		t.Fatalf("%v, want an *httpserver.Error", err)
	}
	return e.Status, e.Message, e.Details
}

// written shows a statement with its values.
func (s *statement) written() string {
	var b strings.Builder
	b.WriteString(s.text.String())
	for _, a := range s.args {
		named := a.(driver.NamedValue)
		fmt.Fprintf(&b, "\n-- %s = %v", named.Name, named.Value)
	}
	return b.String() + "\n"
}

func TestStatements(t *testing.T) {
	workspace := [16]byte{0xab, 15: 0xcd}
	request := func(q url.Values) *pageRequest {
		req, err := parsePage(q.Encode())
		if err != nil {
			t.Fatal(err)
		}
		return &req
	}
	everything := values(
		"action", "user", "action", "deployment.*", "action", `100%_\`, "action_category", "c", "actor_id", "a2", "actor_id", "a1",
		"actor_id", "a1", "actor_type", "t", "resource", "r", "resource_id", "api-gateway", "tenant_id", "acme", "session_id", "s",
		"target_type", "invoice", "target_id", "i-1", "metadata[b.c]", "2", "metadata[b.c]", "1", "metadata[a]", "it's",
		"from", "2026-01-01T00:00:00Z", "to", "2026-01-02T00:00:00.000001Z",
		"recorded_from", "2026-01-03T00:00:00Z", "recorded_to", "2026-01-04T00:00:00Z",
	)
	after := &position{at: 1_767_225_600_000_001, id: [16]byte{1, 15: 2}}
	chain := ledger.ChainID{0xc0, 15: 1}
	v7 := [16]byte(uuid.MustParse("019ac0ff-ee00-7000-8000-000000000000"))
	second := limits{timeout: 4 * time.Second}
	oldest := request(values("order", "asc"))
	for name, s := range map[string]*statement{
		"page-first.sql":      pageStatement(workspace, request(nil), nil, 25, second),
		"page-after.sql":      pageStatement(workspace, request(nil), after, 25, second),
		"page-oldest.sql":     pageStatement(workspace, oldest, after, 1000, limits{timeout: 4 * time.Second, bytes: 32 << 20}),
		"page-everything.sql": pageStatement(workspace, request(everything), after, 25, second),
		"page-targets.sql":    pageStatement(workspace, request(values("target_type", "user")), nil, 25, second),
		"count.sql": countStatement(workspace, &request(everything).filter,
			limits{timeout: 250 * time.Millisecond, rows: 500_000}),
		"event.sql":    byID(pageColumns, workspace, [16]byte{1, 15: 2}, span{}).settings(second),
		"event-v7.sql": byID(pageColumns, workspace, v7, recordedIn(v7)[0]).settings(second),
		"leaves.sql":   leavesStatement(workspace, leafKeys{{[16]byte{0xff, 15: 0x27}, 7}, {[16]byte{1}, 6}}, second),
		"level-0.sql": levelStatement(chainTree(workspace, chain), 0,
			[]ledger.Span{{From: 300, To: 301}, {From: 256, To: 288}, {From: 288, To: 300}, {From: 1, To: 2}}, second),
		"level-2.sql": levelStatement(chainTree(workspace, chain), 2, []ledger.Span{{Level: 2, From: 4, To: 6}, {Level: 2, From: 0, To: 1}}, second),
		"spine.sql":   spineStatement(workspace, chain, 10, 138, 266, second),
		"bodies.sql":  bodiesStatement(workspace, chain, 10, 137, 266, second),
		"proof.sql":   byID(provableColumns, workspace, [16]byte{1, 15: 2}, span{}).settings(second),
		"redactions.sql": redactionsStatement(workspace, &provableRow{
			bodyRow: bodyRow{id: [16]byte{1, 15: 2}, sequence: 7}, leaf: leafRow{chain: chain},
		}).settings(second),
		"last-leaf.sql": lastLeafStatement(workspace, chain, second),
		"next-leaf.sql": nextLeafStatement(workspace, chain, 10, 1<<53, second),
		"extents.sql":   extentsStatement(workspace, []ledger.ChainID{chain, {1}}, span{from: &after.at}, second),
	} {
		golden(t, name, []byte(s.written()))
		if !strings.Contains(s.text.String(), " WHERE workspace = unhex({p0:String})\n") {
			t.Errorf("%s is not confined to a workspace", name)
		}
	}
}

// TestPublicStatements: what needs no workspace reads the root log and its checkpoints, and nothing else.
func TestPublicStatements(t *testing.T) {
	second := limits{timeout: 4 * time.Second}
	for name, s := range map[string]*statement{
		"anchors.sql":       anchorsStatement(1<<63, 26, second),
		"log-level-0.sql":   levelStatement(rootLogTree(), 0, []ledger.Span{{To: 256}}, second),
		"log-level-1.sql":   levelStatement(rootLogTree(), 1, []ledger.Span{{Level: 1, From: 2, To: 4}}, second),
		"newest-epoch.sql":  newestEpochStatement(9).settings(second),
		"key-changes.sql":   keyChangesStatement(9).settings(second),
		"log-entries.sql":   entriesStatement(256, 511).settings(second),
		"checkpoint.sql":    newestCheckpointStatement().settings(second),
		"checkpoint-at.sql": checkpointAtStatement(9).settings(second),
	} {
		golden(t, name, []byte(s.written()))
		if text := s.text.String(); !strings.Contains(text, " FROM root_log WHERE true") && !strings.Contains(text, " FROM checkpoints WHERE true") ||
			strings.Contains(text, "leaves") || strings.Contains(text, "events") {
			t.Errorf("%s reads what is not public", name)
		}
	}
}

// TestIndexes: the conditions are ones that the tables' indexes understand.
func TestIndexes(t *testing.T) {
	r := newRig(t)
	r.newLoader(r.tenant).add(`{"actor_id":"a","action":"x","resource":"r","resource_id":"i","session_id":"s","metadata":{"k":"v"}}`)
	for _, c := range []struct{ query, index string }{
		{"actor_id=a", "actor_id_bloom"},
		{"resource_id=a&resource_id=b", "resource_id_bloom"},
		{"session_id=a", "session_id_bloom"},
		{"metadata[k]=a", "metadata_keys_bloom"},
		{"metadata[k]=a&metadata[k]=b", "metadata_values_bloom"},
		{"recorded_from=2026-01-01T00:00:00Z", "recorded_at_minmax"},
	} {
		req, err := parsePage(c.query)
		if err != nil {
			t.Fatal(err)
		}
		s := pageStatement(r.workspace.ID, &req, &position{at: 1}, 25, limits{timeout: time.Second})
		plan := r.explain(s)
		if !strings.Contains(plan, c.index) {
			t.Errorf("%s does not use %s:\n%s", c.query, c.index, plan)
		}
		for _, key := range []string{"workspace in", "occurred_at in"} {
			if !strings.Contains(plan, key) {
				t.Errorf("%s does not use the primary key (%s):\n%s", c.query, key, plan)
			}
		}
	}
	leaves := leavesStatement(r.workspace.ID, leafKeys{{[16]byte{1}, 6}, {[16]byte{1}, 7}}, limits{timeout: time.Second})
	if plan := r.explain(leaves); !strings.Contains(plan, "(chain, sequence) in 2-element set") {
		t.Errorf("leaves are not found by their primary key:\n%s", plan)
	}
}

// TestTreeIndexes: hashes are found by the primary key, wherever they are in a chain.
func TestTreeIndexes(t *testing.T) {
	r := newRig(t)
	c, _ := r.synthetic(r.tenant, 40_000, 1)
	v7 := syntheticID(20_000, syntheticStart+20_000)
	for _, tc := range []struct {
		statement *statement
		says      string
	}{
		{levelStatement(chainTree(r.workspace.ID, c.Chain), 0, []ledger.Span{{From: 20_000, To: 20_128}, {From: 39_000, To: 39_001}}, limits{timeout: time.Second}), "sequence in"},
		{levelStatement(chainTree(r.workspace.ID, c.Chain), 1, []ledger.Span{{Level: 1, From: 2, To: 4}}, limits{timeout: time.Second}), "sequence in 2-element set"},
		{spineStatement(r.workspace.ID, c.Chain, 20_000, 20_128, 266, limits{timeout: time.Second}), "sequence in"},
		{bodiesStatement(r.workspace.ID, c.Chain, 20_000, 20_127, 266, limits{timeout: time.Second}), "sequence_minmax"},
		{byID(provableColumns, r.workspace.ID, [16]byte{1}, span{}).settings(limits{timeout: time.Second}), "id_bloom"},
		{byID(provableColumns, r.workspace.ID, v7, recordedIn(v7)[0]).settings(limits{timeout: time.Second}), "recorded_at_minmax"},
		{redactionsStatement(r.workspace.ID, &provableRow{leaf: leafRow{chain: c.Chain}}).settings(limits{timeout: time.Second}), "metadata_values_bloom"},
	} {
		if plan := r.explain(tc.statement); !strings.Contains(plan, tc.says) {
			t.Errorf("%s\nits plan does not say %q:\n%s", tc.statement.text.String(), tc.says, plan)
		}
	}
}

// TestEventByTime: an event is found by its id though its recorded_at is not the one in the id, where it was looked for first.
func TestEventByTime(t *testing.T) {
	r := newRig(t)
	sent := r.newLoader(r.tenant).add(`{"actor_id":"a","action":"x","resource":"r","resource_id":"i"}`)
	for _, changed := range []string{"", "ALTER TABLE events UPDATE recorded_at = recorded_at + 3600 WHERE true SETTINGS mutations_sync = 1"} {
		if changed != "" {
			r.exec(t.Context(), changed)
		}
		if a := r.get(r.tenant, "/api/v1/events/"+sent[0].id, nil); a.status != http.StatusOK {
			t.Errorf("%q: %d %s", changed, a.status, a.body)
		}
	}
}

func (r *rig) explain(s *statement) string {
	r.tb.Helper()
	rows, err := r.conn.Query(r.tb.Context(), "EXPLAIN indexes = 1 "+s.text.String(), s.args...)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var plan strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			r.tb.Fatal(err)
		}
		plan.WriteString(line + "\n")
	}
	if err := rows.Err(); err != nil {
		r.tb.Fatal(err)
	}
	return plan.String()
}
